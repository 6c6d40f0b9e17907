"""The companion process that runs beside each worker. It does not import Celery."""

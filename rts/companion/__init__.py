"""The process beside each worker. It knows nothing of Celery."""

"""Alerts without Prometheus: what fires, and who is notified. Knows nothing of Celery."""

"""Alerts without Prometheus: what fires, whom it is told to. Knows nothing of Celery."""

"""Celery apps that the tests run in real workers."""

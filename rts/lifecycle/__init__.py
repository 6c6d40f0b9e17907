"""Signal handlers: they turn what Celery says into records, and hand those on."""

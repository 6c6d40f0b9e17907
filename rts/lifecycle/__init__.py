"""Receivers of Celery's signals: they turn these into records and pass the records on."""

"""The Celery app. The one line that rts needs is the last."""

from __future__ import annotations

from celery import Celery

import rts

app = Celery("workers", include=["workers.text", "workers.numeric", "workers.trouble"])
app.config_from_object("celeryconfig")

rts.install(app)

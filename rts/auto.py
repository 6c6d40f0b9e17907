"""``imports = ("rts.auto",)`` in a celeryconfig: rts without touching code.

Celery imports it in workers, beat and Flower, once the app is configured.
"""

from __future__ import annotations

from celery import current_app

from rts.integration import install

install(current_app._get_current_object())

"""``imports = ("rts.auto",)`` in a celeryconfig: rts without touching code.

Celery imports it in workers, beat and Flower, once the app is configured. It installs rts
into the apps of the process whose configuration names it; where none does, as with a plain
``import rts.auto``, into the current app.
"""

from __future__ import annotations

from typing import Any

from celery import current_app
from celery._state import _apps

from rts.integration import install


def _names_this(app: Any) -> bool:
    # app.configured first: app.conf would load a configuration that is still lazy.
    return app.configured and __name__ in {*app.conf.imports, *app.conf.include}


for _app in [app for app in list(_apps) if _names_this(app)] or [
    current_app._get_current_object()
]:
    install(_app)

"""``imports = ("rts.auto",)`` in a celeryconfig: rts without touching code.

Celery imports it in workers, beat and Flower, once the app is configured. A process that only
publishes has to import it by itself; the module that holds the configuration may do so.

It installs rts into each app of the process whose configuration names this module, also into
those that are made later. If none does so far, as with a plain ``import rts.auto``, the current
app gets rts too.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from celery import current_app
from celery._state import _apps, connect_on_app_finalize
from celery.signals import before_task_publish, import_modules
from celery.utils.functional import maybe_list

# Not left to the first publish: Airflow's scheduler publishes from processes that it forks for
# each batch, and each of them would have to load it.
import rts.parts  # noqa: F401  only to be loaded
from rts import health
from rts.forks import copied
from rts.installation import ATTRIBUTE, parts_of, publisher
from rts.lifecycle import receivers
from rts.wiring import install, wire

#: The apps that have published since the import.
_published: WeakSet[Any] = WeakSet()


def _names_this(app: Any) -> bool:
    # Either may be one name, not a list of them.
    return __name__ in (*maybe_list(app.conf.imports), *maybe_list(app.conf.include))


def _uninstalled(app: Any) -> bool:
    return getattr(app, ATTRIBUTE, ...) is None


def _importing(sender: Any, **_: Any) -> None:
    """Runs where Celery imports an app's modules: this one may have been imported before."""
    if _names_this(sender) and not _uninstalled(sender):
        install(sender)


def _finalizing(app: Any) -> None:
    """Runs when an app is finalized, which also loads its configuration."""
    try:
        named = _names_this(app)
    except Exception:  # noqa: BLE001  the configuration is invalid, and the app raises next
        return
    with health.guarded("auto"):
        if named and not _uninstalled(app):
            wire(app)


def _publishing(**_: Any) -> None:
    """Runs before each publish: an app may publish without being finalized."""
    for app in copied(_apps):
        if app not in _published and app.configured:
            _finalizing(app)
            _published.add(app)  # not before: a timeout may strike, or another thread publish


# app.configured first: app.conf would load a configuration that is still lazy.
_named = [app for app in copied(_apps) if app.configured and _names_this(app)]

import_modules.connect(_importing, weak=False, dispatch_uid="rts.auto")
connect_on_app_finalize(_finalizing)
if not _named:  # else Celery has imported this for an app, and each publish need not look
    before_task_publish.connect(_publishing, weak=False, dispatch_uid="rts.auto")
receivers.connect(parts_of, publisher)  # after the line above, so that it comes second

for _app in _named or ([current_app._get_current_object()] if _apps else []):
    install(_app)

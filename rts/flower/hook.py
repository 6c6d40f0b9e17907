"""Adds the tab to Flower, which has no plugin API.

Every ``celery`` command imports Flower's classes (an entry point), so this module is loaded in
every process and imports neither Flower nor anything heavy. It wraps two methods of Flower's
application, and adds the tab if the Celery app has rts:

- in ``__init__``, for an app that has rts already;
- in ``start``, before anything is served, for one that gets it while Flower imports the
  modules of ``imports = ("rts.auto",)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from rts import health

#: Returns whether a Celery app has rts, once :func:`attach` was called.
_has_rts: Callable[[Any], bool] | None = None

#: The wrapped methods of Flower, by name.
_originals: dict[str, Callable[..., Any]] = {}


def attach(has_rts: Callable[[Any], bool]) -> None:
    """Wrap Flower's application, if this process has loaded it. Idempotent."""
    global _has_rts
    _has_rts = has_rts
    module = sys.modules.get("flower.app")
    application: Any = getattr(module, "Flower", None)
    if application is None or _originals:
        return
    _originals["__init__"] = application.__init__
    _originals["start"] = application.start
    application.__init__ = _then_add(application.__init__)
    application.start = _after_adding(application.start)


def detach() -> None:
    """Undo :func:`attach`. Flower applications that have the tab keep it."""
    global _has_rts
    _has_rts = None
    application: Any = getattr(sys.modules.get("flower.app"), "Flower", None)
    for name, original in list(_originals.items()):
        # If somebody wrapped it again since, ours stays and does nothing.
        if getattr(getattr(application, name, None), "__wrapped__", None) is original:
            setattr(application, name, original)
            del _originals[name]


def _then_add(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _add(self)

    return init


def _after_adding(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        _add(self)
        return original(self, *args, **kwargs)

    return start


def _add(flower: Any) -> None:
    """Add the tab to *flower*; whatever fails, Flower must go on."""
    try:
        if _has_rts is not None and _has_rts(flower.capp):
            from rts.flower.tab import add_tab

            add_tab(flower)
    except Exception as exc:  # noqa: BLE001  Flower works without the tab
        health.hook_failed("flower", exc)

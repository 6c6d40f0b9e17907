"""Adds the tab to Flower, which has no plugin API.

Every ``celery`` command imports Flower's classes (an entry point), so this module is loaded in
every process and imports neither Flower nor anything heavy. It wraps ``start`` of Flower's
application, which adds the tab before anything is served, if the Celery app has rts by then:
it may get it while Flower imports the modules of ``imports = ("rts.auto",)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from rts import health

#: Returns whether a Celery app has rts, once :func:`attach` was called.
_has_rts: Callable[[Any], bool] | None = None

#: The method that is wrapped; ``None`` if none is.
_start: Callable[..., Any] | None = None


def attach(has_rts: Callable[[Any], bool]) -> None:
    """Wrap Flower's application, if this process has loaded it. Idempotent."""
    global _has_rts, _start
    _has_rts = has_rts
    application = _application()
    if application is not None and _start is None:
        _start = application.start
        application.start = _adding_first(_start)


def detach() -> None:
    """Undo :func:`attach`. Flower applications that have the tab keep it."""
    global _has_rts, _start
    _has_rts = None
    application = _application()
    wrapped = getattr(getattr(application, "start", None), "__wrapped__", None)
    # If somebody wrapped it again since, ours stays and does nothing.
    if _start is not None and wrapped is _start:
        application.start, _start = _start, None


def _application() -> Any:
    """Return Flower's class; ``None`` if it is not loaded."""
    return getattr(sys.modules.get("flower.app"), "Flower", None)


def _adding_first(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        _add(self)
        return original(self, *args, **kwargs)

    return start


def _add(flower: Any) -> None:
    """Add the tab to *flower*; whatever fails, Flower must go on."""
    with health.guarded("flower"):
        if _has_rts is not None and _has_rts(flower.capp):
            from rts.flower.tab import add_tab

            add_tab(flower)

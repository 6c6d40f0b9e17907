"""How the tab gets into Flower, which has no plugins.

Every ``celery`` command imports Flower's classes (an entry point), so this module is
loaded in every process and imports neither Flower nor anything heavy. It wraps two
methods of Flower's application; whatever that is made for, the tab is added when its
app has rts:

- ``__init__``, for an app that has rts already;
- ``start``, before anything is served, for one that gets it while Flower imports the
  modules of ``imports = ("rts.auto",)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from rts import health

#: Tells whether a Celery app has rts, once :func:`attach` was called.
_has_rts: Callable[[Any], bool] | None = None

#: The methods of Flower's that stand behind the wrappers, by name.
_originals: dict[str, Callable[..., Any]] = {}


def attach(has_rts: Callable[[Any], bool]) -> None:
    """Wrap Flower's application, if this process has loaded it; again changes nothing."""
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
    """Undo :func:`attach`. Flowers that have the tab keep it until they end."""
    global _has_rts
    _has_rts = None
    application: Any = getattr(sys.modules.get("flower.app"), "Flower", None)
    for name, original in list(_originals.items()):
        # Somebody may have wrapped it again since: then ours stays and does nothing.
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
    """Add the tab to *flower*, whatever happens: Flower must go on."""
    try:
        if _has_rts is not None and _has_rts(flower.capp):
            from rts.flower.tab import add_tab

            add_tab(flower)
    except Exception as exc:  # noqa: BLE001  Flower works without the tab
        health.hook_failed("flower", exc)

"""What one app has of rts in this process, built when it is first needed."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from rts import health
from rts.errors import ConfigurationError
from rts.settings import Settings

if TYPE_CHECKING:
    from rts.parts import Parts

#: The attribute of an app that holds its installation, where it is found at once.
ATTRIBUTE = "_rts_installation"

#: Seconds that a thread waits at most for another one to build the parts: that one may
#: import a module, as a configuration does, which waits for this thread.
BUILT_S = 1.0

#: The installed apps. Each holds its installation itself.
installed: WeakSet[Any] = WeakSet()

#: Who publishes a task of a name, while only one app has rts.
publishers: dict[str, Parts] = {}


class Installation:
    """One app that has rts. Its parts are built when they are first needed, so
    that it does not matter whether the app was configured before.
    """

    def __init__(self) -> None:
        self._parts: Parts | None = None
        self._off = False
        self.begin_anew()

    def begin_anew(self) -> None:
        """Let go, in a child, of what a thread of the parent was building at the fork."""
        self._building = False
        # Re-entrant: a signal handler that publishes may interrupt the building.
        self._lock = threading.RLock()

    def parts(self, app: Any) -> Parts | None:
        """Return the working parts; ``None`` where rts is disabled or misconfigured."""
        if self._parts is not None or self._off:
            return self._parts
        from rts.parts import Parts
        from rts.scheduling.switch import keep_on

        # Other threads wait: what they publish shall have a plan as well.
        if not self._lock.acquire(timeout=BUILT_S):
            return None
        try:
            if self._parts is None and not self._off and not self._building:  # type: ignore[redundant-expr]  # threads
                self._building, off = True, True  # unless all of the following goes well
                try:
                    settings = Settings.from_conf(app.conf)
                    if settings.enabled:
                        keep_on(app, settings)
                        self._parts = Parts.build(settings, app)
                        off = False
                except ConfigurationError as exc:
                    health.count("configuration_errors")
                    health.warn_once("configuration", "rts is off in this process: %s", exc)
                finally:
                    self._building, self._off = False, off
        finally:
            self._lock.release()
        return self._parts

    def close(self) -> None:
        """End what works in the background for the app, and close its connections. What
        is at work meanwhile, such as a worker's hooks, connects again.
        """
        parts = self._parts
        if parts is None:
            return
        if parts.open_tasks is not None:
            parts.open_tasks.stop()
        if parts.predictor is not None:
            parts.predictor.close()
        parts.link.close()


def _after_fork() -> None:
    # Another thread of the parent may have been building, whose lock nobody gives back here.
    for app in list(installed):
        getattr(app, ATTRIBUTE).begin_anew()


os.register_at_fork(after_in_child=_after_fork)


def parts_of(app: Any) -> Parts | None:
    """Return the parts of *app*, ``None`` where it has no (working) rts."""
    installation = getattr(app, ATTRIBUTE, None)
    if installation is None:
        return None
    parts: Parts | None = installation._parts or installation.parts(app)
    return parts


def publisher(name: str) -> Parts | None:
    """Return the parts of the app that publishes a task called *name*.

    Celery's signal does not say which app publishes. Where the queue does not tell
    either (:mod:`rts.lifecycle.owners`), the current app is meant, unless only another
    one knows the task.
    """
    known = publishers.get(name)
    if known is not None:
        return known
    from rts.lifecycle.owners import tasks_of

    if len(installed) == 1:
        (only,) = installed
        if name in tasks_of(only):
            parts = parts_of(only)
            if parts is not None:
                publishers[name] = parts
            return parts
    from celery import current_app

    app = current_app._get_current_object()
    if app in installed and (len(installed) == 1 or name in tasks_of(app)):
        return parts_of(app)
    for other in list(installed):
        if name in tasks_of(other):
            return parts_of(other)
    if app in installed:
        return parts_of(app)
    if name in tasks_of(app) or len(installed) != 1:
        return None  # another app's own task
    return parts_of(next(iter(installed)))

"""The rts of one app in this process, built when it is first needed."""

from __future__ import annotations

import math
import os
import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from rts import health
from rts.errors import ConfigurationError
from rts.forks import copied
from rts.settings import Settings

if TYPE_CHECKING:
    from rts.parts import Parts

#: The attribute of an app that holds its installation, for fast lookup.
ATTRIBUTE = "_rts_installation"

#: Seconds for which a thread waits, at most, while another one builds the parts. To do so, that
#: one may import a module, such as the configuration, which this thread is importing right now:
#: then each waits for the other.
BUILD_TIMEOUT_S = 1.0
#: Seconds between two attempts to build the parts, from the second failure on.
RETRY_S = 5.0

#: The apps that have rts. Each holds its installation itself.
installed: WeakSet[Any] = WeakSet()

#: Cache of :func:`publisher` by task name, while only one app has rts.
publishers: dict[str, Parts] = {}


class Installation:
    """The rts of one app. Its parts are built when they are first needed, so
    that it does not matter whether the app was configured before.
    """

    def __init__(self) -> None:
        self._parts: Parts | None = None
        #: When the next build may be tried, by ``time.monotonic`` (infinite: rts is off); and
        #: for how many seconds none is tried after the next failure.
        self._try_from, self._pause_s = 0.0, 0.0
        self.reset_build()

    def reset_build(self) -> None:
        """Forget, in a forked child, builds and predictions in progress: those threads are the
        parent's, and nobody here would release their locks.
        """
        if self._parts is not None:
            self._parts.forget_predictions()
        self._building = False
        # Re-entrant: a Unix signal handler that publishes may interrupt the build.
        self._lock = threading.RLock()

    def parts(self, app: Any) -> Parts | None:
        """Return the working parts; ``None`` where rts is disabled or misconfigured."""
        if self._settled():
            return self._parts
        import_module("rts.parts")  # may take long; the wait for the lock is bounded
        # Other threads wait, so that what they publish has a plan as well.
        if self._lock.acquire(timeout=BUILD_TIMEOUT_S):
            try:
                if not self._settled() and not self._building:
                    self._build(app)
            finally:
                self._lock.release()
        return self._parts

    def _settled(self) -> bool:
        """Return whether there is nothing to build, or not now."""
        return self._parts is not None or time.monotonic() < self._try_from

    def _build(self, app: Any) -> None:
        from rts.parts import Parts
        from rts.scheduling.activation import keep_on

        self._building = True
        try:
            settings = Settings.from_conf(app.conf)
            if settings.enabled:
                keep_on(app, settings)
                self._parts = Parts(settings, app)
            else:
                self._try_from = math.inf
        except ConfigurationError as exc:
            self._try_from = math.inf
            health.count("configuration_errors")
            health.warn_once("configuration", "rts is off in this process: %s", exc)
        except BaseException:
            # It may be a timeout of the host app, such as Airflow's, which publishes under one
            # by SIGALRM: that must not turn rts off for good. But if it fails a second time, it
            # is not tried anew for each task.
            self._try_from = time.monotonic() + self._pause_s
            self._pause_s = RETRY_S
            raise
        finally:
            self._building = False

    def close(self) -> None:
        """See :meth:`rts.parts.Parts.close`."""
        if self._parts is not None:
            self._parts.close()


def apps_with_rts() -> list[Any]:
    """Return the apps that have rts."""
    return copied(installed)


def _after_fork() -> None:
    for app in apps_with_rts():
        getattr(app, ATTRIBUTE).reset_build()


os.register_at_fork(after_in_child=_after_fork)


def parts_of(app: Any) -> Parts | None:
    """Return the parts of *app*; ``None`` where it has no (working) rts."""
    installation = getattr(app, ATTRIBUTE, None)
    if installation is None:
        return None
    parts: Parts | None = installation._parts or installation.parts(app)
    return parts


def publisher(name: str) -> Parts | None:
    """Return the parts of the app that publishes a task called *name*.

    Celery's signal does not say which app publishes. Where the queue does not
    either (:mod:`rts.lifecycle.owners`), it is taken to be the current app, unless only
    another one knows the task.
    """
    known = publishers.get(name)
    if known is not None:
        return known
    apps = apps_with_rts()
    if not apps:
        return None
    from rts.lifecycle.owners import task_of

    if len(apps) == 1 and task_of(apps[0], name) is not None:
        parts = parts_of(apps[0])
        if parts is not None:
            publishers[name] = parts
        return parts
    from celery import current_app

    current = current_app._get_current_object()
    for app in sorted(apps, key=lambda app: app is not current):  # the current one first
        if task_of(app, name) is not None:
            return parts_of(app)
    if current in apps:
        return parts_of(current)
    if len(apps) != 1 or task_of(current, name) is not None:
        return None  # another app's own task
    return parts_of(apps[0])

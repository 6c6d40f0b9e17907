"""The errors that rts raises on purpose, and how any error is told in a line.

``RtsError``
    ├── ``ConfigurationError``   a setting is wrong; raised by ``install``
    ├── ``StoreUnavailable``     a server did not answer, or refused, in time
    │       └── ``BrokerUnavailable``   so did the broker, which is to be asked as well
    ├── ``CommandError``         what is asked for cannot be done: by a command line,
    │                            ``rts.predict`` or ``rts.predict_new``
    └── of ``rts.testing``:
            ├── ``ServerNotFound``   there is no redis-server or mongod
            ├── ``ServerFailed``     a server did not start
            └── ``WorkerFailed``     a worker did not start

Hooks in the host application never let one of these escape: they are caught at
the hook's boundary, logged once and counted (see :mod:`rts.health`).
"""

from __future__ import annotations


class RtsError(Exception):
    """Base of every error that rts raises."""


class ConfigurationError(RtsError, ValueError):
    """A setting is invalid. The message names setting, value and allowed range."""

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        self.setting = setting
        self.value = value
        self.allowed = allowed
        shown = repr(value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        super().__init__(f"{setting} = {shown} is not valid; allowed: {allowed}")


class StoreUnavailable(RtsError):
    """A server did not answer in time or refused the operation.

    The driver's own exception is kept as ``__cause__``.
    """


class BrokerUnavailable(StoreUnavailable):
    """The broker did not answer in time; it need not be the server of ``rts_redis_url``."""


class CommandError(RtsError):
    """What a command line or a call asks for cannot be done; the message says what can."""


def short(exc: BaseException) -> str:
    """Return an error in one short line. A driver's text never holds a password."""
    text = " ".join(str(exc).split())
    # pymongo goes on at length
    for rest in (" (configured timeouts", ", Timeout:", ", lsid:", ", full error:"):
        text = text.partition(rest)[0]
    text = text.rstrip(".")
    return f"{type(exc).__name__}: {text[:100]}{'…' if len(text) > 100 else ''}"

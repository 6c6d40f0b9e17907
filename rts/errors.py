"""The errors that rts raises on purpose, and any error as one line.

``RtsError``
    ├── ``ConfigurationError``   a setting is invalid; raised by ``install``
    ├── ``StoreUnavailable``     a server did not answer in time, or refused
    │       └── ``BrokerUnavailable``   that server is the broker
    ├── ``CommandError``         a command line, ``rts.predict`` or ``rts.predict_new``
    │                            cannot do what it is asked for
    └── in ``rts.testing``:
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
        super().__init__(setting, value, allowed)  # all, or it could not be unpickled
        self.setting = setting
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        shown = repr(self.value)
        if len(shown) > 120:
            shown = shown[:117] + "..."
        return f"{self.setting} = {shown} is not valid; allowed: {self.allowed}"


class StoreUnavailable(RtsError):
    """A server did not answer in time or refused the operation.

    The driver's own exception is kept as ``__cause__``.
    """


class BrokerUnavailable(StoreUnavailable):
    """The broker did not answer in time; it need not be the server of ``rts_redis_url``."""


class CommandError(RtsError):
    """What a command line or a call asks for cannot be done; the message says what can."""


def unusable(server: str, exc: BaseException) -> str:
    """Return that *server*, with its URL, is not usable, and why."""
    return f"{server} is not usable ({short(exc)})"


#: Errors that only the nodes of a Redis Cluster reply. Their text alone, such as
#: "12552 10.0.0.7:6379", does not say what is wrong.
_OF_A_CLUSTER = ("MovedError", "AskError", "ClusterCrossSlotError", "ClusterDownError")
#: How their texts begin with redis-py 5, whose plain client does not have these classes.
_CODES_OF_A_CLUSTER = ("MOVED ", "ASK ", "CROSSSLOT ", "CLUSTERDOWN ")


def kind(exc: BaseException) -> str:
    """Return the name of an error's class, with what it means if that is not plain."""
    name = type(exc).__name__
    if name in _OF_A_CLUSTER or str(exc).startswith(_CODES_OF_A_CLUSTER):
        return f"{name} of a Redis Cluster, which rts does not support"
    return name


#: Characters of an error's text in one short line: the address of a server comes first, and
#: what is wrong with its certificate last.
_MOST_TEXT = 200


def short(exc: BaseException) -> str:
    """Return an error as one short line; of an outage, the driver's own. The drivers' messages
    never hold a password.

    >>> import redis
    >>> short(redis.ResponseError("MOVED 12552 10.0.0.7:6379"))
    'ResponseError of a Redis Cluster, which rts does not support: MOVED 12552 10.0.0.7:6379'
    >>> where = "Error 1 connecting to 10.0.0.7:6379. [SSL: CERTIFICATE_VERIFY_FAILED]"
    >>> why = "certificate verify failed: certificate has expired (_ssl.c:1006)"
    >>> why in short(redis.ConnectionError(f"{where} {why}"))
    True
    """
    if isinstance(exc, StoreUnavailable):
        exc = exc.__cause__ or exc
    text = " ".join(str(exc).split())
    # pymongo appends details at length.
    for rest in (" (configured timeouts", ", Timeout:", ", lsid:", ", full error:"):
        text = text.partition(rest)[0]
    text = text.rstrip(".")
    return f"{kind(exc)}: {text[:_MOST_TEXT]}{'…' if len(text) > _MOST_TEXT else ''}"

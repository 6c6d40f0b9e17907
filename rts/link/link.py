"""Lean access to Redis, for the path of a publish and for what runs continuously.

A client object's overhead exceeds everything that rts does for a publish, so
redis-py's connections (with their TLS, authentication and parsing) are used
directly, with commands that are packed already.
"""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from rts import forks, health
from rts.errors import ConfigurationError, StoreUnavailable
from rts.link.breaker import Breaker
from rts.link.lookup import Lookup
from rts.settings import Settings
from rts.urls import shown_url

logger = logging.getLogger("rts")

#: Seconds after which an idle connection is closed rather than used: firewalls and load
#: balancers drop one, some after four minutes, and tell neither end.
MAX_IDLE_S = 60.0

#: Seconds between two logged outages, at first and at most: a server that keeps
#: alternating between answering and refusing (out of memory, demoted to a replica) would
#: fill every worker's log.
MIN_LOG_GAP_S, MAX_LOG_GAP_S = 10.0, 3600.0


class Link:
    """A connection pool for the Redis of *settings*. Safe with forks, threads and greenlets.

    Every failure is raised as :class:`StoreUnavailable`. After one, calls fail fast
    for ``rts_breaker_period`` seconds.

    Raises:
        ConfigurationError: an option in the URL has a value of the wrong type, or names
            a credential provider that cannot be loaded.
    """

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._shown_url = shown_url(settings.redis_url)
        try:
            options = dict(parse_url(settings.redis_url))  # type: ignore[no-untyped-call]  # redis-py
        except ValueError:  # an option of the wrong type
            allowed = "a URL whose options redis-py understands"
            raise ConfigurationError("rts_redis_url", self._shown_url, allowed) from None
        self._make = options.pop("connection_class", redis.Connection)
        self._options = supported_options(self._make, options)
        if (provider := self._options.get("credential_provider")) is not None:
            try:
                provider = load_credential_provider(provider)
            except (ImportError, AttributeError, TypeError, ValueError) as exc:
                allowed = "a URL whose credential_provider names a class: module.Class"
                raise ConfigurationError(
                    "rts_redis_url", self._shown_url, f"{allowed} ({exc})"
                ) from exc
            # redis-py accepts either a provider or a user name and password.
            self._options.update(credential_provider=provider, username=None, password=None)
        # These override the URL, which may be the broker's and have options meant for it.
        self._options.update(
            socket_timeout=settings.timeout,
            socket_connect_timeout=settings.connect_timeout,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            health_check_interval=0,
            decode_responses=False,
            protocol=2,
            **without_client_info(self._make),
        )
        self._connect_timeout_s = settings.connect_timeout
        self._lookup = self._new_lookup()
        self._period_s = settings.breaker_period
        self.breaker = Breaker(settings.breaker_period)
        #: Whether the current outage was logged.
        self._logged = False
        #: Seconds, and until when, the outages after it are not logged.
        self._log_gap_s, self._quiet_until = 0.0, -1e9
        #: Idle connections and since when, by *now*; the last used one last.
        self._idle: list[tuple[Any, float]] = []
        self._pid = os.getpid()
        # Closes a child's copies of its parent's connections, which stay open there. At once,
        # while their descriptors are theirs: Celery's embedded beat closes all that it has
        # inherited, and the numbers are those of its database soon after.
        forks.in_child(self.close)

    @classmethod
    def with_timeouts(
        cls,
        settings: Settings,
        connect_timeout_s: float,
        timeout_s: float,
        breaker_period_s: float,
    ) -> Link:
        """Return a link with its own timeouts, for callers that may wait longer, or less."""
        return cls(
            replace(
                settings,
                connect_timeout=connect_timeout_s,
                timeout=timeout_s,
                breaker_period=breaker_period_s,
            )
        )

    def call(self, *commands: bytes) -> list[Any]:
        """Send *commands* in one go and return their replies.

        They may be sent twice if the server has closed an idle connection.

        Raises:
            StoreUnavailable: no reply in time, or the server refuses a command.
        """
        replies = self.call_each(*commands)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise self._failed(reply) from reply
        return replies

    def call_each(self, *commands: bytes) -> list[Any]:
        """Like :meth:`call`, but return a :class:`redis.ResponseError` as the reply to each
        command that the server refuses, for callers that can use the other replies.

        Raises:
            StoreUnavailable: no reply in time.
        """
        if os.getpid() != self._pid:
            # Where a web server forks without telling Python, these are still the parent's.
            self._idle = []
            self._lookup = self._new_lookup()
            self.breaker = Breaker(self._period_s)
            # Last, so that no other thread can meet the parent's lock meanwhile.
            self._pid = os.getpid()
        if not self.breaker.allows():
            raise StoreUnavailable(f"Redis at {self._shown_url} failed a moment ago")
        data = b"".join(commands)
        try:
            connection = self._take_idle()
            if connection is not None:
                try:
                    return self._exchange(connection, data, len(commands))
                except redis.ConnectionError:
                    pass  # closed while idle; a timeout is no ConnectionError
            return self._exchange(self._new_connection(), data, len(commands))
        except (RedisError, OSError) as exc:
            # The idle connections are older and probably broken as well: each would cost a
            # timeout and a period of the breaker.
            self.close()
            raise self._failed(exc) from exc

    def close(self) -> None:
        """Close the idle connections. The next call makes a new one."""
        try:
            while True:
                self._drop(self._idle.pop()[0])
        except IndexError:
            pass  # another thread may have taken the last one

    def _take_idle(self) -> Any:
        """Return the connection that was used last, ``None`` if there is none in use lately."""
        try:
            connection, since = self._idle.pop()
        except IndexError:
            return None
        if self._now() - since < MAX_IDLE_S:
            return connection
        self._drop(connection)
        self.close()  # the others are older
        return None

    def _new_lookup(self) -> Lookup:
        return Lookup(self._options.get("host"), self._connect_timeout_s)

    def _new_connection(self) -> Any:
        """Return a connection that connects on first use."""
        self._lookup.wait()
        return self._make(**self._options)

    def _exchange(self, connection: Any, data: bytes, count: int) -> list[Any]:
        replies: list[Any] = []
        try:
            connection.send_packed_command([data])
            for _ in range(count):
                try:
                    replies.append(connection.read_response())
                except ResponseError as exc:
                    replies.append(exc)  # the replies after it must still be read
        except BaseException:
            # Including a soft time limit that strikes in the middle of a reply.
            self._drop(connection)
            raise
        refusals = [reply for reply in replies if isinstance(reply, ResponseError)]
        if any(map(is_from_replica, refusals)):
            # The address may lead to the new primary by now; this connection never will.
            self._drop(connection)
            self.close()
        else:
            self._idle.append((connection, self._now()))
        if not refusals and self.breaker.succeeded() and self._logged:
            self._logged = False
            logger.warning("rts: Redis at %s answers again", self._shown_url)
        return replies

    def _drop(self, connection: Any) -> None:
        try:
            connection.disconnect()
        except (RedisError, OSError):
            pass  # it is gone either way

    def _failed(self, exc: Exception) -> StoreUnavailable:
        """Open the breaker and return the error to raise."""
        health.count("redis_failures")
        if self.breaker.failed():
            health.count("breaker_opened")
        now = self._now()
        if not self._logged and now >= self._quiet_until:
            # One line per outage, and one when it ends.
            calm = now - self._quiet_until > self._log_gap_s
            self._log_gap_s = (
                MIN_LOG_GAP_S
                if calm
                else min(MAX_LOG_GAP_S, max(MIN_LOG_GAP_S, 2 * self._log_gap_s))
            )
            self._logged, self._quiet_until = True, now + self._log_gap_s
            logger.warning(
                "rts: Redis at %s is not usable: %s: %s. Tasks keep running and records wait. "
                "Check the server and rts_redis_url. Next attempt in %g s",
                self._shown_url,
                type(exc).__name__,
                str(exc)[:200].rstrip("."),
                self._period_s,
            )
        return StoreUnavailable(
            f"Redis at {self._shown_url} is not usable: {type(exc).__name__}"
        )


def is_from_replica(refusal: ResponseError) -> bool:
    """Return whether a replica refused a command, or a write of a script."""
    if isinstance(refusal, ReadOnlyError | MasterDownError):
        return True
    return "READONLY" in str(refusal)


def without_client_info(connection_class: type) -> dict[str, None]:
    """Return the options that keep a new connection from sending redis-py's name and
    version, which would cost two more round trips.
    """
    for names in (("driver_info",), ("lib_name", "lib_version")):
        if parameters_of(connection_class).issuperset(names):
            return dict.fromkeys(names)
    return {}  # an old redis-py, which does not send them


def supported_options(connection_class: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of *options* that the connection class accepts.

    A broker's URL may have options that are meant for Celery alone.
    """
    known = parameters_of(connection_class)
    for name in options.keys() - known:
        health.warn_once(
            f"redis-option:{name}",
            "rts: redis-py has no option %s, which the Redis URL sets; it is ignored",
            health.shown(name),
        )
    return {name: value for name, value in options.items() if name in known}


def load_credential_provider(name: str) -> redis.CredentialProvider:
    """Instantiate the credential provider class called *name*, as kombu and Celery do.

    Raises:
        ImportError, AttributeError, TypeError, ValueError: there is no such class, or it is no
            credential provider that can be made without arguments.
    """
    # Without a colon, the ImportError of a module within a package would be swallowed.
    provider = resolve_name(name if ":" in name else ":".join(name.rsplit(".", 1)))()
    if not isinstance(provider, redis.CredentialProvider):
        raise TypeError(f"{name} is no redis.CredentialProvider")
    return provider


def parameters_of(connection_class: type) -> set[str]:
    """Return the names of the options that the connection class accepts."""
    return {
        parameter
        for cls in connection_class.__mro__
        for parameter in inspect.signature(cls.__init__).parameters  # type: ignore[misc]  # each class's own
    }


def replies_as_text(replies: Sequence[Any]) -> dict[str, str]:
    """Return a reply to HGETALL as a dict of texts."""
    texts = [reply.decode("utf-8", "replace") for reply in replies]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def as_instant(reply: Sequence[bytes]) -> float:
    """Return a reply to TIME in epoch seconds.

    >>> as_instant([b"1893456000", b"250000"])
    1893456000.25
    """
    seconds, micros = reply
    return int(seconds) + int(micros) / 1e6

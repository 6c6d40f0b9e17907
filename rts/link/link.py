"""A lean way to Redis for what is on the path of a publish, or done all the time.

A client's convenience costs more than all that rts does for a publish, so
connections (redis-py's own, with its TLS, authentication and parsing) are used
directly, with commands that are packed already.
"""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError, ResponseError
from redis.retry import Retry

from rts import health
from rts.errors import ConfigurationError, StoreUnavailable
from rts.link.breaker import Breaker
from rts.link.lookup import Lookup
from rts.settings import Settings
from rts.urls import shown_url

logger = logging.getLogger("rts")


#: Seconds between two outages that are logged, at first and at last: a server that
#: answers and refuses by turns (its memory is full, it has become a replica) would fill
#: the log of each worker.
LEAST_QUIET_S, MOST_QUIET_S = 10.0, 3600.0


class Link:
    """Talks to the Redis of *settings*. Safe with forks, threads and greenlets.

    Every trouble comes out as :class:`StoreUnavailable`. After one, calls fail at
    once for ``rts_breaker_period`` seconds.

    Raises:
        ConfigurationError: an option in the URL has a value of the wrong type, or names
            credentials that are not there.
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
        self._options = understood(self._make, options)
        if (provider := self._options.get("credential_provider")) is not None:
            try:
                provider = provider_of(provider)
            except (ImportError, AttributeError, TypeError, ValueError) as exc:
                allowed = "a URL whose credential_provider names a class: module.Class"
                raise ConfigurationError(
                    "rts_redis_url", self._shown_url, f"{allowed} ({exc})"
                ) from exc
            # redis-py takes one or the other.
            self._options.update(credential_provider=provider, username=None, password=None)
        # After what stands in the URL, which may be the broker's and made for it.
        self._options.update(
            socket_timeout=settings.timeout,
            socket_connect_timeout=settings.connect_timeout,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            health_check_interval=0,
            decode_responses=False,
            protocol=2,
            **unnamed(self._make),
        )
        self._connect_timeout_s = settings.connect_timeout
        self._lookup = self._new_lookup()
        self._period_s = settings.breaker_period
        self.breaker = Breaker(settings.breaker_period)
        #: Whether the outage that goes on was logged; from when on the next one is.
        self._told = False
        self._quiet_s, self._quiet_until = 0.0, -1e9
        #: Connections that nobody uses, the last used one last.
        self._idle: list[Any] = []
        self._pid = os.getpid()

    @classmethod
    def with_timeouts(
        cls,
        settings: Settings,
        connect_timeout_s: float,
        timeout_s: float,
        breaker_period_s: float,
    ) -> Link:
        """Return a way with other timeouts than the app's, for who may wait longer, or less."""
        return cls(
            replace(
                settings,
                connect_timeout=connect_timeout_s,
                timeout=timeout_s,
                breaker_period=breaker_period_s,
            )
        )

    def call(self, *commands: bytes) -> list[Any]:
        """Send *commands* in one go and return their answers.

        They may be sent twice, where the server has closed an idle connection.

        Raises:
            StoreUnavailable: no answer in time, or the server refuses one.
        """
        replies = self.call_each(*commands)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise self._failed(reply) from reply
        return replies

    def call_each(self, *commands: bytes) -> list[Any]:
        """Do the same, with a :class:`redis.ResponseError` as the answer to each
        command that the server refuses: what it grants beside them is of use.

        Raises:
            StoreUnavailable: no answer in time.
        """
        if os.getpid() != self._pid:
            # The parent's connections: its own to use and to close.
            self._idle = []
            self._lookup = self._new_lookup()
            self.breaker = Breaker(self._period_s)
            # Last: another thread that comes meanwhile must not meet the parent's lock.
            self._pid = os.getpid()
        if not self.breaker.allows():
            raise StoreUnavailable(f"Redis at {self._shown_url} failed a moment ago")
        data = b"".join(commands)
        try:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._exchange(self._new_connection(), data, len(commands))
            try:
                return self._exchange(connection, data, len(commands))
            except redis.ConnectionError:  # the server has closed it; one that is slow has not
                return self._exchange(self._new_connection(), data, len(commands))
        except (RedisError, OSError) as exc:
            # What has befallen one connection has befallen the others as well, which are
            # older: each would cost a timeout and a period of the breaker.
            self.close()
            raise self._failed(exc) from exc

    def close(self) -> None:
        """Close the idle connections. The next call makes a new one."""
        try:
            while True:
                self._drop(self._idle.pop())
        except IndexError:
            pass  # another thread may have taken the last one

    def _new_lookup(self) -> Lookup:
        return Lookup(self._options.get("host"), self._connect_timeout_s)

    def _new_connection(self) -> Any:
        """Return a connection that connects when it is first used."""
        self._lookup.wait()
        return self._make(**self._options)

    def _exchange(self, connection: Any, data: bytes, answers: int) -> list[Any]:
        replies: list[Any] = []
        try:
            connection.send_packed_command([data])
            for _ in range(answers):
                try:
                    replies.append(connection.read_response())
                except ResponseError as exc:
                    replies.append(exc)  # the answers after it are still to be read
        except BaseException:
            # Also a soft time limit that strikes in the middle of an answer.
            self._drop(connection)
            raise
        refusals = [reply for reply in replies if isinstance(reply, ResponseError)]
        if any(map(is_replicas, refusals)):
            # The address may lead to the new master by now: this connection never will.
            self._drop(connection)
            self.close()
        else:
            self._idle.append(connection)
        if not refusals and self.breaker.succeeded() and self._told:
            self._told = False
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
        if not self._told and now >= self._quiet_until:
            # One line per outage: that it ends is logged too.
            calm = now - self._quiet_until > self._quiet_s
            self._quiet_s = (
                LEAST_QUIET_S
                if calm
                else min(MOST_QUIET_S, max(LEAST_QUIET_S, 2 * self._quiet_s))
            )
            self._told, self._quiet_until = True, now + self._quiet_s
            logger.warning(
                "rts: Redis at %s is not usable: %s: %s. Tasks go on, and records wait. Check "
                "the server and rts_redis_url. Next attempt in %g s",
                self._shown_url,
                type(exc).__name__,
                str(exc)[:200].rstrip("."),
                self._period_s,
            )
        return StoreUnavailable(
            f"Redis at {self._shown_url} is not usable: {type(exc).__name__}"
        )


def is_replicas(refusal: ResponseError) -> bool:
    """Return whether it says that the server is a replica, as it may of a script, too."""
    if isinstance(refusal, ReadOnlyError | MasterDownError):
        return True
    return "READONLY" in str(refusal)


def unnamed(connection_class: type) -> dict[str, None]:
    """Return the options with which the driver's connection does not tell its name and
    version at its start: two round trips more.
    """
    for names in (("driver_info",), ("lib_name", "lib_version")):
        if parameters_of(connection_class).issuperset(names):
            return dict.fromkeys(names)
    return {}  # an old one, which does not tell them


def understood(connection_class: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of *options* that the driver's connection takes.

    Options of a broker's URL may be for Celery alone.
    """
    known = parameters_of(connection_class)
    for name in options.keys() - known:
        health.warn_once(
            f"redis-option:{name}",
            "rts: option %s of the Redis URL is not one of redis-py; it is ignored",
            health.shown(name),
        )
    return {name: value for name, value in options.items() if name in known}


def provider_of(name: str) -> redis.CredentialProvider:
    """Return what the class of this name makes, as kombu and Celery read such an option.

    Raises:
        ImportError, AttributeError, TypeError, ValueError: it makes no credentials.
    """
    module, _, attribute = name.replace(":", ".").rpartition(".")
    made = getattr(import_module(module), attribute)()
    if not isinstance(made, redis.CredentialProvider):
        raise TypeError(f"{name} is no redis.CredentialProvider")
    return made


def parameters_of(connection_class: type) -> set[str]:
    """Return the names of the options that the driver's connection takes."""
    return {
        parameter
        for cls in connection_class.__mro__
        for parameter in inspect.signature(cls.__init__).parameters  # type: ignore[misc]  # each class's own
    }


def replies_as_text(replies: Sequence[Any]) -> dict[str, str]:
    """Return the answer of HGETALL as a dict of texts."""
    texts = [reply.decode("utf-8", "replace") for reply in replies]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def as_instant(reply: Sequence[bytes]) -> float:
    """Return the answer of TIME in epoch seconds.

    >>> as_instant([b"1893456000", b"250000"])
    1893456000.25
    """
    seconds, micros = reply
    return int(seconds) + int(micros) / 1e6

"""Lean access to Redis, for the path of a publish and for what runs continuously.

A client object's overhead exceeds everything that rts does for a publish, so
redis-py's connections (with their TLS, authentication and parsing) are used
directly, with commands that are packed already.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import redis
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError, ResponseError

from rts import forks, health
from rts.errors import StoreUnavailable, kind, short, unusable
from rts.link.breaker import Breaker
from rts.link.lookup import Lookup
from rts.link.options import connection_options
from rts.link.waits import bounded
from rts.settings import Settings
from rts.urls import shown_url

logger = logging.getLogger("rts")

#: Seconds after which an idle connection is closed rather than used: firewalls and load
#: balancers drop such connections, some after four minutes, and tell neither end.
MAX_IDLE_S = 60.0


class Link:
    """A connection pool for the Redis of *settings*. Safe with forks, threads and greenlets.

    Every failure is raised as :class:`StoreUnavailable`. After one, calls fail fast
    for ``rts_breaker_period`` seconds. *piecewise*: for large replies that no task waits for.
    ``rts_timeout`` then bounds the wait for each piece of a reply, not for the whole.
    *outages*: shared with other links of this process, so that each outage is logged once.

    Raises:
        ConfigurationError: an option in the URL has a value of the wrong type, or names
            a credential provider that cannot be loaded.
    """

    def __init__(
        self,
        settings: Settings,
        now: Callable[[], float] = time.monotonic,
        *,
        piecewise: bool = False,
        outages: health.Outages | None = None,
    ) -> None:
        self._now = now
        self._shown_url = shown_url(settings.redis_url)
        make, self._options = connection_options(settings)
        self._piecewise = piecewise
        self._make = make if piecewise else bounded(make)
        self._connect_timeout_s = settings.connect_timeout
        self._period_s = settings.breaker_period
        self._outages = outages or health.Outages(now)
        self._begin()
        # A child closes its copies of the connections; the parent's stay open. It does so at
        # once, since their descriptors may soon belong to other files: Celery's embedded beat
        # closes all that it has inherited, and then opens its database.
        forks.in_child(self.close)

    @classmethod
    def with_timeouts(
        cls, settings: Settings, connect_timeout_s: float, timeout_s: float
    ) -> Link:
        """Return a link with its own timeouts that does not fail fast after a failure, for
        callers that ask now and then: each call says why it failed.
        """
        return cls(
            replace(
                settings,
                connect_timeout=connect_timeout_s,
                timeout=timeout_s,
                breaker_period=0.0,
            )
        )

    def call(self, *commands: bytes) -> list[Any]:
        """Send *commands* in one go and return their replies.

        They may be sent twice if the server has closed an idle connection.

        Raises:
            StoreUnavailable: no reply in time, or the server refuses a command.
        """
        replies = self.call_each(*commands)
        for reply, command in zip(replies, commands, strict=True):
            if isinstance(reply, ResponseError):
                raise self._failed(reply, command) from reply
        return replies

    def call_each(self, *commands: bytes) -> list[Any]:
        """Like :meth:`call`, but return a :class:`redis.ResponseError` as the reply to each
        command that the server refuses, for callers that can use the other replies.

        Raises:
            StoreUnavailable: no reply in time.
        """
        if os.getpid() != self._pid:
            self._begin()  # a web server has forked without telling Python
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
        except (RedisError, OSError, UnicodeError) as exc:  # the last: no such name can exist
            # The idle connections are older and probably broken as well: each would cost a
            # timeout and a period of the breaker.
            self.close()
            raise self._failed(exc) from exc

    def try_now(self) -> None:
        """Let the next call try, however recent the last failure is: it may be the last chance.
        Not after a timeout, since callers wait for one per period at most.
        """
        # In a forked process, the next call begins anew.
        if os.getpid() == self._pid and not self._timed_out:
            self.breaker.try_now()

    def close(self) -> None:
        """Close the idle connections. The next call makes a new one."""
        try:
            while True:
                self._drop(self._idle.pop()[0])
        except IndexError:
            pass  # another thread may have taken the last one

    def _begin(self) -> None:
        """Begin in this process, without what a parent has left in memory."""
        #: Idle connections and since when, by ``self._now``; the last used one last.
        self._idle: list[tuple[Any, float]] = []
        self._lookup = Lookup(self._options.get("host"), self._connect_timeout_s)
        self.breaker = Breaker(self._period_s)
        #: Whether the last failure was a timeout.
        self._timed_out = False
        #: The command that the server has refused, with its script or first key, until it takes
        #: one again: others succeed meanwhile, as where its memory is full. ``None`` where it
        #: did not answer.
        self._refused: bytes | None = None
        #: Connections made so far. Each new one may lead to another server, or to one that has
        #: lost its latest data.
        self.connections = 0
        # Last, so that no other thread can meet the parent's locks meanwhile.
        self._pid = os.getpid()

    def _take_idle(self) -> Any:
        """Return the connection that was used last; ``None`` if none was used lately."""
        try:
            connection, since = self._idle.pop()
        except IndexError:
            return None
        if self._now() - since < MAX_IDLE_S:
            return connection
        self._drop(connection)
        self.close()  # the others are older
        return None

    def _new_connection(self) -> Any:
        """Return a connection that connects on first use."""
        self.connections += 1
        self._lookup.wait()
        return self._make(**self._options)

    def _exchange(self, connection: Any, data: bytes, count: int) -> list[Any]:
        replies: list[Any] = []
        try:
            if not self._piecewise:
                connection.begin()
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
            # A new connection may lead to the new primary by now; this one never will.
            self._drop(connection)
            self.close()
        else:
            self._idle.append((connection, self._now()))
        if not refusals:
            ended = self.breaker.succeeded()
            refused = self._refused  # another thread may change it
            if refused is not None and (ended := refused in data):
                self._refused = None
            if ended and self._outages.tell_end():
                logger.warning("rts: Redis at %s answers again", self._shown_url)
        return replies

    def _drop(self, connection: Any) -> None:
        try:
            connection.disconnect()
        except (RedisError, OSError):
            pass  # it is gone either way

    def _failed(self, exc: Exception, refused: bytes | None = None) -> StoreUnavailable:
        """Open the breaker and return the error to raise. *refused*: the command, if the server
        has refused one.
        """
        health.count("redis_failures")
        self._refused = refused and b"\r\n".join(refused.split(b"\r\n", 5)[2:5])
        self._timed_out = isinstance(exc, redis.TimeoutError)
        if self.breaker.failed():
            health.count("breaker_opened")
        if self._outages.tell(kind(exc) if isinstance(exc, ResponseError) else ""):
            logger.warning(
                "rts: Redis at %s is not usable: %s. Tasks keep running and records wait. "
                "Check the server and rts_redis_url. Next attempt in %g s",
                self._shown_url,
                short(exc),
                self._period_s,
            )
        return StoreUnavailable(unusable(f"Redis at {self._shown_url}", exc))


def is_from_replica(refusal: ResponseError) -> bool:
    """Return whether a replica refused a command, or a write of a script."""
    if isinstance(refusal, ReadOnlyError | MasterDownError):
        return True
    return "READONLY" in str(refusal)

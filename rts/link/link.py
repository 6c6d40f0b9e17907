"""A lean way to Redis for the paths of tasks.

A client's convenience costs a task about as much as all of the rest of rts, so
connections (redis-py's own, with its TLS, authentication and parsing) are used
directly. Several commands may be posted without waiting for the answers, which
are read with the next one that is waited for.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.retry import Retry

from rts import health
from rts.errors import StoreUnavailable
from rts.link.breaker import Breaker
from rts.settings import Settings

logger = logging.getLogger("rts")

#: Answers of posted commands that may wait on one connection. A task that posts
#: more without waiting once would fill the socket's buffer.
MAX_PENDING = 64


class Wire:
    """One connection while it is idle, or exclusively used by one caller."""

    __slots__ = ("connection", "fresh", "pending", "producer", "seq")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        #: Whether nothing was received on it yet.
        self.fresh = True
        #: Commands posted whose answers are still to be read.
        self.pending = 0
        #: Identity of this writer for numbered records, and the last number used.
        self.producer = secrets.token_hex(8)
        self.seq = 0


#: Builds a command that carries its writer's identity and number.
Numbered = Callable[[str, int, bool], bytes]


class Link:
    """Talks to the Redis of *settings*. Safe with forks, threads and greenlets.

    Every trouble comes out as :class:`StoreUnavailable`. After one, calls fail at
    once for ``rts_breaker_period`` seconds.
    """

    def __init__(self, settings: Settings) -> None:
        pool = redis.ConnectionPool.from_url(
            settings.redis_url,
            socket_timeout=settings.timeout,
            socket_connect_timeout=settings.connect_timeout,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            decode_responses=False,
            protocol=2,
        )
        self._make = pool.connection_class
        self._options = pool.connection_kwargs
        self._shown_url = shown_url(settings.redis_url)
        self._period_s = settings.breaker_period
        self.breaker = Breaker(settings.breaker_period)
        self._idle: list[Wire] = []
        self._pid = os.getpid()

    def post(self, command: bytes) -> None:
        """Send *command* and do not wait; its answer is read, and dropped, later.

        Raises:
            StoreUnavailable: it could not be sent.
        """
        if self.breaker.is_open:  # only an answer can tell that the server is back
            raise StoreUnavailable(f"Redis at {self._shown_url} failed a moment ago")
        wire = self._take()
        try:
            wire.connection.send_packed_command([command])
        except (RedisError, OSError) as exc:
            self._drop(wire)
            raise self._failed(exc) from exc
        wire.pending += 1
        if wire.pending >= MAX_PENDING:
            self._read(wire, 0)
        self._idle.append(wire)

    def call(self, *commands: bytes) -> list[Any]:
        """Send *commands* in one go and return their answers.

        Raises:
            StoreUnavailable: no answer in time, or the server refuses one.
        """
        return self._exchange(lambda wire: b"".join(commands), len(commands))

    def call_numbered(self, build: Numbered) -> Any:
        """Send one command made by ``build(producer, seq, whole)``; return its answer.

        *whole* asks for the script's text, where the server does not know it.

        Raises:
            StoreUnavailable: see there; ``suspect`` holds (producer, seq) where the
                command may have been executed.
        """

        def command(wire: Wire) -> bytes:
            return build(wire.producer, wire.seq, False)

        wire = self._take()
        wire.seq += 1
        try:
            return self._exchange(command, 1, wire)[0]
        except _ScriptMissing:
            wire = self._take()
            wire.seq += 1
            return self._exchange(lambda w: build(w.producer, w.seq, True), 1, wire)[0]

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._drop(self._idle.pop())

    def _exchange(
        self, command: Callable[[Wire], bytes], answers: int, wire: Wire | None = None
    ) -> list[Any]:
        wire = wire or self._take()
        sent = False
        while True:
            try:
                wire.connection.send_packed_command([command(wire)])
                sent = True
                replies = self._read(wire, answers)
            except NoScriptError as exc:
                self._idle.append(wire)
                raise _ScriptMissing from exc
            except ResponseError as exc:
                # Refused, so surely not executed; the connection itself is fine.
                self._idle.append(wire)
                raise self._failed(exc) from exc
            except (RedisError, OSError) as exc:
                stale = not wire.fresh and not isinstance(
                    exc, redis.TimeoutError | TimeoutError
                )
                self._drop(wire)
                if stale:
                    # The server closed an idle connection. A numbered command is
                    # sent again under its old number, so it cannot count twice.
                    again = Wire(self._make(**self._options))
                    again.producer, again.seq = wire.producer, wire.seq
                    wire = again
                    continue
                suspect = (wire.producer, wire.seq) if sent and wire.seq else None
                raise self._failed(exc, suspect) from exc
            except Exception as exc:
                # A soft time limit may strike in the middle of an answer.
                self._drop(wire)
                suspect = (wire.producer, wire.seq) if wire.seq else None
                raise StoreUnavailable(f"interrupted: {exc!r}", suspect=suspect) from exc
            self._idle.append(wire)
            if self.breaker.succeeded():
                logger.warning("rts: Redis at %s answers again", self._shown_url)
            return replies

    def _read(self, wire: Wire, answers: int) -> list[Any]:
        """Return the last *answers* answers, dropping those of posted commands."""
        read = wire.connection.read_response
        while wire.pending:
            wire.pending -= 1
            try:
                read()
            except ResponseError as exc:
                health.count("posts_refused")
                health.warn_once(
                    f"post:{type(exc).__name__}",
                    "rts: Redis refuses a note of a start: %s",
                    exc,
                )
        replies = []
        refused: ResponseError | None = None
        for _ in range(answers):
            try:
                replies.append(read())
            except ResponseError as exc:
                refused = exc  # the answers after it are still to be read
        wire.fresh = False
        if refused is not None:
            raise refused
        return replies

    def _take(self) -> Wire:
        """Return a connection that is nobody else's."""
        if os.getpid() != self._pid:
            # The parent's connections: its own to use and to close.
            self._idle = []
            self._pid = os.getpid()
            self.breaker = Breaker(self._period_s)
        if not self.breaker.allows():
            raise StoreUnavailable(f"Redis at {self._shown_url} failed a moment ago")
        try:
            return self._idle.pop()
        except IndexError:
            return Wire(self._make(**self._options))

    def _drop(self, wire: Wire) -> None:
        try:
            wire.connection.disconnect()
        except (RedisError, OSError):
            pass  # it is gone either way

    def _failed(
        self, exc: Exception, suspect: tuple[str, int] | None = None
    ) -> StoreUnavailable:
        """Open the breaker and return the error to raise."""
        health.count("redis_failures")
        if self.breaker.failed():
            # One line per outage: that it ends is logged too.
            logger.warning(
                "rts: Redis at %s is not usable: %s: %s. Tasks go on; records wait in "
                "rts_spool_dir. Check the server and rts_redis_url. Next attempt in %g s",
                self._shown_url,
                type(exc).__name__,
                str(exc)[:200],
                self._period_s,
            )
        return StoreUnavailable(
            f"Redis at {self._shown_url} is not usable: {type(exc).__name__}", suspect=suspect
        )


class _ScriptMissing(Exception):
    """The server does not have the script, for example after its restart."""


def shown_url(url: str) -> str:
    """Return *url* without user name, password and options.

    >>> shown_url("redis://:secret@host:6379/0?password=x")
    'redis://host:6379/0'
    """
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def replies_as_text(replies: Sequence[Any]) -> dict[str, str]:
    """Return the answer of HGETALL as a dict of texts."""
    texts = [reply.decode("utf-8", "replace") for reply in replies]
    return dict(zip(texts[::2], texts[1::2], strict=True))

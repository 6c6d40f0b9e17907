"""One connection to the broker for all threads that read its queues."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis
from kombu.exceptions import OperationalError

from rts.errors import BrokerUnavailable, CommandError
from rts.scheduling.layout import plain_client
from rts.scheduling.queues import broker_errors
from rts.settings import Settings

#: Size of the pool of Redis connections, one per thread that reads; kombu's default is 10.
MAX_CONNECTIONS = 10_000


@dataclass(eq=False)
class _Open:
    """A kombu connection that threads share."""

    connection: Any
    #: Its channel, and a Redis client on the same pool; ``None`` until it is connected.
    channel_and_client: tuple[Any, redis.Redis] | None = None
    #: Threads that read, and 1 while new ones may join them; the last one releases it.
    users: int = 1
    #: Held by the thread that connects.
    lock: threading.RLock = field(default_factory=threading.RLock)


class SharedConnection:
    """A kombu connection for all threads, opened on first use and replaced after an error.

    Threads that still read over a connection on which another one had an error may finish.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._open: _Open | None = None
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close it, as soon as no thread reads any more."""
        if (opened := self._open) is not None:
            self._discard(opened)

    @contextmanager
    def channel(self) -> Iterator[tuple[Any, redis.Redis]]:
        """Yield kombu's channel, and a Redis client on the same pool.

        Raises:
            CommandError: the broker is not Redis.
            StoreUnavailable: it is unavailable.
        """
        opened = self._enter()
        try:
            with broker_errors(opened.connection):
                if opened.connection.transport.driver_type != "redis":
                    raise CommandError(
                        "predictions need Redis as the broker: other queues cannot be inspected"
                    )
                yield self._connect(opened)
        except BrokerUnavailable:
            self._discard(opened)
            raise
        finally:
            self._leave(opened)

    def _enter(self) -> _Open:
        with self._lock:
            if self._open is None:
                options = {
                    "socket_connect_timeout": self._settings.connect_timeout,
                    "socket_timeout": self._settings.timeout,
                    "max_connections": MAX_CONNECTIONS,
                }
                made = self._app.connection_for_read(transport_options=options)
                self._open = _Open(made)
            self._open.users += 1
            return self._open

    def _connect(self, opened: _Open) -> tuple[Any, redis.Redis]:
        """Return channel and client, after connecting if needed. Threads that waited for a
        failed attempt of another one fail as well.
        """
        with opened.lock:
            if opened.channel_and_client is None:
                if self._open is not opened:
                    raise OperationalError("failed a moment ago")
                try:
                    opened.connection.ensure_connection(max_retries=1, interval_start=0)
                    channel = opened.connection.default_channel
                    opened.channel_and_client = channel, plain_client(channel)
                except BaseException:
                    self._discard(opened)
                    raise
            return opened.channel_and_client

    def _leave(self, opened: _Open) -> None:
        with self._lock:
            opened.users -= 1
            unused = not opened.users
        if unused:
            opened.connection.release()

    def _discard(self, opened: _Open) -> None:
        """Let no new reader use a connection, and release it after the last one."""
        with self._lock:
            if self._open is not opened:
                return
            self._open = None
        self._leave(opened)

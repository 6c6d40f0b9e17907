"""One connection to the broker for all threads that read its queues."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis
from kombu.exceptions import OperationalError

from rts.errors import BrokerUnavailable, CommandError
from rts.settings import Settings
from rts.urls import shown_url

#: Threads that may read at a time: each does by a connection to Redis of its own, of which
#: kombu keeps ten.
READERS = 10_000


@dataclass(eq=False)
class _Open:
    """A connection of kombu's, which the threads of this process share."""

    connection: Any
    #: Once it is connected.
    channel: Any = None
    readers: int = 0
    #: Nobody else is to use it; whoever reads last releases it.
    given_up: bool = False
    #: Held by the one that connects.
    lock: threading.RLock = field(default_factory=threading.RLock)


class SharedConnection:
    """Makes a connection of kombu's when it is first needed, and another one after a trouble.

    Who still reads by one that somebody else has had trouble with, ends that.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._open: _Open | None = None
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def close(self) -> None:
        """Close it, once nobody reads any more."""
        if self._open is not None and self._pid == os.getpid():
            self._give_up(self._open)

    @contextmanager
    def channel(self) -> Iterator[tuple[Any, redis.Redis]]:
        """Give kombu's channel and a client, for as long as the body reads.

        Raises:
            CommandError: the broker is not Redis.
            StoreUnavailable: it is away.
        """
        if self._pid != os.getpid():
            # The parent's, to be left alone.
            self._open, self._lock, self._pid = None, threading.RLock(), os.getpid()
        opened = self._entered()
        connection = opened.connection
        try:
            if connection.transport.driver_type != "redis":
                raise CommandError(
                    "predictions need Redis as the broker: others hide their queues"
                )
            channel = self._connected(opened)
            yield channel, redis.Redis(connection_pool=channel.pool)
        except (
            OperationalError,
            OSError,
            redis.RedisError,
            *connection.connection_errors,
        ) as exc:
            self._give_up(opened)
            url = shown_url(connection.as_uri())
            raise BrokerUnavailable(
                f"the broker {url} is not usable ({type(exc).__name__})"
            ) from exc
        finally:
            self._left(opened)

    def _entered(self) -> _Open:
        with self._lock:
            if self._open is None:
                options = {
                    "socket_connect_timeout": self._settings.connect_timeout,
                    "socket_timeout": self._settings.timeout,
                    "max_connections": READERS,
                }
                made = self._app.connection_for_read(transport_options=options)
                self._open = _Open(made)
            self._open.readers += 1
            return self._open

    def _connected(self, opened: _Open) -> Any:
        """Return the channel; who has waited in vain for another one to connect fails, too."""
        with opened.lock:
            if opened.channel is None:
                if opened.given_up:
                    raise OperationalError("failed a moment ago")
                try:
                    opened.connection.ensure_connection(max_retries=1, interval_start=0)
                    opened.channel = opened.connection.default_channel
                except BaseException:
                    self._give_up(opened)
                    raise
            return opened.channel

    def _left(self, opened: _Open) -> None:
        with self._lock:
            opened.readers -= 1
            over = opened.given_up and not opened.readers
        if over:
            opened.connection.release()

    def _give_up(self, opened: _Open) -> None:
        """Have nobody else use a connection: those that do end what they are at."""
        with self._lock:
            if self._open is opened:
                self._open = None
            over = not opened.given_up and not opened.readers
            opened.given_up = True
        if over:
            opened.connection.release()

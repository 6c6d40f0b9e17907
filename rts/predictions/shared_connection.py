"""One connection to the broker for all threads that read its queues."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu.exceptions import OperationalError

from rts import forks
from rts.errors import BrokerUnavailable, CommandError
from rts.scheduling.layout import plain_client
from rts.scheduling.queues import broker_errors
from rts.settings import Settings

#: Size of the pool of Redis connections, one per thread that reads; kombu's default is 10.
MAX_CONNECTIONS = 10_000


class _Open:
    """A kombu connection that threads share. It is released once none of them has it."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        #: Its channel; ``None`` until it is connected.
        self.channel: Any = None
        #: Held by the thread that connects.
        self.lock = threading.RLock()
        weakref.finalize(self, _release, connection, forks.pid).atexit = False


def _release(connection: Any, pid: int) -> None:
    if pid == forks.pid:  # in a forked child it is the parent's
        connection.release()


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
        self._open = None

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """Yield kombu's channel, with a client ``plain``, which our own channels have anyway.

        Raises:
            CommandError: the broker is not Redis.
            StoreUnavailable: it is unavailable.
        """
        opened = self._current()
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
            # The error's traceback has this frame, and Python 3.12 and 3.13 may keep it until
            # the next garbage collection.
            del opened

    def _current(self) -> _Open:
        """Return the connection that new readers use."""
        with self._lock:
            if self._open is None:
                options = {
                    "socket_connect_timeout": self._settings.connect_timeout,
                    "socket_timeout": self._settings.timeout,
                    "max_connections": MAX_CONNECTIONS,
                }
                self._open = _Open(self._app.connection_for_read(transport_options=options))
            return self._open

    def _connect(self, opened: _Open) -> Any:
        """Return the channel, after connecting if needed. Threads that waited for a failed
        attempt of another one fail as well.
        """
        with opened.lock:
            if opened.channel is None:
                if self._open is not opened:
                    raise OperationalError("failed a moment ago")
                try:
                    opened.connection.ensure_connection(max_retries=1, interval_start=0)
                    channel = opened.connection.default_channel
                    if not hasattr(channel, "plain"):
                        channel.plain = plain_client(channel)
                    opened.channel = channel
                except BaseException:
                    self._discard(opened)
                    raise
            return opened.channel

    def _discard(self, opened: _Open) -> None:
        """Let no new reader use a connection."""
        with self._lock:
            if self._open is opened:
                self._open = None

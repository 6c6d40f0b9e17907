"""A server process with a port and a folder of its own, which can be paused, killed and
started again as often as a test wants.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rts.errors import RtsError
from rts.testing.processes import OwnedProcess, remove_folder
from rts.testing.waiting import wait_until

#: Seconds that a server may take until it answers. mongod starts in about one;
#: a loaded machine is slower.
START_TIMEOUT_S = 60.0

S = TypeVar("S", bound="Server")


class ServerFailed(RtsError):
    """A server did not start; the message holds the end of its log."""


def reserved(port: int) -> socket.socket:
    """Return a socket that reserves *port* (0: any free one) for a server of ours.

    It is bound but does not listen: clients are refused as if nothing were there, the server
    can still bind (both set SO_REUSEADDR), and the kernel gives the port to nobody else.
    Without it, while the server is down, the port could become the local end of some
    connection, even of a client's connection to this very port.

    Raises:
        OSError: somebody listens on it.
    """
    holder = socket.socket()
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", port))
    except BaseException:
        holder.close()
        raise
    return holder


def _remove(folder: Path, owner: int, holder: list[socket.socket]) -> None:
    remove_folder(folder, owner)
    while holder:
        holder.pop().close()


class Server:
    """A server process with its folder. A context manager.

    *port* is a free one unless it is given, and stays the same as long as the object lives.
    *arguments* are added to the command line; *binary* is looked for unless it is given.
    """

    def __init__(
        self, port: int | None, *, arguments: Sequence[str], binary: str | None
    ) -> None:
        self._arguments = arguments
        self._binary = binary
        self._holder: list[socket.socket] = []
        try:
            self._holder.append(reserved(port or 0))
        except OSError:  # in use now; start() says so if it still is
            if port is None:
                raise
        #: Known before the start, so that clients can be configured for a server
        #: that comes later.
        self.port: int = port or self._holder[0].getsockname()[1]
        self._folder = Path(tempfile.mkdtemp(prefix="rts-server-"))
        self._process: OwnedProcess | None = None
        weakref.finalize(self, _remove, self._folder, os.getpid(), self._holder)

    @property
    def url(self) -> str:
        """The URL for clients."""
        raise NotImplementedError

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self._folder / "log"

    @property
    def data_dir(self) -> Path:
        """The server's data."""
        return self._folder / "data"

    @property
    def pid(self) -> int:
        """Process id of the running server.

        Raises:
            ServerFailed: it was not started, or was stopped.
        """
        if self._process is None:
            raise ServerFailed(f"{type(self).__name__} is not running; start() it")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process runs; also while it is paused."""
        return self._process is not None and self._process.running

    def start(self: S) -> S:
        """Start, and wait until the server answers; does nothing while it runs.

        Raises:
            ServerNotFound: there is no binary.
            ServerFailed: it did not answer, or the port is taken.
        """
        if self.running:
            return self
        self.kill()  # what is left of one that ended by itself
        command = self._command()
        if not self._holder:
            try:
                self._holder.append(reserved(self.port))
            except OSError as exc:
                raise ServerFailed(f"port {self.port} is taken: {exc}") from exc
        self.data_dir.mkdir(parents=True, exist_ok=True)
        try:
            process = self._process = OwnedProcess(command, self.log_path, folder=self._folder)
            wait_until(
                lambda: self._answers() or not process.running,
                START_TIMEOUT_S,
                interval=0.02,
                message="the server answers",
            )
            if process.running:
                return self
            raise ChildProcessError("it ended")
        except BaseException as exc:  # also Ctrl-C
            self.kill()
            if isinstance(exc, OSError):
                raise ServerFailed(f"{command[0]}: {exc}\n{self._log_end()}") from exc
            raise

    def stop(self) -> None:
        """Stop and remove everything. Idempotent."""
        self.kill()  # nobody needs what a clean shutdown would still write
        _remove(self._folder, os.getpid(), self._holder)

    def halt(self) -> None:
        """Stop but keep the data, for a later :meth:`start` on the same port."""
        if self._process is not None:
            self._process.send(signal.SIGCONT)
            self._process.stop(20)
            self._process = None

    def kill(self) -> None:
        """SIGKILL; the data stays for a later :meth:`start`."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Stop and start again on the same port with the same data."""
        self.halt()
        self.start()

    def pause(self) -> None:
        """SIGSTOP, and wait until all its threads have stopped: the kernel still accepts
        connections and keeps them open, but nothing answers.
        """
        os.kill(self.pid, signal.SIGSTOP)
        wait_until(self._is_stopped, message="the server is paused")

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def _is_stopped(self) -> bool:
        for path in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            # The state follows the name, which is in parentheses and may contain some.
            if path.read_text().rpartition(")")[2].split()[0] not in "Tt":
                return False
        return True

    def __enter__(self: S) -> S:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _ping(self) -> None:
        """Raise some exception while the server does not answer."""
        raise NotImplementedError

    def _answers(self) -> bool:
        try:
            self._ping()
        except Exception:  # noqa: BLE001  not ready yet, or dead
            return False
        return True

    def _log_end(self) -> str:
        try:
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-20:])
        except OSError:
            return "(no log)"

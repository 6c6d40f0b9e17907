"""Real Celery workers as child processes."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from rts.errors import RtsError
from rts.testing.processes import OwnedProcess, remove_folder
from rts.testing.waiting import wait_until

#: Celery logs that it is ready at INFO. For higher log levels this runs the same command line
#: and prints it.
_PRINTS_READY = """
import os, sys
from celery.__main__ import main
from celery.signals import worker_ready
worker_ready.connect(
    lambda sender, **_: os.write(2, f"{sender.hostname} ready.\\n".encode()), weak=False
)
sys.exit(main())
"""

_READY = re.compile(r"\S@\S+ ready\.\s")


class WorkerFailed(RtsError):
    """A worker did not start; the message holds its log."""


class WorkerProcess:
    """``celery -A app worker`` in a process of its own. A context manager.

    *app* is what ``-A`` takes; *arguments* are added to the command line; *env* is
    added to this process's environment. It runs in a session of its own (Ctrl-C does
    not reach it) and does not outlive this process.
    """

    def __init__(
        self,
        app: str,
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        hostname: str = "worker@test",
        queues: Sequence[str] = (),
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        loglevel: str = "INFO",
        start_timeout: float = 60.0,
    ) -> None:
        says_ready = loglevel.upper() in ("DEBUG", "INFO")
        command = [sys.executable, *(("-m", "celery") if says_ready else ("-c", _PRINTS_READY))]
        command += ["-A", app, "worker", "-P", pool]
        command += ["-c", str(concurrency), "-n", hostname, "-l", loglevel]
        if queues:
            command += ["-Q", ",".join(queues)]
        self._command = [*command, *arguments]
        self._env = {**os.environ, **(env or {})}
        self._cwd = cwd
        self._start_timeout = start_timeout
        self._folder: Path | None = None
        self._process: OwnedProcess | None = None
        self._last_log = ""

    def start(self) -> WorkerProcess:
        """Start it and wait until it is ready; also again, after :meth:`kill` or :meth:`stop`
        (then with a new log).

        Raises:
            WorkerFailed: it ended, or was not ready in time.
        """
        if self.running:
            return self
        if self._process is not None:
            self._process.kill()  # what its main process left behind
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rts-worker-"))
            self._last_log = ""
            weakref.finalize(self, remove_folder, self._folder, os.getpid())
        earlier = len(self.log)
        try:
            process = self._process = OwnedProcess(
                self._command,
                self._folder / "log",
                env=self._env,
                cwd=self._cwd,
                folder=self._folder,
            )
            wait_until(
                lambda: _READY.search(self.log, earlier) or not process.running,
                self._start_timeout,
                message="the worker is ready",
            )
            if process.running:
                return self
            raise ChildProcessError("it ended")
        except BaseException as exc:  # also Ctrl-C
            self.stop(0)
            if isinstance(exc, OSError):
                late = isinstance(exc, TimeoutError)
                how = "was not ready in time" if late else "did not start"
                raise WorkerFailed(
                    f"the worker {how} ({exc}):\n{self._last_log[earlier:]}"
                ) from exc
            raise

    @property
    def log(self) -> str:
        """What the worker has printed so far; also after its end."""
        if self._folder is not None:
            try:
                self._last_log = (self._folder / "log").read_text(errors="replace")
            except FileNotFoundError:  # not started yet
                pass
        return self._last_log

    @property
    def pid(self) -> int:
        """Process id of the worker's main process; also after :meth:`kill`.

        Raises:
            WorkerFailed: it was not started, or was stopped.
        """
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether the main process runs."""
        return self._process is not None and self._process.running

    def children(self) -> list[psutil.Process]:
        """Return the living pool children of a prefork worker."""
        return [child for child, companion in self._family() if not companion]

    def companions(self) -> list[psutil.Process]:
        """Return the companion processes that rts runs beside the worker."""
        return [child for child, companion in self._family() if companion]

    def stop(self, timeout: float = 30.0) -> None:
        """Warm shutdown (SIGTERM); SIGKILL what is left after *timeout* seconds. Idempotent."""
        if self._process is not None:
            self._process.stop(timeout)
            self._process = None
        if self._folder is not None:
            self._last_log = self.log
            remove_folder(self._folder, os.getpid())
            self._folder = None

    def kill(self, *, group: bool = True) -> None:
        """SIGKILL: to the main process only, or with its pool children as a crash of
        the container would do.
        """
        if group:
            self._started().kill()
        else:
            self._started().send(signal.SIGKILL)
            self._started().wait(30)

    def __enter__(self) -> WorkerProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _started(self) -> OwnedProcess:
        if self._process is None:
            raise WorkerFailed("the worker is not running; start() it")
        return self._process

    def _family(self) -> list[tuple[psutil.Process, bool]]:
        """Return each living child of the main process, and whether it is a companion."""
        family = []
        try:
            for child in psutil.Process(self.pid).children():
                try:
                    line = child.cmdline()
                except psutil.Error:  # it has just ended, or is a zombie
                    continue
                if line:
                    family.append((child, any("rts.companion" in part for part in line)))
        except psutil.NoSuchProcess:
            pass
        return family

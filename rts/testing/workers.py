"""Real Celery workers as child processes."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from rts.errors import RtsError
from rts.testing.processes import OwnedProcess
from rts.testing.waiting import wait_until


class WorkerFailed(RtsError):
    """A worker did not start; the message holds its log."""


class WorkerProcess:
    """``celery -A app worker`` in a process of its own. A context manager.

    *app* is what ``-A`` takes; *env* is added to this process's environment.
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
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-P", pool]
        command += ["-c", str(concurrency), "-n", hostname, "-l", loglevel]
        if queues:
            command += ["-Q", ",".join(queues)]
        self._command = [*command, *arguments]
        self._env = {**os.environ, **(env or {})}
        self._cwd = cwd
        self._start_timeout = start_timeout
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: OwnedProcess | None = None
        self._last_log = ""

    def start(self) -> WorkerProcess:
        """Start it and wait until it takes tasks.

        Raises:
            WorkerFailed: it ended, or was not ready in time.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="rts-worker-")
        self._process = OwnedProcess(
            self._command, Path(self._folder.name, "log"), env=self._env, cwd=self._cwd
        )
        process = self._process
        try:
            # Celery logs it at INFO whatever the level of the rest.
            wait_until(
                lambda: " ready." in self.log or not process.running,
                self._start_timeout,
                message="the worker is ready",
            )
        except TimeoutError as exc:
            log = self.log
            self.stop(0)
            raise WorkerFailed(f"the worker was not ready in time:\n{log}") from exc
        if not process.running:
            log = self.log
            self.stop(0)
            raise WorkerFailed(f"the worker ended at its start:\n{log}")
        return self

    @property
    def log(self) -> str:
        """What the worker has printed so far; also after its end."""
        if self._folder is not None:
            self._last_log = Path(self._folder.name, "log").read_text(errors="replace")
        return self._last_log

    @property
    def pid(self) -> int:
        """Process id of the worker's main process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the main process runs."""
        return self._process is not None and self._process.running

    def children(self) -> list[psutil.Process]:
        """Return the pool children of a prefork worker."""
        return [
            child
            for child in psutil.Process(self.pid).children()
            if not any("rts.ledger" in part for part in child.cmdline())
        ]

    def companions(self) -> list[psutil.Process]:
        """Return the companion processes that rts runs beside the worker."""
        return [
            child
            for child in psutil.Process(self.pid).children()
            if any("rts.ledger" in part for part in child.cmdline())
        ]

    def stop(self, timeout: float = 30.0) -> None:
        """Warm shutdown (SIGTERM), and SIGKILL to what is left after *timeout* seconds."""
        if self._process is not None:
            self._process.stop(timeout)
            self._process = None
        if self._folder is not None:
            self._last_log = self.log
            self._folder.cleanup()
            self._folder = None

    def kill(self, *, group: bool = True) -> None:
        """SIGKILL: to the main process only, or with its pool children as a crash of
        the container would do.
        """
        assert self._process is not None
        if group:
            self._process.kill()
        else:
            self._process.send(signal.SIGKILL)
            self._process.wait(30)

    def __enter__(self) -> WorkerProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

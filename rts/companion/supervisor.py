"""Starts the companion process of a worker, and restarts it if it dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rts import forks, health

#: First and longest back-off before a restart, seconds.
MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 30.0
#: When a companion dies that has lived for so many seconds, the back-off starts anew.
LIVED_S = 60.0
#: Seconds between checks whether it is alive. Not a wait for the process, which some
#: greenlet libraries turn into a busy loop.
LOOK_S = 1.0

#: Variable that passes on this process's module path. PYTHONPATH would start the agent that
#: ``ddtrace-run``, ``newrelic-admin`` or ``opentelemetry-instrument`` has put on that path as a
#: module ``sitecustomize``, and each drained batch would be traced as the app's.
_PATH = "RTS_COMPANION_PATH"

#: The current folder is not on the path: a file of the app may shadow a module that is
#: needed. It stays the current folder, since URLs may name certificates in it.
_PROGRAM = f"""
import os, sys
sys.path[:] = os.environ.pop("{_PATH}").split(os.pathsep)
from rts.companion.process import main
sys.exit(main())
"""

#: Variables that would change the interpreter's behaviour and are meant for the app.
_NOT_PASSED_ON = ("PYTHONPATH", "PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONSTARTUP")


class Companion:
    """Belongs to the worker's main process. Nothing here raises into the worker."""

    def __init__(self, on_look: Callable[[], object] = lambda: None) -> None:
        #: Called at the start, and about once a second in the watcher thread.
        self._on_look = on_look
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        #: The write end of its standard input, whose closing ends it; -1: none.
        self._pipe = -1
        #: The line that follows its instructions: the queues, if they have changed.
        self._queues_line = ""
        self._stopping = threading.Event()
        self._pass_fds: tuple[int, ...] = ()
        self._spawned_at = 0.0
        # Pool children are not the only ones: with the solo and threads pools, a task forks its
        # own child processes, such as a process pool, from the worker's main process.
        forks.in_child(self.close_in_child)

    @property
    def pid(self) -> int | None:
        """Process id of the companion, ``None`` if there is none."""
        process = self._process
        return None if process is None else process.pid

    def start(self, instructions: str, pass_fds: tuple[int, ...] = ()) -> None:
        """Start it with *instructions*, one line of JSON, and watch over it.

        It inherits *pass_fds*.
        """
        self._pass_fds = pass_fds
        self._on_look()
        self._try_spawn(instructions)
        threading.Thread(
            target=self._watch, args=(instructions,), name="rts-companion", daemon=True
        ).start()

    def set_queues(self, queues: Sequence[str]) -> None:
        """Send the queues that the worker consumes from now on, unless it knows them."""
        with self._lock:
            line = json.dumps(queues) + "\n"
            if line != self._queues_line:
                self._queues_line = line
                self._write(line)

    def stop(self, timeout: float = 8.0) -> None:
        """Let it finish, which takes a few seconds at most; kill it after *timeout*."""
        self._stopping.set()
        with self._lock:  # not while the watcher starts a new one
            process, self._process = self._process, None
            self._close_pipe()
        if process is None:
            return
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close_in_child(self) -> None:
        """Close, in a forked child, the pipe whose closing means the worker's end: the child
        may outlive the worker. Takes no lock, which the parent might hold.
        """
        pipe, self._pipe = self._pipe, -1
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # not our child: nothing to wait for or to warn of
        if pipe >= 0:
            forks.close_inherited(pipe)

    def _try_spawn(self, instructions: str) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            self._process = None
            self._close_pipe()
            try:
                self._spawn(instructions)
            except (OSError, ValueError, subprocess.SubprocessError) as exc:
                health.count("companion_failures")
                health.warn_once(
                    "companion-start",
                    "rts: the companion process cannot be started: %s. Records wait on this "
                    "host's disk (rts_spool_dir); celery -A proj rts drain, run on this host "
                    "by the same user, brings them into the ledger",
                    exc,
                )

    def _spawn(self, instructions: str) -> None:
        if not sys.executable:
            raise OSError("sys.executable is not known (an embedded interpreter?)")
        if getattr(sys, "frozen", False):  # It would start worker after worker.
            raise OSError("this worker is a frozen executable, not a Python interpreter")
        reading, self._pipe = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, "rts.companion"],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                env=environment(),
                pass_fds=self._pass_fds,
                start_new_session=True,  # the terminal's Ctrl-C is for the worker
            )
        finally:
            os.close(reading)
        self._spawned_at = time.monotonic()
        self._write(f"{instructions}\n{self._queues_line}")

    def _write(self, text: str) -> None:
        data = text.encode()
        try:
            while data and self._pipe >= 0:
                data = data[os.write(self._pipe, data) :]
        except OSError:
            pass  # it has died; the watcher sees that

    def _watch(self, instructions: str) -> None:
        backoff_s = MIN_BACKOFF_S
        while not self._stopping.wait(LOOK_S):
            self._on_look()
            process = self._process
            if process is not None and process.poll() is None:
                continue
            if process is not None:
                if time.monotonic() - self._spawned_at > LIVED_S:
                    backoff_s = MIN_BACKOFF_S
                health.count("companion_restarts")
                health.warn_once(
                    "companion",
                    "rts: the companion process exited with status %s and is restarted; "
                    "records wait on this host's disk meanwhile (rts_spool_dir). Its own error "
                    "output is in the worker's standard error",
                    process.returncode,
                )
            if self._stopping.wait(backoff_s):
                return
            backoff_s = min(MAX_BACKOFF_S, 2 * backoff_s)
            self._try_spawn(instructions)

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, -1
        if pipe >= 0:
            os.close(pipe)


def environment() -> dict[str, str]:
    """Return the environment of the companion.

    It can import the modules that this process can, whatever the app has done to its
    path, and this very package first.
    """
    found = [str(Path(__file__).resolve().parent.parent.parent)]
    found += [os.path.abspath(entry) for entry in sys.path if entry]
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
    return {**kept, _PATH: os.pathsep.join(dict.fromkeys(found))}

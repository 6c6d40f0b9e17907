"""Child processes that never outlive the process that started them.

A small supervisor stands between: it holds the reading end of a pipe whose
writing end only the owner has, and kills its child when the pipe closes, which
the kernel does however the owner dies. (``PR_SET_PDEATHSIG`` would tie the
child to the *thread* that started it, and a pytest fixture may run in any.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Runs in a bare interpreter: starts the command, tells its pid, then waits for
#: the first of two events: the child ends, or the owner does.
_SUPERVISOR = """
import os, select, signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
wake_read, wake_write = os.pipe()
os.set_blocking(wake_write, False)
signal.set_wakeup_fd(wake_write)
signal.signal(signal.SIGCHLD, lambda *_: None)
child = subprocess.Popen(
    sys.argv[1:],
    stdin=subprocess.DEVNULL,
    stdout=2,
    start_new_session=True,
    restore_signals=True,
    preexec_fn=lambda: [
        signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ],
)
os.write(1, b"%d\\n" % child.pid)
os.close(1)
while child.poll() is None:
    ready, _, _ = select.select([0, wake_read], [], [])
    if wake_read in ready:
        os.read(wake_read, 64)
    if 0 in ready and child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
code = child.returncode
sys.exit(code if code >= 0 else 128 - code)
"""


class OwnedProcess:
    """A command in a session of its own that dies with this process.

    The terminal's Ctrl-C does not reach it. Output goes to *log_path*.
    """

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
    ) -> None:
        with open(log_path, "ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _SUPERVISOR, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        assert self._supervisor.stdout is not None
        line = self._supervisor.stdout.readline()
        if not line.strip().isdigit():
            self._supervisor.wait()
            self._close_pipes()
            raise OSError(f"could not start {command[0]}; see {log_path}")
        #: Process id of the command itself.
        self.pid = int(line)

    @property
    def running(self) -> bool:
        """Whether the command still runs."""
        return self._supervisor.poll() is None

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal to the command, or to its whole process group."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)
            elif self.running:
                os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, 128 + number where a signal ended it.

        Raises:
            subprocess.TimeoutExpired: it still runs after *timeout* seconds.
        """
        status = self._supervisor.wait(timeout)
        self._close_pipes()
        return status

    def stop(self, timeout: float = 10.0) -> None:
        """End it: SIGTERM, then SIGKILL to all of its group; again changes nothing."""
        if self.running:
            self.send(signal.SIGTERM)
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.send(signal.SIGCONT, group=True)
        self.kill()

    def kill(self) -> None:
        """SIGKILL it and all of its process group."""
        self.send(signal.SIGKILL, group=True)
        self.wait(30)

    def _close_pipes(self) -> None:
        for pipe in (self._supervisor.stdin, self._supervisor.stdout):
            if pipe is not None:
                pipe.close()

"""Child processes that never outlive the process that started them.

A small supervisor runs in between. It holds the reading end of a pipe whose writing end the
owner has, and a pidfd of the owner. As soon as either shows that the owner is gone, however it
died, the supervisor kills its child. (The pipe alone would stay open in children that the owner
has forked. ``PR_SET_PDEATHSIG`` would tie the child to the *thread* that started it, and a
pytest fixture may run in any.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

#: Runs in a bare interpreter. Its arguments are the owner's pid, the folder to remove if the
#: owner dies ('' for none), and the command. It starts the command, prints its pid, and waits
#: until either the child or the owner ends. The command's output goes to the log (fd 2): nobody
#: reads fd 1 after the first line, and a writer would block there after 64 KiB.
_SUPERVISOR = """
import os, select, shutil, signal, subprocess, sys
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
for number in numbers:
    signal.signal(number, signal.SIG_IGN)
owner, folder, *command = sys.argv[1:]
wake_read, wake_write = os.pipe()
os.set_blocking(wake_write, False)
signal.set_wakeup_fd(wake_write)
signal.signal(signal.SIGCHLD, lambda *_: None)
watched = [0]
try:
    watched.append(os.pidfd_open(int(owner)))
except (AttributeError, OSError):
    pass  # an old kernel, or the owner is gone: the pipe will tell
child = subprocess.Popen(
    command,
    stdin=subprocess.DEVNULL,
    stdout=2,
    start_new_session=True,
    preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in numbers],
)
try:
    os.write(1, b"%d\\n" % child.pid)
except BrokenPipeError:
    pass
os.close(1)
while child.poll() is None:
    ready, _, _ = select.select([*watched, wake_read], [], [])
    if wake_read in ready:
        os.read(wake_read, 64)
    if any(end in ready for end in watched):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
code = child.returncode
sys.exit(code if code >= 0 else 128 - code)
"""


def remove_folder(folder: Path, owner: int) -> None:
    """Remove *folder* if the process *owner* calls, and not a child that it has forked."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


class OwnedProcess:
    """A command in a session of its own that dies with this process.

    The terminal's Ctrl-C does not reach it. Output is appended to *log_path*. *folder* is
    removed if this process dies before the command ends.

    Raises:
        OSError: the command or *cwd* is not there; the log may say more.
    """

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        folder: Path | None = None,
    ) -> None:
        supervised = [str(os.getpid()), str(folder or ""), *command]
        self._killed = False
        with open(log_path, "ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _SUPERVISOR, *supervised],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        stdout = self._supervisor.stdout
        line = b"" if stdout is None else stdout.readline()
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
        """End it: SIGTERM, and after *timeout* seconds SIGKILL to all of its group."""
        if self.running:
            self.send(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """SIGKILL it and all of its process group. Idempotent."""
        if not self._killed:  # later the pid may be reused
            self.send(signal.SIGKILL, group=True)
            self.wait(30)
            self._killed = True

    def _close_pipes(self) -> None:
        for pipe in (self._supervisor.stdin, self._supervisor.stdout):
            if pipe is not None:
                pipe.close()

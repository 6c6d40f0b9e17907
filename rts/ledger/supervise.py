"""Starts the companion process of a worker, and starts it again if it dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import rts
from rts import health

#: Seconds before the first and the later restarts.
MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0


class Companion:
    """Belongs to the worker's main process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()

    @property
    def pid(self) -> int | None:
        """Process id of the companion, ``None`` where there is none."""
        return None if self._process is None else self._process.pid

    def start(self, orders: str) -> None:
        """Start it with *orders*, one line of JSON, and watch over it."""
        self._stopping.clear()
        self._spawn(orders)
        threading.Thread(
            target=self._watch, args=(orders,), name="rts-companion", daemon=True
        ).start()

    def stop(self, timeout: float = 8.0) -> None:
        """Let it finish: it drains for a few seconds at most; then it is killed."""
        self._stopping.set()
        process, self._process = self._process, None
        if process is None:
            return
        self._close(process)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close_in_child(self) -> None:
        """Close, in a pool child, the pipe that tells the companion of the worker's end."""
        if self._process is not None and self._process.stdin is not None:
            os.close(self._process.stdin.fileno())
            self._process = None

    def _spawn(self, orders: str) -> None:
        # The folder of this very package first: the app may have put it on its path.
        path = [str(Path(rts.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [sys.executable, "-m", "rts.ledger.companion"],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
            text=True,
            start_new_session=True,  # the terminal's Ctrl-C is for the worker
        )
        self._process = process
        assert process.stdin is not None
        try:
            process.stdin.write(orders + "\n")
            process.stdin.flush()
        except OSError:
            pass  # it has died at once; the watcher sees that

    def _watch(self, orders: str) -> None:
        backoff_s = MIN_BACKOFF_S
        while True:
            process = self._process
            if process is None:
                return
            status = process.wait()
            self._close(process)
            if self._stopping.wait(backoff_s):
                return
            health.count("companion_restarts")
            health.warn_once(
                "companion",
                "rts: the companion process ended with status %s and is started again; records "
                "wait in Redis meanwhile",
                status,
            )
            backoff_s = min(MAX_BACKOFF_S, 2 * backoff_s)
            try:
                self._spawn(orders)
            except OSError as exc:
                health.warn_once("companion-start", "rts: no companion process: %s", exc)

    def _close(self, process: subprocess.Popen[str]) -> None:
        if process.stdin is not None:
            try:
                process.stdin.close()
            except OSError:
                pass  # it is dead already

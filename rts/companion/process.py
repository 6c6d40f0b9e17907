"""The companion process of a worker: heartbeat, spool, drain, lost runs, overdue tasks,
alerts, snapshots of the taus.

``main`` reads its instructions from standard input as one line of JSON, then a line each time
the worker's queues change, and runs until standard input closes, which it does when the
worker ends, however that happens.

It is a separate process because no process of the host app may hold pymongo: pool
children that are forked later would inherit it, its threads do not mix with
greenlets, and the main process is the bottleneck of every prefork worker.
"""

from __future__ import annotations

import gc
import logging
import logging.handlers
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from rts.companion.attempts import attempt
from rts.companion.host_chores import HostChores
from rts.companion.instructions import Instructions
from rts.companion.loop import run
from rts.companion.worker_chores import WorkerChores

#: Seconds from the worker's end until this process exits, whatever hangs. That is safe:
#: nothing is acknowledged before it is done. They are counted in steps of STEP_S, so that time
#: in which this process is suspended or starved does not count.
LAST_S, STEP_S = 5.0, 0.1
#: Tasks take precedence over the drain on a shared core.
NICENESS = 5


def set_up_logging(instructions: Instructions) -> None:
    """Log to the worker's log file in its format; to standard error if that fails."""
    handler: logging.Handler = logging.StreamHandler()
    if instructions.logfile:
        try:
            handler = logging.handlers.WatchedFileHandler(instructions.logfile)
        except OSError:
            pass
    logging.basicConfig(
        level=instructions.loglevel,
        format="[%(asctime)s: %(levelname)s/rts] %(message)s",
        handlers=[handler],
    )
    # At DEBUG it would log all that is written to the ledger.
    logging.getLogger("pymongo").setLevel(max(instructions.loglevel, logging.INFO))


def main() -> int:
    """Run beside a worker; return the exit status."""
    parent = os.getppid()
    # The worker decides. systemd, for one, sends SIGTERM to all processes of a service at once,
    # and the worker's last tasks are still to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Unbuffered: the lines after it are read by another thread.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stdin:
        line = stdin.readline()
    if not line.endswith(b"\n"):
        return 0  # the worker died before it had sent its instructions
    instructions = Instructions.from_json(line.decode())
    set_up_logging(instructions)
    stop = threading.Event()
    chores = HostChores(instructions.settings, drain=instructions.settings.drain)
    worker = WorkerChores(instructions, chores)
    try:
        os.nice(NICENESS)
    except OSError:
        pass  # a sandbox may forbid it; nothing depends on it
    if sys.implementation.name == "cpython":
        gc.freeze()  # imported modules stay for good
        # A batch is many objects, none of them in cycles: look for cycles less often.
        gc.set_threshold(50_000, 10, 10)
    watched = (parent, stop, worker.set_queues)
    threading.Thread(target=watch, args=watched, daemon=True).start()
    run(chores, stop, worker)
    return 0


def watch(parent: int, stop: threading.Event, on_line: Callable[[bytes], None]) -> None:
    """Pass each line of standard input to *on_line*, and set *stop* when the worker ends:
    standard input closes, or the parent changes (a child of the worker may hold the pipe
    open).

    Then kills the process, should it not exit by itself.
    """
    stdin, partial_line = sys.stdin.fileno(), b""
    while os.getppid() == parent:
        ready, _, _ = select.select([stdin], [], [], 1.0)
        if ready:
            data = os.read(stdin, 4096)
            if not data:
                break
            *lines, partial_line = (partial_line + data).split(b"\n")
            for line in lines:
                attempt("reading the worker's queues", partial(on_line, line))
    stop.set()
    for _ in range(round(LAST_S / STEP_S)):
        time.sleep(STEP_S)
    os._exit(1)

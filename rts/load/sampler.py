"""Samples the worker's load in the background, for starting tasks to read.

One daemon thread in the worker's main process takes samples and writes them to a
:class:`~rts.load.board.LoadBoard`, which pool children and the companion only read. In the
threads, solo and gevent pools the same object serves within one process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rts import forks
from rts.health import guarded
from rts.load.board import LoadBoard
from rts.load.cgroup import Cgroups
from rts.load.cpu import CpuProbe, psutil_host
from rts.load.gpu import GpuProbe
from rts.load.memory import MemoryProbe
from rts.load.sample import MAX_AGE_S, GpuLoad, LoadSample

#: Half of :data:`MAX_AGE_S`: one sample may be late without harm.
PERIOD_S = 0.25

#: Seconds until the first CPU figure, so that tasks which start with the worker get
#: one too; the kernel's ticks are 10 ms.
FIRST_WINDOW_S = 0.05

#: How long :meth:`LoadSampler.stop` waits for a reading in progress (NVML may
#: take a while). The thread is a daemon: it never keeps a process alive.
STOP_WAIT_S = 1.0

_gate = forks.ForkGate()


@dataclass(frozen=True, slots=True)
class Probes:
    """What the sampler calls. A figure is 0.0 to 1.0 or above; ``None`` where unknown."""

    cpu: Callable[[], float | None]
    memory: Callable[[], float | None]
    gpus: Callable[[], Sequence[GpuLoad]]
    #: Called at the end.
    close: Callable[[], None]


def real_probes() -> Probes:
    """Return probes of this machine. Imports psutil."""
    cgroups, gpus = Cgroups(), GpuProbe()
    cpu, memory = CpuProbe(cgroups, psutil_host()), MemoryProbe(cgroups)
    return Probes(cpu.read, memory.read, gpus.read, gpus.close)


class LoadSampler:
    """The load of this worker, at most :data:`MAX_AGE_S` old.

    Create it before the worker's pool forks, and :meth:`start` it in the worker's main
    process, best after the fork (Python 3.12 warns about a fork in a process with threads;
    nothing breaks either way). Call :meth:`read` in whichever process a task starts.
    """

    def __init__(
        self,
        board: LoadBoard,
        probes: Callable[[], Probes] = real_probes,
        period_s: float = PERIOD_S,
    ) -> None:
        self._board = board
        self._make_probes = probes
        self._period_s = period_s
        self._forget_thread()
        #: Read in place of a sample that is too old; and the last such reading.
        self._memory = MemoryProbe(Cgroups())
        self._direct: LoadSample | None = None
        forks.in_child(self._forget_thread)

    def _forget_thread(self) -> None:
        """Begin without a thread, also in a forked child: that one is the parent's."""
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start sampling in this process, once. Never raises."""
        with guarded("load sampler"):  # a worker runs without load figures too
            thread = threading.Thread(
                target=self._run, args=(self._make_probes(),), name="rts-load", daemon=True
            )
            thread.start()
            self._thread = thread

    def stop(self) -> None:
        """Stop sampling, if this process does, and release NVML. Never raises."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopped.set()
            thread.join(STOP_WAIT_S)

    def read(self, now: float) -> LoadSample:
        """Return the load *now*, by ``time.monotonic``, when a task starts. Never blocks.

        Without a sample of the last :data:`MAX_AGE_S` (no sampler runs, or it
        was starved) it reads the memory itself, at most once per period, and
        leaves out CPU and GPU, which need the sampler.
        """
        sample = self._board.read()
        if sample is not None and now - sample.sampled_at <= MAX_AGE_S:
            return sample
        direct = self._direct
        if direct is None or now - direct.sampled_at > self._period_s:
            direct = LoadSample.of(None, self._memory.read(), sampled_at=now)
            self._direct = direct
        return direct

    def _run(self, probes: Probes) -> None:
        wait_s = min(FIRST_WINDOW_S, self._period_s)
        while True:
            with _gate.no_fork(), guarded("load sampler"):
                self._board.write(_take_sample(probes))
            if self._stopped.wait(wait_s):
                break
            wait_s = self._period_s
        with _gate.no_fork(), guarded("GPU load"):
            probes.close()


def _take_sample(probes: Probes) -> LoadSample:
    """Read all *probes*; one that fails is left out. The CPU figure is that since the
    previous reading, and missing from the first.
    """
    cpu = memory = None
    gpus: Sequence[GpuLoad] = ()
    with guarded("GPU load"):
        gpus = probes.gpus()
    with guarded("memory load"):
        memory = probes.memory()
    with guarded("CPU load"):
        cpu = probes.cpu()
    return LoadSample.of(cpu, memory, gpus, sampled_at=time.monotonic())

"""The load of a worker when a task starts, and what a run used.

:mod:`~rts.load.sampler` reads CPU (:mod:`~rts.load.cpu`), memory (:mod:`~rts.load.memory`) and
GPUs (:mod:`~rts.load.gpu`) four times a second, within the limits of the worker's cgroups
(:mod:`~rts.load.cgroup`), from files of the kernel (:mod:`~rts.load.kernel_files`). The
worker's processes share the sample (:mod:`~rts.load.sample`, :mod:`~rts.load.board`).
:mod:`~rts.load.usage` measures single runs.
"""

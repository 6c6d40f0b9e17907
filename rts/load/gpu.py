"""How busy the GPUs are that this worker may use, through NVML.

NVML comes with the NVIDIA driver; its Python binding is the optional package
``nvidia-ml-py`` (``pip install rts[gpu]``). ``CUDA_VISIBLE_DEVICES`` is
respected as CUDA reads it, with GPUs numbered in PCI bus order (set
``CUDA_DEVICE_ORDER=PCI_BUS_ID`` on hosts with GPUs of different kinds, where
CUDA itself numbers them by speed).
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rts.load.sample import GpuLoad, rounded

logger = logging.getLogger(__name__)

#: GPUs that are read at most. The largest hosts of today have 16.
MAX_GPUS = 16
#: One of these exists where NVIDIA's driver is (the second: under WSL). On other hosts nobody
#: needs the binding, or wants to read in the log that it is missing.
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


def import_pynvml() -> Any:
    """Return NVML's Python binding.

    Raises:
        ImportError: it is not installed.
    """
    return importlib.import_module("pynvml")


class GpuProbe:
    """Reads the visible GPUs. NVML is initialized at the first reading, and a process that is
    forked after that needs a probe of its own.
    """

    def __init__(
        self,
        load: Callable[[], Any] = import_pynvml,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._load = load
        self._environ = os.environ if environ is None else environ
        self._nvml: Any = None
        self._handles: list[tuple[int, Any]] = []
        self._opened = False
        self._logged = False

    def read(self) -> list[GpuLoad]:
        """Return the load of the visible GPUs, as far as they are there and report it."""
        if not self._opened:
            self._opened = True
            self._open()
        gpus = []
        for index, handle in self._handles:
            utilization = self._utilization(handle)
            memory = self._memory(handle)
            if utilization is not None or memory is not None:
                gpus.append(GpuLoad(index=index, utilization=utilization, memory=memory))
        return gpus

    def close(self) -> None:
        """Shut NVML down if it was initialized. There are no readings after that."""
        nvml, self._nvml, self._handles = self._nvml, None, []
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError:
                pass  # there is nothing left to shut down

    def _open(self) -> None:
        try:
            nvml = self._load()
        except (ImportError, OSError) as exc:
            if any(driver.exists() for driver in DRIVERS):
                self._log_once("no NVML binding (pip install rts[gpu])", exc)
            return
        try:
            nvml.nvmlInit()
            self._nvml = nvml
            self._handles = self._visible()
        except (nvml.NVMLError, OSError) as exc:
            self._log_once("NVML does not start, or not list the GPUs", exc)

    def _visible(self) -> list[tuple[int, Any]]:
        """Return the index and the handle of each GPU that this worker may use."""
        nvml = self._nvml
        handles: dict[int, Any] = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handles[index] = nvml.nvmlDeviceGetHandleByIndex(index)
            except nvml.NVMLError as exc:  # it is lost, or this user may not use it
                self._log_once("a GPU cannot be accessed", exc)
        wanted = self._environ.get("CUDA_VISIBLE_DEVICES")
        if wanted is None:
            return list(handles.items())[:MAX_GPUS]
        chosen: list[tuple[int, Any]] = []
        for name in wanted.split(","):
            found = self._named(handles, name.strip())
            if found is None:
                break  # as in CUDA, an invalid name ends the list
            chosen.append(found)
        return chosen[:MAX_GPUS]

    def _named(self, handles: dict[int, Any], name: str) -> tuple[int, Any] | None:
        nvml = self._nvml
        found: list[tuple[int, Any]] = []
        try:
            if name.isascii() and name.isdigit():
                found = [each for each in handles.items() if each[0] == int(name)]
            elif name.startswith("MIG-"):
                found = [(-1, nvml.nvmlDeviceGetHandleByUUID(name))]
            elif name.startswith("GPU-"):
                uuids = {i: _as_text(nvml.nvmlDeviceGetUUID(h)) for i, h in handles.items()}
                found = [each for each in handles.items() if uuids[each[0]].startswith(name)]
        except nvml.NVMLError:
            pass
        # CUDA accepts a prefix of a UUID if it is unique.
        return found[0] if len(found) == 1 else None

    def _utilization(self, handle: Any) -> float | None:
        try:
            return rounded(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        except self._nvml.NVMLError as exc:
            self._log_once("a GPU does not report its utilization", exc)
            return None

    def _memory(self, handle: Any) -> float | None:
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        except self._nvml.NVMLError as exc:
            self._log_once("a GPU does not report its memory", exc)
            return None
        return rounded(memory.used / memory.total) if memory.total else None

    def _log_once(self, what: str, exc: Exception) -> None:
        if not self._logged:
            self._logged = True
            logger.info("GPU load is not read in full: %s (%s)", what, exc)


def _as_text(value: Any) -> str:
    # The package pynvml before 11.5, which others pin, returns bytes; Python finds it before
    # the module of nvidia-ml-py.
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)

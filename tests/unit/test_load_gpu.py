"""GPUs are read through NVML's documented calls.

The hardware cannot be had in a test, so a small object stands in for the
binding. The real binding is used where its answer is "no driver".
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rts.load import gpu as gpu_module
from rts.load.gpu import MAX_GPUS, GpuProbe
from rts.load.sample import GpuLoad


class Nvml:
    """NVML with *devices*: {uuid: (utilization %, used, total)}; None: not supported."""

    class NVMLError(Exception):
        """The base of the binding's errors."""

    def __init__(self, *devices: tuple[str, int | None, tuple[int, int] | None]) -> None:
        self.devices = list(devices)
        self.started = 0
        self.lost: set[int] = set()
        self.forbidden: set[int] = set()
        self.fails_at: str | None = None

    def _may_fail(self, call: str) -> None:
        if self.fails_at == call:
            raise self.NVMLError(call)

    def nvmlInit(self) -> None:
        self._may_fail("init")
        self.started += 1

    def nvmlShutdown(self) -> None:
        self._may_fail("shutdown")
        self.started -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._may_fail("count")
        return sum(not uuid.startswith("MIG-") for uuid, _, _ in self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.forbidden:
            raise self.NVMLError("insufficient permissions")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        for index, (name, _, _) in enumerate(self.devices):
            if name == uuid:
                return index
        raise self.NVMLError("not found")

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.devices[handle][0]

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        share = self.devices[handle][1]
        if share is None or handle in self.lost:
            raise self.NVMLError("not supported")
        return SimpleNamespace(gpu=share, memory=0)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        memory = self.devices[handle][2]
        if memory is None or handle in self.lost:
            raise self.NVMLError("not supported")
        return SimpleNamespace(used=memory[0], total=memory[1], free=memory[1] - memory[0])


A = ("GPU-aaaa-1", 50, (20, 80))
B = ("GPU-bbbb-2", 100, (40, 80))
C = ("GPU-bbcc-3", 0, (0, 80))


def probe(nvml: Nvml, visible: str | None = None) -> GpuProbe:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return GpuProbe(lambda: nvml, environ=environ)


def load(index: int, utilization: float | None, memory: float | None) -> GpuLoad:
    return GpuLoad(index=index, utilization=utilization, memory=memory)


def test_each_gpu() -> None:
    gpus = [load(0, 0.5, 0.25), load(1, 1.0, 0.5), load(2, 0.0, 0.0)]
    assert probe(Nvml(A, B, C)).read() == gpus


@pytest.mark.parametrize(
    ("visible", "indexes"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2, 0", [2, 0]),
        ("", []),
        ("-1", []),
        ("0,7,1", [0]),
        ("GPU-bbbb", [1]),
        ("GPU-bb", []),
        ("GPU-bbcc-3,0", [2, 0]),
        ("MIG-gone", []),
        ("NoDevFiles", []),
        ("²", []),
    ],
)
def test_only_visible_devices_are_read(visible: str | None, indexes: list[int]) -> None:
    gpus = probe(Nvml(A, B, C), visible).read()
    assert [gpu["index"] for gpu in gpus] == indexes


def test_mig_reports_memory_only() -> None:
    nvml = Nvml(A, ("MIG-1111", None, (10, 40)))
    assert probe(nvml, "MIG-1111").read() == [load(-1, None, 0.25)]


def test_the_bindings_of_pynvml_return_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml(A, B)
    monkeypatch.setattr(nvml, "nvmlDeviceGetUUID", lambda h: nvml.devices[h][0].encode())
    assert [gpu["index"] for gpu in probe(nvml, "GPU-bbbb").read()] == [1]


def test_a_lost_gpu_is_left_out_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    nvml = Nvml(A, B)
    reader = probe(nvml)
    nvml.lost = {0}
    with caplog.at_level(logging.INFO, logger="rts"):
        assert reader.read() == [load(1, 1.0, 0.5)]
        nvml.lost = {0, 1}
        assert reader.read() == []
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.INFO


@pytest.mark.parametrize(("visible", "indexes"), [(None, [0, 2]), ("2", [2]), ("1,2", [])])
def test_a_gpu_that_cannot_be_accessed_hides_no_other(
    visible: str | None, indexes: list[int]
) -> None:
    """It has fallen off the bus, or a batch system has given it to another job."""
    nvml = Nvml(A, B, C)
    nvml.forbidden = {1}
    assert [gpu["index"] for gpu in probe(nvml, visible).read()] == indexes


def test_a_gpu_without_figures() -> None:
    assert probe(Nvml(("GPU-x", None, (0, 0)))).read() == []


@pytest.mark.parametrize("call", ["init", "count"])
def test_nvml_that_does_not_work_is_logged_once(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    nvml = Nvml(A)
    nvml.fails_at = call
    reader = probe(nvml)
    with caplog.at_level(logging.INFO, logger="rts"):
        assert reader.read() == []
        assert reader.read() == []
    assert len(caplog.records) == 1


@pytest.mark.parametrize("driver", [True, False])
def test_the_log_says_what_is_missing_where_there_is_a_driver(
    driver: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def missing() -> Any:
        raise ImportError("No module named 'pynvml'")

    device = tmp_path / "nvidiactl"
    monkeypatch.setattr(gpu_module, "DRIVERS", (device,))
    if driver:
        device.touch()
    with caplog.at_level(logging.INFO, logger="rts"):
        assert GpuProbe(missing).read() == []
    assert ("rts[gpu]" in caplog.text) is driver


def test_the_real_binding_where_it_is_installed() -> None:
    pytest.importorskip("pynvml")
    reader = GpuProbe(environ={})
    assert all(0 <= (gpu["utilization"] or 0.0) <= 1 for gpu in reader.read())
    reader.close()


def test_many_gpus_are_bounded() -> None:
    assert len(probe(Nvml(*[A] * 40)).read()) == MAX_GPUS


def test_nvml_is_initialized_once_and_shut_down() -> None:
    nvml = Nvml(A)
    reader = probe(nvml)
    reader.close()
    assert nvml.started == 0
    reader.read()
    reader.read()
    assert nvml.started == 1
    reader.close()
    assert nvml.started == 0
    reader.close()
    assert nvml.started == 0


def test_nvml_that_does_not_shut_down_is_survived() -> None:
    nvml = Nvml(A)
    reader = probe(nvml)
    reader.read()
    nvml.fails_at = "shutdown"
    reader.close()

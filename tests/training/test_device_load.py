"""How busy a device is: against a simulated one, on which time passes as it is told to."""

import time

import pytest
import torch
from torch import nn

from raydistill.training import device_load
from raydistill.training.cost import Cost
from raydistill.training.device_load import BLOCKED, CONTEXT_BYTES, MEASURED, SETTLED

GB = 10**9
BLOCK_SECONDS = BLOCKED / 2e9


class Device:
    """Kernels are done in their order, the next one when it was launched and the one before is done."""

    def __init__(self) -> None:
        self.host = 0.0
        self.done = 0.0
        self.reserved = self.peak = 40 * GB  # of a stage before

    def launch(self, host: float, kernel: float) -> None:
        self.host += host
        self.done = max(self.done, self.host) + kernel

    def synchronize(self) -> None:
        self.host = max(self.host, self.done)

    def _sleep(self, cycles: int) -> None:
        self.launch(0.0, cycles / 2e9)

    def Event(self, enable_timing: bool) -> "Event":  # noqa: N802 - as torch names it
        return Event(self)

    def empty_cache(self) -> None:
        self.reserved = 2 * GB

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peak = self.reserved

    def max_memory_allocated(self, device: torch.device) -> int:
        return GB

    def max_memory_reserved(self, device: torch.device) -> int:
        return self.peak

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 0, 80 * GB


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, 0.0

    def record(self) -> None:
        self.at = max(self.device.done, self.device.host)

    def elapsed_time(self, other: "Event") -> float:
        return 1000 * (other.at - self.at)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(torch, "get_device_module", lambda device: made)
    return made


def cost_of(
    device: Device, host: float, kernel: float, steps: int = 200, kernels: int = 10
) -> dict[str, float]:
    """A training of so many steps, each of kernels that take `host` seconds to launch and `kernel` to compute."""
    cost = Cost(nn.Linear(2, 2), "meta", lambda: device.host)
    cost.begin_epoch(0)
    for _ in range(steps):
        is_measured = cost.begin_step()
        for _ in range(kernels):
            device.launch(host, kernel)
        if is_measured:
            cost.end_step()
    device.synchronize()
    cost.end_epoch(steps)
    return cost.to_dict()


@pytest.mark.parametrize(
    ("host", "kernel", "busy"), [(1e-4, 2e-5, 0.2), (1e-4, 9e-5, 0.9), (1e-5, 1e-4, 1.0)]
)
def test_a_device_that_waits_for_launches_is_busy_for_the_time_of_its_kernels(
    device: Device, host: float, kernel: float, busy: float
) -> None:
    assert cost_of(device, host, kernel)["gpu_busy"] == pytest.approx(busy, rel=1e-3)


def test_what_is_measured_takes_no_part_in_the_seconds_of_a_step(device: Device) -> None:
    assert cost_of(device, 1e-4, 2e-5)["seconds_per_step"] == pytest.approx(1e-3, rel=1e-3)
    assert device.host > MEASURED * BLOCK_SECONDS


def test_a_step_that_is_longer_than_the_device_is_blocked_seems_busier_never_idler(device: Device) -> None:
    found = cost_of(device, 2 * BLOCK_SECONDS, 0.5 * BLOCK_SECONDS)
    assert 0.25 <= found["gpu_busy"] <= 1


def test_memory_is_what_the_process_holds_for_this_training_of_all_that_there_is(device: Device) -> None:
    assert cost_of(device, 1e-4, 2e-5)["gpu_memory"] == pytest.approx((2 * GB + CONTEXT_BYTES) / (80 * GB))


def test_a_short_training_measures_nothing(device: Device) -> None:
    assert "gpu_busy" not in cost_of(device, 1e-4, 2e-5, steps=SETTLED)


def test_a_cpu_measures_nothing() -> None:
    load = device_load.DeviceLoad(torch.device("cpu"))
    assert not any(load.is_due() for _ in range(2 * SETTLED))
    assert load.to_dict(1.0) == {}


@pytest.mark.gpu
@pytest.mark.parametrize(("pause", "least", "most"), [(0.0, 0.8, 1.0), (0.05, 0.0, 0.5)])
def test_a_gpu_tells_whether_it_waits_for_the_host(pause: float, least: float, most: float) -> None:
    weights = torch.randn(4096, 4096, device="cuda")
    weights = torch.tanh(weights @ weights)  # the first product loads a library
    torch.cuda.synchronize()
    cost = Cost(nn.Linear(2, 2), "cuda")
    cost.begin_epoch(0)
    for _ in range(2 * SETTLED):
        is_measured = cost.begin_step()
        time.sleep(pause)
        for _ in range(4):
            weights = torch.tanh(weights @ weights)
        if is_measured:
            cost.end_step()
    torch.cuda.synchronize()
    cost.end_epoch(2 * SETTLED)
    found = cost.to_dict()
    assert least <= found["gpu_busy"] <= most
    assert 0 < found["gpu_memory"] < 0.5

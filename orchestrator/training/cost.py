"""What a training costs besides its samples: seconds of a step, parameters that it trains, memory at its peak; and what
the model costs that comes out of it."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from raydistill.models.multiply_adds import count_multiply_adds
from raydistill.runs.context import StageContext
from raydistill.training.device_load import DeviceLoad

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): set the peak of the resident memory to what it is now


class Cost:
    """The cost of one training on this process, counted from when this object is made.

    A step's seconds are the mean over the fastest epoch: other work on the machine can only make them more. Memory is
    the device's; on a CPU it is the resident memory of the whole process, if the system reports it.
    """

    def __init__(
        self,
        learner: nn.Module,
        device: torch.device | str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`clock` counts the seconds that are spent on this training."""
        self.trained_parameters = sum(p.numel() for p in learner.parameters() if p.requires_grad)
        self.seconds_per_step = math.inf
        self._device = torch.device(device)
        self._clock, self._began = clock, (0, 0.0)
        self._load, self._paused = DeviceLoad(self._device), math.nan
        if self._device.type != "cpu":
            torch.get_device_module(self._device).reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):
                RESET.write_text(RESET_PEAK, encoding="utf-8")

    def begin_epoch(self, step: int) -> None:
        """Training goes on at `step` of all steps."""
        self._began = step, self._clock()

    def begin_step(self) -> bool:
        """Before a step that the device makes for this training alone: whether its load is measured, which takes longer
        than the step."""
        if not self._load.is_due():
            return False
        self._paused = self._clock()
        self._load.begin_step()
        return True

    def end_step(self) -> None:
        """After a step that was measured: it does not count."""
        self._load.end_step()
        first, began = self._began
        self._began = first + 1, began + self._clock() - self._paused

    def end_epoch(self, step: int) -> None:
        """The steps before `step` are done, on the device too."""
        first, began = self._began
        if step > first:
            self.seconds_per_step = min(self.seconds_per_step, (self._clock() - began) / (step - first))

    def to_dict(self) -> dict[str, float]:
        """`trained_parameters`, `seconds_per_step`, `peak_bytes` and the load of a GPU, as far as they are known."""
        known: dict[str, float] = {"trained_parameters": self.trained_parameters}
        if math.isfinite(self.seconds_per_step):
            known["seconds_per_step"] = self.seconds_per_step
        if (peak := self._peak_bytes()) is not None:
            known["peak_bytes"] = peak
        return known | self._load.to_dict(self.seconds_per_step)

    def _peak_bytes(self) -> int | None:
        if self._device.type != "cpu":
            return int(torch.get_device_module(self._device).max_memory_allocated(self._device))
        with suppress(OSError):
            for line in STATUS.read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
        return None


def note_size(context: StageContext, models: Sequence[nn.Module]) -> None:
    """Write down how many parameters and bytes of tensors the stage's models, which are in eval mode, have together,
    and how many multiply-adds they take for one input of the task."""
    # None for ONNX, which keeps its own.
    context.parameters = sum(p.numel() for model in models for p in model.parameters()) or None
    tensors = [tensor for model in models for tensor in model.state_dict().values()]
    if size := sum(tensor.numel() * tensor.element_size() for tensor in tensors):
        context.costs["bytes"] = size
    task = context.task
    inputs = torch.zeros(1, *task.input_shape, dtype=getattr(torch, task.input_dtype), device=context.device)
    counts = [count_multiply_adds(model, inputs) for model in models]
    if all(counts):
        context.costs["multiply_adds"] = sum(filter(None, counts))

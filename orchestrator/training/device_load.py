"""How much of a device a training takes, of its memory and of its time: what is left may be another's."""

import gc
import math
from typing import Any

import torch

SETTLED = 40  # steps after which they are what they will be: captured, if they are at all
MEASURED = 3  # steps, of which the fastest counts
BLOCKED = 10**8  # cycles for which a device is kept from a step: 50 ms, in which even a large one is launched
CONTEXT_BYTES = 600 * 2**20  # what CUDA and its libraries hold in every process, beside all tensors


class DeviceLoad:
    """Measures one training on this process, from when this object is made; on CPUs nothing.

    A device that waits for Python between two kernels is idle, and no clock of the host sees it. So some steps are
    queued while the device is kept busy with nothing: it then makes each without a pause, and says itself how long that
    took. Steps that wait for the device take longer so, never shorter.
    """

    def __init__(self, device: torch.device) -> None:
        self._module: Any = torch.get_device_module(device)
        self._can_measure = hasattr(self._module, "_sleep")
        if self._can_measure:
            gc.collect()
            self._module.empty_cache()  # what the process still holds of a stage before is not this training's
        self._device, self._steps, self._seconds = device, 0, math.inf
        self._began: Any = None

    def is_due(self) -> bool:
        """Before each step: whether it is to be measured."""
        self._steps += 1
        return self._can_measure and SETTLED < self._steps <= SETTLED + MEASURED

    def begin_step(self) -> None:
        """Before a step that is measured."""
        self._module.synchronize()
        self._module._sleep(BLOCKED)
        self._began = self._module.Event(enable_timing=True)
        self._began.record()

    def end_step(self) -> None:
        """After it."""
        ended = self._module.Event(enable_timing=True)
        ended.record()
        self._module.synchronize()
        self._seconds = min(self._seconds, self._began.elapsed_time(ended) / 1000)

    def to_dict(self, seconds_per_step: float) -> dict[str, float]:
        """Of a training whose steps take so long: `gpu_busy`, the part of that time in which the device computes, and
        `gpu_memory`, the part of its memory that the process holds. Empty where nothing was measured."""
        if not math.isfinite(self._seconds + seconds_per_step):
            return {}
        held = self._module.max_memory_reserved(self._device) + CONTEXT_BYTES
        return {
            "gpu_busy": min(1.0, self._seconds / seconds_per_step),
            "gpu_memory": min(1.0, held / self._module.mem_get_info(self._device)[1]),
        }

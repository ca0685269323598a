"""In which precision a network is run, and how small gradients of float16 are kept from becoming 0."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.optim import Optimizer

from raydistill.errors import StageError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
LEAST_SCALE = 1.0  # 16 halvings below the first; what overflows even then is no rounding


def autocast(device_type: str, precision: str) -> AbstractContextManager[object]:
    """Runs a network in a precision of the plan; nothing in `float32`."""
    return torch.autocast(device_type, DTYPES[precision]) if precision in DTYPES else nullcontext()


class GradientScaler(torch.amp.GradScaler):
    """Torch's, which multiplies losses in float16 and leaves out steps whose gradients overflow (Micikevicius et al.
    2018, arXiv 1710.03740); in another precision it does nothing.

    Optimizers that are fused leave a step out by themselves, on the device; for others the host waits in every step.
    """

    def __init__(self, optimizer: Optimizer, device_type: str, precision: str) -> None:
        super().__init__(device_type, enabled=precision == "float16")
        self.optimizer = optimizer

    def checked_scale(self) -> float:
        """The factor of the losses, brought from the device; `StageError` where no factor keeps gradients finite."""
        if (scale := float(self.get_scale())) < LEAST_SCALE:
            raise StageError(
                "the gradients are not finite in float16, whatever they are scaled by: lower the learning rate, or"
                " write `precision: bfloat16`"
            )
        return scale

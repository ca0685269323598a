"""From the machine's memory to a device, without waiting for what the device still has to do.

For what goes in every step or epoch. What goes once, such as a whole split, is better sent by `Tensor.to`: memory that
was pinned stays with the process.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device | str) -> Tensor:
    """The values on a device; the tensor itself where it is there already.

    The copy to an accelerator goes from pinned memory: from any other the host waits until the device has done all
    that it was given before. The way back waits.
    """
    device = torch.device(device)
    if values.device.type != "cpu" or device.type == "cpu":
        return values.to(device)
    # An expanded tensor has several elements in one place, and cannot be pinned.
    return values.contiguous().pin_memory().to(device, non_blocking=True)


def all_to_device(parts: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Tensors (B,) of one type, B as it comes, on a device; all in one copy."""
    if not parts or parts[0].device.type == torch.device(device).type:
        return list(parts)
    return list(to_device(torch.cat(list(parts)), device).split([len(part) for part in parts]))

"""What Ray would find on this machine if it were started here, without loading it."""

import os
from pathlib import Path

from raydistill.execution.ray_backend.resources import WHOLE, Resources

DEVICES = Path("/dev")


def this_machine() -> Resources:
    """Its CPUs and its NVIDIA GPUs, of these the visible ones."""
    return Resources((os.cpu_count() or 1) * WHOLE, _gpus() * WHOLE)


def _gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len([path for path in DEVICES.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()])
    return (
        there if visible is None else min(there, len([name for name in visible.split(",") if name.strip()]))
    )

"""Models a user might write, whose construction tells the tests where and with whom it happened."""

import os
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

PATIENCE = 300.0


def leave_trace(folder: str, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Write the process's id into a new file."""
    _trace(folder)
    return nn.Linear(input_shape[0], num_classes)


def meet(folder: str, count: int, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Return only when `count` processes are here at the same time."""
    _trace(folder)
    deadline = time.monotonic() + PATIENCE
    while len(list(Path(folder).glob("*.pid"))) < count:
        if time.monotonic() > deadline:
            raise TimeoutError("nobody else came")
        time.sleep(0.02)
    return nn.Linear(input_shape[0], num_classes)


def fail_on_last_rank(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Fail on one rank only; the others go on to their first collective call."""
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        raise ValueError("this rank has a fault of its own")
    return nn.Linear(input_shape[0], num_classes)


def fail_late(seconds: float, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Fail, but not at once."""
    time.sleep(seconds)
    raise ValueError("a fault of its own")


def eat_memory(most: int, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Take 32 MiB after 32 MiB, up to `most` bytes; whoever is to end this has a minute then."""
    eaten = []
    while len(eaten) << 25 < most:
        eaten.append(bytearray(os.urandom(1 << 20) * 32))
        time.sleep(0.02)
    time.sleep(60.0)
    raise MemoryError("nobody ended this")


def slow(folder: str, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Steps of 20 ms, or what it says, and frequent checkpoints, as long as the file `slow` is in the folder."""
    from raydistill.training import loop

    loop.CHECKPOINT_SECONDS = 0.2
    _trace(folder)
    return Slow(Path(folder) / "slow", input_shape[0], num_classes)


def slow_to_predict(folder: str, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Answers that take 20 ms, or what it says, as long as the file `slow` is in the folder."""
    return SlowToPredict(Path(folder) / "slow", input_shape[0], num_classes)


class Slow(nn.Module):
    """A linear map that takes its time in training."""

    brakes_training = True

    def __init__(self, brake: Path, inputs: int, outputs: int) -> None:
        super().__init__()
        self.brake = brake
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training == self.brakes_training and self.brake.exists():
            with suppress(FileNotFoundError):
                time.sleep(float(self.brake.read_text() or 0.02))
        return self.linear(inputs)


class SlowToPredict(Slow):
    """One that takes its time otherwise."""

    brakes_training = False


def _trace(folder: str) -> None:
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    (Path(folder) / f"{os.getpid()}-rank{rank}.pid").write_text(str(os.getpid()))

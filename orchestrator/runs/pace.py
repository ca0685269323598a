"""How far a running stage is and how long the rest takes, as its own `metrics.jsonl` tells."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from raydistill.runs.metrics_tail import MetricsTail

LOOK_SECONDS = 1.0
LOSSES = ("steps/loss", "train/loss", "synthesize/loss")


@dataclass(frozen=True)
class Standing:
    """How far a stage is. `epoch` is the last finished one of `epochs`; `seconds_left` counts to the last epoch, which
    early stopping may cut short."""

    epoch: int | None = None
    epochs: int | None = None
    loss: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class _Point:
    """When a step was over: Unix time in seconds, and its number."""

    time: float
    step: float


class Pace:
    """Follows one attempt from its start. `epochs`: how many it trains; None where nothing is trained."""

    def __init__(self, folder: Path, epochs: int | None, clock: Callable[[], float] = time.time) -> None:
        self._tail, self._epochs, self._clock = MetricsTail(folder), epochs, clock
        self._began = clock()
        self._looked = 0.0
        self._epoch: int | None = None
        self._loss: float | None = None
        self._steps_per_epoch: float | None = None
        self._first: _Point | None = None
        self._last: _Point | None = None

    def standing(self) -> Standing:
        """How far it is now. The file is looked at once a second at most."""
        if self._clock() - self._looked >= LOOK_SECONDS:
            self._looked = self._clock()
            for line in self._tail.added():
                self._hear(line)
        return Standing(self._epoch, self._epochs, self._loss, self._seconds_left())

    def _hear(self, line: Mapping[str, float]) -> None:
        self._loss = next((line[key] for key in LOSSES if key in line), self._loss)
        if "epoch" in line:
            self._epoch = int(line["epoch"])
            self._steps_per_epoch = line["step"] / line["epoch"]
        if line["time"] < self._began:  # of a shorter training that this one goes on from
            return
        self._last = _Point(line["time"], line["step"])
        self._first = self._first or self._last

    def _seconds_left(self) -> float | None:
        """Seconds to the end at the pace from the first to the last reported step; imports and reading data do not
        count."""
        first, last = self._first, self._last
        if first is None or last is None or self._epochs is None or self._steps_per_epoch is None:
            return None
        if last.step <= first.step or last.time <= first.time:
            return None
        seconds_per_step = (last.time - first.time) / (last.step - first.step)
        left = (self._epochs * self._steps_per_epoch - last.step) * seconds_per_step
        return max(0.0, left - (self._clock() - last.time))


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them; empty when they are not known."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

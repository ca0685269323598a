"""The top-k form: what is kept of a row of logits when there are many classes, and how a target is made of it again.

Of a row with log-probabilities l = log softmax(v) are kept the k largest l, their classes, and for a few temperatures T
the tail's log-partition R_T = log Σ_(dropped c) exp(l_c / T). A target at temperature T gives exp(l_i / T) / Z to every
kept class and the rest, exp(R_T) / Z, in equal parts to the others, Z = Σ_kept exp(l_i / T) + exp(R_T). At the stored
temperatures both are the teacher's own up to the rounding of l; what is lost is only the shape of the tail. With the
probabilities at T = 1 alone the tail would be guessed too large: 0.88 instead of 0.80 of the mass at T = 2 for 1000
logits drawn from N(0, 3²), of which 10 are kept (means of 2000 draws).
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from raydistill.plan.stage_configs import MOST_TOP_K_CLASSES

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)


class Kept(NamedTuple):
    """Of B rows: `classes` (B, k) int64, most probable first, `log_probabilities` (B, k) and `tails` (B, T) float32."""

    classes: Tensor
    log_probabilities: Tensor
    tails: Tensor


class TopK(BaseModel):
    """How many classes are kept, and the temperatures at which the tail's mass is known.

    A row is `width` words of 16 bits: k classes (uint16), k log-probabilities (float16), the tails (float32, two words
    each, little-endian). One gather reads all of it. The tails are float32 because one number stands for thousands
    of classes: its rounding would move all of them together, while that of the kept ones averages out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kept: int = Field(ge=1, le=MOST_TOP_K_CLASSES)
    temperatures: Annotated[tuple[float, ...], Field(min_length=3)] = TEMPERATURES
    """From 1 up."""

    @property
    def column(self) -> str:
        return f"top_{self.kept}"

    @property
    def width(self) -> int:
        """Words of 16 bits in a row."""
        return 2 * (self.kept + len(self.temperatures))

    def misfit(self, num_classes: int) -> str | None:
        """Why rows of so many classes cannot be kept in this form; None if they can."""
        if num_classes > MOST_TOP_K_CLASSES:
            return f"the top-k form numbers at most {MOST_TOP_K_CLASSES} classes, not {num_classes}"
        if self.kept > num_classes:
            return f"{self.kept} of {num_classes} classes cannot be kept"
        return None

    def keep(self, logits: Tensor) -> Kept:
        """What is kept of logits (B, C), before any rounding; computed in float32 where they are."""
        rest = torch.log_softmax(logits.float(), dim=-1)
        log_probabilities, classes = rest.topk(self.kept, dim=-1)
        return Kept(classes, log_probabilities, self.tails_without(classes, rest))

    def tails_without(self, classes: Tensor, log_probabilities: Tensor) -> Tensor:
        """R_T at the temperatures, (B, T), of all classes but `classes` (B, k); -inf where none is left.

        Overwrites `log_probabilities` (B, C), which may be large: those of `classes` become -inf.
        """
        rest = log_probabilities.scatter_(1, classes, -torch.inf)
        return torch.stack([torch.logsumexp(rest / each, dim=-1) for each in self.temperatures], dim=-1)

    def pack(self, kept: Kept) -> Tensor:
        """Rows as they are stored, (B, width) uint16."""
        words = [
            kept.classes.to(torch.int16),  # above 32,767 it wraps around; `unpack` wraps it back
            kept.log_probabilities.to(torch.float16).view(torch.int16),
            kept.tails.contiguous().view(torch.int16),
        ]
        return torch.cat(words, dim=1).view(torch.uint16)

    def unpack(self, packed: Tensor) -> Kept:
        """What rows (B, width) uint16 say."""
        words, k = packed.view(torch.int16), self.kept
        return Kept(
            words[:, :k].long() & 0xFFFF,
            words[:, k : 2 * k].contiguous().view(torch.float16).float(),
            words[:, 2 * k :].contiguous().view(torch.float32),
        )

    def expand_into(self, logits: Tensor, packed: Tensor, temperature: float) -> None:
        """Fill `logits` (B, C) float32 with numbers whose softmax at this temperature is the target.

        At another temperature they are no target. Off the stored temperatures the tail's mass is interpolated.
        """
        classes, log_probabilities, tails = self.unpack(packed)
        others = logits.shape[1] - self.kept
        if others:
            tail = log_tail(tails, self.temperatures, temperature, others)
            logits.copy_((temperature * (tail - math.log(others))).unsqueeze(1).expand_as(logits))
        logits.scatter_(1, classes, log_probabilities)


def log_tail(tails: Tensor, temperatures: Sequence[float], temperature: float, others: int) -> Tensor:
    """R_T, (B,), at any T ≥ 1 from those at `temperatures` (B, T): theirs at these, interpolated between them.

    R falls and is convex in 1/T, and at 1/T = 0 it is the logarithm of the number of dropped classes, `others`: a cubic
    in 1/T with the slopes of Fritsch and Butland (1984), which stays monotone. With straight lines the error is about
    ten times as large, with polynomials of a higher degree it is without bounds for teachers that are very sure.
    """
    if temperature in temperatures:
        return tails[:, temperatures.index(temperature)]
    order = sorted(range(len(temperatures)), key=lambda index: -temperatures[index])
    places = [0.0, *(1 / temperatures[index] for index in order)]
    values = [torch.full_like(tails[:, 0], math.log(others)), *(tails[:, index] for index in order)]
    left = max(index for index, place in enumerate(places) if place < 1 / temperature)
    width = places[left + 1] - places[left]
    here, there = (_slope(places, values, index) * width for index in (left, left + 1))
    part = (1 / temperature - places[left]) / width
    rise = values[left + 1] - values[left]
    return values[left] + part * (
        here + part * (3 * rise - 2 * here - there + part * (here + there - 2 * rise))
    )


def _slope(places: Sequence[float], values: Sequence[Tensor], index: int) -> Tensor:
    """Slope (B,) at a place: a weighted harmonic mean of those to its sides; at the ends that of a parabola."""
    last = len(places) - 1
    if index in (0, last):
        near, far = (0, 1) if index == 0 else (last - 1, last - 2)
        own, next_width = places[near + 1] - places[near], places[far + 1] - places[far]
        secant, other = _secant(places, values, near), _secant(places, values, far)
        return (secant + own / (own + next_width) * (secant - other)).clamp(max=0)
    before, after = places[index] - places[index - 1], places[index + 1] - places[index]
    first, second = 2 * after + before, after + 2 * before
    return (first + second) / (
        first / _secant(places, values, index - 1) + second / _secant(places, values, index)
    )


def _secant(places: Sequence[float], values: Sequence[Tensor], index: int) -> Tensor:
    """Slope (B,) of the line from a place to the next one, below 0 also where rounding says otherwise."""
    return ((values[index + 1] - values[index]) / (places[index + 1] - places[index])).clamp(max=-1e-12)

"""Comparing stored targets with what the teacher says now."""

from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.targets.reader import Targets

ARITHMETIC_SLACK = 1e-3


@dataclass(frozen=True)
class VerifyResult:
    """The outcome for a sample of rows; differences are between logits."""

    largest_difference: float
    mean_difference: float
    worst_sample_id: int
    """The sample whose difference is largest in proportion to what is allowed."""
    tolerance: float
    """What is allowed for that logit."""
    passed: bool


def compare_rows(
    targets: Targets, rows: Tensor, view: int, recomputed_logits: Tensor, *, slack: float = ARITHMETIC_SLACK
) -> VerifyResult:
    """Compare the stored logits of `rows` (B,) with recomputed ones, (B, C) or (B, M, C).

    A logit may be off by half a float16 spacing at its own size (rounding), plus `slack` times the largest logit
    of its row: another batch size, device or TF32 changes a network's sums in proportion to the row, not the logit.
    """
    stored = targets.read(rows, view).logits
    recomputed = recomputed_logits.detach().float().cpu().reshape(stored.shape)
    difference = (stored - recomputed).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
    row_size = stored.abs().amax(dim=-1, keepdim=True)
    allowed = float16_spacing(stored) / 2 + slack * row_size
    worst = int((difference / allowed).argmax())
    per_sample = stored[0].numel()
    return VerifyResult(
        largest_difference=difference.max().item(),
        mean_difference=difference.mean().item(),
        worst_sample_id=int(targets.ids[rows.cpu()[worst // per_sample]]),
        tolerance=allowed.flatten()[worst].item(),
        passed=bool((difference <= allowed).all()),
    )


def float16_spacing(values: Tensor) -> Tensor:
    """Distance from a float16 number to the next one away from 0: 2^(e - 10) in [2^e, 2^(e + 1)), at least 2^-24."""
    exponent = torch.frexp(values.abs().clamp(min=2**-14)).exponent - 11
    return torch.ldexp(torch.ones_like(values), exponent)

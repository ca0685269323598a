"""Comparing stored targets with what the teacher says now."""

from dataclasses import dataclass

import torch
from torch import Tensor

from raydistill.targets.reader import Targets
from raydistill.targets.top_k import TopK

ARITHMETIC_SLACK = 1e-3


@dataclass(frozen=True)
class VerifyResult:
    """The outcome for a sample of rows; differences are between logits, or what is kept of them."""

    largest_difference: float
    mean_difference: float
    worst_sample_id: int
    """The sample whose difference is largest in proportion to what is allowed."""
    tolerance: float
    """What is allowed for the number that is farthest off in this proportion."""
    passed: bool


def compare_rows(
    targets: Targets, rows: Tensor, view: int, recomputed_logits: Tensor, *, slack: float = ARITHMETIC_SLACK
) -> VerifyResult:
    """Compare the stored logits of `rows` (B,) with recomputed ones, (B, C) or (B, M, C).

    A logit may be off by half a float16 spacing at its own size (rounding), plus `slack` times the largest logit
    of its row: another batch size, device or TF32 changes a network's sums in proportion to the row, not the logit.
    The same holds for the log-probabilities and tails of a top-k store; no class that it dropped may be above a kept
    one.
    """
    recomputed = recomputed_logits.detach().float().cpu()
    if targets.top_k is None:
        stored = targets.read(rows, view).logits
        recomputed = recomputed.reshape(stored.shape)
        row_size = stored.abs().amax(dim=-1, keepdim=True)
    else:
        stored, recomputed, row_size = _kept_numbers(targets, targets.top_k, rows, view, recomputed)
    difference = (stored - recomputed).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
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


def _kept_numbers(
    targets: Targets, top_k: TopK, rows: Tensor, view: int, recomputed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of top-k rows: stored numbers (B, N), the same recomputed from logits (B, C), and their sizes (B, 1).

    The numbers are the kept log-probabilities, the tails, and the least kept log-probability with the best that was
    dropped: the latter counts only where it is larger.
    """
    kept = targets.kept(rows, view)
    everything = torch.log_softmax(recomputed.reshape(len(rows), -1), dim=-1)
    own = everything.gather(1, kept.classes)
    size = everything.abs().nan_to_num(posinf=0).amax(dim=-1, keepdim=True)
    if top_k.kept == targets.num_classes:  # nothing was dropped
        return kept.log_probabilities, own, size
    tails = top_k.tails_without(kept.classes, everything)
    best_dropped, least = everything.amax(dim=-1, keepdim=True), own.amin(dim=-1, keepdim=True)
    stored = torch.cat([kept.log_probabilities, kept.tails, least], dim=1)
    return stored, torch.cat([own, tails, torch.maximum(least, best_dropped)], dim=1), size


def float16_spacing(values: Tensor) -> Tensor:
    """Distance from a float16 number to the next one away from 0: 2^(e - 10) in [2^e, 2^(e + 1)), at least 2^-24."""
    exponent = torch.frexp(values.abs().clamp(min=2**-14)).exponent - 11
    return torch.ldexp(torch.ones_like(values), exponent)

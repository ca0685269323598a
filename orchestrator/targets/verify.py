"""Comparing stored targets with what the teacher says now, by the divergence of the two distributions.

Of two rows of logits whose difference, measured from that of one class, is d_c, the distributions p and p' are
KL(p ‖ p') = log Σ p_c e^d_c - Σ p_c d_c ≤ ½ Σ p_c d_c² e^|d_c| apart, whatever number is added to all logits. With the
largest d_c that honest rows can have this is what each row is allowed: its float16 rounding alone makes 1e-6 to 1e-5
nats of it, the arithmetic of another device up to (1 - p) / 40, p its largest probability. A teacher that is off by
N(0, 0.6²) in every logit is about (1 - p) / 5 apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raydistill.targets.reader import Targets
from raydistill.targets.top_k import TopK

ARITHMETIC_SLACK = 1e-3
# Autocast rounds at every layer, by 2^-9 of a number in bfloat16 and 2^-12 in float16, and another device elsewhere.
SLACKS = {"float32": ARITHMETIC_SLACK, "bfloat16": 2**-6, "float16": 2**-9 + ARITHMETIC_SLACK}
WIDEST_ROW = (
    100.0  # nats: a logit further out masks a class, and says nothing of the arithmetic of the others
)
FLOAT32_SLACK = 2**-22
FLOAT64_FLOOR = 1e-12


@dataclass(frozen=True)
class VerifyResult:
    """The outcome for a sample of rows, in nats at T = 1, or at the temperature of a top-k store that shows most."""

    worst_divergence: float
    """Of the row that is farthest off in proportion to what it is allowed."""
    mean_divergence: float
    worst_sample_id: int
    """The sample of that row."""
    tolerance: float
    """What that row is allowed."""
    passed: bool
    unit: str = "nats"
    """In which the others are."""


def compare_rows(
    targets: Targets, rows: Tensor, view: int, recomputed_logits: Tensor, *, slack: float = ARITHMETIC_SLACK
) -> VerifyResult:
    """Compare the stored logits of `rows` (B,) with recomputed ones, (B, C) or (B, M, C).

    A logit may be off by half a float16 spacing of what was stored (rounding), plus `slack` times the largest logit of
    its row, of 100 at most: another batch size, device or TF32 changes a network's sums in proportion to the row. What
    the rows are allowed is what such logits can make of the divergence. Of a top-k store the kept classes and the tail
    are compared, at each of its temperatures.
    """
    recomputed = recomputed_logits.detach().double().cpu()
    size = recomputed.abs().amax(dim=-1, keepdim=True).clamp(max=WIDEST_ROW)
    arithmetic = 2 * (slack + FLOAT32_SLACK) * size  # of a logit and of the one it is measured from
    if targets.top_k is None:
        stored = targets.read(rows, view).logits.double()
        arithmetic = arithmetic.reshape(*stored.shape[:2], 1)
        level = stored.amax(dim=-1, keepdim=True)
        error = float16_spacing(stored - level) / 2 + arithmetic
        error = error + FLOAT32_SLACK * level.abs()  # as it is added to what was stored relative to it
        found, allowed = _divergences(recomputed.reshape(stored.shape), stored, error)
    else:
        found, allowed = _of_top_k(targets, targets.top_k, rows, view, recomputed, arithmetic)
    found = found.nan_to_num(nan=torch.inf, posinf=torch.inf)
    worst = int((found / allowed).argmax())
    per_sample = found[0].numel()
    return VerifyResult(
        worst_divergence=found.flatten()[worst].item(),
        mean_divergence=found.mean().item(),
        worst_sample_id=int(targets.ids[rows.cpu()[worst // per_sample]]),
        tolerance=allowed.flatten()[worst].item(),
        passed=bool((found <= allowed).all()),
    )


def compare_features(
    targets: Targets,
    name: str,
    rows: Tensor,
    view: int,
    recomputed: Tensor,
    *,
    slack: float = ARITHMETIC_SLACK,
) -> VerifyResult:
    """Compare a stored feature of `rows` (B,) with a recomputed one, (B, ...), in parts of the row's largest number:
    float16 moves a number by 2^-11 of itself, and `slack` is allowed as for logits."""
    stored = targets.features([name], rows, view)[name].flatten(1).double()
    wanted = recomputed.detach().flatten(1).double().cpu()
    size = wanted.abs().amax(dim=1).clamp(min=torch.finfo(torch.float16).tiny)
    found = ((stored - wanted).abs().amax(dim=1) / size).nan_to_num(nan=torch.inf, posinf=torch.inf)
    worst, allowed = int(found.argmax()), 2**-11 + slack
    return VerifyResult(
        worst_divergence=found[worst].item(),
        mean_divergence=found.mean().item(),
        worst_sample_id=int(targets.ids[rows.cpu()[worst]]),
        tolerance=allowed,
        passed=bool((found <= allowed).all()),
        unit="of its largest number",
    )


def _of_top_k(
    targets: Targets, top_k: TopK, rows: Tensor, view: int, recomputed: Tensor, arithmetic: Tensor
) -> tuple[Tensor, Tensor]:
    """Divergences of the kept classes and the tail, and what is allowed, (B, temperatures)."""
    kept = targets.kept(rows, view)
    everything = torch.log_softmax(recomputed.reshape(len(rows), -1), dim=-1)
    own = everything.gather(1, kept.classes)
    tails, _ = top_k.tails_without(kept.classes, everything)
    rounding = float16_spacing(kept.log_probabilities.double()) / 2
    error = torch.cat([rounding, torch.zeros_like(rounding[:, :1])], dim=1) + rounding[:, :1] + arithmetic
    compared = [
        _divergences(
            _cells(own, tails[:, index], each),
            _cells(kept.log_probabilities.double(), kept.tails[:, index].double(), each),
            error / each,
        )
        for index, each in enumerate(top_k.temperatures)
    ]
    found, allowed = zip(*compared, strict=True)
    return torch.stack(found, dim=1), torch.stack(allowed, dim=1)


def _cells(log_probabilities: Tensor, tail: Tensor, temperature: float) -> Tensor:
    """Logits (B, k + 1) of the kept classes and the tail at a temperature."""
    return torch.cat([log_probabilities / temperature, tail.unsqueeze(1)], dim=1)


def _divergences(recomputed: Tensor, stored: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """KL(recomputed ‖ stored) of logits (..., C) float64, and the most it can be where these are off by `error`.

    The errors (..., C) are measured from the class that is stored as the most probable.
    """
    logs, stored_logs = torch.log_softmax(recomputed, dim=-1), torch.log_softmax(stored, dim=-1)
    p, is_nothing = logs.exp(), logs == -torch.inf
    found = (p * (logs - stored_logs)).masked_fill(is_nothing, 0).sum(dim=-1)
    most = (p * error.square() * error.exp() / 2).masked_fill(is_nothing, 0)
    allowed = most.scatter(-1, stored.argmax(dim=-1, keepdim=True), 0).sum(dim=-1)
    return found, allowed.nan_to_num(nan=0) + FLOAT64_FLOOR


def float16_spacing(values: Tensor) -> Tensor:
    """Distance from a float16 number to the next one away from 0: 2^(e - 10) in [2^e, 2^(e + 1)), at least 2^-24."""
    exponent = torch.frexp(values.abs().clamp(min=2**-14)).exponent - 11
    return torch.ldexp(torch.ones_like(values), exponent)

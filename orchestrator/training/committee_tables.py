"""The tables of arXiv 1503.02531, section 5.5, for any data: what specialists add to their generalist."""

from typing import Any

import torch
from torch import Tensor

from raydistill.metrics import Accuracy


def right_ones(logits: Tensor, labels: Tensor, members: Tensor) -> Tensor:
    """Which of logits (B, C) are right about labels (B,), (B, 2) bool: among all classes, and among those that some
    specialist knows; of those each of `members` (M, C) knows its own. The second says nothing of other labels."""
    is_covered = members.any(dim=0)
    restricted = logits.masked_fill(~is_covered, -torch.inf)
    return torch.stack([logits.argmax(dim=1) == labels, restricted.argmax(dim=1) == labels], dim=1)


def committee_tables(
    generalist: Tensor, committee: Tensor, labels: Tensor, members: Tensor, asked: Tensor
) -> dict[str, Any]:
    """Tables as JSON values, from the `right_ones` (N, 2) of both, labels (N,), members (M, C) and how many specialists
    were asked about each sample, (N,).

    *Conditional* accuracy counts only samples of the specialists' classes, among which alone predictions choose.
    *Coverage* is the number of specialists that know a sample's true class; its change is newly right minus newly
    wrong.
    """
    coverage = members.sum(dim=0)[labels]
    return {
        "samples": len(labels),
        "generalist": _accuracies(generalist, coverage > 0),
        "committee": _accuracies(committee, coverage > 0),
        "coverage": _coverage_rows(generalist[:, 0], committee[:, 0], coverage),
        "cost": {
            "specialists": len(members),
            "active": asked.double().mean().item(),
            "asked": (asked > 0).double().mean().item(),
        },
    }


def _accuracies(right: Tensor, is_covered: Tensor) -> dict[str, float]:
    restricted = right[is_covered, 1]
    conditional = restricted.double().mean().item() if len(restricted) else 0.0
    return {Accuracy.name: right[:, 0].double().mean().item(), "conditional": conditional}


def _coverage_rows(before: Tensor, after: Tensor, coverage: Tensor) -> list[dict[str, float]]:
    rows = []
    for count in coverage.unique().tolist():
        chosen = coverage == count
        right, change = int(before[chosen].sum()), int(after[chosen].sum()) - int(before[chosen].sum())
        rows.append(
            {
                "specialists": count,
                "samples": int(chosen.sum()),
                "right": right,
                "change": change,
                "relative": change / right if right else 0.0,
            }
        )
    return rows

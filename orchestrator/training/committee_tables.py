"""The tables of arXiv 1503.02531, section 5.5, for any data: what specialists add to their generalist."""

from typing import Any

import torch
from torch import Tensor

from raydistill.metrics import Accuracy


def committee_tables(
    generalist: Tensor, committee: Tensor, labels: Tensor, members: Tensor, active: Tensor
) -> dict[str, Any]:
    """Tables as JSON values, from logits (N, C) of both, labels (N,), members (M, C) and the asked ones, active (N, M).

    *Conditional* accuracy counts only samples of the specialists' classes, among which alone predictions choose.
    *Coverage* is the number of specialists that know a sample's true class; its change is newly right minus newly
    wrong.
    """
    coverage = members.sum(dim=0)
    return {
        "samples": len(labels),
        "generalist": _accuracies(generalist, labels, coverage > 0),
        "committee": _accuracies(committee, labels, coverage > 0),
        "coverage": _coverage_rows(generalist, committee, labels, coverage),
        "cost": {
            "specialists": len(members),
            "active": active.sum(dim=1).double().mean().item(),
            "asked": active.any(dim=1).double().mean().item(),
        },
    }


def _accuracies(logits: Tensor, labels: Tensor, is_covered: Tensor) -> dict[str, float]:
    is_right = logits.argmax(dim=1) == labels
    chosen = is_covered[labels]
    restricted = logits[chosen].masked_fill(~is_covered, -torch.inf).argmax(dim=1) == labels[chosen]
    conditional = restricted.double().mean().item() if len(restricted) else 0.0
    return {Accuracy.name: is_right.double().mean().item(), "conditional": conditional}


def _coverage_rows(
    generalist: Tensor, committee: Tensor, labels: Tensor, coverage: Tensor
) -> list[dict[str, float]]:
    before = generalist.argmax(dim=1) == labels
    after = committee.argmax(dim=1) == labels
    rows = []
    for count in coverage[labels].unique().tolist():
        chosen = coverage[labels] == count
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

"""The tables of a committee against counting by hand."""

import pytest
import torch

from raydistill.training.committee_tables import committee_tables, right_ones

# Four classes; specialist 0 knows {0, 1}, specialist 1 knows {1, 2}; class 3 is nobody's.
MEMBERS = torch.tensor([[True, True, False, False], [False, True, True, False]])
LABELS = torch.tensor([0, 0, 1, 1, 2, 3])
GENERALIST = torch.tensor([0, 1, 1, 3, 2, 3])  # right: 1st, 3rd, 5th, 6th
COMMITTEE = torch.tensor([0, 0, 1, 1, 1, 3])  # wins the 2nd and the 4th, loses the 5th


def test_tables_are_those_of_counting() -> None:
    def logits(choices: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(choices, 4) * 5.0

    generalist = logits(GENERALIST)
    generalist[3, 1] = 4.0  # prefers class 3, which is nobody's; among the specialists' classes it is right
    active = torch.tensor([[True, False]] * 3 + [[False, False]] + [[True, True]] * 2)
    both = (right_ones(each, LABELS, MEMBERS) for each in (generalist, logits(COMMITTEE)))
    tables = committee_tables(*both, LABELS, MEMBERS, active.sum(dim=1))
    assert tables["generalist"] == {"accuracy": pytest.approx(4 / 6), "conditional": pytest.approx(4 / 5)}
    assert tables["committee"] == {"accuracy": pytest.approx(5 / 6), "conditional": pytest.approx(4 / 5)}
    rows = [tuple(row.values()) for row in tables["coverage"]]
    assert rows == [(0, 1, 1, 0, 0.0), (1, 3, 2, 0, 0.0), (2, 2, 1, 1, 1.0)]
    assert tables["cost"] == {"specialists": 2, "active": pytest.approx(7 / 6), "asked": pytest.approx(5 / 6)}
    assert tables["samples"] == 6


def test_changes_by_coverage_add_up_to_the_change_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randn(300, 4, generator=generator) for _ in range(2))
    labels = torch.randint(4, (300,), generator=generator)
    both = (right_ones(each, labels, MEMBERS) for each in (before, after))
    tables = committee_tables(*both, labels, MEMBERS, torch.zeros(300, dtype=torch.int64))
    gain = (tables["committee"]["accuracy"] - tables["generalist"]["accuracy"]) * 300
    assert sum(row["change"] for row in tables["coverage"]) == pytest.approx(gain)
    assert sum(row["samples"] for row in tables["coverage"]) == 300

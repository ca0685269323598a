"""Verifying: rounding passes, another teacher does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raydistill.targets.combine import combine
from raydistill.targets.reader import open_targets
from raydistill.targets.verify import compare_rows, float16_spacing

WriteStore = Callable[..., Tensor]
ROWS = torch.tensor([20, 3, 11, 7])


def test_the_logits_that_were_stored_pass_with_no_slack_at_all(root: Path, write_store: WriteStore) -> None:
    given = write_store("a", views=2)
    targets = open_targets(root / "stages/a", root=root, expect=None)
    result = compare_rows(targets, ROWS, 1, given[1][ROWS], slack=0.0)
    assert result.passed
    assert 0 < result.mean_difference < result.largest_difference <= 2**-9


def test_one_wrong_logit_fails_and_its_sample_is_named(
    root: Path, ids: Tensor, write_store: WriteStore
) -> None:
    recomputed = write_store("a")[0][ROWS]
    recomputed[2, 4] += 0.25
    result = compare_rows(open_targets(root / "stages/a", root=root, expect=None), ROWS, 0, recomputed)
    assert not result.passed
    assert result.worst_sample_id == int(ids[11])
    assert result.largest_difference == pytest.approx(0.25, abs=2**-8)
    assert result.largest_difference > result.tolerance


def test_noise_in_proportion_to_the_row_passes_and_ten_times_it_does_not(
    root: Path, write_store: WriteStore
) -> None:
    given = write_store("a")[0][ROWS]
    targets = open_targets(root / "stages/a", root=root, expect=None)
    size = given.abs().amax(dim=1, keepdim=True)
    assert compare_rows(targets, ROWS, 0, given + 0.9e-3 * size).passed
    assert not compare_rows(targets, ROWS, 0, given + 1e-2 * size).passed


def test_another_view_or_order_fails(root: Path, write_store: WriteStore) -> None:
    given = write_store("a", views=2)
    targets = open_targets(root / "stages/a", root=root, expect=None)
    assert not compare_rows(targets, ROWS, 0, given[1][ROWS]).passed
    assert not compare_rows(targets, ROWS, 0, given[0][ROWS.flip(0)]).passed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_now_gives_no_number_fails(
    value: float, root: Path, ids: Tensor, write_store: WriteStore
) -> None:
    recomputed = write_store("a")[0][ROWS]
    recomputed[1, 0] = value
    result = compare_rows(open_targets(root / "stages/a", root=root, expect=None), ROWS, 0, recomputed)
    assert not result.passed
    assert result.worst_sample_id == int(ids[3])
    assert result.largest_difference == float("inf")


def test_the_members_of_a_mixture_are_compared_one_by_one(
    root: Path, ids: Tensor, write_store: WriteStore
) -> None:
    given = [write_store(name, seed=seed, teachers=(name,)) for seed, name in enumerate("ab")]
    combine(root / "stages/mix", [root / "stages/a", root / "stages/b"], root=root)
    targets = open_targets(root / "stages/mix", root=root, expect=None)
    recomputed = torch.stack([member[0][ROWS] for member in given], dim=1)
    assert compare_rows(targets, ROWS, 0, recomputed, slack=0.0).passed
    recomputed[3, 1, 2] += 1
    assert compare_rows(targets, ROWS, 0, recomputed).worst_sample_id == int(ids[7])


def test_float16_spacing_is_that_of_the_number_format() -> None:
    values = torch.tensor([1.0, -3.0, 5.0, 12.0, 0.0, 65504.0])
    expected = torch.tensor([2**-10, 2**-9, 2**-8, 2**-7, 2**-24, 32.0])
    assert torch.equal(float16_spacing(values), expected)

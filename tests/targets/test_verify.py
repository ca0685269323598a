"""Verifying: rounding passes, another teacher does not."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raydistill.targets.combine import combine
from raydistill.targets.reader import Targets, open_targets
from raydistill.targets.store import Description, TargetWriter
from raydistill.targets.verify import compare_rows, float16_spacing

Describe = Callable[..., Description]
WriteStore = Callable[..., Tensor]
ROWS = torch.tensor([20, 3, 11, 7])


def slow_divergence(now: Tensor, stored: Tensor) -> float:
    """KL(softmax(now) ‖ softmax(stored)) of logits (C,), by loops in Python's floats."""
    rows = [[value - max(row) for value in row] for row in (now.tolist(), stored.tolist())]
    logs = [[value - math.log(sum(map(math.exp, row))) for value in row] for row in rows]
    return sum(math.exp(one) * (one - other) for one, other in zip(*logs, strict=True))


@pytest.fixture
def keep(root: Path, describe: Describe) -> Callable[[Tensor], Targets]:
    """Store logits (rows, C) as a dense store."""

    def write(logits: Tensor) -> Targets:
        rows, classes = logits.shape
        writer = TargetWriter(root / "stages/kept", describe(rows=rows, num_classes=classes))
        writer.append(torch.arange(rows), logits)
        writer.close()
        return open_targets(root / "stages/kept", root=root, expect=None)

    return write


def test_the_logits_that_were_stored_pass_with_no_slack_at_all(root: Path, write_store: WriteStore) -> None:
    given = write_store("a", views=2)
    targets = open_targets(root / "stages/a", root=root, expect=None)
    result = compare_rows(targets, ROWS, 1, given[1][ROWS], slack=0.0)
    assert result.passed
    assert 0 < result.mean_divergence < 1e-6
    assert 0 < result.worst_divergence < result.tolerance < 1e-5


def test_one_wrong_logit_fails_and_its_sample_is_named(
    root: Path, ids: Tensor, write_store: WriteStore
) -> None:
    recomputed = write_store("a")[0][ROWS]
    recomputed[2, 4] += 0.25
    targets = open_targets(root / "stages/a", root=root, expect=None)
    result = compare_rows(targets, ROWS, 0, recomputed)
    assert not result.passed
    assert result.worst_sample_id == int(ids[11])
    stored = targets.read(ROWS).logits[2, 0]
    assert result.worst_divergence == pytest.approx(slow_divergence(recomputed[2], stored), rel=1e-6)
    assert result.worst_divergence > result.tolerance


def test_noise_in_proportion_to_the_row_passes_and_ten_times_it_does_not(
    root: Path, write_store: WriteStore
) -> None:
    given = write_store("a")[0][ROWS]
    targets = open_targets(root / "stages/a", root=root, expect=None)
    noise = given.abs().amax(dim=1, keepdim=True) * torch.tensor([1.0, -1, 1, -1, 1])
    assert compare_rows(targets, ROWS, 0, given + 0.9e-3 * noise).passed
    assert not compare_rows(targets, ROWS, 0, given + 1e-2 * noise).passed


@pytest.mark.parametrize("level", [0.0, 200.0, 2000.0])
@pytest.mark.parametrize("surest", [0.0, 12.0])
def test_an_honest_store_passes_and_a_teacher_off_by_more_than_rounding_fails_at_any_level(
    level: float, surest: float, keep: Callable[[Tensor], Targets]
) -> None:
    """A difference of logits let a teacher pass that is off by N(0, 0.6²), where logits lie at 2,000."""
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, 100, generator=draw) + level
    logits[:, 0] += surest
    targets, rows = keep(logits), torch.arange(64)
    assert compare_rows(targets, rows, 0, logits, slack=0.0).passed
    assert compare_rows(targets, rows, 0, logits + 1e-4 * torch.randn(64, 100, generator=draw)).passed
    result = compare_rows(targets, rows, 0, logits + 0.6 * torch.randn(64, 100, generator=draw))
    assert not result.passed
    assert result.worst_divergence > 5 * result.tolerance


@pytest.mark.parametrize("seed", range(4))
def test_no_noise_within_the_slack_makes_more_than_is_allowed(
    seed: int, keep: Callable[[Tensor], Targets]
) -> None:
    """The bound holds for all: here for the worst signs that 300 draws find, on rows of every sharpness."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, 6, generator=draw) * torch.logspace(-1, 1.5, 40)[:, None]
    targets, rows = keep(logits), torch.arange(40)
    size = logits.abs().amax(dim=1, keepdim=True)
    for _ in range(300):
        signs = torch.randint(0, 2, (40, 6), generator=draw) * 2.0 - 1
        assert compare_rows(targets, rows, 0, logits + 0.03 * size * signs, slack=0.03).passed


def test_a_number_that_is_added_to_all_logits_is_no_difference(root: Path, write_store: WriteStore) -> None:
    given = write_store("a")[0][ROWS]
    targets = open_targets(root / "stages/a", root=root, expect=None)
    assert compare_rows(targets, ROWS, 0, given + 5, slack=0.0).passed


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
    assert result.worst_divergence == float("inf")


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

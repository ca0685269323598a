"""Combining: the mixture that is read is the mean it promises, and members that do not agree are refused."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raydistill.errors import StageError, StoreError
from raydistill.targets.combine import EntropyWeights, Weights, accuracy_weights, combine, normalised_weights
from raydistill.targets.mixing import entropy_weights, tempered_probabilities
from raydistill.targets.reader import Expectation, Targets, open_targets
from raydistill.targets.store import load_manifest

WriteStore = Callable[..., Tensor]
ALL = torch.arange(23)


def _as_stored(logits: Tensor) -> Tensor:
    """Differences from the largest of (..., C), rounded to float16."""
    level = logits.amax(dim=-1, keepdim=True)
    return (logits - level).half().float() + level


def write_members(root: Path, write_store: WriteStore, **changes: object) -> tuple[list[Path], Tensor]:
    """Three stores; their folders and logits (views, rows, M, C) as they can be read."""
    names = ["a", "b", "c"]
    given = [write_store(name, seed=seed, teachers=(name,), **changes) for seed, name in enumerate(names)]
    return [root / "stages" / name for name in names], _as_stored(torch.stack(given, dim=2))


def combined(root: Path, members: list[Path], **options: object) -> Targets:
    combine(root / "stages/mix", members, root=root, rows_per_shard=6, **options)  # type: ignore[arg-type]
    return open_targets(root / "stages/mix", root=root, expect=None)


def slow_mean(logits: Tensor, weights: list[float], temperature: float) -> list[float]:
    """Σ_m w_m softmax(v^m / T) of one sample, (M, C) -> (C,), in Python's floats."""
    mean = [0.0] * logits.shape[1]
    for weight, member in zip(weights, logits.tolist(), strict=True):
        powers = [math.exp(value / temperature) for value in member]
        mean = [total + weight * power / sum(powers) for total, power in zip(mean, powers, strict=True)]
    return mean


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.0]])
def test_an_arithmetic_mixture_reads_as_the_mean_of_tempered_members(
    weights: list[float] | None, temperature: float, root: Path, write_store: WriteStore
) -> None:
    members, logits = write_members(root, write_store, views=2)
    targets = combined(root, members, weights=weights)
    assert targets.num_teachers == 3
    normalised = [weight / 4 for weight in weights] if weights else [1 / 3] * 3
    for view in range(2):
        read = tempered_probabilities(targets.read(ALL, view), temperature)
        slow = torch.tensor([slow_mean(logits[view, row], normalised, temperature) for row in range(23)])
        torch.testing.assert_close(read, slow, rtol=1e-5, atol=1e-7)


def test_a_mixture_holds_no_logits_of_its_own(root: Path, write_store: WriteStore) -> None:
    members, _ = write_members(root, write_store)
    combined(root, members)
    assert [path.name for path in (root / "stages/mix").iterdir()] == ["manifest.json"]
    manifest = load_manifest(root / "stages/mix")
    assert manifest.members == ("a", "b", "c")
    assert manifest.teachers == ("a", "b", "c")


def test_a_geometric_mean_is_stored_as_the_mean_of_logits(root: Path, write_store: WriteStore) -> None:
    members, logits = write_members(root, write_store, views=2)
    targets = combined(root, members, rule="geometric", weights=[1, 2, 1])
    assert targets.num_teachers == 1
    expected = (logits * torch.tensor([0.25, 0.5, 0.25]).view(3, 1)).sum(dim=2)
    for view in range(2):
        found = targets.read(ALL, view).logits[:, 0]
        torch.testing.assert_close(found, _as_stored(expected[view]), rtol=0, atol=4e-3)
        torch.testing.assert_close(found.amax(dim=1), expected[view].amax(dim=1), rtol=0, atol=2e-6)
    assert load_manifest(root / "stages/mix").teachers == ("a", "b", "c")


def test_entropy_weights_are_stored_for_every_sample_and_view(root: Path, write_store: WriteStore) -> None:
    members, logits = write_members(root, write_store, views=2)
    targets = combined(root, members, weights=EntropyWeights(tau=0.5))
    for view in range(2):
        read = targets.read(ALL.flip(0), view)
        torch.testing.assert_close(read.weights, entropy_weights(logits[view], 0.5).flip(0))
        torch.testing.assert_close(read.logits, logits[view].flip(0), rtol=0, atol=2e-6)
    assert load_manifest(root / "stages/mix").weights == ()


def test_entropy_weights_apply_to_the_geometric_mean(root: Path, write_store: WriteStore) -> None:
    members, logits = write_members(root, write_store)
    targets = combined(root, members, rule="geometric", weights=EntropyWeights())
    expected = (logits[0] * entropy_weights(logits[0], 1.0).unsqueeze(-1)).sum(dim=1)
    torch.testing.assert_close(targets.read(ALL).logits[:, 0], expected, rtol=0, atol=2**-8)


@pytest.mark.parametrize("rule", ["arithmetic", "geometric"])
def test_a_mean_that_was_cut_resumes_to_the_same_bytes(
    rule: str, root: Path, write_store: WriteStore
) -> None:
    members, _ = write_members(root, write_store, views=2)
    options = {"rule": rule, "weights": EntropyWeights()}
    combined(root, members, **options)
    whole = {path.name: path.read_bytes() for path in (root / "stages/mix").iterdir()}
    shards = sorted(path for path in (root / "stages/mix").glob("*.arrow"))
    shards[4].write_bytes(b"")
    kept = shards[3].stat().st_mtime_ns
    combined(root, members, **options)
    assert {path.name: path.read_bytes() for path in (root / "stages/mix").iterdir()} == whole
    assert shards[3].stat().st_mtime_ns == kept


@pytest.mark.parametrize("weights", [None, [0.5, 0.25, 0.25], EntropyWeights()])
def test_the_distance_of_every_member_is_the_mean_divergence(
    weights: Weights, root: Path, write_store: WriteStore
) -> None:
    members, logits = write_members(root, write_store)
    metrics = combine(root / "stages/mix", members, root=root, weights=weights)
    targets = open_targets(root / "stages/mix", root=root, expect=None)
    rows = targets.read(ALL).weights.double().tolist()
    total, weight = 0.0, 0.0
    for row in range(23):
        mean = slow_mean(logits[0, row], rows[row], 1.0)
        member = slow_mean(logits[0, row, 1:2], [1.0], 1.0)
        total += sum(p * math.log(p / q) for p, q in zip(member, mean, strict=True))
        weight += rows[row][1]
    assert metrics["targets/kl/1"] == pytest.approx(total / 23, rel=1e-5)
    assert metrics["targets/weight/1"] == pytest.approx(weight / 23, rel=1e-5)


def test_a_broken_teacher_is_far_from_the_mean(root: Path, write_store: WriteStore) -> None:
    for name in ("a", "b", "c"):
        write_store(name, seed=0, teachers=(name,))
    write_store("broken", seed=5, teachers=("broken",))
    members = [root / "stages" / name for name in ("a", "b", "c", "broken")]
    metrics = combine(root / "stages/mix", members, root=root)
    assert metrics["targets/kl/3"] > 3 * metrics["targets/kl/0"]


def test_one_member_is_its_own_mean(root: Path, write_store: WriteStore) -> None:
    members, logits = write_members(root, write_store)
    for rule in ("arithmetic", "geometric"):
        targets = combined(root, members[:1], rule=rule)
        torch.testing.assert_close(targets.read(ALL).logits[:, 0], logits[0, :, 0], rtol=0, atol=2e-6)
    assert combine(root / "stages/mix", members[:1], root=root)["targets/kl/0"] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "letters"}, "their `task` differ, digits and letters"),
        ({"split": "test"}, "`split`"),
        ({"transfer": {"fraction": 0.1}}, "`transfer`"),
        ({"num_classes": 6}, "`num_classes`"),
        ({"rows": 22}, "`rows`"),
        ({"views": 1}, "`views`"),
        ({"view_seed": 4}, "`view_seed`"),
        ({"augment": ({"kind": "flip"},)}, "`augment`"),
        ({"sample_ids": torch.arange(23) * 7 + 4}, "their samples differ"),
        ({"sample_ids": (torch.arange(23) * 7 + 3).flip(0)}, "or their order"),
    ],
)
def test_members_that_do_not_agree_are_refused(
    change: dict[str, object], message: str, root: Path, write_store: WriteStore
) -> None:
    write_store("a")
    write_store("b", **change)
    with pytest.raises(StoreError, match=message):
        combine(root / "stages/mix", [root / "stages/a", root / "stages/b"], root=root)
    assert not (root / "stages/mix").exists()


def test_a_mixture_is_no_member_of_another_mixture(root: Path, write_store: WriteStore) -> None:
    members, _ = write_members(root, write_store)
    combined(root, members)
    with pytest.raises(StoreError, match="name its members instead"):
        combine(root / "stages/more", [root / "stages/mix", members[0]], root=root)


def test_a_member_of_another_storage_root_is_refused(root: Path, write_store: WriteStore) -> None:
    members, _ = write_members(root, write_store)
    with pytest.raises(StoreError, match="their storage root"):
        combine(root / "other/stages/mix", members, root=root / "other")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "2 weights were given for 3"),
        ([1, 2, 3, 4], "4 weights were given for 3"),
        ([1, -1, 1], "from 0 up"),
        ([0, 0, 0], "not all 0"),
        ([1, float("nan"), 1], "from 0 up"),
        ([1, float("inf"), 1], "from 0 up"),
    ],
)
def test_impossible_weights_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(StageError, match=message):
        normalised_weights(weights, 3)


def test_nothing_to_combine_is_an_error(root: Path) -> None:
    with pytest.raises(StageError, match="no targets"):
        combine(root / "stages/mix", [], root=root)


def test_accuracy_weights_follow_their_formulas() -> None:
    proportional = accuracy_weights([0.9, 0.6], "proportional", num_classes=10)
    assert proportional == pytest.approx((0.6, 0.4))
    softmax = accuracy_weights([0.92, 0.90], "softmax", num_classes=10, tau=2.0)
    assert softmax[0] / softmax[1] == pytest.approx(math.e)
    odds = accuracy_weights([0.9, 0.5], "logodds", num_classes=10)
    assert odds[0] / odds[1] == pytest.approx(math.log(81) / math.log(9))


@pytest.mark.parametrize("mode", ["proportional", "softmax", "logodds"])
def test_equal_accuracies_give_equal_weights(mode: str) -> None:
    weights = accuracy_weights([0.8, 0.8, 0.8], mode, num_classes=10)  # type: ignore[arg-type]
    assert weights == pytest.approx((1 / 3,) * 3)


def test_log_odds_are_zero_at_chance_and_finite_at_perfection() -> None:
    weights = accuracy_weights([0.1, 0.05, 1.0, 0.5], "logodds", num_classes=10)
    assert weights[:2] == (0.0, 0.0)
    assert 0 < weights[3] < weights[2] < 1
    with pytest.raises(StageError, match="better than chance"):
        accuracy_weights([0.1, 0.1], "logodds", num_classes=10)


def test_an_accuracy_in_percent_is_refused() -> None:
    with pytest.raises(StageError, match="between 0 and 1"):
        accuracy_weights([91.0, 0.9], "proportional", num_classes=10)


def test_a_mixture_meets_the_same_expectations_as_its_members(root: Path, write_store: WriteStore) -> None:
    members, _ = write_members(root, write_store)
    combined(root, members)
    expect = Expectation(task="digits", split="test", num_classes=5)
    with pytest.raises(StoreError, match="`split` train, expected test"):
        open_targets(root / "stages/mix", root=root, expect=expect)

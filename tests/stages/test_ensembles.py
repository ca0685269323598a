"""Several teachers as one: `combine_targets`, `evaluate` and `verify_targets`, against means worked out here."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydistill.errors import StoreError
from raydistill.runs.files import sha256_file
from raydistill.stages.verify_targets import verify_targets
from raydistill.targets.mixing import tempered_probabilities
from raydistill.targets.reader import open_targets

EVALUATE = {"stage": "evaluate", "models": ["teacher"]}


@pytest.fixture
def two_targets(teacher: dict[str, Any]) -> dict[str, Any]:
    """Two teachers of different quality, and the targets of both."""
    slow = {"name": "sgd", "learning_rate": 5e-3}
    other = teacher | {"seed": 1, "epochs": 1, "model": {"name": "mlp", "widths": []}, "optimizer": slow}
    return {
        "good": teacher,
        "weak": other,
        "of_good": {"stage": "predict_targets", "teacher": "good"},
        "of_weak": {"stage": "predict_targets", "teacher": "weak"},
    }


def combined(two_targets: dict[str, Any], **combine: Any) -> dict[str, Any]:
    mix = {"stage": "combine_targets", "targets": ["of_good", "of_weak"]}
    return two_targets | {"mix": mix | combine}


def stored_probabilities(stages: Any, name: str, temperature: float) -> Tensor:
    targets = open_targets(stages.folder(name).path, root=stages.root, expect=None)
    return tempered_probabilities(targets.read(torch.arange(len(targets.ids))), temperature)


def member_logits(stages: Any) -> Tensor:
    """(2, N, C) of the models themselves, in the store's order."""
    arrays = np.load(stages.file)
    ids = open_targets(stages.folder("of_good").path, root=stages.root, expect=None).ids
    rows = [int(np.flatnonzero(arrays["ids"] == sample)[0]) for sample in ids.tolist()]
    return torch.stack([stages.logits(name)[rows] for name in ("good", "weak")])


def accuracies(stages: Any) -> list[float]:
    return [stages.record(name).metrics["validation/accuracy"] for name in ("good", "weak")]


WEIGHTINGS = {
    "proportional": lambda accuracy: accuracy,
    "softmax": lambda accuracy: math.exp(100 * accuracy / 20),
    "logodds": lambda accuracy: math.log(2 * min(accuracy, 0.9999) / (1 - min(accuracy, 0.9999))),
}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_arithmetic_mean_is_of_tempered_probabilities(
    stages: Any, two_targets: dict[str, Any], temperature: float
) -> None:
    stages.run(combined(two_targets, weights=[3, 1]))
    good, weak = (member_logits(stages) / temperature).softmax(dim=2)
    found = stored_probabilities(stages, "mix", temperature)
    torch.testing.assert_close(found, 0.75 * good + 0.25 * weak, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_geometric_mean_is_of_logits(
    stages: Any, two_targets: dict[str, Any], temperature: float
) -> None:
    stages.run(combined(two_targets, rule="geometric", weights=[3, 1]))
    good, weak = member_logits(stages)
    expected = ((0.75 * good + 0.25 * weak) / temperature).softmax(dim=1)
    torch.testing.assert_close(
        stored_probabilities(stages, "mix", temperature), expected, rtol=2e-3, atol=1e-4
    )


def test_entropy_weighs_every_sample_by_how_sure_its_teachers_are(
    stages: Any, two_targets: dict[str, Any]
) -> None:
    stages.run(combined(two_targets, weights="entropy", scale=0.5))
    members = member_logits(stages).softmax(dim=2)
    weights = torch.softmax((members * members.log()).sum(dim=2) / 0.5, dim=0)
    expected = (weights[:, :, None] * members).sum(dim=0)
    torch.testing.assert_close(stored_probabilities(stages, "mix", 1.0), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("weights", WEIGHTINGS)
def test_weights_come_from_the_teachers_validation_accuracy(
    stages: Any, two_targets: dict[str, Any], weights: str
) -> None:
    stages.run(combined(two_targets, weights=weights, scale=20.0))
    good, weak = accuracies(stages)
    assert 1 / 3 < weak < good
    raw = [WEIGHTINGS[weights](accuracy) for accuracy in (good, weak)]
    metrics = stages.record("mix").metrics
    for member in (0, 1):
        assert metrics[f"targets/weight/{member}"] == pytest.approx(raw[member] / sum(raw), rel=1e-5)


def test_a_teacher_without_validation_accuracy_cannot_be_weighed_by_it(
    stages: Any, two_targets: dict[str, Any]
) -> None:
    stages.task = {"validation_fraction": 0.0}
    plan = combined(two_targets, weights="proportional")
    for name in list(stages.write(plan).nodes)[:-1]:
        assert stages.attempt(name).status == "done"
    outcome = stages.attempt("mix")
    assert outcome.status == "failed"
    assert "has no validation accuracy to weigh it by" in (outcome.error or "")


def test_evaluating_one_model_repeats_its_own_test(stages: Any, teacher: dict[str, Any]) -> None:
    stages.run({"teacher": teacher, "again": EVALUATE})
    again, own = stages.record("again"), stages.record("teacher")
    assert again.metrics == {key: value for key, value in own.metrics.items() if key.startswith("test/")}
    assert again.parameters == own.parameters


@pytest.mark.parametrize("rule", ["arithmetic", "geometric"])
def test_an_ensemble_is_judged_by_the_mean_of_its_members(
    stages: Any, two_targets: dict[str, Any], rule: str
) -> None:
    judge = {"stage": "evaluate", "models": ["good", "weak"], "rule": rule, "weights": [1, 3]}
    stages.run({"good": two_targets["good"], "weak": two_targets["weak"], "both": judge})
    kept = load_file(stages.folder("both").path / "predictions-test.safetensors")
    arrays = np.load(stages.file)
    rows = [int(np.flatnonzero(arrays["ids"] == sample)[0]) for sample in kept["ids"].tolist()]
    good, weak = (stages.logits(name)[rows].double() for name in ("good", "weak"))
    if rule == "arithmetic":
        expected = 0.25 * good.softmax(1) + 0.75 * weak.softmax(1)
    else:
        expected = (0.25 * good + 0.75 * weak).softmax(1)
    torch.testing.assert_close(kept["logits"].double().exp(), expected, rtol=5e-3, atol=1e-4)
    loss = -expected[torch.arange(len(rows)), kept["labels"]].log().mean().item()
    metrics = stages.record("both").metrics
    assert metrics["test/loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["test/errors"] == int((expected.argmax(1) != kept["labels"]).sum())


def test_an_empty_split_cannot_be_evaluated(stages: Any, teacher: dict[str, Any]) -> None:
    stages.task = {"validation_fraction": 0.0}
    stages.write({"teacher": teacher, "judge": EVALUATE | {"split": "validation"}})
    assert stages.attempt("teacher").status == "done"
    assert "the validation split is empty" in (stages.attempt("judge").error or "")


def test_verifying_finds_that_targets_are_what_the_teachers_say(
    stages: Any, two_targets: dict[str, Any]
) -> None:
    views = {"augment": [{"name": "shift"}], "views": 2, "view_seed": 3}
    for name in ("of_good", "of_weak"):
        two_targets[name] = two_targets[name] | views
    stages.run(combined(two_targets))
    results = verify_targets(stages.folder("mix").path, stages.root, rows=30)
    assert set(results) == {stages.folder(name).path.name for name in ("of_good", "of_weak")}
    assert all(result.passed for result in results.values())
    assert all(0 < result.worst_divergence < 0.01 for result in results.values())


def test_verifying_notices_another_teacher(stages: Any, two_targets: dict[str, Any]) -> None:
    stages.run(two_targets)
    weights = stages.folder("good").path / "model.safetensors"
    save_file({key: value * 1.05 for key, value in load_file(weights).items()}, weights)
    record = stages.record("good")
    payload = record.payload | {"model.safetensors": sha256_file(weights)}
    stages.folder("good").write_record(record.model_copy(update={"payload": payload}))
    (result,) = verify_targets(stages.folder("of_good").path, stages.root, rows=30).values()
    assert not result.passed
    (result,) = verify_targets(stages.folder("of_weak").path, stages.root, rows=30).values()
    assert result.passed


def test_targets_that_cannot_be_verified_say_why(stages: Any, two_targets: dict[str, Any]) -> None:
    stages.run(combined(two_targets, rule="geometric"))
    with pytest.raises(StoreError, match="combined from several teachers"):
        verify_targets(stages.folder("mix").path, stages.root, rows=3)
    with pytest.raises(StoreError, match="does not exist"):
        verify_targets(stages.root / "stages/nothing", stages.root, rows=3)
    stages.folder("good").forget()
    stages.folder("good").path.rename(stages.root / "gone")
    with pytest.raises(StoreError, match="is gone; bring it back, or make it again"):
        verify_targets(stages.folder("of_good").path, stages.root, rows=3)

"""A student that never saw a class, and the shift that brings it back."""

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from raydistill.stages import adjust_class_bias

STILL = {"name": "sgd", "learning_rate": 1e-30}


@pytest.fixture
def plan(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    soft = {"method": "hinton", "temperature": 4, "soft_weight": 1, "hard_weight": 0}
    taught = student | {
        "teachers": ["teacher"],
        "transfer": {"omit_classes": [1]},
        "method": soft,
        "epochs": 6,
    }
    adjusted = {"stage": "adjust_class_bias", "model": "student", "classes": [1]}
    return {"teacher": teacher, "student": taught, "adjusted": adjusted}


@pytest.mark.parametrize("by", ["prior", "validation", "test_oracle"])
def test_the_adjusted_model_differs_by_one_number_on_the_classes(
    stages: Any, plan: dict[str, Any], by: str
) -> None:
    plan["adjusted"]["by"] = by
    stages.run(plan)
    metrics = stages.record("adjusted").metrics
    difference = stages.logits("adjusted") - stages.logits("student")
    expected = torch.tensor([0.0, metrics["class_bias/offset"], 0.0]).expand_as(difference)
    torch.testing.assert_close(difference, expected)
    logits, labels = stages.model("adjusted"), metrics["test/accuracy"]
    assert logits.description["logit_offset"][1] == pytest.approx(metrics["class_bias/offset"])
    assert labels >= stages.record("student").metrics["test/accuracy"]


def test_by_prior_the_class_has_its_share_of_the_training_split(stages: Any, plan: dict[str, Any]) -> None:
    plan["adjusted"] |= {"prior": 0.25, "transfer": {"labelled": False}}
    stages.run(plan)
    data = stages.plan.task.load()
    logits = stages.model("adjusted").logits(data.train.inputs)
    assert logits.softmax(dim=1)[:, 1].mean().item() == pytest.approx(0.25, abs=1e-4)
    metrics = stages.record("adjusted").metrics
    assert metrics["class_bias/prior"] == 0.25
    assert metrics["class_bias/prior_reached"] == pytest.approx(0.25, abs=1e-5)


def test_a_prior_that_no_shift_reaches_is_said(
    stages: Any, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = torch.tensor([0.0, -torch.inf, 0.0])
    monkeypatch.setattr(
        adjust_class_bias, "logits_in_batches", lambda *_: iter([never.expand(60, 3).clone()])
    )
    stages.run(plan)
    warning, *_ = stages.record("adjusted").warnings
    assert "no shift gives the `classes` the prior" in warning
    assert "the nearest is 0" in warning
    assert stages.record("adjusted").metrics["class_bias/prior_reached"] == 0


@pytest.mark.parametrize("by", ["prior", "validation"])
def test_no_more_than_two_batches_of_logits_are_ever_there(
    stages: Any, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    stages.run(plan | {"adjusted": plan["adjusted"] | {"by": by}})
    whole = stages.record("adjusted").metrics["class_bias/offset"]
    most, made, plain = 0, list[Any](), adjust_class_bias.logits_in_batches

    def watched(*arguments: Any) -> Iterator[torch.Tensor]:
        nonlocal most
        for logits in plain(*arguments):
            made.append(weakref.ref(logits))
            most = max(most, sum(each() is not None for each in made))
            yield logits

    monkeypatch.setattr(adjust_class_bias, "logits_in_batches", watched)
    small = plan["adjusted"] | {"by": by, "batch_size": 2}
    again = stages.elsewhere("again").run(plan | {"adjusted": small})
    assert len(made) > 5
    assert most <= 2
    assert again.record("adjusted").metrics["class_bias/offset"] == pytest.approx(whole, abs=1e-4)


def test_logits_too_far_apart_for_float32_are_looked_at_as_they_will_be(
    stages: Any, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    far = torch.tensor([[0.0, -1e9, 0.0], [0.0, 1e9, 0.0]]).repeat(30, 1)
    monkeypatch.setattr(adjust_class_bias, "logits_in_batches", lambda *_: iter(far.split(7)))
    plan["adjusted"]["prior"] = 0.8
    stages.run(plan)
    metrics = stages.record("adjusted").metrics
    shifted = far.clone()
    shifted[:, 1] += metrics["class_bias/offset"]
    reached = shifted.double().softmax(dim=1)[:, 1].mean().item()
    assert metrics["class_bias/prior_reached"] == pytest.approx(reached, abs=1e-9)
    assert abs(reached - 0.8) > 0.01


def test_a_second_shift_is_added_to_the_first(stages: Any, plan: dict[str, Any]) -> None:
    plan["again"] = plan["adjusted"] | {"model": "adjusted", "prior": 0.6}
    stages.run(plan)
    first, second = (stages.record(name).metrics["class_bias/offset"] for name in ("adjusted", "again"))
    assert second > 0
    assert stages.model("again").description["logit_offset"][1] == pytest.approx(first + second)


@pytest.mark.parametrize("widths", [[6], [9, 9]], ids=["initial", "grow"])
def test_training_goes_on_from_an_adjusted_model_without_the_shift(
    stages: Any, plan: dict[str, Any], teacher: dict[str, Any], widths: list[int]
) -> None:
    grown = {"grow": {"name": "net2net", "noise": 0}} if len(widths) > 1 else {}
    more = {
        "model": {"name": "mlp", "widths": widths},
        "initial": "adjusted",
        "optimizer": STILL,
        "epochs": 1,
    }
    stages.run(plan | {"more": teacher | more | grown})
    torch.testing.assert_close(stages.logits("more"), stages.logits("student"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["dustbin", "full"])
def test_specialists_of_an_adjusted_generalist_begin_as_it_was_without_the_shift(
    stages: Any, plan: dict[str, Any], head: str
) -> None:
    cluster = [2, 0]
    plan["clusters"] = {"stage": "confusion_clusters", "given": [cluster]}
    specialists = {
        "stage": "train_specialists",
        "generalist": "adjusted",
        "clusters": "clusters",
        "head": head,
    }
    stages.run(plan | {"specialists": specialists | {"epochs": 1, "batch_size": 16, "optimizer": STILL}})
    own = cluster if head == "full" else [0, 1]
    begun = stages.logits("specialists.0")[:, own]  # the correction of the prior is on the others alone
    torch.testing.assert_close(begun, stages.logits("student")[:, cluster], rtol=1e-5, atol=1e-5)

"""`ema`: what is stored is the average, in stages of every kind, and wherever a training was stopped."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from raydistill.training.averaging import Average

NORMED = {"name": "cnn", "widths": [4], "batch_norm": True, "hidden": [8]}
STAGED = {"name": "cnn", "widths": [4, 6], "batch_norm": True}
METHODS = {"mode": "live", "methods": [{"method": "hinton"}, {"method": "embedding"}]}
TAUGHT = {"stage": "distill", "student": NORMED, "teachers": ["teacher"], "batch_size": 16, "epochs": 2}


SHORT = {"epochs": 2, "batch_size": 32, "ema": {"decay": 0.6, "warmup": False}}
# The stage that is looked at, and where its model lies in what is trained.
KINDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "train_peers": ({"peers": [NORMED, {"name": "mlp"}], "deploy": 0}, "it", "peers.0."),
    "train_branches": ({"model": STAGED, "deploy": "ensemble"}, "it", ""),
    "train_specialists": ({"generalist": "teacher", "clusters": "clusters"}, "it.0", ""),
    "codistill": ({"model": NORMED, "burn_in": 0, "exchange_every": 2}, "it.1", ""),
    "distill_with_generator": ({"teacher": "teacher", "student": NORMED, "iterations": 4}, "it", "student."),
}


def weights_of(stages: Any, name: str = "student") -> dict[str, Tensor]:
    return load_file(stages.folder(name).path / "model.safetensors")


def is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_students_average_is_stored_and_stopping_does_not_change_it(
    stages: Any, teacher: dict[str, Any]
) -> None:
    plan = {"teacher": teacher | {"model": NORMED}, "student": TAUGHT | METHODS | {"ema": {"decay": 0.9}}}
    stages.run(plan)
    other, plain = stages.elsewhere("other"), stages.elsewhere("plain")
    plain.run(plan | {"student": TAUGHT | METHODS})
    other.run({"teacher": plan["teacher"]})
    other.write(plan)
    answers = iter([False] * 4 + [True])
    assert other.attempt("student", lambda: next(answers)).status == "stopped"
    assert other.attempt("student").status == "done"
    assert is_same(weights_of(stages), weights_of(other))
    assert not is_same(weights_of(stages), weights_of(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_every_training_keeps_the_average_of_what_it_went_through(
    stages: Any, teacher: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand in float64, over the weights after each step."""
    went: list[dict[str, Tensor]] = []
    begin, follow = Average.__init__, Average.follow

    def note(average: Average) -> None:
        went.append({key: value.double() for key, value in average.network.state_dict().items()})

    def begin_noted(average: Average, *arguments: Any) -> None:
        begin(average, *arguments)
        went.clear()
        note(average)

    def follow_noted(average: Average, step: int) -> None:
        follow(average, step)
        note(average)

    monkeypatch.setattr(Average, "__init__", begin_noted)
    monkeypatch.setattr(Average, "follow", follow_noted)
    options, name, prefix = KINDS[kind]
    clusters = {"stage": "confusion_clusters", "given": [[0, 2], [1, 2]]}
    stages.write(
        {
            "teacher": teacher | {"model": NORMED},
            "clusters": clusters,
            "it": {"stage": kind, **SHORT, **options},
        }
    )
    for node in ("teacher", "clusters", name):
        outcome = stages.attempt(node)
        assert outcome.status == "done", outcome.error
    stored = weights_of(stages, name)
    assert len(went) > 5
    for key, value in stored.items():
        average = went[0][prefix + key]
        for weights in went[1:]:
            average = (
                weights[prefix + key] if "num_batches" in key else 0.6 * average + 0.4 * weights[prefix + key]
            )
        torch.testing.assert_close(value.double(), average, rtol=1e-5, atol=1e-6, msg=key)
    assert any(not torch.allclose(value.double(), went[-1][prefix + key]) for key, value in stored.items())

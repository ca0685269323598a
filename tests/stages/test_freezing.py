"""`freeze`: parts of a network that a training leaves bit for bit as they are."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

NORMED = {"name": "cnn", "widths": [4], "batch_norm": True, "hidden": [8]}
PROBE = {"initial": "teacher", "freeze": ["stage*", "hidden*"], "epochs": 3}
DECAYED = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.1}


def weights_of(stages: Any, name: str) -> dict[str, Tensor]:
    return load_file(stages.folder(name).path / "model.safetensors")


def parts(stages: Any, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = weights_of(stages, name)
    frozen = {key: value for key, value in weights.items() if not key.startswith("classifier.")}
    return frozen, {key: value for key, value in weights.items() if key not in frozen}


def is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_frozen_stays_and_the_rest_learns(stages: Any, teacher: dict[str, Any]) -> None:
    probe = teacher | {"model": NORMED, "optimizer": DECAYED, "max_norm": 0.1} | PROBE
    taught = {"stage": "distill", "student": NORMED, "teachers": ["teacher"], "batch_size": 16}
    hints = {"mode": "live", "methods": [{"method": "hinton"}, {"method": "embedding"}]}
    stages.run({"teacher": teacher | {"model": NORMED}, "probe": probe, "student": taught | hints | PROBE})
    before, head = parts(stages, "teacher")
    assert any("running_mean" in key for key in before)
    for name in ("probe", "student"):
        after, trained = parts(stages, name)
        assert is_same(before, after)
        assert not any(torch.equal(head[key], trained[key]) for key in head if key.endswith("weight"))


def test_a_probe_is_a_regression_on_fixed_features(stages: Any, teacher: dict[str, Any]) -> None:
    """By hand: the head alone, on what the frozen part says of the inputs in eval mode."""
    plain = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0}
    probe = teacher | {"model": NORMED} | PROBE | {"batch_size": 1000, "optimizer": plain, "epochs": 4}
    stages.run({"teacher": teacher | {"model": NORMED}, "probe": probe})
    trained = stages.model("teacher")
    split = stages.plan.task.load().train
    (inputs,) = split.batches([torch.arange(len(split))], None)
    head = trained.model.classifier
    seen: list[Tensor] = []
    head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    trained.logits(inputs)
    weight, offset = head.weight.detach().clone(), head.bias.detach().clone()
    for _ in range(4):
        weight, offset = weight.requires_grad_(), offset.requires_grad_()
        loss = F.cross_entropy(F.linear(seen[0], weight, offset), split.labels)
        by_weight, by_offset = torch.autograd.grad(loss, (weight, offset))
        weight, offset = (weight - 0.1 * by_weight).detach(), (offset - 0.1 * by_offset).detach()
    own = weights_of(stages, "probe")
    torch.testing.assert_close(own["classifier.weight"], weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own["classifier.bias"], offset, rtol=1e-4, atol=1e-5)


def test_a_stopped_training_goes_on_as_if_it_had_not(stages: Any, teacher: dict[str, Any]) -> None:
    plan = {"teacher": teacher | {"model": NORMED}, "probe": teacher | {"model": NORMED} | PROBE}
    stages.run(plan)
    other = stages.elsewhere("other")
    other.run({"teacher": plan["teacher"]})
    other.write(plan)
    answers = iter([False] * 4 + [True])
    assert other.attempt("probe", lambda: next(answers)).status == "stopped"
    assert other.attempt("probe").status == "done"
    assert is_same(weights_of(stages, "probe"), weights_of(other, "probe"))


@pytest.mark.parametrize(
    ("patterns", "problem"),
    [
        (["stage.*"], "`freeze: [stage.*]` matches no parameter of the model; did you mean `stage1.*`?"),
        (["*"], "`freeze` leaves nothing to train: it matches all parameters of the model"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(
    stages: Any, teacher: dict[str, Any], patterns: list[str], problem: str
) -> None:
    stages.run({"teacher": teacher | {"model": NORMED}})
    stages.write(
        {
            "teacher": teacher | {"model": NORMED},
            "probe": teacher | {"model": NORMED} | PROBE | {"freeze": patterns},
        }
    )
    outcome = stages.attempt("probe")
    assert outcome.status == "failed"
    assert problem in outcome.error

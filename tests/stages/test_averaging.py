"""`ema` of a student with features tapped: what is stored is the average, wherever the training was stopped."""

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

NORMED = {"name": "cnn", "widths": [4], "batch_norm": True, "hidden": [8]}
METHODS = {"mode": "live", "methods": [{"method": "hinton"}, {"method": "embedding"}]}
TAUGHT = {"stage": "distill", "student": NORMED, "teachers": ["teacher"], "batch_size": 16, "epochs": 2}


def weights_of(stages: Any) -> dict[str, Tensor]:
    return load_file(stages.folder("student").path / "model.safetensors")


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

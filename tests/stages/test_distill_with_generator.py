"""DAFL through whole stages: no data, exact resume, a plain student."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raydistill.runs.files import sha256_file


@pytest.fixture
def plan(teacher: dict[str, Any]) -> dict[str, Any]:
    return {
        "teacher": teacher | {"model": {"name": "cnn", "widths": [4], "batch_norm": True}},
        "student": {
            "stage": "distill_with_generator",
            "teacher": "teacher",
            "student": {"name": "mlp", "widths": [6]},
            "epochs": 2,
            "iterations": 4,
            "batch_size": 16,
            "latent": 5,
            "generator_learning_rate": 0.01,
            "schedule": {"name": "cosine"},
        },
    }


def test_student_and_teacher_are_plain_models_and_the_teacher_did_not_move(
    stages: Any, plan: dict[str, Any]
) -> None:
    stages.write(plan)
    assert stages.attempt("teacher").status == "done"
    before = sha256_file(stages.folder("teacher").path / "model.safetensors")
    outcome = stages.attempt("student")
    assert outcome.status == "done", outcome.error
    assert sha256_file(stages.folder("teacher").path / "model.safetensors") == before
    assert stages.logits("student").shape == (150, 3)
    stored = load_file(stages.folder("student").path / "model.safetensors")
    assert set(stored) == set(stages.model("student").model.state_dict())
    losses = {key for key in stages.metrics("student")[0] if key.startswith("train/loss/")}
    assert losses == {f"train/loss/{name}" for name in ("one_hot", "entropy", "activation", "soft")}


def test_stopping_and_resuming_equals_not_stopping(stages: Any, plan: dict[str, Any]) -> None:
    whole = stages.run(plan).model("student").model.state_dict()
    other = stages.elsewhere("again")
    other.write(plan)
    assert other.attempt("teacher").status == "done"
    assert other.attempt("student", iter([False] * 5 + [True]).__next__).status == "stopped"
    assert other.attempt("student").status == "done"
    resumed = other.model("student").model.state_dict()
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    assert other.metrics("student") == stages.metrics("student")


def test_the_training_split_is_never_asked(
    stages: Any, plan: dict[str, Any], hide_training_split: Callable[[], None]
) -> None:
    stages.write(plan)
    assert stages.attempt("teacher").status == "done"
    hide_training_split()
    outcome = stages.attempt("student")
    assert outcome.status == "done", outcome.error


def test_what_the_generator_cannot_do_is_said(stages: Any, plan: dict[str, Any]) -> None:
    plan["student"] |= {"feature": "embeding"}
    stages.write(plan)
    assert stages.attempt("teacher").status == "done"
    assert "no feature `embeding`; did you mean `embedding`" in str(stages.attempt("student").error)
    with pytest.raises(ValueError, match="the generator makes all samples"):
        stages.write(plan | {"student": plan["student"] | {"transfer": {"fraction": 0.5}}})
    with pytest.raises(ValueError, match="learns from whole batches"):
        stages.write(plan | {"student": plan["student"] | {"accumulate": 2}})

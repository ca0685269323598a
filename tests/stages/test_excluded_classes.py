"""A model that excludes a class with the logit -inf, where the data has the class all the same."""

import json
from collections.abc import Callable
from typing import Any

import pytest

MASKED = """
import torch
from torch import nn

class Masked(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(64, classes)
        self.register_buffer("never", torch.arange(classes) == 2)

    def forward(self, inputs):
        return self.linear(inputs.flatten(1)).masked_fill(self.never, -torch.inf)

def build(num_classes):
    return Masked(num_classes)
"""


@pytest.fixture
def plan(teacher: dict[str, Any], student: dict[str, Any], users_models: Callable[[str], str]) -> Any:
    model = {"name": f"{users_models(MASKED)}:build"}
    known = {"transfer": {"omit_classes": [2]}}
    taught = student | known | {"teachers": ["teacher"]}
    return {
        "teacher": teacher | known | {"model": model, "early_stopping": {"metric": "loss", "patience": 2}},
        "targets": {"stage": "predict_targets", "teacher": "teacher", **known},
        "live": taught | {"mode": "live"},
        "masked": taught | {"mode": "live", "student": model},
        "excluding": taught | {"mode": "live", "student": model, "teachers": ["plain"]},
        "plain": teacher | known,
    }


def refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def test_what_cannot_be_judged_is_written_as_text_and_stops_nothing(stages: Any, plan: Any) -> None:
    stages.run({name: plan[name] for name in ("teacher", "live", "masked")})
    assert stages.record("teacher").metrics["validation/loss"] == float("inf")
    assert stages.metrics("masked")[-1]["train/loss"] < stages.metrics("masked")[0]["train/loss"]
    for path in stages.root.rglob("*.json*"):
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("name", "words"),
    [("targets", "gave the logit -inf"), ("excluding", "the loss is not finite at step 0 (soft inf")],
)
def test_what_has_no_finite_value_is_refused_in_one_line(
    stages: Any, plan: Any, name: str, words: str
) -> None:
    before = {source: plan[source] for source in ("teacher", "plain")}
    stages.run(before)
    stages.write(before | {name: plan[name]})
    outcome = stages.attempt(name)
    assert outcome.status == "failed"
    assert words in outcome.error
    assert "\n" not in outcome.error

"""An embedding that is the same for every sample is called out before anybody learns from it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from raydistill.errors import StageError
from raydistill.stages.flat_features import FLOAT16, FLOAT32, flat_features

DEAD = """
import torch
from torch import nn

class Dead(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 16), nn.Linear(16, num_classes)
        nn.init.constant_(self.hidden.bias, -1000.0)
        self.embedding = nn.Identity()

    def forward(self, inputs):
        return self.head(self.embedding(torch.relu(self.hidden(inputs.flatten(1)))))

def build(num_classes):
    torch.manual_seed(0)
    return Dead(num_classes)
"""
WORDS = "`embedding` is the same for all of 64 samples"


def test_what_differs_only_by_rounding_says_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    row, noise = torch.randn(1, 6, generator=draw), torch.rand(20, 6, generator=draw)
    rounded = {"stored": (row * (1 + 2e-4 * noise)).half()}
    assert list(flat_features(rounded, FLOAT16)) == ["stored"]
    assert list(flat_features({"live": row * (1 + 2e-4 * noise)}, FLOAT32)) == []
    assert list(flat_features({"zero": torch.zeros(20, 6)}, FLOAT32)) == ["zero"]
    one = row.repeat(20, 1)
    one[7, 3] += 0.1  # one number of one sample is something
    assert list(flat_features({"one": one, "flat": row.repeat(20, 1)}, FLOAT32)) == ["flat"]


def test_a_few_samples_may_be_alike_and_nothing_is_said() -> None:
    assert list(flat_features({"a": torch.ones(7, 3)}, FLOAT32)) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_however_few_there_are(number: float) -> None:
    with pytest.raises(StageError, match="`a` has numbers that are not finite"):
        list(flat_features({"a": torch.tensor([[1.0, number]])}, FLOAT32))


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_dead_embedding_is_said_by_whoever_reads_it_first(
    stages: Any, student: dict[str, Any], users_models: Callable[[str], str], is_stored: bool
) -> None:
    module = users_models(DEAD)
    plan: dict[str, Any] = {
        "teacher": {"stage": "pretrained", "model": {"name": f"{module}:build"}},
        "student": {**student, "epochs": 1, "method": {"method": "embedding"}},
    }
    if is_stored:
        plan["soft"] = {"stage": "predict_targets", "teacher": "teacher", "outputs": ["embedding"]}
    plan["student"] |= {"targets": "soft"} if is_stored else {"teachers": ["teacher"], "mode": "live"}
    stages.run(plan)
    assert WORDS in " ".join(stages.record("soft" if is_stored else "student").warnings)


def test_a_file_of_one_embedding_is_said(stages: Any, student: dict[str, Any]) -> None:
    arrays = np.load(stages.file)
    file = stages.file.with_name("embeddings.npz")
    np.savez(file, ids=arrays["ids"], embedding=np.full((150, 5), 0.25, np.float32))
    stages.run({"soft": {"stage": "external_targets", "file": str(file), "gives": "embedding"}})
    assert WORDS in " ".join(stages.record("soft").warnings)


def test_a_teacher_that_learned_is_not_doubted(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    plan = {
        "teacher": teacher,
        "soft": {"stage": "predict_targets", "teacher": "teacher", "outputs": ["embedding"]},
        "student": {**student, "teachers": ["teacher"], "mode": "live", "method": {"method": "embedding"}},
    }
    stages.run(plan)
    told = [*stages.record("soft").warnings, *stages.record("student").warnings]
    assert not any("is the same for all" in text for text in told)

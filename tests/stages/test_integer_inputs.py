"""Integers that stand for things: words of 6 tokens out of 40, whose class is the largest token's third."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydistill.export import export_model
from raydistill.inference.predict import predict_files
from raydistill.training.trust import Trust

EMBEDDING = """
import torch
from torch import nn

class Words(nn.Module):
    def __init__(self, classes, size):
        super().__init__()
        self.tokens = nn.Embedding(40, size)
        self.classifier = nn.Linear(size, classes)

    def forward(self, inputs):
        return self.classifier(self.tokens(inputs).amax(dim=1))

def build(num_classes, size=16):
    return Words(num_classes, size)
"""


@pytest.fixture
def words(stages: Any) -> np.ndarray:
    draw = np.random.default_rng(0)
    tokens = np.stack([draw.choice(40, size=6, replace=False) for _ in range(400)]).astype(np.int32)
    labels = np.digitize(tokens.max(axis=1), [33, 37])
    np.savez(stages.file, inputs=tokens, labels=labels)
    return tokens


@pytest.fixture
def plan(users_models: Callable[[str], str], words: np.ndarray) -> dict[str, Any]:
    model = {"name": f"{users_models(EMBEDDING)}:build"}
    training = {"batch_size": 16, "optimizer": {"name": "adamw", "learning_rate": 0.02}}
    taught = {"stage": "distill", "student": model | {"size": 8}, "teachers": ["teacher"], "epochs": 1}
    pooled = {"student_feature": "classifier:input", "teacher_feature": "classifier:input"}
    return {
        "teacher": {"stage": "train", "model": model, "epochs": 15, **training},
        "stored": taught | training,
        "live": taught | training | {"mode": "live", "method": {"method": "relational", **pooled}},
        "ours": {"stage": "train", "model": {"name": "mlp", "widths": [8]}, "epochs": 1, **training},
    }


def test_a_model_looks_tokens_up_and_learns(stages: Any, plan: dict[str, Any]) -> None:
    stages.run(plan)
    assert stages.record("teacher").metrics["test/accuracy"] > 0.9
    description = stages.model("teacher").description
    assert (description["input_dtype"], description["mean"], description["std"]) == ("int64", 0.0, 1.0)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch 2.9's own torch.export.load
def test_prediction_and_program_take_the_tokens(
    stages: Any, plan: dict[str, Any], words: np.ndarray, tmp_path: Path
) -> None:
    folder = stages.run({"teacher": plan["teacher"]}).folder("teacher").path
    trust = Trust(stages.root)  # a function of the user's builds it
    for name, dtype in (("words", np.int64), ("bytes", np.uint8), ("floats", np.float32)):
        np.save(tmp_path / f"{name}.npy", words[:5].astype(dtype))
    predicted, short = (
        [dict(row.ranked) for row in predict_files(folder, [tmp_path / f"{name}.npy"], trust=trust)]
        for name in ("words", "bytes")
    )
    assert predicted == short
    (refused,) = predict_files(folder, [tmp_path / "floats.npy"], trust=trust)
    assert "the model takes integers" in str(refused.error)
    export_model(folder, tmp_path / "exported", trust)
    program: Any = torch.export.load(tmp_path / "exported" / "model.pt2").module()
    given = program(torch.from_numpy(words[:5]).long())
    ours = [[row[str(label)] for label in range(3)] for row in predicted]
    torch.testing.assert_close(given, torch.tensor(ours), atol=1e-6, rtol=0)


def test_an_augmentation_of_tokens_is_refused(stages: Any, plan: dict[str, Any]) -> None:
    stages.write({"teacher": plan["teacher"] | {"augment": [{"name": "mixup"}]}})
    outcome = stages.attempt("teacher")
    assert outcome.status == "failed"
    assert "`mixup` makes other numbers" in outcome.error

"""`evaluate` and `predict` on the folder of an `evaluate` stage: the ensemble or committee that it judged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.errors import StoreError
from raydistill.inference.predict import predict_files
from raydistill.prediction import evaluate_model


@pytest.fixture
def plan(teacher: dict[str, Any]) -> dict[str, Any]:
    slow = {"name": "sgd", "learning_rate": 5e-3}
    return {
        "teacher": teacher | {"epochs": 1, "replicas": 2, "optimizer": slow},
        "ensemble": {"stage": "evaluate", "models": ["teacher"], "rule": "geometric", "weights": [1, 3]},
        "clusters": {"stage": "confusion_clusters", "given": [[2, 0], [1, 2]]},
        "specialists": {
            "stage": "train_specialists",
            "generalist": "teacher.0",
            "clusters": "clusters",
            "epochs": 5,
            "batch_size": 16,
        },
        "committee": {
            "stage": "evaluate",
            "models": ["teacher.0"],
            "committee": {"specialists": ["specialists"], "active": 2, "direction": "reverse"},
        },
    }


@pytest.mark.parametrize("name", ["ensemble", "committee"])
def test_a_judged_group_of_models_gives_the_numbers_of_its_stage(
    stages: Any, plan: dict[str, Any], name: str
) -> None:
    stages.run(plan)
    judged = evaluate_model(stages.folder(name).path, "test")
    metrics = stages.record(name).metrics
    assert judged["errors"] == metrics["test/errors"]
    assert judged["loss"] == pytest.approx(metrics["test/loss"], abs=1e-6)


def test_a_committee_labels_inputs(stages: Any, plan: dict[str, Any], tmp_path: Path) -> None:
    stages.run(plan)
    np.save(tmp_path / "some.npy", np.load(stages.file)["inputs"][:5])
    rows = list(predict_files(stages.folder("committee").path, [tmp_path / "some.npy"]))
    assert len(rows) == 5
    assert sum(probability for _, probability in rows[0].ranked) == pytest.approx(1)


def test_a_member_that_is_gone_is_named(stages: Any, plan: dict[str, Any]) -> None:
    stages.run(plan)
    member = stages.folder("specialists.1").path
    member.rename(member.with_name("elsewhere"))
    with pytest.raises(StoreError, match=stages.graph.nodes["specialists.1"].fingerprint):
        evaluate_model(stages.folder("committee").path, "test")

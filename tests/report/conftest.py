"""Runs for reports: what all their tests start from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_runs import BuiltRun, made_up_predictions


def write_pictures(path: Path, labels: np.ndarray) -> dict[str, Any]:
    """A file of 8 × 8 grey pictures, the test split first; returns the task that reads it."""
    count = len(labels)
    pixels = np.random.default_rng(1).integers(256, size=(count + 20, 1, 8, 8)).astype(np.uint8)
    split = np.array(["test"] * count + ["train"] * 20)
    classes = int(labels.max()) + 1
    np.savez(path, inputs=pixels, labels=np.concatenate([labels, np.arange(20) % classes]), split=split)
    return {"name": "tensors", "file": str(path), "classes": classes}


@pytest.fixture
def distilled(tmp_path: Path) -> BuiltRun:
    """Two teachers, an ensemble, a baseline and a student twice, on 40 pictures of 4 classes."""
    labels = np.arange(40) % 4
    run = BuiltRun(tmp_path, write_pictures(tmp_path / "pictures.npz", labels))

    curve = [0.5, 0.7, 0.8]
    for index in range(2):
        run.stage(
            f"teacher.{index}",
            parameters=2_000_000,
            accuracies=curve,
            **made_up_predictions(labels, 4, 2 + index, index),
        )
    for index in range(2):
        target = {"role": "targets", "inserted": True, "reads": [f"teacher.{index}"]}
        run.stage(f"teacher.{index}.targets", "predict_targets", **target)
    run.stage(
        "teacher.targets",
        "combine_targets",
        role="targets",
        inserted=True,
        reads=["teacher.0.targets", "teacher.1.targets"],
        config={"rule": "arithmetic"},
        metrics={"targets/weight/0": 0.5, "targets/weight/1": 0.5},
    )
    run.stage(
        "baseline",
        role="baseline",
        parameters=500_000,
        accuracies=curve,
        **made_up_predictions(labels, 4, 10, 5),
    )
    for index in range(2):
        run.stage(
            f"student.{index}",
            "distill",
            role="student",
            reads=["teacher.targets"],
            parameters=500_000,
            accuracies=curve,
            config={"method": {"method": "hinton", "temperature": 4.0}},
            **made_up_predictions(labels, 4, 4 + 2 * index, 7 + index),
        )
    return run


@pytest.fixture
def fake_run() -> Callable[..., BuiltRun]:
    """Starts an empty run below a folder."""
    return BuiltRun


@pytest.fixture
def predict() -> Callable[..., dict[str, Any]]:
    """Makes up predictions: see `made_up_predictions`."""
    return made_up_predictions

"""Plan runs made by hand: the files that a real one leaves, small enough to know every number."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from raydistill.kinds.stages import STAGES
from raydistill.runs.folder import StageFolder
from raydistill.runs.record import Record

PREDICTIONS = "predictions-test.safetensors"


class FakeRun:
    """A plan run below `root` that grows stage by stage; `write` finishes it."""

    def __init__(self, root: Path, task: Mapping[str, Any] | None = None) -> None:
        self.root = root
        self.folder = root / "plans" / "fake" / "20261121-041500-ab12"
        self.task = dict(task or {"name": "mnist"})
        self.nodes: list[dict[str, Any]] = []
        self.entries: dict[str, dict[str, Any]] = {}

    def stage(
        self,
        name: str,
        kind: str = "train",
        *,
        role: str = "teacher",
        reads: Sequence[str] = (),
        status: str = "done",
        inserted: bool = False,
        config: Mapping[str, Any] | None = None,
        error: str | None = None,
        **result: Any,
    ) -> StageFolder:
        """Add a stage; `result` goes to `write_result` when the stage ended well."""
        fingerprint = f"{len(self.nodes):012x}"
        stage, _, replica = name.partition(".")
        is_replica = replica.isdigit()
        folder = StageFolder(self.root / "stages" / f"{kind}-{fingerprint}")
        folder.create({"kind": kind, "config": dict(config or {})})
        self.nodes.append(
            {
                "name": name,
                "stage": stage if is_replica else name,
                "kind": kind,
                "makes": STAGES[kind].makes,
                "adjusted": kind == "adjust_class_bias",
                "reads": list(reads),
                "folder": f"stages/{kind}-{fingerprint}",
                "fingerprint": fingerprint,
                "inserted": inserted,
                "replica": int(replica) if is_replica else None,
                "role": role,
            }
        )
        self.entries[name] = {"stage": kind, "status": status, "seconds": 1.5}
        if error:
            self.entries[name]["error"] = error
        if status in ("done", "cached"):
            write_result(folder, kind, fingerprint, self.task, **result)
        return folder

    def write(self, status: str = "done", **more: Any) -> Path:
        """Write the run's own files; returns its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = {
            name: more.pop(name, value)
            for name, value in {"plan": "fake", "run_id": self.folder.name}.items()
        }
        graph = {**plan, "test": "", "nodes": self.nodes}
        results = {
            **plan,
            "status": status,
            "seconds": 61.2,
            "versions": {"torch": "2.15.0"},
            "task": {"name": self.task["name"], "num_classes": 10, "train": 3600, "test": 1000},
            "stages": self.entries,
            **more,
        }
        (self.folder / "graph.json").write_text(json.dumps(graph))
        (self.folder / "results.json").write_text(json.dumps(results))
        (self.folder / "plan.yaml").write_text("name: fake\n")
        return self.folder


def write_result(
    folder: StageFolder,
    kind: str,
    fingerprint: str,
    task: Mapping[str, Any],
    *,
    errors: int | None = None,
    samples: int = 1000,
    parameters: int | None = None,
    logits: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    accuracies: Sequence[float] = (),
    class_names: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    costs: Mapping[str, float] | None = None,
    files: Mapping[str, str | Mapping[str, np.ndarray]] | None = None,
    lines: Sequence[Mapping[str, float]] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Record, curves, predictions and other `files` (text or tensors) of a finished stage."""
    payload: list[str] = []
    if logits is not None and labels is not None:
        samples, errors = len(labels), int((logits.argmax(axis=1) != labels).sum())
        ids = np.arange(samples) if ids is None else ids
        save_file(
            {
                "ids": ids.astype(np.int64),
                "labels": labels.astype(np.int64),
                "logits": logits.astype(np.float16),
            },
            folder.path / PREDICTIONS,
        )
        names = [str(name) for name in class_names or range(logits.shape[1])]
        (folder.path / "model.json").write_text(json.dumps({"class_names": names, "task": dict(task)}))
        payload = [PREDICTIONS, "model.json"]
    for name, content in (files or {}).items():
        if isinstance(content, str):
            (folder.path / name).write_text(content)
        else:
            save_file(dict(content), folder.path / name)
        payload.append(name)
    measured = dict(metrics or {})
    if errors is not None:
        judged = {"test/errors": errors, "test/samples": samples, "test/accuracy": 1 - errors / samples}
        measured = judged | {"test/ece": 0.031, "validation/accuracy": 0.91} | measured
    lines = lines or [
        {"step": 10 * epoch, "epoch": epoch, "train/loss": 2.0 / epoch, "validation/accuracy": accuracy}
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.write_record(
        Record(
            kind=kind,
            fingerprint=fingerprint,
            status="done",
            seconds=12.0,
            finished=0.0,
            metrics=measured,
            parameters=parameters,
            costs=dict(costs or {}),
            payload=folder.checksums(payload),
            warnings=tuple(warnings),
            git_commit="c0ffee",
        )
    )


def fail(folder: StageFolder, fingerprint: str, kind: str, error: str, traceback: str) -> None:
    """The record of a stage that failed."""
    folder.write_record(
        Record(
            kind=kind,
            fingerprint=fingerprint,
            status="failed",
            seconds=3.0,
            finished=0.0,
            error=error,
            traceback=traceback,
        )
    )


def predictions(labels: np.ndarray, classes: int, errors: int, seed: int = 0) -> dict[str, Any]:
    """What a model with so many errors says: it takes the first samples for the next class."""
    answers = labels.copy()
    answers[:errors] = (answers[:errors] + 1) % classes
    logits = np.random.default_rng(seed).uniform(0, 1, size=(len(labels), classes))
    logits[np.arange(len(labels)), answers] += 2
    return {"logits": logits, "labels": labels}


def write_pictures(path: Path, labels: np.ndarray) -> dict[str, Any]:
    """A file of 8 × 8 grey pictures, the test split first; returns the task that reads it."""
    count = len(labels)
    pixels = np.random.default_rng(1).integers(256, size=(count + 20, 1, 8, 8)).astype(np.uint8)
    split = np.array(["test"] * count + ["train"] * 20)
    classes = int(labels.max()) + 1
    np.savez(path, inputs=pixels, labels=np.concatenate([labels, np.arange(20) % classes]), split=split)
    return {"name": "tensors", "file": str(path), "classes": classes}


@pytest.fixture
def distilled(tmp_path: Path) -> FakeRun:
    """Two teachers, an ensemble, a baseline and a student twice, on 40 pictures of 4 classes."""
    labels = np.arange(40) % 4
    run = FakeRun(tmp_path, write_pictures(tmp_path / "pictures.npz", labels))

    curve = [0.5, 0.7, 0.8]
    for index in range(2):
        run.stage(
            f"teacher.{index}",
            parameters=2_000_000,
            accuracies=curve,
            **predictions(labels, 4, 2 + index, index),
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
        "baseline", role="baseline", parameters=500_000, accuracies=curve, **predictions(labels, 4, 10, 5)
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
            **predictions(labels, 4, 4 + 2 * index, 7 + index),
        )
    return run


@pytest.fixture
def fake_run() -> Callable[..., FakeRun]:
    """Starts an empty run below a folder."""
    return FakeRun


@pytest.fixture
def predict() -> Callable[..., dict[str, Any]]:
    """Makes up predictions: see `predictions`."""
    return predictions

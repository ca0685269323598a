"""Small plans through `run_stage`: 150 images of 8 x 8 pixels in 3 classes, told apart by where they are bright."""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydistill.execution.request import Outcome, StageRequest, build_request
from raydistill.execution.run_stage import run_stage
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.context import claim_attempt, never
from raydistill.runs.folder import StageFolder
from raydistill.runs.record import Record
from raydistill.tasks.tensors import Tensors
from raydistill.training import model_files

TEACHER = {"stage": "train", "epochs": 4, "batch_size": 16, "model": {"name": "mlp", "widths": [16]}}
STUDENT = {"stage": "distill", "epochs": 2, "batch_size": 16, "student": {"name": "mlp", "widths": [6]}}


@dataclass
class Stages:
    """Runs the stages of one plan after another over one storage root."""

    root: Path
    file: Path
    task: dict[str, Any] = field(default_factory=dict)
    graph: Graph | None = None
    plan: Plan | None = None

    def write(self, stages: dict[str, Any]) -> Graph:
        """The plan that the next calls are about."""
        task = {"name": "tensors", "file": str(self.file), **self.task}
        self.plan = Plan.model_validate({"name": "p", "task": task, "stages": stages})
        self.graph = order_stages(self.plan)
        return self.graph

    def request(self, name: str) -> StageRequest:
        """A new attempt, prepared as the scheduler does it."""
        assert self.graph is not None
        assert self.plan is not None
        node = self.graph.nodes[name]
        request = build_request(node, self.graph, self.plan.task, self.root, attempt=uuid.uuid4().hex)
        folder = StageFolder(self.root / request.folder)
        folder.create(node.identity)
        claim_attempt(folder, request.attempt)
        return request

    def attempt(self, name: str, should_stop: Callable[[], bool] = never) -> Outcome:
        """One attempt at one node."""
        return run_stage(self.request(name), should_stop=should_stop)

    def run(self, stages: dict[str, Any]) -> "Stages":
        """Run all nodes that have no result yet; all must succeed."""
        for name in self.write(stages).nodes:
            if self.folder(name).record() is None:
                outcome = self.attempt(name)
                assert outcome.status == "done", outcome.error
        return self

    def folder(self, name: str) -> StageFolder:
        assert self.graph is not None
        return StageFolder(self.root / self.graph.nodes[name].folder)

    def record(self, name: str) -> Record:
        record = self.folder(name).record()
        assert record is not None
        return record

    def metrics(self, name: str) -> list[dict[str, float]]:
        """The lines of metrics.jsonl, without the times."""
        lines = (self.folder(name).path / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]

    def model(self, name: str) -> model_files.TrainedModel:
        return model_files.load(self.folder(name))

    def logits(self, name: str) -> Tensor:
        """What a trained model says about all inputs of the file, (150, C)."""
        return self.model(name).logits(torch.from_numpy(np.load(self.file)["inputs"]))

    def elsewhere(self, name: str) -> "Stages":
        """The same task over another storage root."""
        return Stages(self.root.with_name(name), self.file, self.task)


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    draw = np.random.default_rng(0)
    labels = draw.integers(3, size=150)
    inputs = draw.uniform(size=(150, 1, 8, 8)).astype(np.float32)
    for label in range(3):
        inputs[labels == label, :, 2 * label + 1 : 2 * label + 3] += 0.6
    file = tmp_path / "data.npz"
    np.savez(file, inputs=inputs, labels=labels, ids=draw.permutation(1000)[:150])
    return Stages(tmp_path / "runs", file)


@pytest.fixture
def teacher() -> dict[str, Any]:
    return TEACHER


@pytest.fixture
def student() -> dict[str, Any]:
    return STUDENT


@pytest.fixture
def users_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Put a user's module on the path; returns its name."""

    def write(source: str) -> str:
        name = f"users_{uuid.uuid4().hex[:8]}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return write


class Untouchable:
    """Stands in for a training split of which nothing may be asked but whether it is empty."""

    def __len__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"`{name}` of the training split was asked for")


@pytest.fixture
def hide_training_split(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, the task's training split cannot be looked at."""

    def hide() -> None:
        load = Tensors.load
        monkeypatch.setattr(Tensors, "load", lambda task: replace(load(task), train=Untouchable()))

    return hide

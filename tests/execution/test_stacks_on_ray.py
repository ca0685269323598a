"""Replicas that train as one batched model on a stage worker of a real, small Ray cluster of 4 CPUs."""

import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from watched import Watched

from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.ray_backend import RayBackend
from raydistill.execution.request import Backend, Outcome, StageRequest, build_request
from raydistill.execution.scheduler import run_stages
from raydistill.plan.order import order_stages
from raydistill.plan.resources import ResourcesConfig
from raydistill.plan.schema import Plan
from raydistill.runs.context import claim_attempt
from raydistill.runs.folder import StageFolder
from raydistill.runs.plan_run import NodeState

PATIENCE = 300.0
SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
TRAIN = {
    "stage": "train", "epochs": 20, "batch_size": 16, "model": {"name": "mlp", "widths": [16]}, "optimizer": SGD,
}  # fmt: skip


class WatchedRayBackend(Watched, RayBackend):
    """One that is watched."""


class Replicas:
    """Of one small stage, over one storage root."""

    def __init__(self, folder: Path, data: Path, **changes: Any) -> None:
        task = {"name": "tensors", "file": str(data)}
        stages = {"teacher": TRAIN | changes}
        self.plan = Plan.model_validate({"name": "p", "task": task, "stages": stages})
        self.root, self.graph = folder, order_stages(self.plan)

    def run(self, backend: Backend) -> dict[str, NodeState]:
        return run_stages(self.graph, backend, task=self.plan.task, root=self.root)

    def request(self, name: str) -> StageRequest:
        node = self.graph.nodes[name]
        request = build_request(node, self.graph, self.plan.task, self.root, attempt=uuid.uuid4().hex)
        folder = self.folder(name)
        folder.create(node.identity)
        claim_attempt(folder, request.attempt)
        return request

    def checkpoint(self, name: str) -> Path:
        return self.folder(name).path / "checkpoint" / "checkpoint.json"

    def folder(self, name: str) -> StageFolder:
        return StageFolder(self.root / self.graph.nodes[name].folder)

    def assert_close(self, other: "Replicas") -> None:
        for name in self.graph.nodes:
            own, wanted = (load_file(each.folder(name).path / "model.safetensors") for each in (self, other))
            torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-4)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    inputs = np.random.default_rng(0).normal(size=(240, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
    return tmp_path / "data.npz"


@pytest.fixture
def backend(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedRayBackend]:
    """Its workers import `probes` from the driver's folder."""
    monkeypatch.chdir(Path(__file__).parent)
    backend = WatchedRayBackend()
    yield backend
    backend.close()


def wait_until(claim: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def outcomes(backend: RayBackend, names: set[str]) -> dict[str, Outcome]:
    ended: dict[str, Outcome] = {}
    wait_until(lambda: ended.update(backend.wait(0.5)) or names <= set(ended))
    return ended


@pytest.mark.ray
def test_replicas_without_room_of_their_own_are_divided_among_the_workers_that_there_are(
    backend: WatchedRayBackend, tmp_path: Path, data: Path
) -> None:
    """Two workers of 2 CPUs for five replicas: three on one and two on the other, if that turns out to be faster."""
    resources = {"cpus": 2, "gpus": 0}
    replicas = Replicas(tmp_path / "ray", data, replicas=5, resources=resources)
    assert {state.status for state in replicas.run(backend).values()} == {"done"}
    assert sorted(map(len, backend.started[:2])) == [2, 3]
    alone = Replicas(tmp_path / "local", data, replicas=5, resources=resources, stack="off")
    alone.run(LocalBackend())
    replicas.assert_close(alone)
    assert [state.attempts for state in replicas.run(backend).values()] == [0] * 5


@pytest.mark.ray
def test_replicas_that_fit_side_by_side_are_not_stacked(
    backend: WatchedRayBackend, tmp_path: Path, data: Path
) -> None:
    replicas = Replicas(tmp_path / "ray", data, replicas=4, epochs=2, resources={"gpus": 0})
    replicas.run(backend)
    assert sorted(backend.started) == [[f"teacher.{index}"] for index in range(4)]


@pytest.mark.ray
def test_a_stack_whose_process_dies_goes_on_from_the_checkpoints(
    backend: WatchedRayBackend, tmp_path: Path, data: Path
) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    (traces / "slow").touch()
    model = {"name": "probes:slow", "folder": str(traces)}
    whole = {"replicas": 3, "model": model, "stack": "on", "resources": {"gpus": 0}}
    replicas = Replicas(tmp_path / "ray", data, **whole)
    names = list(replicas.graph.nodes)
    assert backend.places(ResourcesConfig(gpus=0)) == 4
    assert backend.try_start(*map(replicas.request, names))
    assert backend.places(ResourcesConfig(gpus=0)) == 3
    wait_until(lambda: all(replicas.checkpoint(name).exists() for name in names))
    assert {placement.phase for placement in backend.placements().values()} == {"running"}
    (process,) = {int(path.read_text()) for path in traces.glob("*.pid")}
    os.kill(process, signal.SIGKILL)
    lost = outcomes(backend, set(names))
    assert {outcome.status for outcome in lost.values()} == {"lost"}
    (traces / "slow").unlink()
    assert {state.status for state in replicas.run(backend).values()} == {"done"}
    assert "resumed at step" in (replicas.folder(names[2]).path / "log.txt").read_text()
    alone = Replicas(tmp_path / "alone", data, **whole | {"stack": "off"})
    alone.run(backend)
    replicas.assert_close(alone)


@pytest.mark.ray
def test_a_stack_that_is_asked_to_stop_leaves_checkpoints_and_goes_on(
    backend: WatchedRayBackend, tmp_path: Path, data: Path
) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    (traces / "slow").touch()
    model = {"name": "probes:slow", "folder": str(traces)}
    whole = {"replicas": 3, "model": model, "stack": "on", "resources": {"gpus": 0}}
    replicas = Replicas(tmp_path / "ray", data, **whole)
    names = list(replicas.graph.nodes)
    assert backend.try_start(*(replicas.request(name) for name in names))
    wait_until(lambda: all(replicas.checkpoint(name).exists() for name in names))
    ended = dict(backend.stop())
    assert {ended[name].status for name in names} == {"stopped"}
    (traces / "slow").unlink()
    checkpoints = [json.loads(replicas.checkpoint(name).read_text()) for name in names]
    assert all(checkpoint["progress"]["step"] > 0 for checkpoint in checkpoints)
    assert {state.status for state in replicas.run(backend).values()} == {"done"}
    alone = Replicas(tmp_path / "local", data, **whole | {"stack": "off"})
    alone.run(backend)
    for name in names:
        own, other = (each.folder(name).record() for each in (replicas, alone))
        assert own is not None
        assert other is not None
        assert own.stacked == 3
        assert own.metrics["validation/loss"] == pytest.approx(
            other.metrics["validation/loss"], rel=0.05, abs=0.01
        )

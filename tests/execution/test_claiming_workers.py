"""Workers that divide a stage by claims, on a real, small Ray cluster: they join, die, and are replaced."""

import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from raydistill.execution.ray_backend import RayBackend
from raydistill.execution.request import Outcome, StageRequest, build_request
from raydistill.execution.run_stage import run_stage
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.context import claim_attempt
from raydistill.runs.folder import StageFolder

HERE = Path(__file__).parent
PATIENCE = 300.0


class Prediction:
    """A `predict_targets` stage of many small shards, whose teacher takes 20 ms for a batch as long as the file
    `slow` is there."""

    def __init__(self, folder: Path) -> None:
        self.root, self.traces = folder / "runs", folder / "traces"
        self.traces.mkdir()
        (self.traces / "slow").touch()
        inputs = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
        np.savez(folder / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
        self.task = {"name": "tensors", "file": str(folder / "data.npz")}

    def request(self, name: str, resources: dict[str, Any], root: Path | None = None) -> StageRequest:
        model = {"name": "probes:slow_to_predict", "folder": str(self.traces)}
        stages = {
            "teacher": {"stage": "train", "model": model, "epochs": 1, "batch_size": 300},
            "targets": {
                "stage": "predict_targets",
                "teacher": "teacher",
                "batch_size": 1,
                "resources": resources,
            },
        }
        plan = Plan.model_validate({"name": "p", "task": self.task, "stages": stages})
        graph = order_stages(plan)
        node = graph.nodes[name]
        request = build_request(node, graph, plan.task, root or self.root, attempt=uuid.uuid4().hex)
        folder = StageFolder(Path(request.root) / request.folder)
        folder.create(node.identity)
        claim_attempt(folder, request.attempt)
        return request

    def finished(self, request: StageRequest) -> int:
        return len(list((self.root / request.folder).glob("logits-*.json")))

    def holders(self, request: StageRequest) -> set[int]:
        """Processes that hold a claim."""
        return {
            int(text.split('"pid": ')[1].split(",")[0])
            for path in (self.root / request.folder / "claims").glob("*/lease-*.json")
            if '"pid": ' in (text := path.read_text())
        }


def wait_until(claim: Callable[[], Any], backend: RayBackend | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        if backend is None:
            time.sleep(0.02)
        else:
            assert backend.wait(0.05) == []


def finish(backend: RayBackend) -> tuple[str, Outcome]:
    deadline = time.monotonic() + PATIENCE
    while not (ended := backend.wait(1.0)):
        assert time.monotonic() < deadline
    return ended[0]


def payload(request: StageRequest) -> dict[str, str]:
    return StageFolder(Path(request.root) / request.folder).done_record().payload


@pytest.fixture
def backend(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayBackend]:
    monkeypatch.chdir(HERE)
    monkeypatch.syspath_prepend(HERE)
    backend = RayBackend()
    yield backend
    backend.close()
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


@pytest.mark.ray
def test_workers_join_as_there_is_room_and_a_killed_one_changes_nothing(
    backend: RayBackend, tmp_path: Path
) -> None:
    prediction = Prediction(tmp_path)
    assert run_stage(prediction.request("teacher", {})).status == "done"
    # Four CPUs, and eight are asked for: it begins with those for which there is room.
    request = prediction.request("targets", {"workers": 4, "cpus": 2})
    assert backend.try_start(request)
    wait_until(lambda: len(prediction.holders(request)) == 2, backend)
    victim = min(prediction.holders(request))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(victim))
    wait_until(lambda: len(prediction.holders(request) - {victim}) == 2, backend)
    assert prediction.finished(request) > 0
    (prediction.traces / "slow").unlink()
    name, outcome = finish(backend)
    assert (name, outcome.status) == ("targets", "done")
    (tmp_path / "alone/stages").mkdir(parents=True)
    teacher = prediction.request("teacher", {}).folder
    (tmp_path / "alone" / teacher).symlink_to(prediction.root / teacher)
    alone = prediction.request("targets", {"cpus": 2}, tmp_path / "alone")
    assert run_stage(alone).status == "done"
    assert payload(request) == payload(alone)


@pytest.mark.ray
def test_a_fault_of_one_worker_fails_the_stage_and_frees_all(backend: RayBackend, tmp_path: Path) -> None:
    prediction = Prediction(tmp_path)
    assert run_stage(prediction.request("teacher", {})).status == "done"
    request = prediction.request("targets", {"workers": 2})
    model = StageFolder(prediction.root / request.reads["teacher"]).path / "model.safetensors"
    model.write_bytes(b"no model")
    assert backend.try_start(request)
    _, outcome = finish(backend)
    assert outcome.status == "failed"
    assert "model.safetensors" in (outcome.error or "")


@pytest.mark.ray
def test_workers_that_are_asked_to_stop_keep_their_shards(backend: RayBackend, tmp_path: Path) -> None:
    prediction = Prediction(tmp_path)
    assert run_stage(prediction.request("teacher", {})).status == "done"
    request = prediction.request("targets", {"workers": 2})
    assert backend.try_start(request)
    wait_until(lambda: prediction.finished(request) > 0, backend)
    assert [(name, outcome.status) for name, outcome in backend.stop()] == [("targets", "stopped")]
    assert prediction.finished(request) > 0

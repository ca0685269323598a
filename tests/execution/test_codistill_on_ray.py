"""Peers as stages of their own on a real, small Ray cluster: they hear one another, and one may die and return."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from raydistill.errors import PlanError
from raydistill.execution.ray_backend import RayBackend
from raydistill.execution.scheduler import run_stages
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan

HERE = Path(__file__).parent
PATIENCE = 120.0


@pytest.fixture
def backend(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayBackend]:
    monkeypatch.chdir(HERE)
    backend = RayBackend()
    yield backend
    backend.close()


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., tuple[Plan, Graph]]:
    """A plan with peers of a slow model, 5 steps an epoch."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(200, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
    task = {"name": "tensors", "file": str(tmp_path / "data.npz")}

    def write(**options: Any) -> tuple[Plan, Graph]:
        model = {"name": "probes:slow", "folder": str(tmp_path)}
        peers = {"stage": "codistill", "model": model, "epochs": 40, "batch_size": 32, "exchange_every": 2}
        plan = Plan.model_validate({"name": "p", "task": task, "stages": {"peers": peers | options}})
        return plan, order_stages(plan)

    return write


def wait_until(claim: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.ray
def test_peers_hear_one_another_and_one_that_is_killed_returns_while_the_other_goes_on(
    backend: RayBackend, plan_of: Any, tmp_path: Path
) -> None:
    plan, graph = plan_of()
    root, brake = tmp_path / "runs", tmp_path / "slow"
    brake.touch()
    folders = {name: root / node.folder for name, node in graph.nodes.items()}
    deaths: list[str] = []

    def text(name: str) -> str:
        log = folders[name] / "log.txt"
        return log.read_text() if log.exists() else ""

    def hear(name: str, other: str) -> bool:
        return f"hears `{other}`" in text(name)

    def kill_one() -> None:
        wait_until(lambda: hear("peers.0", "peers.1") and hear("peers.1", "peers.0"))
        wait_until(
            lambda: all((path / "checkpoint" / "checkpoint.json").exists() for path in folders.values())
        )
        victim = next(iter(tmp_path.glob("*-rank0.pid")))
        os.kill(int(victim.read_text()), signal.SIGKILL)
        wait_until(lambda: any("resumed at step" in text(name) for name in folders))
        deaths.append(victim.name)
        brake.unlink()

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    states = run_stages(graph, backend, task=plan.task, root=root)
    killer.join(PATIENCE)
    assert len(deaths) == 1
    assert {state.status for state in states.values()} == {"done"}
    assert sorted(state.attempts for state in states.values()) == [1, 2]
    metrics = {
        name: json.loads((path / "record.json").read_text())["metrics"] for name, path in folders.items()
    }
    assert all(0 < values["peers_heard"] <= 1 for values in metrics.values())
    assert all(abs(values["staleness"]) < 200 for values in metrics.values())
    for path in folders.values():
        final, published = load_file(path / "model.safetensors"), load_file(path / "published.safetensors")
        assert int(published.pop("step")) == 200
        assert all((published[f"model.{key}"] == value).all() for key, value in final.items())


@pytest.mark.ray
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"peers": 5},
            ["`peers` trains 5 models side by side", "room for 4 at once", "`stages.peers.resources`"],
        ),
        ({"resources": {"cpus": 3}}, ["each on 3 CPUs", "room for 1 at once"]),
        ({"resources": {"workers": 3}}, ["each on 3 workers of 1 CPU", "room for 1 at once"]),
    ],
)
def test_peers_that_never_fit_side_by_side_are_refused(
    backend: RayBackend, plan_of: Any, options: dict[str, Any], words: list[str]
) -> None:
    _, graph = plan_of(**options)
    with pytest.raises(PlanError) as caught:
        backend.check_feasible(list(graph.nodes.values()))
    assert all(word in caught.value.message for word in words)


@pytest.mark.ray
def test_groups_of_peers_need_not_fit_side_by_side_nor_need_those_that_are_done(
    backend: RayBackend, plan_of: Any
) -> None:
    _, groups = plan_of(replicas=5)
    backend.check_feasible(list(groups.nodes.values()))
    _, peers = plan_of(peers=5)
    backend.check_feasible(list(peers.nodes.values())[:4])

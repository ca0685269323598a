"""Nodes that say that they will go: stages that run there go on elsewhere, and nobody is blamed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from raydistill.execution.ray_backend import running
from raydistill.execution.ray_backend.attempts import unless_asked
from raydistill.execution.ray_backend.autoscaler import Growth
from raydistill.execution.ray_backend.resources import WHOLE, Resources
from raydistill.execution.ray_backend.running import RunningStages
from raydistill.execution.request import Outcome, StageRequest
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.placement import write_place

HERE = Path(__file__).parent
PATIENCE = 120.0


class Health:
    """Of a Ray cluster that is well."""

    def hold(self) -> bool:
        return True


class Attempt:
    """Runs until it has made way."""

    is_asked_to_stop = False
    refs: tuple[str, ...] = ()

    def __init__(self, root: Path, name: str, node: str) -> None:
        self.request = StageRequest(
            name,
            "train",
            "0" * 12,
            f"stages/{name}",
            str(root),
            {},
            {},
            {},
            {},
            attempt=name,
            resources={"workers": 1},
        )
        self.request.place.mkdir(parents=True)
        write_place(self.request.place, name, 0, node)
        self.asked = 0

    def make_way(self) -> None:
        self.asked += 1

    def has_ended(self, ready: Collection[Any]) -> bool:
        return bool(self.asked)

    def outcome(self) -> Outcome:
        return unless_asked(self, Outcome("stopped", 3.0))  # type: ignore[arg-type]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> RunningStages:
    monkeypatch.setattr(running, "DRAIN_SECONDS", 0.0)
    return RunningStages("", Health(), can_grow=False)  # type: ignore[arg-type]


def test_a_stage_makes_way_once_when_its_node_says_that_it_will_go(
    tmp_path: Path, stages: RunningStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = set[str]()
    monkeypatch.setattr(running, "draining_nodes", lambda: set(going))
    first, second = Attempt(tmp_path, "first", "a"), Attempt(tmp_path, "second", "b")
    stages._running |= {"first": first, "second": second}  # type: ignore[dict-item]
    for there in ([], ["a"], ["a", "c"]):
        going.update(there)
        stages._make_way()
    assert (first.asked, second.asked) == (1, 0)
    outcome = stages._outcome_of(first)  # type: ignore[arg-type]
    assert (outcome.status, outcome.preempted, outcome.seconds) == ("lost", True, 3.0)
    assert "is about to go" in str(outcome.error)


def test_an_autoscaler_is_asked_for_each_worker_once_whatever_is_stacked_on_it(
    tmp_path: Path, stages: RunningStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(running, "machines_alive", lambda: [Resources(cpus=WHOLE)])
    stages._growth = Growth(lambda bundles, labels: asked.append(bundles))
    for name, call in (("first", "a"), ("second", "a"), ("third", "b")):
        attempt = Attempt(tmp_path, name, "node")
        attempt.refs = (call,)
        stages._running[name] = attempt  # type: ignore[assignment]
    train = {"stage": "train", "model": {"name": "mlp"}, "epochs": 1, "resources": {"cpus": 4.0}}
    values = {"name": "p", "task": {"name": "mnist"}, "stages": {"large": train}}
    graph = order_stages(Plan.model_validate(values))
    stages.want(list(graph.nodes.values()))
    assert asked == [[{"CPU": 1.0}, {"CPU": 1.0}, {"CPU": 4.0}]]


def test_an_attempt_that_was_asked_to_stop_has_stopped(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, "only", "a")
    assert attempt.outcome().preempted, "its own process was told to end"
    attempt.is_asked_to_stop = True
    assert attempt.outcome() == Outcome("stopped", 3.0)
    assert unless_asked(attempt, Outcome("done")) == Outcome("done")  # type: ignore[arg-type]


@pytest.mark.ray
@pytest.mark.slow
def test_a_stage_on_a_node_that_drains_goes_on_from_that_step_on_another(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__)), str(tmp_path)]
    ended = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr
    seen = json.loads(ended.stdout.splitlines()[-1])
    assert seen["outcome"] == ["lost", True]
    assert "is about to go" in seen["error"]
    assert seen["again"] == "done"
    assert f"resumed at step {seen['step']}" in seen["log"]
    assert seen["places"][0] != seen["places"][1]
    assert seen["machines"] == [3, 2]


def drive(folder: Path) -> None:
    """Two nodes of a CPU each; the one on which a stage runs is told that it will be taken away."""
    sys.path.append(str(HERE))
    import ray
    from ray._raylet import GcsClient
    from ray.cluster_utils import Cluster
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason
    from test_ray_backend import Stages, checkpoint, finish

    from raydistill.execution.ray_backend import RayBackend
    from raydistill.execution.ray_backend.running import machines_alive
    from raydistill.runs.placement import read_places

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})  # the driver's, which stays
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    stages, backend = Stages(folder), RayBackend(cluster.address)
    (stages.traces / "slow").touch()
    first = stages.request("stage", **stages.slow())
    seen: dict[str, Any] = {"machines": [len(machines_alive())], "places": []}
    try:
        assert backend.try_start(first)
        wait_until(checkpoint(first).exists)
        [place] = read_places(first.place, first.attempt, 1)
        seen["places"].append(place["node_id"])
        reason, deadline = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, int((time.time() + 120) * 1000)
        GcsClient(cluster.address).drain_node(place["node_id"], reason, "for a test", deadline)
        outcome = finish(backend, [first])["stage"]
        seen |= {"outcome": [outcome.status, outcome.preempted], "error": outcome.error}
        seen["step"] = json.loads(checkpoint(first).read_text())["progress"]["step"]
        seen["machines"].append(len(machines_alive()))
        again = stages.request("stage", **stages.slow())
        assert backend.try_start(again)
        wait_until(lambda: read_places(again.place, again.attempt, 1))
        seen["places"].append(read_places(again.place, again.attempt, 1)[0]["node_id"])
        (stages.traces / "slow").unlink()
        seen["again"] = finish(backend, [again])["stage"].status
        seen["log"] = (again.place / "log.txt").read_text()
    finally:
        backend.close()
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps(seen))  # noqa: T201


def wait_until(claim: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)


if __name__ == "__main__":
    drive(Path(sys.argv[1]))

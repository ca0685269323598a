"""Which replicas start in one process: with a back end that is told how much room there is, and how stages end."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.execution.request import Outcome, StageRequest
from raydistill.execution.scheduler import run_stages
from raydistill.execution.stacks import MOST, size_of_stack
from raydistill.kinds.train import TrainConfig
from raydistill.plan.order import Node, order_stages
from raydistill.plan.resources import ResourcesConfig
from raydistill.plan.schema import Plan
from raydistill.runs.lease import Leases
from raydistill.runs.placement import Placement
from raydistill.runs.plan_run import NodeState

TRAIN = {"stage": "train", "model": {"name": "mlp"}, "epochs": 1}


class Processes:
    """So many of them, each with a GPU. Of what a process was started with, all ends at once: as `script` says by name,
    else well."""

    def __init__(self, count: int, script: Mapping[str, Sequence[Outcome]] | None = None) -> None:
        self.count = count
        self.script = {name: list(outcomes) for name, outcomes in (script or {}).items()}
        self.running: list[tuple[StageRequest, ...]] = []
        self.started: list[list[str]] = []
        self.alone: dict[str, str] = {}

    has_gpus = True

    def check_feasible(self, nodes: Sequence[Node]) -> None:
        pass

    def want(self, waiting: Iterable[Node]) -> None:
        pass

    def placements(self) -> dict[str, Placement]:
        return {}

    def has_gpu_for(self, resources: ResourcesConfig) -> bool:
        return self.has_gpus

    def places(self, resources: ResourcesConfig) -> int:
        return self.count - len(self.running)

    def try_start(self, request: StageRequest, *others: StageRequest) -> bool:
        if len(self.running) == self.count:
            return False
        self.running.append((request, *others))
        self.started.append([each.name for each in self.running[-1]])
        self.alone |= {each.name: each.alone for each in self.running[-1]}
        return True

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        if not self.running:
            return []
        return [(request.name, self._ended(request.name)) for request in self.running.pop(0)]

    def _ended(self, name: str) -> Outcome:
        return self.script[name].pop(0) if self.script.get(name) else Outcome("done")

    def stop(self) -> list[tuple[str, Outcome]]:
        return []

    def close(self) -> None:
        pass


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inputs = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=inputs.argmax(axis=1))
    return tmp_path / "runs"


def run(root: Path, backend: Processes, **changes: Any) -> dict[str, NodeState]:
    task = {"name": "tensors", "file": str(root.with_name("data.npz"))}
    plan = Plan.model_validate({"name": "p", "task": task, "stages": {"teacher": TRAIN | changes}})
    return run_stages(order_stages(plan), backend, task=plan.task, root=root)


def names(*numbers: int) -> list[str]:
    return [f"teacher.{number}" for number in numbers]


@pytest.mark.parametrize(
    ("processes", "groups"),
    [
        (1, [names(0, 1, 2, 3, 4)]),
        (2, [names(0, 1, 2), names(3, 4)]),
        (4, [names(0, 1), names(2), names(3), names(4)]),
        (5, [names(number) for number in range(5)]),
        (9, [names(number) for number in range(5)]),
    ],
)
def test_replicas_are_divided_among_the_processes_that_there_is_room_for(
    root: Path, processes: int, groups: list[list[str]]
) -> None:
    backend = Processes(processes)
    states = run(root, backend, replicas=5)
    assert backend.started[: len(groups)] == groups
    assert {state.status for state in states.values()} == {"done"}
    assert {state.attempts for state in states.values()} == {1}


def test_one_replica_alone_can_be_asked_for(root: Path) -> None:
    task = {"name": "tensors", "file": str(root.with_name("data.npz"))}
    plan = Plan.model_validate({"name": "p", "task": task, "stages": {"teacher": TRAIN | {"replicas": 3}}})
    backend = Processes(1)
    run_stages(order_stages(plan).needed_for(names(1)), backend, task=plan.task, root=root)
    assert backend.started == [names(1)]


def test_all_are_one_model_where_somebody_wants_that(root: Path) -> None:
    backend = Processes(3)
    run(root, backend, replicas=5, stack="on")
    assert backend.started == [names(0, 1, 2, 3, 4)]


@pytest.mark.parametrize(
    "changes", [{"stack": "off"}, {"precision": "bfloat16"}, {"resources": {"timeout": "1m"}}]
)
def test_what_cannot_be_stacked_starts_by_itself(root: Path, changes: dict[str, Any]) -> None:
    backend = Processes(1)
    run(root, backend, replicas=3, **changes)
    assert backend.started == [names(0), names(1), names(2)]
    assert backend.alone["teacher.0"]


def test_what_leaves_a_stack_starts_by_itself_with_the_reason(root: Path) -> None:
    script = {name: [Outcome("apart", error="for reasons")] for name in names(0, 2)}
    backend = Processes(1, script)
    states = run(root, backend, replicas=3)
    assert backend.started == [names(0, 1, 2), names(0), names(2)]
    assert [backend.alone[name] for name in names(0, 1, 2)] == ["for reasons", "", "for reasons"]
    assert {state.status for state in states.values()} == {"done"}
    assert {state.attempts for state in states.values()} == {1}


def test_left_to_themselves_replicas_are_stacked_on_gpus_alone(root: Path) -> None:
    backend = Processes(1)
    backend.has_gpus = False
    run(root, backend, replicas=3)
    assert backend.started == [names(0), names(1), names(2)]
    assert "on a CPU" in backend.alone["teacher.0"]


def test_replicas_are_stacked_on_a_cpu_where_that_is_asked_for(root: Path) -> None:
    backend = Processes(1)
    backend.has_gpus = False
    run(root, backend, replicas=3, stack="on")
    assert backend.started == [names(0, 1, 2)]


@pytest.mark.parametrize(
    ("stack", "again"), [("auto", [names(0), names(1), names(2)]), ("on", [names(0, 1, 2)])]
)
def test_what_a_process_took_with_it_starts_again(root: Path, stack: str, again: list[list[str]]) -> None:
    """By itself where nobody asked for a stack: it may have been too much for the machine."""
    backend = Processes(1, {name: [Outcome("lost", error="killed")] for name in names(0, 1, 2)})
    states = run(root, backend, replicas=3, stack=stack)
    assert backend.started == [names(0, 1, 2), *again]
    assert {(state.status, state.attempts) for state in states.values()} == {("done", 2)}


def test_what_another_driver_trains_is_not_taken_into_a_stack(root: Path) -> None:
    task = {"name": "tensors", "file": str(root.with_name("data.npz"))}
    plan = Plan.model_validate({"name": "p", "task": task, "stages": {"teacher": TRAIN | {"replicas": 3}}})
    graph, other = order_stages(plan), Leases()
    assert other.acquire(root / graph.nodes["teacher.1"].folder)

    class Releasing(Processes):
        def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
            other.close()
            return super().wait(seconds)

    backend = Releasing(1)
    states = run_stages(graph, backend, task=plan.task, root=root)
    assert backend.started == [names(0, 2), names(1)]
    assert {state.status for state in states.values()} == {"done"}


def test_no_process_takes_more_than_it_should() -> None:
    def size(count: int, room: int, stack: str = "auto") -> int:
        return size_of_stack(TrainConfig.model_validate(TRAIN | {"stack": stack}), count, room)

    assert [size(10, room) for room in (1, 2, 3, 10, 20)] == [10, 5, 4, 1, 1]
    assert size(1000, 1) == size(1000, 4, "on") == MOST
    assert size(7, 5, "on") == 7

"""`gpus: auto`: what is measured of one training decides how many like it share a GPU; against counts by hand."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.execution.gpu_share import MARGIN, MOST, share_of, with_gpu_shares
from raydistill.execution.ray_backend.resources import Resources, capacity, resources_of_worker
from raydistill.execution.request import Outcome, StageRequest
from raydistill.execution.scheduler import run_stages
from raydistill.plan.order import Graph, Node, order_stages
from raydistill.plan.resources import ResourcesConfig
from raydistill.plan.schema import Plan
from raydistill.runs.files import write_json
from raydistill.runs.folder import CONFIG
from raydistill.runs.record import Record

SMALL = {"gpu_busy": 0.1, "gpu_memory": 0.02, "seconds_per_step": 0.005}
GPU = Resources(cpus=64 * 10_000, gpus=10_000)
PART = st.floats(1e-4, 1.0)


def plan_of(**options: Any) -> Plan:
    train = {
        "stage": "train",
        "model": {"name": "mlp", "widths": [4]},
        "epochs": 4,
        "resources": {"gpus": "auto"},
    }
    stages = {"small": train | {"replicas": 9} | options}
    return Plan.model_validate({"name": "p", "task": {"name": "mnist"}, "stages": stages})


def graph_of(**options: Any) -> Graph:
    return order_stages(plan_of(**options))


def record_of(node: Node, costs: Mapping[str, float], **changes: Any) -> Record:
    """As if the node had run on a GPU of its own."""
    known = {
        "kind": node.kind,
        "fingerprint": node.fingerprint,
        "status": "done",
        "seconds": 5.0,
        "finished": 1000.0,
    }
    reserved = {"cpus": 1.0, "gpus": 1.0}
    return Record.model_validate(known | {"reserved": reserved, "costs": dict(costs)} | changes)


@cache
def some_node() -> Node:
    return graph_of().nodes["small.0"]


def share(busy: float, memory: float) -> float | None:
    return share_of(record_of(some_node(), {"gpu_busy": busy, "gpu_memory": memory}))


def note(root: Path, node: Node, costs: Mapping[str, float], **changes: Any) -> None:
    (root / node.folder).mkdir(parents=True, exist_ok=True)
    write_json(root / node.folder / CONFIG, dict(node.identity))
    record = record_of(node, costs, **changes)
    write_json(root / node.folder / "record.json", record.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("busy", "memory", "side_by_side"),
    [(0.1, 0.02, 8), (0.3, 0.02, 3), (0.02, 0.4, 2), (0.5, 0.1, 2), (0.51, 0.1, 1), (1.0, 0.1, 1), (0, 1, 1)],
)
def test_as_many_fit_as_time_and_memory_allow(busy: float, memory: float, side_by_side: int) -> None:
    worker = resources_of_worker(ResourcesConfig(gpus=share(busy, memory)), [GPU])
    assert capacity(GPU, worker) == side_by_side


@given(PART, PART)
def test_who_shares_a_gpu_has_what_it_needs_and_no_room_is_left_for_one_more(
    busy: float, memory: float
) -> None:
    part = share(busy, memory)
    assert part is not None
    several = capacity(GPU, resources_of_worker(ResourcesConfig(gpus=part), [GPU]))
    needed = max(Fraction(busy), Fraction(MARGIN) * Fraction(memory))
    assert several == 1 or several * needed <= 1 + Fraction(1, 10**9)
    assert several == MOST or (several + 1) * needed > 1 - Fraction(1, 10**9)


@pytest.mark.parametrize("costs", [{}, {"gpu_busy": 0.1}, {"gpu_memory": 0.1}, {"peak_bytes": 10.0}])
def test_of_what_was_not_measured_nothing_is_known(costs: dict[str, float]) -> None:
    assert share_of(record_of(some_node(), costs)) is None


def test_who_shared_a_gpu_is_not_asked_how_busy_it_was(tmp_path: Path) -> None:
    note(tmp_path, graph_of(seed=70).nodes["small.0"], SMALL)
    crowded = SMALL | {"gpu_busy": 1.0}
    part = {"cpus": 1.0, "gpus": 0.125}
    note(tmp_path, graph_of(seed=80).nodes["small.0"], crowded, reserved=part, finished=2000.0)
    graph = with_gpu_shares(graph_of(), tmp_path)
    assert {node.config.resources.gpus for node in graph.nodes.values()} == {0.125}


def test_a_stage_takes_what_its_like_needed(tmp_path: Path) -> None:
    note(tmp_path, graph_of(seed=70).nodes["small.0"], SMALL)
    graph = with_gpu_shares(graph_of(), tmp_path)
    assert {node.config.resources.gpus for node in graph.nodes.values()} == {0.125}
    wider = graph_of(model={"name": "mlp", "widths": [8]})
    assert with_gpu_shares(wider, tmp_path) is wider, "nobody knows what another network needs"


def test_what_somebody_said_stays_and_so_do_fingerprints(tmp_path: Path) -> None:
    note(tmp_path, graph_of(seed=70).nodes["small.0"], SMALL)
    said = graph_of(resources={"gpus": 0.5})
    assert with_gpu_shares(said, tmp_path) is said
    shared = with_gpu_shares(graph_of(), tmp_path)
    assert [node.fingerprint for node in shared.nodes.values()] == [
        node.fingerprint for node in said.nodes.values()
    ]


class OneGpu:
    """A back end of one GPU, in virtual time: every stage takes 10 seconds, and costs this much."""

    def __init__(self, root: Path, graph: Graph, costs: Mapping[str, float]) -> None:
        self.root, self.graph, self.costs = root, graph, costs
        self.now, self.running, self.began = 0.0, list[tuple[float, str, float]](), dict[str, float]()

    def check_feasible(self, nodes: Sequence[Node]) -> None: ...

    def want(self, waiting: Iterable[Node]) -> None: ...

    def has_gpu_for(self, resources: ResourcesConfig) -> bool:
        return False  # nothing is stacked

    def placements(self) -> dict[str, Any]:
        return {}

    def try_start(self, request: StageRequest) -> bool:
        share = resources_of_worker(request.shape, [GPU]).gpus
        if share > GPU.gpus - sum(held for _, _, held in self.running):
            return False
        heapq.heappush(self.running, (self.now + 10, request.name, share))
        self.began[request.name] = self.now
        return True

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        self.now, name, _ = heapq.heappop(self.running)
        note(self.root, self.graph.nodes[name], self.costs)
        return [(name, Outcome("done", 10.0))]

    def places(self, resources: ResourcesConfig) -> int:
        return 0

    def stop(self) -> list[tuple[str, Outcome]]:
        return []

    def close(self) -> None: ...


@pytest.mark.parametrize(("costs", "ends"), [(SMALL, 20.0), (SMALL | {"gpu_busy": 0.4}, 50.0), ({}, 90.0)])
def test_the_first_has_a_gpu_to_itself_and_the_others_share_one(
    tmp_path: Path, costs: dict[str, float], ends: float
) -> None:
    graph = graph_of()
    backend = OneGpu(tmp_path, graph, costs)
    states = run_stages(graph, backend, task=plan_of().task, root=tmp_path)
    assert {state.status for state in states.values()} == {"done"}
    assert max(backend.began.values()) + 10 == ends
    assert all(node.config.resources.gpus == "auto" for node in graph.nodes.values()), "the caller's graph"

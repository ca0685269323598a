"""How long a plan will take: made-up records against makespans by hand, and against the scheduler in virtual time."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from simulated_cluster import SimulatedCluster

from raydistill.execution.estimate import Estimate, Estimator
from raydistill.execution.makespan import Job, Room, schedule
from raydistill.execution.ray_backend.resources import WHOLE, Limit, Resources
from raydistill.execution.ready import ranks
from raydistill.execution.scheduler import run_stages
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.files import json_line, write_json
from raydistill.runs.folder import CHECKPOINT, CONFIG, METRICS
from raydistill.runs.pace import Standing
from raydistill.runs.plan_run import NodeState
from raydistill.runs.record import Record

TRAIN: dict[str, Any] = {"stage": "train", "model": {"name": "mlp", "widths": [4]}, "epochs": 4}
DISTILL = {"stage": "distill", "student": {"name": "mlp", "widths": [4]}, "mode": "live", "epochs": 2}
ONE_CPU = {"cpus": 1.0, "gpus": 0.0}


def graph_of(stages: Mapping[str, Any]) -> Graph:
    return order_stages(Plan.model_validate({"name": "p", "task": {"name": "mnist"}, "stages": stages}))


def family(**teacher: Any) -> Graph:
    """Three teachers, and a student of all of them."""
    stages = {"teacher": TRAIN | {"replicas": 3} | teacher, "student": DISTILL | {"teachers": ["teacher"]}}
    return graph_of(stages)


def note(root: Path, graph: Graph, name: str, seconds: float, **more: Any) -> None:
    """As if a stage of that graph had run."""
    node = graph.nodes[name]
    record = {
        "kind": node.kind,
        "fingerprint": node.fingerprint,
        "status": "done",
        "seconds": seconds,
        "finished": 1000.0,
        "reserved": ONE_CPU,
    }
    for made in (node, *(graph.nodes[read] for read in node.reads)):
        (root / made.folder).mkdir(parents=True, exist_ok=True)
        write_json(root / made.folder / CONFIG, dict(made.identity))
    write_json(root / node.folder / "record.json", Record(**(record | more)).model_dump(mode="json"))


def cpus(*machines: float, **more: Any) -> Room:
    return Room(tuple(Resources(cpus=round(count * WHOLE)) for count in machines), **more)


def estimate(graph: Graph, root: Path, room: Room) -> Estimate:
    estimator = Estimator(graph, root, room)
    return estimator.of({name: estimator.seconds(name) for name in graph.nodes})


@pytest.mark.parametrize(
    ("room", "seconds", "side_by_side"),
    [
        (cpus(1, 1), 45.0, 2),  # two teachers, the third, the student: 20 + 20 + 5
        (cpus(3), 25.0, 3),
        (cpus(8, limit=Limit(cpus=1)), 65.0, 1),
        (cpus(8, one_by_one=True), 65.0, 1),
    ],
)
def test_the_makespan_is_the_one_by_hand(
    tmp_path: Path, room: Room, seconds: float, side_by_side: int
) -> None:
    past = family(epochs=2, seed=70)
    note(tmp_path, past, "teacher.0", 10.0)  # two epochs: those of today train four
    note(tmp_path, past, "student", 5.0)
    found = estimate(family(), tmp_path, room)
    assert (found.seconds, found.known, found.side_by_side) == (seconds, 4, side_by_side)
    assert str(found) == f"about {seconds:.0f} s"


def test_what_is_not_known_counts_for_nothing_and_is_said(tmp_path: Path) -> None:
    note(tmp_path, family(seed=70), "teacher.0", 20.0)
    found = estimate(family(), tmp_path, cpus(2))
    assert str(found) == "about 40 s, from 3 of 4 stages; nothing is known of the others"
    assert found.side_by_side == 2


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    found = estimate(family(), tmp_path, cpus(2))
    assert (found.seconds, found.known, str(found)) == (None, 0, "")


@pytest.mark.parametrize(
    "other",
    [
        {"batch_size": 64},
        {"model": {"name": "mlp", "widths": [8]}},
        {"optimizer": {"name": "adam"}},
        {"transfer": {"omit_classes": [3]}},
    ],
)
def test_a_stage_of_other_work_tells_nothing(tmp_path: Path, other: dict[str, Any]) -> None:
    note(tmp_path, family(**other), "teacher.0", 20.0)
    assert Estimator(family(), tmp_path, cpus(2)).seconds("teacher.0") is None


@pytest.mark.parametrize(
    "more",
    [{"reserved": {"cpus": 2.0, "gpus": 0.0}}, {"reserved": {}}, {"continued": True}, {"status": "failed"}],
)
def test_a_record_of_other_processors_or_of_a_part_of_the_work_tells_nothing(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    note(tmp_path, family(seed=70), "teacher.0", 20.0, **more)
    assert Estimator(family(), tmp_path, cpus(2)).seconds("teacher.0") is None


def test_rates_and_temperatures_do_not_matter_the_newest_record_counts_and_samples_scale(
    tmp_path: Path,
) -> None:
    note(tmp_path, family(seed=70), "teacher.0", 99.0, finished=1.0)
    note(tmp_path, family(seed=80), "teacher.0", 20.0, finished=2.0)
    rate = family(optimizer={"name": "sgd", "learning_rate": 0.3})
    assert Estimator(rate, tmp_path, cpus(2)).seconds("teacher.2") == 20.0
    half = family(transfer={"fraction": 0.5})
    assert Estimator(half, tmp_path, cpus(2)).seconds("teacher.2") == 10.0


def test_replicas_that_were_trained_as_one_model_share_its_time(tmp_path: Path) -> None:
    note(tmp_path, family(seed=70), "teacher.0", 60.0, stacked=3)
    found = estimate(graph_of({"teacher": TRAIN | {"replicas": 3}}), tmp_path, cpus(1))
    assert found.seconds == 60.0


def test_of_a_training_that_goes_on_the_rest_counts(tmp_path: Path) -> None:
    graph = family()
    note(tmp_path, family(seed=70), "teacher.0", 20.0)
    folder = tmp_path / graph.nodes["teacher.1"].folder
    (folder / CHECKPOINT).mkdir(parents=True)
    (folder / METRICS).write_text(json_line({"step": 9, "time": 1.0, "epoch": 3}) + "\n")
    estimator = Estimator(graph, tmp_path, cpus(1))
    assert [estimator.seconds(f"teacher.{index}") for index in range(3)] == [20.0, 5.0, 20.0]


def test_what_is_left_follows_the_stages_of_the_run_itself(tmp_path: Path) -> None:
    graph = family()
    estimator = Estimator(graph, tmp_path, cpus(2))
    states = {name: NodeState() for name in graph.nodes}
    assert estimator.left(states, {}).seconds is None
    states["teacher.0"] = NodeState("done", seconds=30.0, attempts=1)
    states["teacher.1"] = NodeState("running", attempts=1, started=100.0)
    standings = {"teacher.1": Standing(epoch=1, epochs=4, seconds_left=12.0)}
    # It will have taken 50 s in all: the third, alike, takes 40 s, and begins now on the other CPU.
    found = estimator.left(states, standings, now=138.0)
    assert (found.seconds, found.known, found.stages) == (40.0, 2, 3)
    note(tmp_path, family(seed=70), "student", 5.0)
    found = Estimator(graph, tmp_path, cpus(2)).left(states, standings, now=138.0)
    assert (found.seconds, found.known, found.stages) == (45.0, 3, 3)


def test_a_stage_that_tells_nothing_of_itself_is_expected_to_end_when_its_like_did(tmp_path: Path) -> None:
    graph = family()
    note(tmp_path, family(seed=70), "teacher.0", 20.0)
    estimator = Estimator(graph, tmp_path, cpus(1))
    states = {name: NodeState("cached") for name in graph.nodes}
    states["teacher.2"] = NodeState("running", attempts=1, started=100.0)
    assert estimator.left(states, {}, now=115.0).seconds == 5.0
    assert estimator.left(states, {}, now=121.0).seconds is None


def test_three_workers_with_a_third_of_a_gpu_share_one() -> None:
    job = Job((), Resources(cpus=WHOLE, gpus=3000), 10.0, (0.0, 0))
    jobs = {str(index): job for index in range(4)}
    found = schedule(jobs, Room((Resources(cpus=9 * WHOLE, gpus=WHOLE),)))
    assert (found.seconds, found.side_by_side) == (20.0, 3)


def test_workers_of_one_stage_lie_on_several_machines_and_those_that_come_and_go_share_what_there_is() -> (
    None
):
    pair = Job((), Resources(cpus=WHOLE), 10.0, (0.0, 0), workers=2)
    assert schedule({"a": pair, "b": pair}, cpus(1, 1)).seconds == 20.0
    claims = Job((), Resources(cpus=WHOLE), 10.0, (0.0, 0), workers=4, come_and_go=True)
    assert schedule({"a": claims}, cpus(1, 1)).seconds == 20.0


@pytest.mark.parametrize("seed", range(6))
def test_the_schedule_is_that_of_the_scheduler(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    stages: dict[str, Any] = {}
    for index in range(24):
        initial = generator.choice([None, *stages]) if index > 5 else None
        stages[f"s{index}"] = TRAIN | {
            "seed": index,
            "epochs": generator.randint(1, 9),
            "resources": {"cpus": float(generator.randint(1, 2))},
            **({} if initial is None else {"initial": initial}),
        }
    graph = graph_of(stages)
    seconds = {name: float(generator.randint(1, 50)) for name in stages}
    cluster = SimulatedCluster(2, 3, seconds.__getitem__)
    plan = Plan.model_validate({"name": "p", "task": {"name": "mnist"}, "stages": stages})
    run_stages(graph, cluster, task=plan.task, root=tmp_path)
    jobs = {
        name: Job(
            node.reads,
            Resources(cpus=round(node.config.resources.cpus * WHOLE)),
            seconds[name],
            ranks(graph)[name],
        )
        for name, node in graph.nodes.items()
    }
    assert schedule(jobs, cpus(3, 3)).seconds == cluster.now

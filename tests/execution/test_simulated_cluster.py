"""How well the scheduler fills a cluster, in virtual time: against bounds that no schedule can beat."""

import random
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from simulated_cluster import Seconds, SimulatedCluster

from raydistill.execution.scheduler import run_stages
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan

SPECIALISTS = 61
TRAIN = {"stage": "train", "model": {"name": "mlp", "widths": [4]}, "epochs": 1}


def lower_bound(graph: Graph, seconds: Seconds, slots: float) -> float:
    """No schedule is shorter: the longest chain of stages, or all work spread over all slots."""
    ends: dict[str, float] = {}
    for name, node in graph.nodes.items():
        ends[name] = seconds(name) + max((ends[read] for read in node.reads), default=0.0)
    return max(max(ends.values()), sum(seconds(name) for name in graph.nodes) / slots)


def ordered(stages: dict[str, Any]) -> tuple[Plan, Graph]:
    plan = Plan.model_validate({"name": "simulated", "task": {"name": "mnist"}, "stages": stages})
    return plan, order_stages(plan)


def uneven(seed: int) -> dict[str, float]:
    """Seconds of each specialist: the longest run up to three times as long as the shortest."""
    generator = random.Random(seed)
    return {f"specialist-{index}": generator.uniform(50, 150) for index in range(SPECIALISTS)}


def ratio(root: Path, stages: dict[str, Any], seconds: Seconds, nodes: int, cpus: int) -> float:
    """Makespan over the lower bound, when every stage runs."""
    plan, graph = ordered(stages)
    cluster = SimulatedCluster(nodes, cpus, seconds)
    states = run_stages(graph, cluster, task=plan.task, root=root)
    assert {state.status for state in states.values()} == {"done"}
    return cluster.now / lower_bound(graph, seconds, nodes * cpus)


def test_specialists_of_lengths_that_nobody_knows_fill_a_small_cluster(tmp_path: Path) -> None:
    stages = {name: TRAIN | {"seed": seed} for seed, name in enumerate(uneven(0))}
    ratios = [ratio(tmp_path / str(seed), stages, uneven(seed).__getitem__, 2, 4) for seed in range(4)]
    assert mean(ratios) < 1.1


def test_the_longest_training_first_fills_a_cluster_with_few_trainings_per_slot(tmp_path: Path) -> None:
    for seed in range(5):
        epochs = {name: round(seconds) for name, seconds in uneven(seed).items()}
        stages = {name: TRAIN | {"seed": index, "epochs": epochs[name]} for index, name in enumerate(epochs)}
        assert ratio(tmp_path / str(seed), stages, lambda name: float(epochs[name]), 4, 4) < 1.1  # noqa: B023


def test_a_chain_is_not_kept_waiting_by_work_that_leads_nowhere(tmp_path: Path) -> None:
    others = {f"other-{index}": TRAIN | {"seed": index} for index in range(40)}
    chain = {"first": TRAIN | {"epochs": 10, "seed": 100}}
    for before, name in zip(("first", "second", "third"), ("second", "third", "fourth"), strict=True):
        chain[name] = TRAIN | {"epochs": 10, "seed": 100, "initial": before}
    assert ratio(tmp_path, others | chain, lambda name: 10.0 if name in chain else 1.0, 1, 2) == 1.0


@pytest.mark.slow
def test_two_thousand_stages_fill_two_hundred_machines(tmp_path: Path) -> None:
    student = {"stage": "distill", "student": TRAIN["model"], "mode": "live", "teachers": ["teacher.0"]}
    stages = {"teacher": TRAIN | {"replicas": 1000}, "student": student | {"epochs": 1, "replicas": 1000}}
    generator, seconds = random.Random(0), dict[str, float]()
    found = ratio(tmp_path, stages, lambda name: seconds.setdefault(name, generator.uniform(5, 15)), 200, 1)
    assert found < 1.1

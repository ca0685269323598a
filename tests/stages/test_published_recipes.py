"""The published CIFAR-100 recipes, for three steps of every stage on made-up pictures of the right shapes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.plan.load import load_plan, override_plan
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from tests.test_method_table import METHODS, STAGES

PLANS = sorted((Path(__file__).parents[2] / "configs").glob("cifar100_*.yaml"))
SAMPLES = {"train": 12, "test": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CIFAR-100's binary files: a coarse label, a fine one and 3,072 pixels for each picture."""
    random = np.random.default_rng(0)
    for name, count in SAMPLES.items():
        rows = random.integers(0, 256, (count, 2 + 3072), dtype=np.uint8)
        rows[:, :2] = (np.arange(count) % 20)[:, None]  # one coarse class more would be none
        (tmp_path / f"{name}.bin").write_bytes(rows.tobytes())
    return tmp_path


def test_every_method_has_a_recipe(folder: Path) -> None:
    plans = [load_plan(file, {"task.folder": str(folder)}) for file in PLANS]
    configs = [config for plan in plans for config in plan.stages.values()]
    methods = {
        method.method
        for config in configs
        if isinstance(config, DistillConfig)
        for method in config.all_methods
    }
    assert methods == set(METHODS)
    assert set(STAGES) - {config.stage for config in configs} == set()


def shortened(plan: Plan) -> Plan:
    """The plan with one epoch of three steps in every training; schedules span what the recipe says."""
    cut = {"until": 1, "batch_size": SAMPLES["train"] // 3, "iterations": 3}
    trainings = {name: config for name, config in plan.stages.items() if isinstance(config, TrainingConfig)}
    return override_plan(
        plan,
        {
            f"stages.{name}.{key}": value
            for name, config in trainings.items()
            for key, value in cut.items()
            if key in type(config).model_fields
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
def test_every_stage_of_a_recipe_takes_three_steps(stages: Any, folder: Path, file: Path) -> None:
    stages.plan = shortened(load_plan(file, {"task.folder": str(folder)}))
    stages.graph = order_stages(stages.plan)
    read = {name for node in stages.graph.nodes.values() for name in node.reads}
    for name, node in stages.graph.nodes.items():
        if name.endswith((".1", ".2")) and name not in read:
            continue  # another seed of what was run
        outcome = stages.attempt(name)
        assert outcome.status == "done", f"{name}: {outcome.error}"
        if isinstance(node.config, TrainingConfig):
            (epoch,) = stages.metrics(name)
            losses = [value for key, value in epoch.items() if "loss" in key]
            assert losses, epoch
            assert np.isfinite(losses).all(), epoch

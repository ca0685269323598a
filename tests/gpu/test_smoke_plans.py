"""Every smoke plan to its end, and the same bytes however the stages share a GPU.

`pytest -m gpu` runs it on a GPU; `pytest -m slow` on the CPU, so that the tests themselves are known to work.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.ray_backend import RayBackend
from raydistill.execution.scheduler import Backend, run_stages
from raydistill.plan.load import load_plan
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.resources import ResourcesConfig
from raydistill.plan.schema import Plan
from raydistill.runs.folder import StageFolder

SMOKE = Path(__file__).parents[2] / "configs" / "smoke"
NAMES = sorted(path.stem for path in SMOKE.glob("*.yaml"))
SIDE_BY_SIDE = {"codistill"}  # its peers must run at the same time, which `--local` does not
SMALL = {"cpus": 0.5}
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
GPU = [pytest.mark.gpu, NO_GPU]
ON_RAY = [
    pytest.param(0, marks=[pytest.mark.slow, pytest.mark.ray]),
    pytest.param(1, marks=GPU),
    pytest.param(0.25, marks=GPU),
]
NOT_REPEATED = "this GPU's kernels do not repeat themselves: two runs, one after another, differ in {}"
RESNET = {"name": "resnet8x4"}
PACKED: dict[str, Any] = {
    "teacher": {"stage": "train", "model": RESNET, "epochs": 1, "batch_size": 32},
    "dense": {
        "stage": "distill",
        "student": {"name": "mlp"},
        "teachers": ["teacher"],
        "epochs": 2,
        "replicas": 4,
    },
    "deep": {"stage": "distill", "mode": "live", "student": RESNET, "teachers": ["teacher"], "replicas": 4}
    | {"epochs": 1, "batch_size": 32, "augment": [{"name": "pad_crop", "padding": 2}, {"name": "flip"}]},
}


def with_resources(plan: Plan, **resources: Any) -> Graph:
    """The plan's graph, with all of its stages on so much of a machine."""
    stages = {
        name: stage.replace(
            resources=ResourcesConfig.model_validate(stage.resources.model_dump() | resources)
        )
        for name, stage in plan.stages.items()
    }
    return order_stages(plan.model_copy(update={"stages": stages}))


def models_of(graph: Graph, backend: Backend, plan: Plan, root: Path) -> dict[str, Mapping[str, str]]:
    """Run all stages; the digests of each one's files."""
    states = run_stages(graph, backend, task=plan.task, root=root)
    assert {
        name: (state.status, state.error) for name, state in states.items() if state.status != "done"
    } == {}
    records = {name: StageFolder(root / node.folder).done_record() for name, node in graph.nodes.items()}
    return {name: record.payload for name, record in records.items()}


@pytest.fixture
def ray_backend(ray_cluster: None) -> Iterator[RayBackend]:
    backend = RayBackend()
    yield backend
    backend.close()


@pytest.mark.parametrize("gpus", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=GPU)])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SIDE_BY_SIDE])
def test_every_smoke_plan_runs_in_this_process(tmp_path: Path, name: str, gpus: int) -> None:
    plan = load_plan(SMOKE / f"{name}.yaml")
    models_of(with_resources(plan, gpus=gpus), LocalBackend(), plan, tmp_path)


@pytest.mark.parametrize("gpus", ON_RAY)
@pytest.mark.parametrize("name", NAMES)
def test_every_smoke_plan_runs_on_ray(
    ray_backend: RayBackend, tmp_path: Path, name: str, gpus: float
) -> None:
    plan = load_plan(SMOKE / f"{name}.yaml")
    if name in SIDE_BY_SIDE and torch.cuda.device_count() < 2:
        gpus = min(gpus, 0.5)  # both peers on the one there is
    models_of(with_resources(plan, gpus=gpus, **SMALL), ray_backend, plan, tmp_path)


@pytest.mark.parametrize(
    "gpus",
    [
        pytest.param((0, 0), marks=[pytest.mark.slow, pytest.mark.ray]),
        pytest.param((1, 0.25), marks=GPU),
    ],
)
def test_stages_that_share_a_gpu_make_what_each_makes_on_its_own(
    ray_backend: RayBackend, tmp_path: Path, gpus: tuple[float, float]
) -> None:
    draw = np.random.default_rng(0)
    inputs = draw.integers(256, size=(400, 3, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=np.arange(400) % 10)
    task = {"name": "tensors", "file": str(tmp_path / "data.npz")}
    plan = Plan.model_validate({"name": "packed", "task": task, "stages": PACKED})
    alone, packed = (with_resources(plan, gpus=share, **SMALL) for share in gpus)
    one = models_of(alone, ray_backend, plan, tmp_path / "one")
    again = models_of(alone, ray_backend, plan, tmp_path / "again")
    if moved := [name for name in one if one[name] != again[name]]:
        pytest.xfail(NOT_REPEATED.format(", ".join(moved)))
    assert models_of(packed, ray_backend, plan, tmp_path / "packed") == one

"""A Ray cluster whose nodes share an object store and no folder: stages run on all of them, with the bytes of one.

The nodes live in a driver of their own: this file, run as a script.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.runs.bucket import Bucket

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STAGES: dict[str, Any] = {
    "teacher": {
        "stage": "train",
        "model": {"name": "mlp", "widths": [16]},
        "epochs": 4,
        "batch_size": 32,
        "replicas": 2,
    },
    "wide": {
        "stage": "train",
        "model": {"name": "mlp", "widths": [24]},
        "epochs": 4,
        "batch_size": 32,
        "resources": {"workers": 2},
    },
    "student": {
        "stage": "distill",
        "student": {"name": "mlp", "widths": [8]},
        "teachers": ["teacher", "wide"],
        "epochs": 4,
        "batch_size": 32,
        "targets_resources": {"workers": 2},
    },
}


def drive(plan: str, root: str, folder: Path) -> None:
    """The driver: a head and a node, each with a mirror of its own."""
    from ray.cluster_utils import Cluster

    import raydistill
    from raydistill.runs.plan_run import finished_record

    os.environ["RAYDISTILL_CACHE"] = str(folder / "head")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1, env_vars={"RAYDISTILL_CACHE": str(folder / "other")})
        view = raydistill.run(raydistill.load_plan(plan), runs=root, address=cluster.address)
        records = {name: finished_record(stage.folder.path) for name, stage in view.stages.items()}
        found = {name: record.payload for name, record in records.items() if record}
        print(json.dumps([{name: stage.status for name, stage in view.stages.items()}, found]))  # noqa: T201
    finally:
        cluster.shutdown()


def run(plan: Path, root: str, folder: Path) -> Any:
    command = [sys.executable, __file__, str(plan), root, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=plan.parent)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_nodes_that_share_no_folder_make_the_bytes_of_those_that_do(storage_url: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(600, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
    task = {"name": "tensors", "file": str(tmp_path / "data.npz")}
    plan = tmp_path / "p.yaml"
    plan.write_text(json.dumps({"name": "p", "task": task, "tracking": "none", "stages": STAGES}))
    statuses, by_folder = run(plan, str(tmp_path / "runs"), tmp_path / "one")
    assert set(statuses.values()) == {"done"}
    statuses, by_url = run(plan, storage_url, tmp_path / "two")
    assert set(statuses.values()) == {"done"}
    assert by_url == by_folder
    made = {
        mirror: {path.parent.name for path in (tmp_path / "two" / mirror).glob("*/*/runs/stages/*/log.txt")}
        for mirror in ("head", "other")
    }
    assert made["head"]
    assert made["other"]
    keys = Bucket(storage_url).listing("")
    assert not [key for key in keys if "claims" in key or ".ray-train" in key or "checkpoint" in key]


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

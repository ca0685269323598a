"""Folders called `models` and `tasks` are common: a user's own never meet ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MODEL = """\
from torch import nn


def build(input_shape, num_classes):
    return nn.Linear(input_shape[0], num_classes)
"""
PLAN = """\
name: own
task: {{name: tensors, file: points.npz}}
stages:
  teacher: {{stage: train, model: {{name: "{address}"}}, epochs: 1, batch_size: 8}}
"""


def put(folder: Path, layout: str) -> str:
    """The user's model in a common layout; returns its address."""
    if layout == "modules":
        (folder / "models.py").write_text(MODEL)
        (folder / "tasks.py").write_text("raise RuntimeError('nobody asked for this')\n")
        return "models:build"
    for package in ("models", "tasks"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("")
    (folder / "models" / "small.py").write_text(MODEL)
    return "models.small:build"


@pytest.mark.parametrize("layout", ["modules", "packages"])
@pytest.mark.parametrize(
    "where", [pytest.param("local", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.ray)]
)
def test_a_users_models_and_tasks_do_not_hide_ours(layout: str, where: str, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    np.savez(tmp_path / "points.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
    (tmp_path / "plan.yaml").write_text(PLAN.format(address=put(tmp_path, layout)))
    command = [sys.executable, "-P", "-m", "raydistill.cli", "run", "plan.yaml", "--runs", "runs"]
    command += ["--tracking-uri", "http://127.0.0.1:9", *(["--local"] if where == "local" else [])]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=environment | {"HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "runs").glob("plans/own/*/results.json")
    assert json.loads(results.read_text())["stages"]["teacher"]["status"] == "done"

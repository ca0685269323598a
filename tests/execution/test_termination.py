"""A process that is told to end leaves a checkpoint of the very step, and nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.execution.request import StageRequest, build_request
from raydistill.execution.run_stage import run_stage
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.context import claim_attempt
from raydistill.runs.folder import StageFolder

HERE = Path(__file__).parent
PATIENCE = 120.0
STEPS = 24  # three epochs of 8


def wait_until(claim: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def prepared(folder: Path, data: Path, attempt: str) -> StageRequest:
    """An attempt at a training of three epochs that leaves a line for each step."""
    stage = {
        "stage": "train",
        "epochs": 3,
        "batch_size": 32,
        "model": {"name": "terminated_stage:counted", "folder": str(folder)},
    }
    task = {"name": "tensors", "file": str(data), "validation_fraction": 0.1, "test_fraction": 0.1}
    graph = order_stages(Plan.model_validate({"name": "p", "task": task, "stages": {"teacher": stage}}))
    node = graph.nodes["teacher"]
    plan = Plan.model_validate({"name": "p", "task": task, "stages": {"teacher": stage}})
    request = build_request(node, graph, plan.task, folder / "runs", attempt)
    stage_folder = StageFolder(folder / "runs" / node.folder)
    stage_folder.create(node.identity)
    claim_attempt(stage_folder, attempt)
    return request


def steps(folder: Path) -> int:
    path = folder / "steps"
    return len(path.read_text().split()) if path.exists() else 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(310, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
    return tmp_path / "data.npz"


def test_a_stage_whose_process_is_told_to_end_repeats_no_step_and_makes_the_same_bytes(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HERE)
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    for folder in (disturbed, undisturbed):
        folder.mkdir()
    (disturbed / "hold").touch()
    first = prepared(disturbed, data, "first")
    (disturbed / "request.json").write_text(json.dumps(first.to_dict()))
    command = [sys.executable, str(HERE / "terminated_stage.py"), str(disturbed)]
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: steps(disturbed) >= 7)
        process.send_signal(signal.SIGTERM)  # in the middle of the seventh step
        (disturbed / "hold").unlink()
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert said.split() == ["stopped"]
    assert steps(disturbed) < STEPS
    state = json.loads((first.place / "checkpoint" / "checkpoint.json").read_text())
    assert state["progress"]["step"] == steps(disturbed), "of the step that it was in"
    assert run_stage(prepared(disturbed, data, "second")).status == "done"
    assert steps(disturbed) == STEPS
    whole = prepared(undisturbed, data, "only")
    assert run_stage(whole).status == "done"
    weights = [request.place / "model.safetensors" for request in (first, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_process_with_nothing_to_do_ends_at_once() -> None:
    code = (
        "import time; from raydistill.execution.termination import Termination\n"
        "Termination(); print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143


def test_a_child_that_is_ended_is_no_news_for_its_parent() -> None:
    code = (
        "import os, signal, time; from raydistill.execution.termination import Termination\n"
        "termination, (read, write) = Termination(), os.pipe()\n"
        "with termination.work():\n"
        "    child = os.fork() or (os.write(write, b'x'), time.sleep(600))\n"
        "    os.read(read, 1)\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    _, status = os.waitpid(child, 0)\n"
        "    time.sleep(0.2)\n"
        "    print(os.WTERMSIG(status), termination.is_announced())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.stdout.split() == [str(int(signal.SIGTERM)), "False"]

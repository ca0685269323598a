"""Drivers that are really killed and interrupted, with `--local`: the numbers are those of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.runs.folder import StageFolder

HERE = Path(__file__).parent
PATIENCE = 120.0
BRAKE = 0.004  # seconds per step, so that there is time to interrupt
MODEL = {"name": "mlp", "widths": [16], "dropout": 0.3}
STAGES = {
    "teacher": {"stage": "train", "model": MODEL, "epochs": 20, "batch_size": 32},
    "student": {
        "stage": "distill",
        "student": {"name": "mlp", "widths": [8]},
        "teachers": ["teacher"],
        "epochs": 20,
        "batch_size": 32,
        "optimizer": {"name": "adamw"},
        "schedule": {"name": "cosine"},
    },
}


class Driver:
    """Starts `distill` on the plan in `folder`, in a process of its own."""

    def __init__(self, server: "subprocess.Popen[str]", folder: Path) -> None:
        self.server, self.folder = server, folder
        self.plan, self.output = folder / "plan.yaml", folder / "terminal.txt"
        self.pid = 0

    def start(self, root: Path, brake: float = BRAKE) -> None:
        arguments = ["run", str(self.plan), "--local", "--runs", str(root)]
        order = {"arguments": arguments, "output": str(self.output), "brake": brake}
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        self.pid = self.answer()

    def answer(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())

    def end(self) -> int:
        """Wait for the exit code."""
        return self.answer()

    def run(self, root: Path, brake: float = 0.0) -> None:
        self.start(root, brake)
        assert self.end() == 0, self.output.read_text()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    folder = tmp_path_factory.mktemp("killed")
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(600, 8)).astype(np.float32)
    np.savez(folder / "data.npz", inputs=inputs, labels=inputs[:, :3].argmax(axis=1))
    plan = {"name": "p", "task": {"name": "tensors", "file": str(folder / "data.npz")}, "stages": STAGES}
    (folder / "plan.yaml").write_text(json.dumps(plan))
    command = [sys.executable, str(HERE / "killable_driver.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield Driver(server, folder)
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(driver: Driver) -> dict[str, Any]:
    driver.run(driver.folder / "undisturbed")
    return numbers(driver.folder / "undisturbed")


def numbers(root: Path) -> dict[str, Any]:
    """Of every stage: SHA-256 of all it made, its metrics, and the lines of metrics.jsonl without the times."""
    results = last_results(root)
    return {name: stage_numbers(root / stage["folder"]) for name, stage in results["stages"].items()}


def stage_numbers(path: Path) -> tuple[dict[str, str], dict[str, float], list[dict[str, float]]]:
    record, curve = StageFolder(path).done_record(), path / "metrics.jsonl"
    assert StageFolder(path).damage() is None
    assert not list(path.rglob(".*.tmp"))
    lines = [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []
    return record.payload, record.metrics, [{**line, "time": 0.0} for line in lines]


def last_results(root: Path) -> dict[str, Any]:
    newest = max(root.glob("plans/p/*/results.json"), key=lambda path: path.stat().st_mtime_ns)
    values: dict[str, Any] = json.loads(newest.read_text())
    return values


def statuses(root: Path) -> dict[str, str]:
    return {name: stage["status"] for name, stage in last_results(root)["stages"].items()}


def wait_until(claim: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def checkpoints(root: Path, kind: str) -> list[Path]:
    return list(root.glob(f"stages/{kind}-*/checkpoint/checkpoint.json"))


def log_of(root: Path, kind: str) -> str:
    return "".join(path.read_text() for path in root.glob(f"stages/{kind}-*/log.txt"))


@pytest.mark.parametrize("kind", ["train", "distill"])
def test_a_killed_driver_is_continued_to_the_numbers_of_an_undisturbed_run(
    driver: Driver, undisturbed: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    driver.start(tmp_path)
    wait_until(lambda: checkpoints(tmp_path, kind))
    driver.send(signal.SIGKILL)
    assert driver.end() == -signal.SIGKILL
    assert last_results(tmp_path)["status"] == "running"
    driver.run(tmp_path)
    assert "resumed at step" in log_of(tmp_path, kind)
    assert last_results(tmp_path)["status"] == "done"
    before = "cached" if kind == "distill" else "done"
    assert statuses(tmp_path) == {"teacher": before, "teacher.targets": before, "student": "done"}
    assert numbers(tmp_path) == undisturbed
    assert not checkpoints(tmp_path, kind)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_driver_leaves_a_checkpoint_and_is_continued_to_the_same_numbers(
    driver: Driver, undisturbed: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    driver.start(tmp_path, brake=0.1)
    wait_until(lambda: "started" in log_of(tmp_path, "train"))
    asked = time.monotonic()
    driver.send(number)
    assert driver.end() == 130
    assert time.monotonic() - asked < 10
    assert checkpoints(tmp_path, "train")
    assert last_results(tmp_path)["status"] == "interrupted"
    assert set(statuses(tmp_path).values()) == {"stopped"}
    driver.run(tmp_path)
    assert "resumed at step" in log_of(tmp_path, "train")
    assert set(statuses(tmp_path).values()) == {"done"}
    assert numbers(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_driver_killed_at_random_moments_ends_with_the_numbers_of_an_undisturbed_run(
    driver: Driver, undisturbed: dict[str, Any], tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    deaths = 0
    while deaths < 15:
        driver.start(
            tmp_path, brake=0.005
        )  # so that not even the quickest machine is done before the first kill
        time.sleep(dice.random() * 0.8)
        driver.send(signal.SIGKILL)
        if driver.end() == 0:
            break
        deaths += 1
    driver.run(tmp_path)
    assert deaths > 0
    assert last_results(tmp_path)["status"] == "done"
    assert numbers(tmp_path) == undisturbed

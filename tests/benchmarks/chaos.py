"""Random processes are killed under `distill run` on Ray, and the plan is run again, until it is done: are the results
those of an undisturbed run?

    python tests/benchmarks/chaos.py [--kills 50] [--seed 0] [--first 0.3] [--url]

The plan has 12 stages of tiny networks on the embedded digits, with a pause in every step and a checkpoint every
second, so that there is something to hit and something to continue. A kill hits the driver, a worker of a stage, or one
of Ray's own processes (raylet, head, agents, idle workers, the controller of a group). A part of them, `--first`, hits
the first seconds of a run: while Ray starts, while MLflow's database is made, while data and models are surveyed. When
the plan is done before all kills are, it begins again over an empty storage root. Every file of every stage is compared
by its SHA-256, but those that hold measured seconds.

With `--url` the disturbed runs are over an object store, and each run is another machine's: it finds nothing but what
those before it sent there. The undisturbed one is over a folder.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from storage_by_url import environment_of, new_bucket, object_store

from raydistill.runs.mirror import mirror_at, open_storage
from raydistill.runs.remote_stage import refresh_root

PATIENCE = 900.0  # seconds for one run of the plan that nobody disturbs
POLL_SECONDS = 0.1
EARLY = 0.25  # of the kills come while a run is still starting
LATEST_SECONDS = 12.0  # after a stage has begun
MOST_RUNS = 12  # in a row that end badly without being disturbed

MODELS = '''
import time
from raydistill.models.build import build_model
from raydistill.training import loop


def slow_mlp(widths, pause, num_classes, input_shape):
    """A network of the library that takes its time, and checkpoints often."""
    loop.CHECKPOINT_SECONDS = 1.0
    model = build_model("mlp", {"widths": list(widths)}, input_shape, num_classes)
    model.register_forward_pre_hook(lambda module, inputs: time.sleep(pause) if module.training else None)
    return model
'''

OF_SECONDS = "committee.json"
OF_STAGES = ("ray::StageWorker", "ray::RayTrainWorker", "ray::_RayTrainWorker", "ray::run_rank")
OF_RAY = ("ray::", "raylet", "gcs_server")


def plan_of() -> dict[str, Any]:
    """12 stages; `pair` trains data-parallel."""
    training = {"epochs": 4, "batch_size": 64}

    def network(width: int) -> dict[str, Any]:
        return {"name": "chaos_models:slow_mlp", "widths": [width], "pause": 0.03}

    student = {"stage": "distill", "teachers": ["teacher"], **training}
    return {
        "name": "chaos",
        "task": {"name": "mnist"},
        "stages": {
            "teacher": {"stage": "train", "replicas": 2, "model": network(64), **training},
            "student": {**student, "student": network(20)},
            "pair": {**student, "student": network(24), "resources": {"workers": 2}},
            "clusters": {"stage": "confusion_clusters", "generalist": "teacher.0", "clusters": 3},
            "specialists": {
                "stage": "train_specialists",
                "generalist": "teacher.0",
                "clusters": "clusters",
                **training,
            },
            "committee": {
                "stage": "evaluate",
                "models": ["teacher.0"],
                "committee": {"specialists": ["specialists"], "active": 1},
            },
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=float, default=0.3, help="part of the kills in a run's first seconds")
    parser.add_argument(
        "--url", action="store_true", help="over an object store, each run on another machine"
    )
    arguments = parser.parse_args()
    with object_store() if arguments.url else nullcontext("") as endpoint:
        measure(arguments, endpoint)


def measure(arguments: argparse.Namespace, endpoint: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    (folder / "plan.yaml").write_text(json.dumps(plan_of()))
    (folder / "chaos_models.py").write_text(MODELS)

    with Driver(folder, "undisturbed") as undisturbed:
        seconds = timed(undisturbed.until_done)
        expected = undisturbed.results()
    print(f"undisturbed: {len(expected)} stages in {seconds:.0f} s", flush=True)

    tally, rounds = Tally(random.Random(arguments.seed), arguments.kills, arguments.first), []
    while tally.left or not rounds:
        with Driver(folder, f"round{len(rounds)}", endpoint) as driver:
            rounds.append(timed(lambda driver=driver: disturb(driver, tally)))
            found = driver.results()
        differing = [name for name in expected if found.get(name) != expected[name]]
        print(
            f"round {len(rounds)}: {rounds[-1]:.0f} s, {driver.starts} runs, {describe(differing)}",
            flush=True,
        )
        tally.starts += driver.starts
        tally.differing += differing
    print()
    for kind, count in sorted(tally.kills.items()):
        print(f"{'killed: ' + kind:<52}{count:>8}")
    print(f"{'kills in all':<52}{sum(tally.kills.values()):>8}")
    print(f"{'times the plan was finished':<52}{len(rounds):>8}")
    print(f"{'times it was run':<52}{tally.starts:>8}")
    print(f"{'attempts at stages':<52}{tally.attempts(folder):>8}")
    print(f"{'seconds a finished plan took, undisturbed':<52}{seconds:>8.0f}")
    print(f"{'the same, disturbed (mean)':<52}{sum(rounds) / len(rounds):>8.0f}")
    print(f"{'stages whose files differ':<52}{len(tally.differing):>8}")
    if tally.differing:
        sys.exit(f"{', '.join(tally.differing)}; see {folder}")
    shutil.rmtree(folder)


@dataclass
class Tally:
    """What is still to be killed, and what was."""

    dice: random.Random
    wanted: int
    first: float
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    differing: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Kills to come."""
        return self.wanted - sum(self.kills.values())

    @staticmethod
    def attempts(folder: Path) -> int:
        """How often a stage began, over all rounds."""
        logs = folder.rglob("round*/**/stages/*/log.txt")
        return sum(path.read_text().count("started (attempt") for path in logs)


class Driver:
    """Runs the plan over one storage root, again and again, in a process of its own."""

    def __init__(self, folder: Path, name: str, endpoint: str = "") -> None:
        self.folder, self.name, self.endpoint = folder, name, endpoint
        self.storage = f"s3://{new_bucket(endpoint)}/runs" if endpoint else str(folder / name)
        self.root = folder / name
        self.starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process is not None and not self.has_ended():
            self.process.kill()

    def start(self) -> None:
        self.starts += 1
        self.be_machine(self.starts)
        command = [sys.executable, "-m", "raydistill.cli", "run", "plan.yaml", "--runs", self.storage]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "120"}
        with (self.folder / f"{self.name}.txt").open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=output
            )

    def be_machine(self, number: int) -> None:
        """Behind a URL: what runs from now on has a mirror of its own."""
        if self.endpoint:
            os.environ |= environment_of(self.endpoint, self.folder / f"{self.name}-machine{number}")
            mirror_at.cache_clear()
            self.root = open_storage(self.storage)

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def until_done(self) -> None:
        """Run the plan, undisturbed from here on, until it is done. A stage may first have to fail for good."""
        for _ in range(MOST_RUNS):
            if self.has_ended():
                if self.process is not None and self.process.returncode == 0:
                    return
                self.start()
            assert self.process is not None
            self.process.wait(PATIENCE)
        if self.process is None or self.process.returncode != 0:
            sys.exit(f"the plan does not finish; what it said is in {self.folder / self.name}.txt")

    def processes(self, kind: str) -> list[psutil.Process]:
        """Of one kind, below the driver or the driver itself; none when it has ended."""
        if self.has_ended() or self.process is None:
            return []
        with suppress(psutil.NoSuchProcess):
            driver = psutil.Process(self.process.pid)
            return [driver] if kind == "driver" else list(self._below(driver, kind))
        return []

    @staticmethod
    def _below(driver: psutil.Process, kind: str) -> Iterator[psutil.Process]:
        for process in driver.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                title = f"{process.name()} {Path(words[0]).name if words else ''} {words[0] if words else ''}"
                is_worker = any(name in title for name in OF_STAGES)
                if is_worker == (kind == "worker") and (is_worker or any(name in title for name in OF_RAY)):
                    yield process

    def results(self) -> dict[str, dict[str, str]]:
        """Of every stage, the SHA-256 of its files, checked against the files."""
        from raydistill.runs.folder import StageFolder

        self.be_machine(self.starts + 1)
        refresh_root(self.root)
        found = {}
        for path in sorted((self.root / "stages").iterdir()):
            StageFolder(path).fetch()  # and checks
            assert StageFolder(path).damage() is None, StageFolder(path).damage()
            files = StageFolder(path).done_record().payload
            found[path.name] = {name: sha256 for name, sha256 in files.items() if name != OF_SECONDS}
        return found


def disturb(driver: Driver, tally: Tally) -> None:
    """Kill while there is something to kill; then let the plan finish."""
    while tally.left and not is_done(driver):
        if driver.has_ended():
            driver.start()
        if tally.dice.random() < tally.first:
            kill_in_first_seconds(driver, tally)
            continue
        kind = tally.dice.choices(["driver", "worker", "Ray"], [0.4, 0.4, 0.2])[0]
        is_early, delay = tally.dice.random() < EARLY, tally.dice.random() * LATEST_SECONDS
        wait_until(driver, "driver" if is_early else "worker")
        time.sleep(delay)
        if targets := wait_until(driver, kind):
            victim = tally.dice.choice(targets)
            with suppress(psutil.NoSuchProcess):
                name = "" if kind != "Ray" else f" ({victim.name()})"
                victim.kill()
                tally.kills[kind + name] += 1
                print(f"{time.strftime('%X')} killed {kind}{name}; {tally.left} to go", flush=True)
        if kind == "driver" and driver.process is not None and targets:
            driver.process.wait(60)
    driver.until_done()


def kill_in_first_seconds(driver: Driver, tally: Tally) -> None:
    """Begin anew, with neither a tracking database nor a survey, and kill in one of the windows: the driver, or what it
    has started of Ray."""
    if not driver.has_ended() and driver.process is not None:
        driver.process.kill()
        driver.process.wait(60)
    for leftover in (*driver.root.glob("*mlflow.db*"), driver.root / "surveys"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    driver.start()
    window = tally.dice.choice(list(WINDOWS))
    deadline = time.monotonic() + PATIENCE
    while not WINDOWS[window](driver):
        if driver.has_ended():
            return
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS / 10)
    time.sleep(tally.dice.random() * tally.dice.choice([0.1, 1.0]))
    kind = tally.dice.choice(["driver", "driver", "Ray"])
    if targets := driver.processes(kind) or driver.processes("driver"):
        with suppress(psutil.NoSuchProcess):
            tally.dice.choice(targets).kill()
            tally.kills[f"{kind} while {window}"] += 1
            print(f"{time.strftime('%X')} killed {kind} while {window}; {tally.left} to go", flush=True)


def is_surveyed(driver: Driver) -> bool:
    return any(
        (path / "attempt.json").exists() and not (path / "record.json").exists()
        for path in driver.root.glob("surveys/*")
    )


WINDOWS: dict[str, Callable[[Driver], bool]] = {
    "Ray starts": lambda driver: bool(driver.processes("Ray")),
    "MLflow's database is made": lambda driver: any(driver.root.glob(".mlflow.db.*.tmp")),
    "data and models are surveyed": is_surveyed,
}


def is_done(driver: Driver) -> bool:
    return driver.process is not None and driver.process.poll() == 0


def wait_until(driver: Driver, kind: str) -> list[psutil.Process]:
    """Processes of this kind, as soon as there are some; none when the driver has ended."""
    deadline = time.monotonic() + PATIENCE
    while not driver.has_ended():
        if targets := driver.processes(kind):
            return targets
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)
    return []


def timed(work: Any) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def describe(differing: list[str]) -> str:
    return f"differing: {', '.join(differing)}" if differing else "all files as in the undisturbed run"


if __name__ == "__main__":
    main()

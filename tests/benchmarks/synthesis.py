"""Reconstructed digits per second, by one `synthesize` stage and by its two shards side by side. The goal: 1.8 times.

    OMP_NUM_THREADS=1 python tests/benchmarks/synthesis.py [--batches 8] [--steps 100] [--rounds 3]

The data-free plan of the MNIST digits, from all layers' statistics. Every round makes other samples, first in one stage
and then in two, each a process with one thread, and each time by a `distill run` of its own. Counted is the time from
the first batch that either process has finished to the last one, and what was made in it: what a process does once,
imports above all, is in the times of the stages and of the command, which are told apart. The fastest rounds count,
since others on the machine take from two processes what they leave to one; how many cores were busy says how many did.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil

GOAL = 1.8
CLASSES, BATCH = 10, 64


class Timing(NamedTuple):
    """Samples per second between the first batch and the last; seconds from the first stage's start to the last one's
    end, and of the whole command; cores busy meanwhile."""

    rate: float
    stages: float
    command: float
    busy: float


def main() -> None:
    arguments = parse_arguments()
    samples = arguments.batches * CLASSES * BATCH
    print(f"{samples} digits by {arguments.steps} steps each, {psutil.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.yaml"
        plan.write_text(json.dumps(plan_of(arguments.batches, arguments.steps, arguments.rounds)))
        run(plan, "teacher", "statistics")
        rounds = [one_round(plan, number) for number in range(arguments.rounds)]
    one, two = (max(timing.rate for timing in timings) for timings in zip(*rounds, strict=True))
    print(f"{one:.0f} samples/s by one process, {two:.0f} by two: {two / one:.2f} times; reach {GOAL}")
    whole = [min(timing.stages for timing in timings) for timings in zip(*rounds, strict=True)]
    print(
        f"with what the processes do once: {whole[0]:.1f} s and {whole[1]:.1f} s, {whole[0] / whole[1]:.2f} times"
    )


def one_round(plan: Path, number: int) -> list[Timing]:
    """By one stage, and by two."""
    timings = []
    for name in ("one", "two"):
        timings.append(timed(plan, f"{name}-{number}"))
        print(f"  {name}: {described(timings[-1])}", flush=True)
    return timings


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=8, help="per class")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def plan_of(batches: int, steps: int, rounds: int) -> dict[str, object]:
    """A teacher, its statistics, and the same samples of every round from one stage and from two."""
    images = {
        "stage": "synthesize",
        "teacher": "teacher",
        "statistics": "statistics",
        "objective": "all",
        "layer_weights": "equal",
        "initial_mean": 0.15,
        "initial_std": 0.1,
        "batch_size": BATCH,
        "batches": batches,
        "steps": steps,
    }
    model = {"name": "mlp", "widths": [400, 400], "dropout": 0.5, "input_dropout": 0.2}
    shards = {"one": 1, "two": 2}
    return {
        "name": "synthesis",
        "task": {"name": "mnist"},
        "stages": {
            "teacher": {"stage": "train", "model": model, "epochs": 1, "batch_size": 100},
            "statistics": {"stage": "record_statistics", "teacher": "teacher", "layers": "all"},
            **{
                f"{name}-{number}": images | {"shards": count, "seed": number}
                for number in range(rounds)
                for name, count in shards.items()
            },
        },
    }


def run(plan: Path, *stages: str) -> None:
    only = [word for stage in stages for word in ("--only", stage)]
    command = ["distill", "run", str(plan), "--runs", str(plan.parent / "runs"), *only]
    subprocess.run(command, check=True, capture_output=True)


def timed(plan: Path, stage: str) -> Timing:
    """Run one stage, or its shards."""
    before = set(folders(plan))
    began, busy = time.monotonic(), busy_seconds()
    run(plan, stage)
    command = time.monotonic() - began
    made = set(folders(plan)) - before
    records = [json.loads((folder / "record.json").read_text()) for folder in made]
    start = min(record["finished"] - record["seconds"] for record in records)
    stages = max(record["finished"] for record in records) - start
    return Timing(rate_of(made), stages, command, (busy_seconds() - busy) / command)


def folders(plan: Path) -> list[Path]:
    return list(plan.parent.glob("runs/stages/synthesize-*"))


def rate_of(made: Iterable[Path]) -> float:
    """A stage tells the time of every batch that it has finished. The first one of each is not counted."""
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in made]
    times = [[json.loads(line)["time"] for line in stage] for stage in lines]
    seconds = max(stage[-1] for stage in times) - min(stage[0] for stage in times)
    return sum(len(stage) - 1 for stage in times) * BATCH / seconds


def busy_seconds() -> float:
    """What all processes of the machine have had of its cores so far."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait)


def described(timing: Timing) -> str:
    return (
        f"{timing.rate:6.0f} samples/s; stages {timing.stages:5.1f} s, command {timing.command:5.1f} s,"
        f" {timing.busy:.1f} cores busy"
    )


if __name__ == "__main__":
    main()

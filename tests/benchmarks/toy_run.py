"""The fixed cost of a run: wall and processor seconds of a plan whose training takes a fraction of a second.

python tests/benchmarks/toy_run.py [--rounds 3] [--local] [--distill COMMAND...] [-- OPTION...]
Each round runs every `distill` once, in turns, each in a storage root of its own. Processor seconds are those of all
processes that a run starts, Ray's own included; they compare on a machine that others use too, wall seconds do not.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PLAN = """
name: toy
task: {name: mnist}
stages:
  teacher: {stage: train, replicas: 2, model: {name: mlp, widths: [32]}, epochs: 2, batch_size: 500}
  ensemble: {stage: evaluate, models: [teacher]}
  baseline: {stage: train, model: {name: mlp, widths: [16]}, epochs: 2, batch_size: 500}
  student: {stage: distill, student: {name: mlp, widths: [16]}, teachers: [teacher], epochs: 2, batch_size: 500}
"""
PR_SET_CHILD_SUBREAPER = 36
SAMPLE_SECONDS = 0.05
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--distill", nargs="+", default=["distill"])
    parser.add_argument("more", nargs="*")
    arguments = parser.parse_args()
    # Processes whose parent ends become ours, and stay in sight.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    more = ["--local"] * arguments.local + arguments.more
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in arguments.distill}
    for _ in range(arguments.rounds):
        for name in arguments.distill:
            costs[name].append(cost_of_a_run(name, more))
            print(f"{name}: {costs[name][-1][0]:.1f} s, {costs[name][-1][1]:.1f} CPU-seconds", flush=True)
    for name, measured in costs.items():
        wall, processor = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name}: median {wall:.1f} s, {processor:.1f} CPU-seconds of {arguments.rounds}")


def cost_of_a_run(distill: str, more: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of one run in an empty storage root."""
    with tempfile.TemporaryDirectory(prefix="toy-run-") as folder:
        plan = Path(folder, "toy.yaml")
        plan.write_text(PLAN)
        command = [distill, "run", str(plan), "--runs", str(Path(folder, "runs")), *more]
        started, earlier = time.monotonic(), processor_ticks(os.getpid())
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        seen: dict[tuple[int, int], int] = {}
        while process.poll() is None:
            seen |= processor_ticks(os.getpid())
            time.sleep(SAMPLE_SECONDS)
        took = time.monotonic() - started
        assert process.stdout is not None
        output = process.stdout.read()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
    reap_orphans()
    return took, sum(count for key, count in seen.items() if key not in earlier) / TICKS


def reap_orphans() -> None:
    """Take leave of the processes that became ours, so that no later run meets them."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def processor_ticks(ancestor: int) -> dict[tuple[int, int], int]:
    """Ticks in user and kernel mode of every process below `ancestor`, by its number and its start."""
    parents: dict[int, int] = {}
    ticks: dict[int, tuple[int, int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        number = int(path.parent.name)
        parents[number] = int(fields[1])
        ticks[number] = int(fields[19]), int(fields[11]) + int(fields[12])
    return {
        (number, ticks[number][0]): ticks[number][1]
        for number in parents
        if is_below(number, ancestor, parents)
    }


def is_below(number: int, ancestor: int, parents: dict[int, int]) -> bool:
    """Whether a process descends from another one."""
    while number in parents:
        number = parents[number]
        if number == ancestor:
            return True
    return False


if __name__ == "__main__":
    main()

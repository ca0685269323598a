"""How long a person waits for answers that need no training: help, a plan error, a dry run, a finished plan.

python tests/benchmarks/startup.py [--runs runs] [--plan configs/mnist_quickstart.yaml]
The plan must have been run before, so that its second run starts nothing.
"""

import argparse
import statistics
import subprocess
import time

REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--plan", default="configs/mnist_quickstart.yaml")
    arguments = parser.parse_args()
    run = ["distill", "run", arguments.plan, "--runs", arguments.runs]
    commands = {
        "distill --help": (["distill", "--help"], 0),
        "plan error": ([*run, "--set", "stages.student.epohs=3"], 2),
        "dry run": ([*run, "--dry-run"], 0),
        "second run of a finished plan": (run, 0),
    }
    for name, (command, expected) in commands.items():
        seconds = [timed(command, expected) for _ in range(REPEATS)]
        print(f"{name:<32} median {statistics.median(seconds):.2f} s, best {min(seconds):.2f} s of {REPEATS}")


def timed(command: list[str], expected: int) -> float:
    """Wall seconds of a command that must end with the expected code."""
    started = time.monotonic()
    code = subprocess.run(command, capture_output=True, check=False).returncode
    if code != expected:
        raise SystemExit(f"{' '.join(command)} ended with {code}, not {expected}")
    return time.monotonic() - started


if __name__ == "__main__":
    main()

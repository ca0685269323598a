"""What a search costs beyond its trainings: `distill tune` with two trials at a time against the same trainings in a
bare loop, two at a time. Shared stages are made before both. The goal is a ratio of at most 1.25 for 32 trainings of
about 5 s.

    python tests/benchmarks/search.py [--trials 32] [--epochs 40]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

HEAT = "student.method.temperature"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--loop", nargs=2, metavar=("PLANS", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop:
        run_loop(Path(arguments.loop[0]), Path(arguments.loop[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments.trials, arguments.epochs)


def compare(folder: Path, trials: int, epochs: int) -> None:
    """Both ways over storage roots of their own."""
    plan = folder / "plan.yaml"
    plan.write_text(json.dumps(plan_of(trials, epochs)))
    tuned, looped = folder / "tuned", folder / "looped"
    run(["distill", "run", str(plan), "--local", "--runs", str(tuned), "--only", "teacher.targets"])
    shutil.copytree(tuned, looped)
    plans = plans_of_trials(plan)
    halves = [folder / f"half{index}.json" for index in range(2)]
    for index, half in enumerate(halves):
        half.write_text(json.dumps(plans[index::2]))

    started = time.monotonic()
    loops = [
        subprocess.Popen([sys.executable, __file__, "--loop", str(half), str(looped)]) for half in halves
    ]
    assert [loop.wait() for loop in loops] == [0, 0]
    bare = time.monotonic() - started
    started = time.monotonic()
    run(["distill", "tune", str(plan), "--runs", str(tuned)])
    search = time.monotonic() - started
    seconds = [json.loads(file.read_text())["seconds"] for file in tuned.glob("searches/*/trials/*.json")]
    own = [json.loads(file.read_text())["seconds"] for file in looped.glob("stages/distill-*/record.json")]
    print(f"{len(own)} trainings in a loop: {sum(own) / len(own):.2f} s each, {bare:.1f} s in all")
    print(
        f"{len(seconds)} trials of a search: {sum(seconds) / len(seconds):.2f} s each, {search:.1f} s in all"
    )
    print(f"ratio {search / bare:.3f}")


def run_loop(plans: Path, root: Path) -> None:
    """Train one student after the other in this process."""
    from raydistill.execution.local_backend import LocalBackend
    from raydistill.execution.scheduler import run_stages
    from raydistill.plan.order import order_stages
    from raydistill.plan.schema import Plan

    for values in json.loads(plans.read_text()):
        plan = Plan.model_validate(values)
        states = run_stages(order_stages(plan), LocalBackend(), task=plan.task, root=root)
        assert states["student"].status == "done"


def plans_of_trials(file: Path) -> list[dict[str, Any]]:
    """The plans that the search will try: random points are known in advance."""
    from raydistill.plan.load import check_plan, read_source
    from raydistill.plan.order import order_stages
    from raydistill.search.points import known_points
    from raydistill.search.problem import build_problem

    source = read_source(file)
    plan = check_plan(source)
    problem = build_problem(plan, order_stages(plan))
    points = islice(known_points(problem.config), problem.config.trials)
    return [problem.trial_of(values)[0] for values in points]


def plan_of(trials: int, epochs: int) -> dict[str, Any]:
    """A teacher that hardly trains, and a student on its stored targets."""
    student = {"name": "mlp", "widths": [300, 300]}
    return {
        "name": "search-benchmark",
        "task": {"name": "mnist"},
        "stages": {
            "teacher": {"stage": "train", "model": {"name": "mlp", "widths": [800]}, "epochs": 1},
            "student": {
                "stage": "distill",
                "student": student,
                "teachers": ["teacher"],
                "epochs": epochs,
                "batch_size": 100,
            },
        },
        "search": {
            "space": {HEAT: {"loguniform": [1, 20]}},
            "searcher": {"name": "random"},
            "samples": trials,
            "concurrency": 2,
        },
    }


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()

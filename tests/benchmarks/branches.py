"""What ONE's branches cost beside a teacher and then its student: the claim of arXiv 1806.04606 is that they cost less.

    OMP_NUM_THREADS=1 python tests/benchmarks/branches.py [--steps 6] [--networks resnet cnn]

A student with 1 to 5 branches, a larger teacher on labels, and the student of that teacher, each through `fit` on
batches of 64 random pictures of 3x32x32. They take turns after every step, as in `loop.py`; the first step is left out.
As both ways train for the same number of steps, two phases cost the teacher's step and the student's. Memory: as in
`semckd.py`. To report, no figure to reach.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from loop import take_turns
from methods import BATCH, SHAPE, SOFT, TRAINING, Bench, Config, Parts, Row, build, distilled
from semckd import peak_megabytes

from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.online import TrainBranchesConfig
from raydistill.methods.one import One
from raydistill.methods.supervised import Supervised
from raydistill.models.branched import branch_out

NETWORKS: dict[str, tuple[Config, Config]] = {
    "resnet": ({"name": "resnet32"}, {"name": "resnet110"}),
    "cnn": (
        {"name": "cnn", "widths": [16, 32, 64], "batch_norm": True, "average": True},
        {
            "name": "cnn",
            "widths": [16, 32, 64],
            "convolutions": [2, 2, 2],
            "batch_norm": True,
            "average": True,
        },
    ),
}  # of each a student and a teacher: those of the paper, and those of configs/one_branches.yaml
MOST = 5


def main() -> None:
    arguments = parse_arguments()
    if arguments.memory_of:
        network, name = arguments.memory_of
        print(peak_megabytes(ways(network)[name]))
        return
    print(f"{torch.get_num_threads()} thread(s), batches of {BATCH}")
    for network in arguments.networks:
        measure(network, arguments.steps)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--memory-of", nargs=2, help="only print its megabytes; the script calls itself so")
    return parser.parse_args()


def ways(network: str) -> dict[str, Row]:
    student, teacher = NETWORKS[network]
    parts: dict[str, Callable[[], Parts]] = {
        "one branch": lambda: labelled(student),
        **{f"{count} branches": branched(student, count) for count in range(2, MOST + 1)},
        "teacher": lambda: labelled(teacher),
        "its student": distilled(SOFT | {"hard_weight": 1}, student=student, teacher=teacher),
    }
    return {name: Row(start, bare=None) for name, start in parts.items()}  # type: ignore[arg-type]


def labelled(model: Config) -> Parts:
    stage = {"stage": "distill", "student": model, "teachers": ["teacher"], "mode": "live", "methods": [SOFT]}
    return Parts(DistillConfig.model_validate(stage | TRAINING), build(model), Supervised(), [])


def branched(model: Config, count: int) -> Callable[[], Parts]:
    def parts() -> Parts:
        stage = {"stage": "train_branches", "model": model, "branches": count, "ramp_epochs": 0}
        config = TrainBranchesConfig.model_validate(stage | TRAINING)
        return Parts(config, branch_out([build(model) for _ in range(count)], SHAPE), One(config), [])

    return parts


def measure(network: str, steps: int) -> None:
    rows = ways(network)
    with tempfile.TemporaryDirectory() as root:
        benches = {name: Bench(row, steps * BATCH, Path(root)) for name, row in rows.items()}
        times = take_turns({name: bench.fit for name, bench in benches.items()})
    seconds = {name: median(times[name][1:steps]) for name in rows}
    phases = seconds["teacher"] + seconds["its student"]
    print(f"{network}: a teacher's and its student's step take {phases:.3f} s")
    for name, bench in benches.items():
        trained = sum(parameter.numel() for parameter in bench.parts.model.parameters())
        memory = subprocess.check_output([sys.executable, __file__, "--memory-of", network, name])
        print(
            f"  {name}: {seconds[name]:.3f} s a step, {seconds[name] / seconds['one branch']:.2f} of one branch,"
            f" {seconds[name] / phases:.2f} of both phases; {float(memory):.0f} MB; {trained:,} parameters trained"
        )


if __name__ == "__main__":
    main()

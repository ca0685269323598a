"""What SemCKD's attention and projections cost beside plain soft targets: ResNet-32x4 teaches ResNet-8x4.

    OMP_NUM_THREADS=1 python tests/benchmarks/semckd.py [--steps 10]

Batches of 64 random pictures of 3x32x32. Step time: both trainings go through `fit` and take turns after every step, as
in `loop.py`; the first step is left out. Memory: each training in a fresh process, its largest resident memory (on
Linux) less what was resident when `fit` was called, with both networks and the data at hand. To report, no figure to
reach.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch
from bare_losses import bare_hinton, bare_semckd
from loop import nothing, take_turns
from methods import BATCH, BOTH, Bench, Row, distilled

from raydistill.training.cost import STATUS

TEACHER, STUDENT = {"name": "resnet32x4"}, {"name": "resnet8x4"}
ROWS = {
    "hinton": Row(distilled(BOTH, student=STUDENT, teacher=TEACHER), bare_hinton),
    "semckd": Row(
        distilled(BOTH, {"method": "semckd", "weight": 1}, student=STUDENT, teacher=TEACHER), bare_semckd
    ),
}


def main() -> None:
    arguments = parse_arguments()
    if arguments.memory_of:
        print(peak_megabytes(ROWS[arguments.memory_of]))
        return
    print(f"{torch.get_num_threads()} thread(s), batches of {BATCH}")
    peaks = {
        name: float(subprocess.check_output([sys.executable, __file__, "--memory-of", name])) for name in ROWS
    }
    with tempfile.TemporaryDirectory() as root:
        benches = {name: Bench(row, arguments.steps * BATCH, Path(root)) for name, row in ROWS.items()}
        times = take_turns({name: bench.fit for name, bench in benches.items()})
    seconds = {name: median(times[name][1 : arguments.steps]) for name in ROWS}
    for name, bench in benches.items():
        extra = sum(parameter.numel() for parameter in bench.parts.method.parameters())
        print(
            f"  {name}: {seconds[name]:.2f} s per step, {peaks[name]:.0f} MB, {extra:,} parameters of its own;"
            f" {seconds[name] / seconds['hinton']:.2f} times the time and"
            f" {peaks[name] / peaks['hinton']:.2f} times the memory of hinton"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--memory-of", choices=ROWS, help="only print its megabytes; the script calls itself so"
    )
    return parser.parse_args()


def peak_megabytes(row: Row) -> float:
    """Of three steps of this process."""
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(row, 3 * BATCH, Path(root))
        torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # the first one loads 150 MB of torch
        before = resident_megabytes("VmRSS")
        bench.fit(nothing)
    return resident_megabytes("VmHWM") - before


def resident_megabytes(kind: str) -> float:
    """`VmRSS`: now; `VmHWM`: at the peak since `fit` began."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()

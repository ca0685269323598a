"""What replicas gain from training as one batched model: ten MLPs 784-100-100-10, stacked and one after the other.

    OMP_NUM_THREADS=1 python tests/benchmarks/stacked.py [--batch-sizes 32 128] [--replicas 10] [--rounds 5]

Whole steps of the training loop: its batch, forward and backward pass, optimizer, schedule, losses and all that goes
with a step on the host. Both ways train the same networks on the same samples, from the same weights; in every round
each makes `--steps` steps of all of them. A figure is the median of the rounds' ratios of processor time: whatever else
the machine does slows both alike. To reach: 2.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import torch

from raydistill.kinds.train import TrainConfig
from raydistill.methods.supervised import Supervised
from raydistill.models.build import build_model
from raydistill.runs.context import StageContext
from raydistill.runs.folder import StageFolder
from raydistill.tasks.mnist import Mnist
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.splits import TensorSplit
from raydistill.training.data import TransferSet
from raydistill.training.loop import Training, Turn
from raydistill.training.stacking import try_stack

Step = Callable[[], None]

SAMPLES, CLASSES = 4000, 10
WIDTHS = [100, 100]
REACH = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--replicas", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{torch.get_num_threads()} thread, {arguments.replicas} replicas; to reach: {REACH}")
    for batch_size in arguments.batch_sizes:
        with tempfile.TemporaryDirectory() as temporary:
            measure(Path(temporary), batch_size, arguments.replicas, arguments.rounds, arguments.steps)


def measure(root: Path, batch_size: int, replicas: int, rounds: int, steps: int) -> None:
    """Print the median of the ratios, and the times of a step of all replicas."""
    split = random_split()
    one_by_one, stacked = (
        begin([build_training(root / begin.__name__, split, seed, batch_size) for seed in range(replicas)])
        for begin in (steps_one_by_one, stacked_steps)
    )
    pairs = []
    for _ in range(rounds):
        pairs.append((seconds_of(one_by_one, steps), seconds_of(stacked, steps)))
        print(f"  batch of {batch_size}: one by one {shown(pairs[-1][0])}, stacked {shown(pairs[-1][1])}")
    ratio = median(alone / together for alone, together in pairs)
    print(f"batch of {batch_size}: {ratio:.2f} times, {'reached' if ratio >= REACH else 'NOT reached'}")


def random_split() -> TensorSplit:
    """Pictures of random bytes."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (SAMPLES, 1, 28, 28), generator=draw, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=draw)
    return TensorSplit(inputs, labels, torch.arange(SAMPLES))


def build_training(root: Path, split: TensorSplit, seed: int, batch_size: int) -> Training:
    """One replica, whose training does not end."""
    values = {
        "stage": "train",
        "model": {"name": "mlp", "widths": WIDTHS},
        "epochs": 1_000_000,
        "batch_size": batch_size,
        "seed": seed,
    }
    config = TrainConfig.model_validate(values)
    folder = StageFolder(root / str(seed))
    folder.path.mkdir(parents=True)
    torch.manual_seed(seed)
    model = build_model("mlp", {"widths": WIDTHS}, (1, 28, 28), CLASSES)
    transfer = TransferSet(split, Normalisation(torch.full((1, 1, 1), 0.5), torch.full((1, 1, 1), 0.3)))
    context = StageContext(str(seed), folder, root, Mnist())
    return Training(model, Supervised(), transfer, None, config, context, None)


def begun(trainings: Sequence[Training]) -> list[Iterator[Turn]]:
    """Their steps, after the first one of each."""
    runs = [training.turns() for training in trainings]
    for run in runs:
        next(run).make()
    return runs


def steps_one_by_one(trainings: Sequence[Training]) -> Step:
    runs = begun(trainings)

    def step() -> None:
        for run in runs:
            next(run).make()

    return step


def stacked_steps(trainings: Sequence[Training]) -> Step:
    runs = begun(trainings)
    stack = try_stack(trainings, [next(run) for run in runs])

    def step() -> None:
        stack.step([next(run) for run in runs])

    return step


def seconds_of(step: Step, steps: int) -> float:
    """Processor time of a step, the mean of `steps` of them."""
    began = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - began) / steps


def shown(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


if __name__ == "__main__":
    main()

"""What accumulated gradients and averaged weights cost beside the work they are for, in turns on one machine.

    OMP_NUM_THREADS=1 python tests/benchmarks/recipe.py [--models mlp cnn resnet20] [--samples 1280] [--rounds 5]

As in loop.py the variants run in threads that take turns after every step of the optimizer, each is charged its own
processor time, and a figure is the median of the rounds' ratios without the first step.

To reach: steps of four batches 1.02 times as many forward and backward passes in a loop written by hand, and a step
with an average of the weights 1.02 times one without.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from loop import StepDone, nothing, take_turns
from torch import nn

from raydistill.kinds.train import TrainConfig
from raydistill.methods.supervised import Supervised
from raydistill.models.build import build_model
from raydistill.runs.context import StageContext
from raydistill.runs.folder import StageFolder
from raydistill.tasks.mnist import Mnist
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.splits import TensorSplit
from raydistill.training.data import TransferSet
from raydistill.training.loop import fit

BATCH, BATCHES, RATE, CLASSES = 64, 4, 1e-4, 10
SHAPE = (1, 28, 28)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {"widths": [1200, 1200]}),
    "cnn": ("cnn", {"widths": [16, 32]}),
    "resnet20": ("resnet20", {}),
}
FIGURES = [("fit, accumulate", "bare loop, accumulated", 1.02), ("fit, ema", "fit", 1.02)]


class Bench:
    """A model on random pictures, to train in many ways."""

    def __init__(self, model: str, samples: int, root: Path) -> None:
        self.model, self.root = model, root
        draw = torch.Generator().manual_seed(0)
        inputs, labels = (
            torch.rand(samples, *SHAPE, generator=draw),
            torch.randint(CLASSES, (samples,), generator=draw),
        )
        split = TensorSplit(inputs, labels, torch.arange(samples))
        self.transfer = TransferSet(split, Normalisation(torch.tensor(0.5), torch.tensor(0.3)))

    def variants(self) -> dict[str, Any]:
        return {
            "bare loop, accumulated": self.bare,
            "fit, accumulate": lambda step_done: self.fit(step_done, accumulate=BATCHES),
            "fit": self.fit,
            "fit, ema": lambda step_done: self.fit(step_done, ema={}),
        }

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        name, options = MODELS[self.model]
        return build_model(name, options, SHAPE, CLASSES).train()

    def fit(self, step_done: StepDone, **options: Any) -> nn.Module:
        def should_stop() -> bool:
            step_done()
            return False

        optimizer = {"name": "sgd", "learning_rate": RATE}
        shared = {
            "stage": "train",
            "model": {"name": "mlp"},
            "epochs": 1,
            "batch_size": BATCH,
            "optimizer": optimizer,
        }
        folder = StageFolder(Path(tempfile.mkdtemp(dir=self.root)))
        context = StageContext("it", folder, self.root, Mnist(), should_stop=should_stop)
        model = self.network()
        fit(model, Supervised(), self.transfer, None, TrainConfig.model_validate(shared | options), context)
        return model

    def bare(self, step_done: StepDone) -> nn.Module:
        """Steps of several batches, as anybody would write them."""
        model, known = self.network(), self.transfer.normalisation
        optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
        for step in self.transfer.epoch_order(0, 0).split(BATCH * BATCHES):
            for rows in step.split(BATCH):
                inputs = (self.transfer.split.inputs[rows] - known.mean) / known.std
                loss = F.cross_entropy(model(inputs), self.transfer.split.labels[rows])
                (loss * len(rows) / len(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
            step_done()
        return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} thread(s), {arguments.samples} samples, batches of {BATCH}")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as temporary:
            bench = Bench(name, arguments.samples, Path(temporary))
            check_same_weights(bench)
            report(name, [take_turns(bench.variants()) for _ in range(arguments.rounds)])


def check_same_weights(bench: Bench) -> None:
    """Both sides do the same work, or their times say nothing."""
    pairs = zip(
        bench.bare(nothing).parameters(), bench.fit(nothing, accumulate=BATCHES).parameters(), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def report(name: str, rounds: list[dict[str, list[float]]]) -> None:
    for ours, bare, limit in FIGURES:
        steps = {len(times[ours]) - len(times[bare]) for times in rounds}
        assert steps == {0}  # none ended early
        ratios = [sum(times[ours][1:]) / sum(times[bare][1:]) for times in rounds]
        each = 1000 * median(sum(times[bare][1:]) / len(times[bare][1:]) for times in rounds)
        print(
            f"  {name:9} {ours:15} {median(ratios):6.3f} x {bare:22} ({each:8.3f} ms a step);"
            f" rounds {min(ratios):.3f} to {max(ratios):.3f}; reach {limit}"
        )


if __name__ == "__main__":
    main()

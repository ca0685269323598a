"""Training from Parquet shards against the same data in memory, in turns on one machine.

    OMP_NUM_THREADS=1 python tests/benchmarks/many_class.py [--samples 6000] [--rounds 3] [--encoded]

Both sides train the same small CNN on the same 32 x 32 grey pictures in the same order with our `TransferSet`, and end
with the same weights. They take turns after every step, and each is charged the processor time of its steps, so that
whatever else the machine does slows both alike (with one thread, all work is in it). Laying out the pixels, which
happens once per data set, is timed by itself. A figure is the median of the rounds' ratios; a round is an epoch.

To reach: 0.9 of the throughput in memory.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from raydistill.models.build import build_model
from raydistill.tasks.many_class import ManyClass
from raydistill.tasks.shards import write_json, write_shards
from raydistill.tasks.splits import TensorSplit
from raydistill.tasks.task import Arrays
from raydistill.training.data import TransferSet

BATCH, CLASSES, ROWS_AT_ONCE = 128, 200, 4096


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder, arguments.samples, encoded=arguments.encoded)
        started = time.perf_counter()
        data = ManyClass(folder=folder, validation_fraction=0).load()
        first = time.perf_counter() - started
        everything = torch.arange(len(data.train))
        pixels = torch.cat([*data.train.batches(everything.split(ROWS_AT_ONCE), None)]).mul_(255)
        in_memory = TensorSplit(pixels.round_().to(torch.uint8), data.train.labels, data.train.ids)
        sides = {
            "Parquet": Side(TransferSet(data.train, data.normalisation)),
            "in memory": Side(TransferSet(in_memory, data.normalisation)),
        }
        rounds = [take_turns(sides, epoch) for epoch in range(arguments.rounds + 1)]
        check_same_weights(*sides.values())
        report(arguments.samples, first, rounds[1:])  # the first round warms up


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=6_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoded", action="store_true", help="PNG instead of arrays")
    return parser.parse_args()


def write_data(folder: Path, samples: int, *, encoded: bool) -> None:
    random = np.random.default_rng(0)
    for split, count, start in (("train", samples, 0), ("test", 10, samples)):
        pixels = random.integers(0, 256, (count, 1, 32, 32), dtype=np.uint8)
        arrays = Arrays(pixels, random.integers(0, CLASSES, count), np.arange(start, start + count))
        if encoded:
            write_encoded(folder / f"{split}-00000.parquet", arrays)
        else:
            write_shards(folder, split, [arrays])
    write_json(folder / "classes.json", [str(label) for label in range(CLASSES)])


def write_encoded(file: Path, arrays: Arrays) -> None:
    table = {"image": [png(pixels[0]) for pixels in arrays.inputs], "label": arrays.labels, "id": arrays.ids}
    pq.write_table(pa.table(table), file)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


class Side:
    """A student and the data it trains on."""

    def __init__(self, transfer: TransferSet) -> None:
        torch.manual_seed(0)
        self.transfer = transfer
        self.model: nn.Module = build_model("cnn", {"widths": [16, 32]}, (1, 32, 32), CLASSES)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def train_epoch(self, epoch: int) -> Iterator[None]:
        """Stops after every step."""
        parts = self.transfer.epoch_order(0, epoch).split(BATCH)
        for batch in self.transfer.batches(parts, view=0):
            loss = F.cross_entropy(self.model(batch.inputs), batch.labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield


def take_turns(sides: dict[str, Side], epoch: int) -> dict[str, float]:
    """Samples per second of processor time of every side, in one epoch."""
    epochs = {name: side.train_epoch(epoch) for name, side in sides.items()}
    seconds = dict.fromkeys(sides, 0.0)
    for step in range(-(-len(sides["Parquet"].transfer) // BATCH)):
        for name in sorted(sides, reverse=step % 2 == 1):
            started = time.thread_time()
            next(epochs[name])
            seconds[name] += time.thread_time() - started
    return {name: len(side.transfer) / seconds[name] for name, side in sides.items()}


def check_same_weights(first: Side, second: Side) -> None:
    for left, right in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def report(samples: int, first: float, rounds: list[dict[str, float]]) -> None:
    print(
        f"{torch.get_num_threads()} thread(s), {samples} pictures, opened for the first time in {first:.2f} s"
    )
    ratios = [speeds["Parquet"] / speeds["in memory"] for speeds in rounds]
    for name in rounds[0]:
        print(f"  {name:10} {median(speeds[name] for speeds in rounds):10,.0f} pictures/s")
    print(f"  ratio {median(ratios):.3f}; rounds {min(ratios):.3f} to {max(ratios):.3f}; reach 0.9")


if __name__ == "__main__":
    main()

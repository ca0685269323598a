"""Pictures from tars and Parquet against the same files in folders, and .npy files against memory, in turns.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.data_as_it_lies [--pictures 1000] [--side 96] [--rounds 3]

All sides deliver the same batches in the same random order, without DataLoader workers; each is charged the processor
time of its batches, so that whatever else the machine does slows all alike. Finding and laying out what is in shards,
which happens once per data set, is timed by itself. A figure is the median of the rounds' ratios.

To reach: 0.95 of the throughput of folders, half of that of memory, where a sample costs microseconds.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from raydistill.tasks.npy import Npy
from raydistill.tasks.splits import Split
from raydistill.tasks.tensors import Tensors
from tests.builders.packed_pictures import CLASSES, as_folders, as_parquet, as_tars

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures = {split: some_jpegs(arguments.pictures, arguments.side) for split in ("train", "val")}
        makers = {"folders": as_folders, "tars": as_tars, "Parquet": as_parquet}
        tasks = {name: make(folder / name, pictures) for name, make in makers.items()}
        options = {"image_size": arguments.side, "resize": arguments.side, "validation_fraction": 0}
        compare(
            {name: loaded(name, task.model_copy(update=options)) for name, task in tasks.items()},
            arguments.rounds,
        )
        draw = np.random.default_rng(0)
        inputs = draw.integers(256, size=(20 * arguments.pictures, 3, 32, 32), dtype=np.uint8)
        labels = np.arange(len(inputs)) % 10
        np.savez(folder / "all.npz", inputs=inputs, labels=labels)
        np.save(folder / "x.npy", inputs)
        np.save(folder / "y.npy", labels)
        mapped = Npy(inputs=folder / "x.npy", labels=folder / "y.npy")
        sides = {"memory": loaded("memory", Tensors(file=folder / "all.npz")), ".npy": loaded(".npy", mapped)}
        compare(sides, arguments.rounds)


def some_jpegs(count: int, side: int) -> list[tuple[int, bytes]]:
    draw = np.random.default_rng(0)
    found = []
    for row in range(count):
        coarse = Image.fromarray(draw.integers(256, size=(side // 8, side // 8, 3), dtype=np.uint8))
        coarse.resize((side, side)).save(stream := io.BytesIO(), "JPEG", quality=90)
        found.append((row % len(CLASSES), stream.getvalue()))
    return found


def loaded(name: str, task: Npy | Tensors) -> Split:
    started = time.perf_counter()
    split = task.load().train
    print(f"{name}: {len(split)} samples, ready after {time.perf_counter() - started:.2f} s")
    return split


def compare(sides: Mapping[str, Split], rounds: int) -> None:
    """The throughput of each side as a part of the first one's."""
    first, *others = sides
    spent = [turns(sides, seed) for seed in range(rounds + 1)][1:]  # the first round warms up
    per_sample = median(one[first] for one in spent) / len(sides[first]) * 1e6
    print(f"{first}: {per_sample:.1f} µs of processor time per sample")
    for name in others:
        print(f"{name}: {median(one[first] / one[name] for one in spent):.3f} of the throughput of {first}")


def turns(sides: Mapping[str, Split], seed: int) -> dict[str, float]:
    count = len(next(iter(sides.values())))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).split(BATCH)
    streams = {name: split.batches(order, None) for name, split in sides.items()}
    spent = dict.fromkeys(sides, 0.0)
    for _ in order:
        batches = {}
        for name, stream in streams.items():
            started = time.process_time()
            batches[name] = next(stream)
            spent[name] += time.process_time() - started
        assert len({tuple(batch.shape) for batch in batches.values()}) == 1
    return spent


if __name__ == "__main__":
    main()

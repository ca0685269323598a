"""Reading random batches from stored soft targets, against a gather from one plain numpy memmap.

    python tests/benchmarks/targets.py [--gigabytes 1] [--classes 100] [--batch 512] [--rows-per-shard 65536]

Both hold the same float16 rows and lie in the page cache; the batches are drawn anew, so the processor's caches do
not help. `gather` compares like with like (rows as they are stored); `read` also makes the float32 tensor that a
loss wants, and is what the figure in the issue is about: at most 2 times the plain gather.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from orchestrator.targets.reader import Targets, open_targets
from orchestrator.targets.store import Description, TargetWriter

BATCHES = 400
ROUNDS = 5


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    rows = int(arguments.gigabytes * 1e9 / 2 / arguments.classes)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        seconds = write(root, rows, arguments.classes, arguments.rows_per_shard)
        shards = len(list((root / "stages/a").glob("*.arrow")))
        print(f"{rows} rows x {arguments.classes} classes in {shards} shards, written in {seconds:.1f} s")
        start = time.perf_counter()
        targets = open_targets(root / "stages/a", root=root, expect=None)
        print(f"opened, checksums verified, in {time.perf_counter() - start:.1f} s")
        plain = np.memmap(root / "plain", np.float16, "r", shape=(rows, arguments.classes))
        compare(targets, plain, arguments.batch)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rows-per-shard", type=int, default=65536)
    return parser.parse_args()


def write(root: Path, rows: int, classes: int, rows_per_shard: int) -> float:
    """Write the same random rows as a store and as one plain file; seconds of the store alone."""
    description = Description(
        task="benchmark", split="train", num_classes=classes, rows=rows, teachers=("none",)
    )
    writer = TargetWriter(root / "stages/a", description, rows_per_shard=rows_per_shard)
    generator = torch.Generator().manual_seed(0)
    seconds = 0.0
    with (root / "plain").open("wb") as plain:
        for ids in torch.arange(rows).split(8192):
            logits = torch.randn(len(ids), classes, generator=generator)
            plain.write(logits.half().numpy().tobytes())
            start = time.perf_counter()
            writer.append(ids, logits)
            seconds += time.perf_counter() - start
    writer.close()
    return seconds


def compare(targets: Targets, plain: np.ndarray, batch: int) -> None:
    generator = np.random.default_rng(0)
    check = generator.integers(0, len(plain), batch)
    assert (targets.read(torch.from_numpy(check)).logits[:, 0].numpy() == plain[check]).all()
    gather = targets._members[0].gather
    for _ in range(ROUNDS):
        batches = [generator.integers(0, len(plain), batch) for _ in range(BATCHES)]
        tensors = [torch.from_numpy(rows) for rows in batches]
        base = microseconds(lambda rows: plain[rows], batches)
        gathered, read = microseconds(gather, batches), microseconds(targets.read, tensors)
        print(
            f"plain memmap {base:6.1f} µs   gather {gathered:6.1f} µs (x{gathered / base:.2f})"
            f"   read {read:6.1f} µs (x{read / base:.2f})"
        )


def microseconds(call: Callable[[Any], object], batches: Sequence[Any]) -> float:
    """Median time of a call."""
    times = []
    for batch in batches:
        start = time.perf_counter()
        call(batch)
        times.append(time.perf_counter() - start)
    return 1e6 * median(times)


if __name__ == "__main__":
    main()

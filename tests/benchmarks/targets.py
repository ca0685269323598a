"""Reading random batches from stored soft targets, against a gather from one plain numpy memmap.

    python tests/benchmarks/targets.py [--gigabytes 1] [--classes 100] [--batch 512] [--rows-per-shard 65536]
    python tests/benchmarks/targets.py --top-k 100 --classes 15000 --batch 256 --gigabytes 0.1
    python tests/benchmarks/targets.py --teacher resnet18 [--size 64] [--batch 64] [--samples 2048]

Both hold the same rows as float16 and lie in the page cache; the batches are drawn anew, so the processor's caches do
not help. `gather` compares like with like (rows as they are stored); `read` also makes the float32 tensor that a
loss wants, and is what the figure in the issue is about: at most 2 times the plain gather. With `--top-k` a second
store keeps so many classes of the same rows; `top-k, T = 4` reads and expands it to what `read` gives, T = 3 also
interpolates the tail's mass.

With `--teacher`, an architecture of torchvision, it is writing that is measured: batches of one forward pass are stored
as logits, and by turns as logits and the embedding below the classifier. The second costs at most 1.05 times the first
and the bytes of the embedding, which are a store of ready-made numbers.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from raydistill.models.build import build_model
from raydistill.models.taps import Tapped
from raydistill.targets.reader import Targets, open_targets
from raydistill.targets.store import Description, TargetWriter

BATCHES = 400
WRITTEN_ELEMENTS = 1 << 20
ROUNDS = 5


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    if arguments.teacher is not None:
        compare_writing(arguments)
        return
    rows = int(arguments.gigabytes * 1e9 / 2 / arguments.classes)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        seconds = write(root, rows, arguments)
        shards = len(list((root / "stages/a").glob("*.arrow")))
        print(f"{rows} rows x {arguments.classes} classes in {shards} shards, written in {seconds:.1f} s")
        start = time.perf_counter()
        targets = open_targets(root / "stages/a", root=root, expect=None)
        print(f"opened, checksums verified, in {time.perf_counter() - start:.1f} s")
        plain = np.memmap(root / "plain", np.float16, "r", shape=(rows, arguments.classes))
        kept = None
        if arguments.top_k is not None:
            kept = open_targets(root / "stages/kept", root=root, expect=None)
            size = sum(path.stat().st_size for path in (root / "stages/kept").glob("*.arrow"))
            print(f"top {arguments.top_k}: {size / rows:.1f} bytes a row; dense {2 * arguments.classes + 16}")
        compare(targets, plain, arguments.batch, kept)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rows-per-shard", type=int, default=65536)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--teacher")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=2048)
    return parser.parse_args()


def write(root: Path, rows: int, arguments: argparse.Namespace) -> float:
    """Write the same random rows as stores and as one plain file; seconds of the dense store alone."""
    classes = arguments.classes
    description = Description(
        task="benchmark", split="train", num_classes=classes, rows=rows, teachers=("none",)
    )
    size = arguments.rows_per_shard
    writer = TargetWriter(root / "stages/a", description, rows_per_shard=size)
    keeper = None
    if arguments.top_k is not None:
        keeper = TargetWriter(root / "stages/kept", description, top_k=arguments.top_k, rows_per_shard=size)
    generator = torch.Generator().manual_seed(0)
    seconds = 0.0
    with (root / "plain").open("wb") as plain:
        for ids in torch.arange(rows).split(max(1, WRITTEN_ELEMENTS // classes)):
            logits = torch.randn(len(ids), classes, generator=generator)
            plain.write(logits.half().numpy().tobytes())
            start = time.perf_counter()
            writer.append(ids, logits)
            seconds += time.perf_counter() - start
            if keeper is not None:
                keeper.append(ids, logits)
    writer.close()
    if keeper is not None:
        keeper.close()
    return seconds


def compare_writing(arguments: argparse.Namespace) -> None:
    """Logits alone, logits with the embedding, and the embedding's bytes alone: they take turns, batch by batch."""
    size, batch, rows = arguments.size, arguments.batch, arguments.samples
    options = {"architecture": arguments.teacher}
    teacher = build_model("torchvision", options, (3, size, size), arguments.classes).eval()
    feature = next(name for name, _ in reversed(list(teacher.named_modules())) if name)  # the classifier
    name = f"{feature}:input"
    plain, tapped = Tapped(teacher, ()), Tapped(teacher, [name])
    inputs = torch.randn(batch, 3, size, size)
    with torch.no_grad():
        made = tapped(inputs).features[name]
    width = made.shape[1]
    description = Description(
        task="benchmark", split="train", num_classes=arguments.classes, rows=rows, teachers=("none",)
    )
    print(f"{arguments.teacher} at {size} x {size}, {arguments.classes} classes, {name} of {width} numbers")

    def store(tap: Tapped, ids: Tensor, writer: TargetWriter) -> None:
        with torch.no_grad():
            output = tap(inputs[: len(ids)])
        writer.append(ids, output.logits, output.features)

    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as temporary:
            root, shapes = Path(temporary), {name: (width,)}
            few = TargetWriter(root / "few", description, rows_per_shard=1024)
            both = TargetWriter(root / "both", description, features=shapes, rows_per_shard=1024)
            alone = TargetWriter(
                root / "alone", description, features=shapes, form="features", rows_per_shard=1024
            )
            calls: dict[str, Callable[[Tensor], object]] = {
                "logits": lambda ids, few=few: store(plain, ids, few),
                "with embedding": lambda ids, both=both: store(tapped, ids, both),
                "bytes": lambda ids, alone=alone: alone.append(
                    ids, made[: len(ids)], {name: made[: len(ids)]}
                ),
            }
            seconds = dict.fromkeys(calls, 0.0)
            for ids in torch.arange(rows).split(batch):
                for key, call in calls.items():
                    start = time.perf_counter()
                    call(ids)
                    seconds[key] += time.perf_counter() - start
        ratio = seconds["with embedding"] / (seconds["logits"] + seconds["bytes"])
        told = "   ".join(f"{key} {1e6 * taken / rows:7.1f} µs a sample" for key, taken in seconds.items())
        print(f"{told}   x{ratio:.3f}")


def compare(targets: Targets, plain: np.ndarray, batch: int, kept: Targets | None) -> None:
    generator = np.random.default_rng(0)
    check = generator.integers(0, len(plain), batch)
    read = targets.read(torch.from_numpy(check)).logits[:, 0].numpy()
    assert np.allclose(
        read, plain[check], rtol=0, atol=2**-8
    )  # the one rounds differences from the row's largest
    calls: dict[str, Callable[[np.ndarray], object]] = {
        "plain memmap": lambda rows: plain[rows],
        "gather": targets._members[0].rows.gather,
        "read": lambda rows: targets.read(torch.from_numpy(rows)),
    }
    if kept is not None:
        for temperature in (4.0, 3.0):
            calls[f"top-k, T = {temperature:g}"] = partial(read_kept, kept, temperature)
    for _ in range(ROUNDS):
        times = side_by_side(calls, lambda: generator.integers(0, len(plain), batch))
        print(
            "   ".join(
                f"{name} {taken:6.1f} µs (x{taken / times['plain memmap']:.2f})"
                for name, taken in times.items()
            )
        )


def read_kept(kept: Targets, temperature: float, rows: np.ndarray) -> object:
    return kept.read(torch.from_numpy(rows), temperature=temperature)


def side_by_side(
    calls: dict[str, Callable[[np.ndarray], object]], draw: Callable[[], np.ndarray]
) -> dict[str, float]:
    """Median microseconds of each call; they take turns, so that a busy machine slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(BATCHES):
        for name, call in calls.items():
            rows = draw()
            start = time.perf_counter()
            call(rows)
            times[name].append(time.perf_counter() - start)
    return {name: 1e6 * median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()

"""Pictures in a folder until they are a model's inputs: ours against torchvision's ImageFolder and DataLoader.

    python tests/benchmarks/pictures.py [--workers 2] [--rounds 5] [--small 384] [--large 24]

Both take random crops of 8 to 100 % of the area, scaled to 224, and normalise: JPEGs of 500 x 375, from their
files and from the packed cache (`cache: {shorter_side: 256}`), and of 4000 x 3000 from their files. Epochs take turns;
the middle of the rounds counts. First by processor time, all in this process and its one thread, which others on the
machine hardly change; then by the wall's, with as many processes on either side, which have been started before.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.picture_task import PictureCache
from raydistill.tasks.splits import View

BATCH = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Epoch = Callable[[], Iterable[Tensor]]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["RAYDISTILL_DATA"] = f"{scratch}/data"
        sets = {"500 x 375": (500, 375, arguments.small), "4000 x 3000": (4000, 3000, arguments.large)}
        for name, (width, height, count) in sets.items():
            folder = Path(scratch) / name
            with ProcessPoolExecutor(2) as executor:
                sizes = list(executor.map(partial(write_picture, folder, width, height), range(count)))
            print(f"{count} JPEGs of {name}, {np.mean(sizes) / 1e3:,.0f} kB in the mean")
            for workers, clock in ((0, time.process_time), (arguments.workers, time.perf_counter)):
                kind = "processor time, 1 thread" if not workers else f"wall, {workers} processes"
                report(kind, sides(folder, workers, width < 1000), count, arguments.rounds, clock)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", type=int, default=384, help="how many pictures of 500 x 375")
    parser.add_argument("--large", type=int, default=24, help="how many of 12 megapixels")
    return parser.parse_args()


def write_picture(folder: Path, width: int, height: int, number: int) -> int:
    """Colours that go over into one another and a camera's noise; bytes of the file."""
    draw = np.random.default_rng(number)
    rough = Image.fromarray(draw.integers(256, size=(12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = draw.integers(-12, 13, size=smooth.shape, dtype=np.int16)
    for part in ("train", "val"):
        file = folder / part / f"class{number % 2}" / f"{number}.jpg"
        if part == "train" or number < 2:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(file, quality=88)
    return (folder / "train" / f"class{number % 2}" / f"{number}.jpg").stat().st_size


def sides(folder: Path, workers: int, with_cache: bool) -> dict[str, Epoch]:
    task = ImageFolder(folder=folder, workers=workers, validation_fraction=0)
    found = {"torchvision": torchvision_epochs(folder, workers), "ours": our_epochs(task)}
    if with_cache:
        found["ours, cache"] = our_epochs(task.model_copy(update={"cache": PictureCache(shorter_side=256)}))
    return found


def our_epochs(task: ImageFolder) -> Epoch:
    data, numbers = task.load(), iter(range(10_000))

    def epoch() -> Iterator[Tensor]:
        order, view = torch.randperm(len(data.train)).split(BATCH), View(1, next(numbers))
        yield from map(data.normalisation.of_batch, data.train.batches(order, view))

    return epoch


def torchvision_epochs(folder: Path, workers: int) -> Epoch:
    steps = [transforms.RandomResizedCrop(224), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    pictures = datasets.ImageFolder(str(folder / "train"), transforms.Compose(steps))
    loader = DataLoader(pictures, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    return lambda: (inputs for inputs, _ in loader)


def report(kind: str, epochs: dict[str, Epoch], count: int, rounds: int, clock: Callable[[], float]) -> None:
    for epoch in epochs.values():
        seconds_of(epoch, count, clock)  # starts the processes, and reads the files once
    times: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(rounds):
        for name, epoch in epochs.items():
            times[name].append(seconds_of(epoch, count, clock))
    for name, own in times.items():
        ratios = [theirs / ours for theirs, ours in zip(times["torchvision"], own, strict=True)]
        rate, ratio = count / statistics.median(own), statistics.median(ratios)
        print(
            f"  {kind:<26} {name:<12} {rate:8.1f} pictures/s, {ratio:5.2f} x torchvision's"
            f" ({', '.join(f'{one:.2f}' for one in ratios)})"
        )


def seconds_of(epoch: Epoch, count: int, clock: Callable[[], float]) -> float:
    started = clock()
    seen = sum(len(inputs) for inputs in epoch())
    assert seen == count
    return clock() - started


if __name__ == "__main__":
    main()

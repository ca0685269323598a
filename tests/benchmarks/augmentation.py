"""Batched augmentation against torchvision's transforms per sample in a DataLoader, on the same work.

    python tests/benchmarks/augmentation.py --samples 60000 --workers 0 2

Both deliver batches of 1 x 28 x 28 float images in [0, 1], shifted by up to two pixels. Expect a ratio of at least 10.
"""

import argparse
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from raydistill.kinds.augmentations import ShiftConfig
from raydistill.tasks.splits import TensorSplit
from raydistill.training.augment import augment

PIXELS = 2


class Pictures(Dataset[Tensor]):
    """What torchvision's own MNIST does per sample: an array to a picture, then the transforms."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.transform = transforms.Compose(
            [transforms.RandomCrop(28, padding=PIXELS), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        return self.transform(Image.fromarray(self.images[position]))


def seconds(batches: Callable[[], Iterable[Tensor]], samples: int) -> float:
    """Time to go through all batches once."""
    start = time.perf_counter()
    assert sum(len(batch) for batch in batches()) == samples
    return time.perf_counter() - start


def batched(images: np.ndarray, batch: int) -> Iterable[Tensor]:
    """One epoch in random order, as the training loop draws it."""
    ids = torch.arange(len(images))
    split = TensorSplit(torch.from_numpy(images)[:, None], torch.zeros(len(images), dtype=torch.int64), ids)
    order = torch.randperm(len(images)).split(batch)
    for positions, inputs in zip(order, split.batches(order, None), strict=True):
        yield augment(inputs, ids[positions], [ShiftConfig(pixels=PIXELS)], seed=0, view=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[0, 2], help="DataLoader workers to compare with"
    )
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of these counts, for both")
    options = parser.parse_args()

    images = np.random.default_rng(0).integers(0, 256, (options.samples, 28, 28), dtype=np.uint8)
    ours = min(
        seconds(lambda: batched(images, options.batch), options.samples) for _ in range(options.repeats)
    )
    print(f"batched augmentation           {ours:7.3f} s  {ours / options.samples * 1e6:6.2f} us per sample")
    for workers in options.workers:
        loader = DataLoader(Pictures(images), batch_size=options.batch, shuffle=True, num_workers=workers)
        theirs = min(seconds(lambda loader=loader: loader, options.samples) for _ in range(options.repeats))  # type: ignore[misc]
        print(f"torchvision, {workers:2d} loader workers {theirs:7.3f} s  ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main()

"""Batched augmentation against torchvision's transforms per sample in a DataLoader, on the same work.

    python tests/benchmarks/augmentation.py --samples 20000 --workers 0 2

Both deliver batches of float images in [0, 1]. Expect a ratio of at least 10 for shifts of 1 x 28 x 28, and of at least
5 for a recipe of 3 x 32 x 32. Ratios count: both run on the same machine, one after the other.
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

from raydistill.kinds.augmentations import AugmentationOptions
from raydistill.tasks.splits import TensorSplit
from raydistill.training.augment import augment

COLOUR = (32, 32, 3)
RANDOM_CROP = transforms.RandomResizedCrop(32)
JITTER = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
Work = tuple[tuple[int, ...], list[object], list[object], list[dict[str, object]]]
# Shape of a picture; torchvision's transforms of pictures, then of tensors; our steps.
WORK: dict[str, Work] = {
    "shift": ((28, 28), [transforms.RandomCrop(28, padding=2)], [], [{"name": "shift", "pixels": 2}]),
    "resized crop": (COLOUR, [RANDOM_CROP], [], [{"name": "resized_crop"}]),
    "colour jitter": (COLOUR, [JITTER], [], [{"name": "colour_jitter"}]),
    "blur": (COLOUR, [transforms.GaussianBlur(3)], [], [{"name": "blur", "probability": 1.0}]),
    "erase": (COLOUR, [], [transforms.RandomErasing()], [{"name": "erase"}]),
    "trivial augment": (COLOUR, [transforms.TrivialAugmentWide()], [], [{"name": "trivial_augment"}]),
    "rand augment": (COLOUR, [transforms.RandAugment()], [], [{"name": "rand_augment"}]),
    "augmix": (COLOUR, [transforms.AugMix()], [], [{"name": "augmix"}]),
    "all of a recipe": (
        COLOUR,
        [RANDOM_CROP, transforms.RandomHorizontalFlip(), transforms.TrivialAugmentWide()],
        [transforms.RandomErasing()],
        [{"name": name} for name in ("resized_crop", "flip", "trivial_augment", "erase")],
    ),
}


class Pictures(Dataset[Tensor]):
    """What torchvision's own MNIST does per sample: an array to a picture, then the transforms."""

    def __init__(self, images: np.ndarray, of_pictures: list[object], of_tensors: list[object]) -> None:
        self.images = images
        self.transform = transforms.Compose([*of_pictures, transforms.ToTensor(), *of_tensors])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        return self.transform(Image.fromarray(self.images[position]))


def seconds(batches: Callable[[], Iterable[Tensor]], samples: int) -> float:
    """Time to go through all batches once."""
    start = time.perf_counter()
    assert sum(len(batch) for batch in batches()) == samples
    return time.perf_counter() - start


def split_of(images: np.ndarray) -> TensorSplit:
    """As a task holds pictures in memory."""
    inputs = torch.from_numpy(images)
    inputs = inputs[:, None] if inputs.dim() == 3 else inputs.permute(0, 3, 1, 2).contiguous()
    return TensorSplit(inputs, torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)))


def batched(split: TensorSplit, batch: int, steps: list[AugmentationOptions]) -> Iterable[Tensor]:
    """One epoch in random order, as the training loop draws it."""
    order = torch.randperm(len(split)).split(batch)
    for positions, inputs in zip(order, split.batches(order, None), strict=True):
        yield augment(inputs, split.ids[positions], steps, seed=0, view=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", nargs="*", default=list(WORK), choices=list(WORK))
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[0, 2], help="DataLoader workers to compare with"
    )
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of these counts, for both")
    options = parser.parse_args()

    for name in options.work:
        compare(name, options)


def compare(name: str, options: argparse.Namespace) -> None:
    shape, of_pictures, of_tensors, raw = WORK[name]
    images = np.random.default_rng(0).integers(0, 256, (options.samples, *shape), dtype=np.uint8)
    steps, split = [AugmentationOptions.choose(step) for step in raw], split_of(images)
    ours = min(
        seconds(lambda: batched(split, options.batch, steps), options.samples) for _ in range(options.repeats)
    )
    print(f"{name:16s} batched {ours:7.3f} s  {ours / options.samples * 1e6:7.2f} us per sample", flush=True)
    data = Pictures(images, of_pictures, of_tensors)
    for workers in options.workers:
        loader = DataLoader(data, batch_size=options.batch, shuffle=True, num_workers=workers)
        theirs = min(seconds(lambda loader=loader: loader, options.samples) for _ in range(options.repeats))  # type: ignore[misc]
        print(
            f"{name:16s} {workers:2d} loader workers {theirs:7.3f} s  ratio {theirs / ours:.1f}", flush=True
        )


if __name__ == "__main__":
    main()

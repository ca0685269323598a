"""What a network's own input adds to its forward pass: a row per network, view and size.

    OMP_NUM_THREADS=1 python tests/benchmarks/own_input.py [--batch 16] [--rounds 9]

The same network takes pictures that are as it wants them, and views of which it makes them; they take turns, and the
fastest of each counts. To reach: 1.05 times the bare network.
"""

import argparse
import time
from typing import Any

import torch
from torch import nn

from raydistill.models.build import build_model
from raydistill.models.own_input import OwnInput, see_for_itself

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET18: tuple[str, dict[str, Any]] = ("torchvision", {"architecture": "resnet18"})
RESNET20: tuple[str, dict[str, Any]] = ("resnet20", {})
CASES = (
    (RESNET18, (3, 32, 32), OwnInput(3, (224, 224), None, MEAN, STD)),
    (RESNET18, (3, 224, 224), OwnInput(3, (224, 224), None, MEAN, STD)),
    (RESNET18, (1, 28, 28), OwnInput(3, (224, 224), None, MEAN, STD)),
    (RESNET18, (3, 256, 256), OwnInput(3, (224, 224), 240, MEAN, STD)),
    (RESNET20, (3, 224, 224), OwnInput(3, (64, 64))),
    (RESNET20, (3, 64, 64), OwnInput(3, (32, 32))),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    for (name, options), view, own in CASES:
        bare, seeing = (build_model(name, options, own.shape, 10).eval() for _ in range(2))
        see_for_itself(seeing, own, view, torch.full((view[0], 1, 1), 0.4), torch.full((view[0], 1, 1), 0.3))
        given, shown = torch.randn(arguments.batch, *own.shape), torch.randn(arguments.batch, *view)
        rounds = [(seconds(bare, given), seconds(seeing, shown)) for _ in range(arguments.rounds)]
        alone, with_own = (min(column) for column in zip(*rounds, strict=True))
        print(
            f"{options.get('architecture', name):10} {view!s:14} -> {own.shape!s:14}"
            f" {1000 * alone:7.1f} ms {1000 * with_own:7.1f} ms {with_own / alone:6.3f}"
        )


@torch.no_grad()
def seconds(model: nn.Module, inputs: torch.Tensor) -> float:
    start = time.perf_counter()
    model(inputs)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

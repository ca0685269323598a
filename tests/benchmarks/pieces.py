"""What a batch of 500 costs on a CPU in pieces, as stages predict and judge it, over the same batch as a whole.

    OMP_NUM_THREADS=1 python tests/benchmarks/pieces.py [--rounds 3]

Untrained networks in float32, in turns, processor time; of each way the fastest of the rounds. To report.
"""

import argparse
import time
from typing import Any

import torch

from raydistill.models.build import build_model
from raydistill.models.taps import Tapped
from raydistill.training.parity import forward_pass
from raydistill.training.pieces import pieces_of

BATCH = 500
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "cnn 16-32, 1 x 28 x 28": ("cnn", {"widths": [16, 32]}, (1, 28, 28)),
    "resnet20, 3 x 32 x 32": ("resnet20", {}, (3, 32, 32)),
    "resnet32x4, 3 x 32 x 32": ("resnet32x4", {}, (3, 32, 32)),
    "mobilenet_v2, 3 x 96 x 96": ("mobilenet_v2", {}, (3, 96, 96)),
    "torchvision's resnet18, 3 x 224 x 224": ("torchvision", {"architecture": "resnet18"}, (3, 224, 224)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    for title, (name, options, shape) in NETWORKS.items():
        model = Tapped(build_model(name, options, shape, 10).eval(), [])
        inputs = torch.rand(BATCH, *shape)
        ways = {"whole": model, "in pieces": forward_pass(model, "cpu", "float32")}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        with torch.no_grad():
            for _ in range(rounds):
                for way, predict in ways.items():
                    began = time.process_time()
                    predict(inputs)
                    seconds[way].append(time.process_time() - began)
        whole, pieces = min(seconds["whole"]), min(seconds["in pieces"])
        count = len(pieces_of(inputs))
        print(
            f"{title}: {1000 * whole / BATCH:.2f} ms a sample, in {count} pieces {pieces / whole:.2f} of it"
        )


if __name__ == "__main__":
    main()

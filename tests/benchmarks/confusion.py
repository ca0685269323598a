"""Time and memory of confusion statistics with very many classes: the matrix of products should exist once.

python tests/benchmarks/confusion.py [--classes 15000]
"""

import argparse
import resource
import time

import numpy as np

from raydistill.targets.confusion import Moments

BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=15_000)
    classes = parser.parse_args().classes
    before = largest_megabytes()
    probabilities = np.random.default_rng(0).random((BATCH, classes), dtype=np.float32)
    moments = Moments.empty(classes)
    started = time.perf_counter()
    for _ in range(4):
        moments.add(probabilities)
    added = time.perf_counter()
    moments.similarity("correlation")
    finished = time.perf_counter()
    matrix = moments.second.nbytes / 2**20
    print(
        f"{classes} classes: {4 * BATCH / (added - started):.0f} samples/s, similarity {finished - added:.1f} s"
    )
    print(f"peak {largest_megabytes() - before:.0f} MB, of which the matrix is {matrix:.0f} MB")


def largest_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()

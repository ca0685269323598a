"""KL fusion in batch, against the paper's gradient descent per image and against the generalist's forward pass.

    python tests/benchmarks/fusion.py [--threads 1] [--repeats 5] [--skip-large]

Figures in the issue: at 1,000 classes with 20 specialists of 50 to 100 classes and a batch of 4,096, at least 100
times the images per second of gradient descent to the same objective (1e-6), and at most 0.5 times the seconds of
a small CNN's forward pass; at 15,000 classes with 61 specialists of 300, memory in proportion to images x classes.
Best of the repeats, which take turns, so that a busy machine slows all of them.
"""

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import torch
from torch import Tensor

from raydistill.models.build import build_model
from raydistill.targets.fusion import fuse
from raydistill.targets.membership import Membership, active_specialists, build_membership

DESCENTS = 2
STEPS_AT_MOST = 20_000
GAP = 1e-6


class Problem(NamedTuple):
    """Arguments of `fuse`."""

    generalist: Tensor
    specialists: list[Tensor]
    active: Tensor
    membership: Membership


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} thread(s)")
    for n in (1, 3):
        measure_small(n, arguments.repeats)
    if not arguments.skip_large:
        for n in (1, 3):
            measure_large(n, arguments.repeats)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-large", action="store_true")
    return parser.parse_args()


def draw_problem(images: int, classes: int, sizes: Sequence[int], n: int, seed: int = 0) -> Problem:
    """Random overlapping sets, and peaked models that agree with one another up to noise."""
    generator = torch.Generator().manual_seed(seed)
    sets = [torch.randperm(classes, generator=generator)[:size].tolist() for size in sizes]
    membership = build_membership(sets, classes)
    logits = 2 * torch.randn(images, classes, generator=generator)
    generalist = torch.log_softmax(logits, dim=1)
    active = active_specialists(generalist, membership, n)
    specialists = []
    for own, (classes_of, member) in enumerate(zip(membership.class_sets, membership.members, strict=True)):
        rows = logits[active[:, own]]
        rest = rows.masked_fill(member, -torch.inf).logsumexp(dim=1, keepdim=True)
        seen = torch.cat([rows[:, classes_of], rest], dim=1)
        noise = torch.randn(seen.shape, generator=generator)
        specialists.append(torch.log_softmax(seen + noise, dim=1))
    return Problem(generalist, specialists, active, membership)


def gradient_descent_fusion(
    generalist: Tensor,
    class_sets: Sequence[Tensor],
    specialists: Sequence[Tensor],
    *,
    is_done: Callable[[Tensor], bool],
    direction: str = "forward",
    step: float = 1.0,
    max_steps: int = 1_000_000,
) -> tuple[Tensor, int]:
    """The paper's way: q = softmax(z) for one image, descent on z from log p^g; log q (C,) and the steps taken.

    `generalist` (C,) and `specialists` (|S| + 1,) are probabilities, all weights 1. The derivative W q - Σ r^m of
    it is written out; `step` is times 1/W. `is_done` is shown q after every step.
    """
    z = generalist.log()
    for taken in range(max_steps):
        q = torch.softmax(z, dim=0)
        if is_done(q):
            return q.log(), taken
        slope = derivative(q, generalist, class_sets, specialists, direction)
        z = z - step / (1 + len(specialists)) * slope
    raise RuntimeError(f"no end in {max_steps} steps")


def derivative(
    q: Tensor, generalist: Tensor, class_sets: Sequence[Tensor], specialists: Sequence[Tensor], direction: str
) -> Tensor:
    """∂J/∂z, (C,), one specialist after the other."""
    if direction == "forward":
        slope = (1 + len(specialists)) * q - generalist
        for classes, answer in zip(class_sets, specialists, strict=True):
            others = q.clone()
            others[classes] = 0
            others *= answer[-1] / others.sum()
            others[classes] = answer[:-1]
            slope -= others
        return slope
    by_class = (q / generalist).log()
    for classes, answer in zip(class_sets, specialists, strict=True):
        others = q.clone()
        others[classes] = 0
        ratio = (others.sum() / answer[-1]).log().expand(len(q)).clone()
        ratio[classes] = (q[classes] / answer[:-1]).log()
        by_class = by_class + ratio
    return q * (by_class - (q * by_class).sum())


def image_objective(
    q: Tensor, generalist: Tensor, class_sets: Sequence[Tensor], specialists: Sequence[Tensor]
) -> float:
    """Forward J of one image, with all weights 1."""
    value = (generalist * (generalist / q).log()).sum()
    for classes, answer in zip(class_sets, specialists, strict=True):
        others = q.clone()
        others[classes] = 0
        value = value + (answer[:-1] * (answer[:-1] / q[classes]).log()).sum()
        value = value + answer[-1] * (answer[-1] / others.sum()).log()
    return float(value)


def descend(problem: Problem, best: Tensor, fused: Tensor) -> tuple[float, float]:
    """Images per second of gradient descent to within `GAP` of the smallest J of each image, that of log q `best`;
    and how much larger than it J of `fused` is at most.

    Every image has the better of two step sizes (64/W diverges); J is looked at every 50 steps. An image that has
    not arrived after `STEPS_AT_MOST` counts as if it had, which flatters the descent.
    """
    rows = problem.active.any(dim=1).nonzero().squeeze(1)[:DESCENTS].tolist()
    positions = problem.active.cumsum(dim=0) - 1
    seconds, gap, steps = 0.0, 0.0, []
    for row in rows:
        own = problem.active[row].nonzero().squeeze(1).tolist()
        answers = [problem.specialists[index][positions[row, index]].double().exp() for index in own]
        class_sets = [problem.membership.class_sets[index] for index in own]
        image = (problem.generalist[row].double().exp(), class_sets, answers)
        least = image_objective(best[row].double().exp(), *image)
        gap = max(gap, image_objective(fused[row].double().exp(), *image) - least)
        taken, spent = STEPS_AT_MOST, float("inf")
        for step in (32.0, 16.0):

            def is_near(q: Tensor, image: tuple = image, least: float = least) -> bool:
                return image_objective(q, *image) - least < GAP

            start = time.perf_counter()
            with suppress(RuntimeError):
                _, taken = gradient_descent_fusion(
                    *image, is_done=every(50, is_near), step=step, max_steps=taken
                )
            spent = min(spent, time.perf_counter() - start)
        steps.append(taken)
        seconds += spent
    print(f"    gradient descent: {steps} steps (at most {STEPS_AT_MOST})")
    return len(rows) / seconds, gap


def every(steps: int, question: Callable[[Tensor], bool]) -> Callable[[Tensor], bool]:
    """Ask only at each of so many steps; the answer between is no."""
    counter = count(1)
    return lambda q: next(counter) % steps == 0 and question(q)


def measure_small(n: int, repeats: int) -> None:
    sizes = torch.linspace(50, 100, 20).long().tolist()
    problem = draw_problem(4096, 1000, sizes, n)
    counts = problem.active.sum(dim=1)
    print(
        f"1,000 classes, 20 specialists of 50 to 100, 4,096 images, n={n}: {counts.float().mean():.1f} active "
        f"(at most {counts.max()}), {len(problem.active.unique(dim=0))} different active sets"
    )
    network = build_model("cnn", {"widths": [32, 64, 128]}, (1, 32, 32), 1000).eval()
    pixels = torch.randn(4096, 1, 32, 32)

    @torch.inference_mode()
    def forward() -> None:
        for batch in pixels.split(64):  # 64 was the fastest of 64, 256, 512, 4096
            network(batch)

    calls = {
        "fuse": lambda: fuse(*problem),
        "fuse, reverse": lambda: fuse(*problem, direction="reverse"),
        "forward pass": forward,
    }
    best = side_by_side(calls, repeats)
    for name, seconds in best.items():
        print(f"    {name:14s} {1e3 * seconds:8.0f} ms   {4096 / seconds:10.0f} images/s")
    rate, gap = descend(problem, fuse(*problem, tolerance=1e-10), fuse(*problem))
    print(f"    gradient descent {rate:.2f} images/s; fuse is {4096 / best['fuse'] / rate:.0f} times as fast")
    print(
        f"    fuse / forward pass = {best['fuse'] / best['forward pass']:.2f}; J above the least: {gap:.1e}"
    )


def measure_large(n: int, repeats: int) -> None:
    for images in (256, 1024):
        problem = draw_problem(images, 15_000, [300] * 61, n)
        counts = problem.active.sum(dim=1)
        with peak_memory() as growth:
            fuse(*problem)
        best = side_by_side({"fuse": lambda: fuse(*problem)}, repeats)["fuse"]  # noqa: B023 - called here
        print(
            f"15,000 classes, 61 specialists of 300, {images} images, n={n}, {counts.float().mean():.1f} active "
            f"(at most {counts.max()}): {images / best:.0f} images/s, "
            f"peak +{growth[0] / 2**20:.0f} MB of which q is {images * 15_000 * 4 / 2**20:.0f} MB"
        )


def side_by_side(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Bytes that the process grew by at most, looked at every millisecond; in the list when the block has ended."""
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would be used again, unseen
    growth, stop, before = [0], Event(), private_memory()

    def watch() -> None:
        while not stop.wait(0.001):
            growth[0] = max(growth[0], private_memory() - before)

    watcher = Thread(target=watch)
    watcher.start()
    yield growth
    stop.set()
    watcher.join()


def private_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()

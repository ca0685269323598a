"""How much faster several workers store a teacher's logits than one, each with one thread.

    python tests/benchmarks/prediction.py --workers 1 2 --samples 8000 --model resnet20

Workers are forked from a process that has imported torch, as those of a Ray cluster are warm; a time is that from the
first fork to the stage's record, loading of model and data included. Each number of workers is measured `--repeats`
times, in turns, and the least of its times counts: others may use the machine as well. The second figure is the
processor time of the busiest worker, which others hardly change: on cores of their own the wall's would follow it. The
files must be the same bytes. Beside them the model's forward passes alone, by as many processes in equal parts: two
processors that are threads of one core give less than twice as much, whoever computes.
"""

import argparse
import os
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas  # noqa: F401 - which pyarrow imports late, a second in each worker
import torch

from raydistill.execution.request import StageRequest, build_request
from raydistill.execution.run_stage import run_stage
from raydistill.models.build import build_model
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.context import claim_attempt
from raydistill.runs.folder import StageFolder


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        draw = np.random.default_rng(0)
        inputs = draw.normal(size=(arguments.samples, 3, 32, 32)).astype(np.float32)
        np.savez(folder / "data.npz", inputs=inputs, labels=draw.integers(10, size=arguments.samples))
        teacher = prepare(folder, arguments, 1, "teacher")
        seconds_of(teacher, 1)  # not in this process, which could not fork with what torch keeps afterwards
        times: dict[int, list[tuple[float, float]]] = {count: [] for count in arguments.workers}
        bare: dict[int, list[float]] = {count: [] for count in arguments.workers}
        payloads = set()
        for _ in range(arguments.repeats):
            for count in arguments.workers:
                request = prepare(folder, arguments, count, "targets")
                times[count].append(seconds_of(request, count))
                place = StageFolder(folder / "runs" / request.folder)
                payloads.add(str(sorted(place.done_record().payload.items())))
                place.forget()
                bare[count].append(bare_seconds(arguments, count))
    assert len(payloads) == 1, "other bytes"
    least = {count: tuple(map(min, zip(*values, strict=True))) for count, values in times.items()}
    first = least[arguments.workers[0]]
    for count, (wall, busiest) in least.items():
        print(
            f"{count} worker(s): wall {wall:6.2f} s, {first[0] / wall:.2f} x; busiest worker {busiest:6.2f} s of"
            f" processor time, {first[1] / busiest:.2f} x; forward passes alone {min(bare[count]):6.2f} s,"
            f" {min(bare[arguments.workers[0]]) / min(bare[count]):.2f} x"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def prepare(folder: Path, arguments: argparse.Namespace, workers: int, name: str) -> StageRequest:
    stages = {
        "teacher": {
            "stage": "train",
            "model": {"name": arguments.model},
            "epochs": 1,
            "transfer": {"fraction": 0.02},
        },
        "targets": {
            "stage": "predict_targets",
            "teacher": "teacher",
            "batch_size": arguments.batch_size,
            "resources": {"workers": workers},
        },
    }
    task = {"name": "tensors", "file": str(folder / "data.npz")}
    plan = Plan.model_validate({"name": "p", "task": task, "stages": stages})
    graph = order_stages(plan)
    request = build_request(graph.nodes[name], graph, plan.task, folder / "runs", attempt=uuid.uuid4().hex)
    place = StageFolder(folder / "runs" / request.folder)
    place.create(graph.nodes[name].identity)
    claim_attempt(place, request.attempt)
    return request


def seconds_of(request: StageRequest, workers: int) -> tuple[float, float]:
    """From the first fork until all workers have ended; and the most processor time that one of them took."""
    seconds, busiest, failed = in_processes(
        lambda rank: run_stage(request, rank=rank, world=workers).status == "done", workers
    )
    if failed:
        record = StageFolder(Path(request.root) / request.folder).record()
        raise SystemExit(f"`{request.name}` failed on {workers} worker(s): {record and record.error}")
    return seconds, busiest


def bare_seconds(arguments: argparse.Namespace, workers: int) -> float:
    """Of forward passes of all samples, in equal parts."""

    def passes(rank: int) -> bool:
        model = build_model(arguments.model, {}, (3, 32, 32), 10).eval()
        with torch.no_grad():
            for inputs in torch.rand(arguments.samples // workers, 3, 32, 32).split(arguments.batch_size):
                model(inputs)
        return True

    return in_processes(passes, workers)[0]


def in_processes(work: Callable[[int], bool], count: int) -> tuple[float, float, bool]:
    """Seconds until `work` was done in so many new processes, the most processor time of one, whether any failed."""
    started = time.perf_counter()
    children = []
    for rank in range(count):
        if (pid := os.fork()) == 0:
            os._exit(not work(rank))
        children.append(pid)
    ended = [os.wait4(pid, 0) for pid in children]
    seconds = time.perf_counter() - started
    busiest = max(usage.ru_utime + usage.ru_stime for _, _, usage in ended)
    return seconds, busiest, any(status for _, status, _ in ended)


if __name__ == "__main__":
    main()

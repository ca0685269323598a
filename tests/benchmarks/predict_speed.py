"""How fast `distill predict` labels pictures beside the evaluation of the same pictures by the same model.

    python tests/benchmarks/predict_speed.py --samples 2000 --size 320

JPEGs of `--size` lie in folders, in a tar and in Parquet; the model is a small network for 224 x 224. Evaluation is
`logits_in_batches` of the task's test split, as `distill evaluate` reads it, with a worker per processor;
`predict` writes a CSV file. Both begin with the model loaded and torch warm, in turns, `--repeats` times each, and the
least time of each counts: others may use the machine as well. The second figure is processor time, with that of the
processes that decode, which others hardly change.
"""

import argparse
import io
import json
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.scheduler import run_stages
from raydistill.inference.output import write_predictions
from raydistill.inference.predict import predict_batches
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan, build_task
from raydistill.prediction import load_predictor
from raydistill.training.evaluation import logits_in_batches

INPUTS = ("folder", "tar", "parquet")


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = write_pictures(folder / "data", arguments.samples, arguments.size)
        model = trained(folder, arguments.model)
        predictor = load_predictor(model)
        test = build_task(predictor.first.description["task"]).load().test
        assert len(test) == arguments.samples
        inputs = {
            "folder": folder / "data/val",
            "tar": write_tar(folder / "val.tar", files),
            "parquet": write_parquet(folder / "val.parquet", files),
        }
        inputs = {name: inputs[name] for name in arguments.inputs}
        ways: dict[str, Callable[[], object]] = {
            "evaluation": lambda: list(logits_in_batches(predictor.logits, test)),
            **{
                name: lambda place=place: write_predictions(
                    folder / "labels.csv", predict_batches(model, [place])
                )
                for name, place in inputs.items()
            },
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(arguments.repeats):
            for name, way in ways.items():
                started, worked = time.perf_counter(), processor_seconds()
                way()
                times[name].append((time.perf_counter() - started, processor_seconds() - worked))
                print(f"{name}: %.2f s, of processors %.2f s" % times[name][-1], flush=True)
    print(f"{arguments.samples} JPEGs of {arguments.size} x {arguments.size}, {os.cpu_count()} processors")
    for place, kind in enumerate(("wall", "processors")):
        least = {name: min(one[place] for one in found) for name, found in times.items()}
        for name, seconds in least.items():
            print(
                f"{kind:11} {name:11} {seconds:7.2f} s  {arguments.samples / seconds:7.0f} per second "
                f" {least['evaluation'] / seconds:5.2f} of the evaluation's speed  (all: "
                f"{', '.join(f'{one[place]:.2f}' for one in times[name])})"
            )


def processor_seconds() -> float:
    """Of this process and of those that have ended below it."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def write_pictures(folder: Path, count: int, size: int) -> list[Path]:
    """`count` JPEGs to test with, and a few to train with: smooth noise, which compresses as photographs do."""
    draw = np.random.default_rng(0)
    files = []
    for split, number in (("train", 8), ("val", count)):
        for row in range(number):
            file = folder / split / ("ant", "bee")[row % 2] / f"{row:05}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(draw.integers(0, 256, (size // 8, size // 8, 3), np.uint8))
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(file, quality=90)
            files.append(file)
    return sorted(file for file in files if "val" in file.parts)


def trained(folder: Path, model: dict[str, Any]) -> Path:
    task = {"name": "image_folder", "folder": str(folder / "data"), "workers": os.cpu_count() or 1}
    stage = {"stage": "train", "model": model, "epochs": 1, "batch_size": 8}
    plan = Plan.model_validate({"name": "speed", "task": task, "stages": {"model": stage}})
    graph = order_stages(plan)
    run_stages(graph, LocalBackend(), task=plan.task, root=folder / "runs")
    return folder / "runs" / graph.nodes["model"].folder


def write_tar(file: Path, pictures: list[Path]) -> Path:
    with tarfile.open(file, "w") as opened:
        for picture in pictures:
            member = tarfile.TarInfo(picture.name)
            member.size = picture.stat().st_size
            opened.addfile(member, io.BytesIO(picture.read_bytes()))
    return file


def write_parquet(file: Path, pictures: list[Path]) -> Path:
    rows = [{"bytes": picture.read_bytes(), "path": picture.name} for picture in pictures]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), file, row_group_size=256)
    return file


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--model", type=json.loads, default={"name": "cnn", "widths": [8, 16]})
    parser.add_argument("--inputs", nargs="+", choices=INPUTS, default=INPUTS)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()

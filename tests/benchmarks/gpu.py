"""What training costs on a GPU: steps beside a bare loop and a captured one, students that share it, pictures.

    python tests/benchmarks/gpu.py steps     [--student resnet8x4] [--teacher resnet32x4] [--rounds 3]    1 min
    python tests/benchmarks/gpu.py packed    [--shares 1 0.25 0.125] [--replicas 8]                        4 min
    python tests/benchmarks/gpu.py pictures  [--workers 15]                                               1 min

Times are of the wall clock on a quiet machine, and the device is waited for at both ends only. Without a GPU the same
runs on the CPU, and `--small` makes it a matter of seconds: that says whether the benchmark works, nothing else.

One H200, torch 2.11, batches of 64 of 32 x 32, float32, ms a step: bare loop with a live teacher 8.56, ours 8.28; with
stored targets 5.29 and 4.71; the bare step captured as one CUDA graph 4.02 and 2.15: a step of small networks is the
launching of its kernels. Four students on a quarter of it each did 63.5 s of work in 16.9 s. Pictures of 500 x 375,
ResNet-18 at 224 pixels, bfloat16, 15 workers: 2,400 a second, the GPU alone 11,900.

To reach: ours 1.05 times the bare loop; captured 0.50 of it with a live teacher and 0.28 with stored targets (0.35 and
0.25 in bfloat16), and 1.05 of the bare graph; no wait for the device in a step; all bytes equal however it is shared.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.ray_backend import RayBackend
from raydistill.execution.scheduler import Backend, run_stages
from raydistill.methods.supervised import Supervised
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.context import StageContext
from raydistill.runs.folder import METRICS, StageFolder
from raydistill.stages.distill import build_method, setting_of
from raydistill.stages.teachers import live_teacher, open_stored, stored_teacher
from raydistill.stages.training_stage import build_seeded_model
from raydistill.training import device_load, model_files
from raydistill.training.data import Views, build_transfer_set
from raydistill.training.loop import fit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES, BATCH, TEMPERATURE, WARM_UP = 100, 64, 4.0, 20
LIMIT = 1.05
CAPTURED_LIMITS = {"live": 0.50, "stored": 0.28, "live, bfloat16": 0.35, "stored, bfloat16": 0.25}
CROP_AND_FLIP = [{"name": "pad_crop", "padding": 4}, {"name": "flip"}]
FAST = {"precision": "bfloat16", "channels_last": True}
STUDENTS: dict[str, dict[str, Any]] = {
    "stored": {"mode": "stored"},
    "live": {"mode": "live"},
    "live, crop and flip": {"mode": "live", "augment": CROP_AND_FLIP},
    "stored, bfloat16": {"mode": "stored", **FAST},
    "live, bfloat16": {"mode": "live", **FAST},
}
Step = Callable[[Tensor, Tensor, Tensor], None]


def main() -> None:
    arguments = parse_arguments()
    print(f"{torch.cuda.get_device_name() if DEVICE == 'cuda' else 'CPU'}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        arguments.run(arguments, Path(folder))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    steps, packed, pictures = (commands.add_parser(name) for name in ("steps", "packed", "pictures"))
    steps.set_defaults(run=measure_steps)
    packed.set_defaults(run=measure_packing)
    packed.add_argument("--shares", type=float, nargs="+", default=[1, 0.25, 0.125])
    packed.add_argument("--replicas", type=int, default=8)
    pictures.set_defaults(run=measure_pictures)
    pictures.add_argument("--workers", type=int, default=15)
    for command in (steps, packed, pictures):
        command.add_argument("--student", default="resnet8x4")
        command.add_argument("--teacher", default="resnet32x4")
        command.add_argument("--rounds", type=int, default=3)
        command.add_argument("--small", action="store_true", help="as little work as there can be")
    return parser.parse_args()


def write_images(path: Path, samples: int, side: int = 32) -> None:
    """Noise over a picture of each class, so that there is something to learn; a tenth more to test on."""
    draw = np.random.default_rng(0)
    labels = draw.integers(CLASSES, size=samples + samples // 10)
    means = draw.integers(256, size=(CLASSES, 3, side, side))
    noise = draw.integers(180, size=(len(labels), 3, side, side))
    inputs = np.clip(0.3 * means[labels] + noise, 0, 255).astype(np.uint8)
    np.savez(path, inputs=inputs, labels=labels, split=np.where(np.arange(len(labels)) < samples, 0, 2))


def run_plan(graph: Graph, plan: Plan, root: Path, backend: Backend) -> float:
    """Seconds that all stages took together."""
    started = time.perf_counter()
    states = run_stages(graph, backend, task=plan.task, root=root)
    assert {state.status for state in states.values()} == {"done"}, states
    return time.perf_counter() - started


# Steps


class Clock:
    """Seconds of a step, from the end of the first `WARM_UP` ones on."""

    def __init__(self, steps: int) -> None:
        self.warm_up, self.steps, self.began = min(WARM_UP, steps // 2), 0, 0.0

    def __call__(self) -> bool:
        """A step is done, and nobody asks to stop."""
        self.steps += 1
        if self.steps == self.warm_up:
            wait_for_device()
            self.began = time.perf_counter()
        return False

    def seconds_per_step(self) -> float:
        wait_for_device()
        return (time.perf_counter() - self.began) / (self.steps - self.warm_up)


def wait_for_device() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@dataclass
class Bench:
    """A finished teacher with its targets, and students to train of it."""

    root: Path
    plan: Plan
    graph: Graph
    steps: int
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.data = self.plan.task.load()
        self.names = dict(
            zip(STUDENTS, [name for name in self.plan.stages if name != "teacher"], strict=True)
        )

    def context(self, name: str) -> StageContext:
        """What a stage receives, with a new folder and a clock that starts."""
        node, self.clock = self.graph.nodes[name], Clock(self.steps)
        reads = {read: self.graph.nodes[read].folder for read in node.reads}
        folder = StageFolder(Path(tempfile.mkdtemp(dir=self.root)))
        identity = self.graph.task
        return StageContext(
            name,
            folder,
            self.root,
            self.plan.task,
            reads,
            device=DEVICE,
            should_stop=self.clock,
            task_identity=identity,
        )

    def fit(self, student: str, *, is_taught: bool = True, capture: str = "off") -> float:
        """Seconds of a step of ours."""
        name = self.names[student]
        context, config = self.context(name), self.graph.nodes[name].config.replace(capture=capture)
        model = build_seeded_model(config.student, self.data, config, context)
        views = Views(tuple(config.augment), 0, None)
        transfer = build_transfer_set(
            self.data, config.transfer, views, DEVICE, channels_last=config.channels_last
        )
        if not is_taught:
            fit(model, Supervised(), transfer, None, config, context)
            return self.clock.seconds_per_step()
        method = build_method(
            config, setting_of(config, self.plan.task, model, [], labels=transfer.split.labels)
        )
        if config.mode == "stored":
            teacher = stored_teacher(config, open_stored(config, context), transfer, method)
        else:
            models = [model_files.load(context.input(ref), DEVICE) for ref in config.teachers]
            teacher = live_teacher(config, context, models, method)
        fit(model, method, transfer, None, config, context, teacher)
        return self.clock.seconds_per_step()

    def bare_step(self, teacher: str | None) -> Step:
        """The step that anybody would write: of labels alone, of a `live` teacher, or of `stored` logits."""
        config = self.graph.nodes[self.names["live"]].config
        context = self.context(self.names["live"])
        model = build_seeded_model(config.student, self.data, config, context).train()
        other = model_files.load(context.input("teacher"), DEVICE).model
        stored = torch.randn(len(self.data.train), CLASSES, device=DEVICE).half()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        normalisation = self.data.normalisation.on(DEVICE)
        mean, std = normalisation.mean, normalisation.std

        def step(inputs: Tensor, labels: Tensor, rows: Tensor) -> None:
            inputs = (inputs.float() / 255 - mean) / std
            logits = model(inputs)
            loss = F.cross_entropy(logits, labels)
            if teacher is not None:
                with torch.no_grad():
                    said = other(inputs) if teacher == "live" else stored[rows].float()
                    soft = torch.softmax(said / TEMPERATURE, dim=1)
                own = torch.log_softmax(logits / TEMPERATURE, dim=1)
                loss = 0.1 * loss + 0.9 * TEMPERATURE**2 * F.kl_div(own, soft, reduction="batchmean")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)  # last, so that a graph's gradients are made within it

        return step

    def bare(self, teacher: str | None, *, is_captured: bool = False) -> float:
        """Seconds of a bare step, called or as one CUDA graph that is replayed."""
        step, inputs, labels = (
            self.bare_step(teacher),
            self.data.train.inputs.to(DEVICE),
            self.data.train.labels,
        )
        labels, order = labels.to(DEVICE), torch.randperm(len(labels)).to(DEVICE).split(BATCH)
        if is_captured:
            step = captured(step, (inputs[order[0]], labels[order[0]], order[0]))
        for rows in order:
            step(inputs[rows], labels[rows], rows)
            self.clock()
        return self.clock.seconds_per_step()


def captured(step: Step, first: tuple[Tensor, Tensor, Tensor]) -> Step:
    """The same step as a graph: what it is given is copied to where the captured kernels read."""
    places = tuple(value.clone() for value in first)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # buffers and algorithms are chosen before
            step(*places)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*places)

    def replay(*values: Tensor) -> None:
        for place, value in zip(places, values, strict=True):
            place.copy_(value)
        graph.replay()

    return replay


def measure_steps(arguments: argparse.Namespace, root: Path) -> None:
    device_load.MEASURED = 0  # for which some steps would wait
    steps = 4 if arguments.small else 200
    bench = prepare_steps(arguments, root, steps)
    variants: dict[str, Callable[[], float]] = {
        "bare, no teacher": lambda: bench.bare(None),
        "ours, no teacher": lambda: bench.fit("live", is_taught=False),
        "bare, live": lambda: bench.bare("live"),
        "bare, stored": lambda: bench.bare("stored"),
    }
    variants |= {f"ours, {student}": partial(bench.fit, student) for student in STUDENTS}
    # On a CPU nothing is captured: these rows say there that the benchmark works.
    variants |= {
        f"ours, {student}, captured": partial(bench.fit, student, capture="on") for student in STUDENTS
    }
    if DEVICE == "cuda":
        for teacher in ("live", "stored"):
            variants[f"bare, {teacher}, captured"] = partial(bench.bare, teacher, is_captured=True)
    rounds = [{name: run() for name, run in variants.items()} for _ in range(arguments.rounds)]
    for name in variants:
        print(f"  {name:28} {1e3 * median(times[name] for times in rounds):8.3f} ms a step")
    for teacher in ("no teacher", "live", "stored"):
        ratio = median(times[f"ours, {teacher}"] / times[f"bare, {teacher}"] for times in rounds)
        print(f"  {teacher}: {ratio:.3f} x the bare loop; reach {LIMIT}")
    for student, limit in CAPTURED_LIMITS.items():
        ratio = median(times[f"ours, {student}, captured"] / times["bare, live"] for times in rounds)
        print(f"  {student}, captured: {ratio:.3f} x the bare loop with a live teacher; reach {limit}")
    if DEVICE == "cuda":
        for teacher in ("live", "stored"):
            pairs = [(times[f"{who}, {teacher}, captured"] for who in ("ours", "bare")) for times in rounds]
            ratio = median(ours / bare for ours, bare in pairs)
            print(f"  {teacher}, captured: {ratio:.3f} x the bare graph; reach {LIMIT}")
    for student in ("stored", "live, crop and flip"):
        with host_waits() as waits:
            bench.fit(student)
        print(f"  waits in {steps} steps, {student}: {dict(waits) or 'none'}; looks at the losses are meant")


@contextmanager
def host_waits() -> Iterator[Counter[str]]:
    """Inside, the lines in which the host waits for the device are counted."""
    waits: Counter[str] = Counter()
    if DEVICE == "cpu":
        yield waits
        return
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        yield waits
        torch.cuda.set_sync_debug_mode("default")
    waits.update(f"{warning.filename}:{warning.lineno}" for warning in seen)


def prepare_steps(arguments: argparse.Namespace, root: Path, steps: int) -> Bench:
    write_images(root / "images.npz", steps * BATCH)
    student = {
        "stage": "distill",
        "student": {"name": arguments.student},
        "teachers": ["teacher"],
        "epochs": 1,
        "batch_size": BATCH,
        "optimizer": {"name": "sgd", "learning_rate": 1e-3, "momentum": 0.9},
    }
    teacher = {"stage": "train", "model": {"name": arguments.teacher}, "epochs": 1, "batch_size": 256}
    stages = {"teacher": teacher} | {
        f"student{index}": student | more for index, more in enumerate(STUDENTS.values())
    }
    task = {"name": "tensors", "file": str(root / "images.npz"), "validation_fraction": 0}
    plan = Plan.model_validate({"name": "steps", "task": task, "stages": stages})
    graph = order_stages(plan)
    run_plan(graph.needed_for(["student0"]), plan, root, LocalBackend())
    return Bench(root, plan, graph, steps)


# Packing


def measure_packing(arguments: argparse.Namespace, root: Path) -> None:
    """Students one after another and side by side: what it takes, and whether they are the same."""
    write_images(root / "images.npz", 400 if arguments.small else 10_000)
    made = {}
    backend = RayBackend()
    for share in arguments.shares:
        plan, folder = packed_plan(arguments, root, share), root / f"{share:g}"
        graph = order_stages(plan)
        whole = run_plan(graph, plan, folder, backend)
        records = {
            name: StageFolder(folder / node.folder).done_record() for name, node in graph.nodes.items()
        }
        students = [record for record in records.values() if record.kind == "distill"]
        first = min(record.finished - record.seconds for record in students)
        span = max(record.finished for record in students) - first
        work = sum(record.seconds for record in students)
        print(
            f"  {share:g} of it each: {work:.1f} s of students in {span:.1f} s; all of the plan {whole:.1f} s"
        )
        made[share] = {name: record.payload for name, record in records.items()}
    backend.close()
    alone = made[arguments.shares[0]]
    for share, payload in made.items():
        differ = sum(payload[name] != alone[name] for name in alone)
        print(f"  {share:g}: {differ} of {len(alone)} stages differ from {arguments.shares[0]:g}")


def packed_plan(arguments: argparse.Namespace, root: Path, share: float) -> Plan:
    resources = {"gpus": share if DEVICE == "cuda" else 0, "cpus": min(share, 1)}
    student = {
        "stage": "distill",
        "mode": "live",
        "replicas": arguments.replicas,
        "student": {"name": arguments.student},
        "teachers": ["teacher"],
        "augment": CROP_AND_FLIP,
        "epochs": 1 if arguments.small else 10,
        "batch_size": BATCH,
        "resources": resources,
    }
    teacher = {"stage": "train", "model": {"name": arguments.teacher}, "epochs": 1, "batch_size": 128}
    task = {"name": "tensors", "file": str(root / "images.npz"), "validation_fraction": 0.1}
    stages = {"teacher": teacher | {"resources": resources}, "student": student}
    return Plan.model_validate({"name": "packed", "task": task, "stages": stages})


# Pictures


def write_picture(folder: Path, training: int, number: int) -> None:
    """A JPEG file of 500 x 375 that compresses as a photograph does."""
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(256, size=(12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = draw.integers(-20, 20, size=smooth.shape, dtype=np.int16)
    place = folder / ("train" if number < training else "val") / f"class{number % 10}"
    place.mkdir(parents=True, exist_ok=True)
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(place / f"{number}.jpg", quality=88)


def measure_pictures(arguments: argparse.Namespace, root: Path) -> None:
    count, side = (200, 64) if arguments.small else (4000, 224)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(write_picture, root / "pictures", count), range(count + 300), chunksize=50))
    loader = {"workers": arguments.workers, "image_size": side, "resize": side * 8 // 7}
    task = {"name": "image_folder", "folder": str(root / "pictures"), "validation_fraction": 0, **loader}
    model = {"name": "torchvision", "architecture": "resnet18"}
    teacher = {
        "stage": "train",
        "model": model,
        "augment": [{"name": "flip"}],
        "epochs": 3,
        "batch_size": 128,
    }
    plan = Plan.model_validate({"name": "pictures", "task": task, "stages": {"teacher": teacher | FAST}})
    graph = order_stages(plan)
    run_plan(graph, plan, root, LocalBackend())
    lines = (root / graph.nodes["teacher"].folder / METRICS).read_text().splitlines()
    times = [line["time"] for line in map(json.loads, lines) if "epoch" in line]
    print(f"  ours: {', '.join(f'{count / (b - a):.0f}' for a, b in pairwise(times))} pictures a second")
    theirs = [f"{rate:.0f}" for rate in torchvision_rates(root / "pictures", side, arguments.workers)]
    print(f"  a bare loop with torchvision's loader: {', '.join(theirs)}")
    print(f"  the device alone: {device_rate(side, 2 if arguments.small else 20):.0f}")


def bare_picture_step() -> Callable[[Tensor, Tensor], None]:
    from torchvision.models import resnet18

    model: nn.Module = resnet18(num_classes=10).to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step(inputs: Tensor, labels: Tensor) -> None:
        inputs = inputs.to(DEVICE, non_blocking=True, memory_format=torch.channels_last)
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = model(inputs)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), labels.to(DEVICE, non_blocking=True)).backward()
        optimizer.step()

    return step


def torchvision_rates(folder: Path, side: int, workers: int) -> Iterator[float]:
    """Pictures a second of three epochs with the loader and the transforms of torchvision's own examples."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    parts = [transforms.RandomResizedCrop(side), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    seen = transforms.Compose([*parts, transforms.Normalize((0.5,) * 3, (0.25,) * 3)])
    pictures = datasets.ImageFolder(str(folder / "train"), seen)
    loader = DataLoader(
        pictures,
        128,
        shuffle=True,
        num_workers=workers,
        pin_memory=DEVICE == "cuda",
        persistent_workers=workers > 0,
    )
    step = bare_picture_step()
    for _ in range(3):
        started = time.perf_counter()
        for inputs, labels in loader:
            step(inputs, labels)
        wait_for_device()
        yield len(pictures) / (time.perf_counter() - started)


def device_rate(side: int, steps: int) -> float:
    """Pictures a second of steps on one batch that lies on the device."""
    step, clock = bare_picture_step(), Clock(2 * steps)
    inputs, labels = torch.randn(128, 3, side, side, device=DEVICE), torch.randint(10, (128,), device=DEVICE)
    for _ in range(2 * steps):
        step(inputs, labels)
        clock()
    return 128 / clock.seconds_per_step()


if __name__ == "__main__":
    main()

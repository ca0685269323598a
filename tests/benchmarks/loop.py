"""What the training loop costs beside the work it is for: our code and a bare PyTorch loop, in turns on one machine.

    OMP_NUM_THREADS=1 python tests/benchmarks/loop.py [--models mlp cnn] [--samples 3000] [--rounds 5]

Both sides train the same model on the same tensors in the same order, and end with the same weights. The variants run
in threads that take turns after every step, and each is charged the processor time of its own thread: whatever else
the machine does slows all of them alike. A figure is the median of the rounds' ratios; a round leaves out the first
step, which prepares.

To reach: `fit` 1.03 and a live teacher 1.03 times the bare loop, a step with stored targets 1.05 times a bare
cross-entropy step, `predict_targets` 1.10 times bare forward passes.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.scheduler import run_stages
from raydistill.methods.hinton import Hinton
from raydistill.methods.supervised import Supervised
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.schema import Plan
from raydistill.runs.context import StageContext
from raydistill.runs.folder import StageFolder
from raydistill.stages.predict_targets import predict_targets
from raydistill.stages.teachers import live_teacher, open_stored, stored_teacher
from raydistill.stages.training_stage import build_seeded_model
from raydistill.targets.store import MANIFEST
from raydistill.training import model_files
from raydistill.training.data import TransferSet, Views, build_transfer_set
from raydistill.training.loop import Teacher, fit
from raydistill.training.method import Method

StepDone = Callable[[], None]
Variant = Callable[[StepDone], Any]

BATCH, TEMPERATURE, CLASSES = 100, 4.0, 10
# Small, so that all students stay alike: where more units are zero, pooling is up to a tenth faster.
LEARNING_RATE = 1e-4
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "widths": [1200, 1200]},
    "cnn": {"name": "cnn", "widths": [16, 32]},
}
FIGURES = [
    ("fit", "bare loop", 1.03),
    ("fit, live teacher", "bare loop with teacher", 1.03),
    ("fit, stored targets", "bare loop", 1.05),
    ("predict_targets", "bare forward passes", 1.10),
]


def main() -> None:
    arguments = parse_arguments()
    print(f"{torch.get_num_threads()} thread(s), {arguments.samples} samples")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as temporary:
            bench = prepare(Path(temporary), MODELS[name], arguments.samples)
            check_same_weights(bench)
            rounds = [take_turns(bench.variants()) for _ in range(arguments.rounds)]
            report(name, -(-arguments.samples // BATCH), rounds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def nothing() -> None:
    """A step that nobody waits for."""


@dataclass
class Bench:
    """A finished teacher with its targets, and a student to train in many ways."""

    root: Path
    graph: Graph
    plan: Plan
    transfer: TransferSet
    batch: int = BATCH

    def variants(self) -> dict[str, Variant]:
        return {
            "bare loop": lambda step_done: self.bare(step_done, with_teacher=False),
            "fit": lambda step_done: self.fit(step_done, Supervised()),
            "bare loop with teacher": lambda step_done: self.bare(step_done, with_teacher=True),
            "fit, live teacher": lambda step_done: self.fit(step_done, self.hinton(), "live"),
            "fit, stored targets": lambda step_done: self.fit(step_done, self.hinton(), "stored"),
            "bare forward passes": self.bare_forward_passes,
            "predict_targets": self.predict_targets,
        }

    def context(self, name: str, step_done: StepDone = nothing) -> StageContext:
        """What the stage `name` receives; its folder is new."""
        node = self.graph.nodes[name]
        reads = {read: self.graph.nodes[read].folder for read in node.reads}
        folder = StageFolder(Path(tempfile.mkdtemp(dir=self.root)))

        def should_stop() -> bool:
            step_done()
            return False

        task, identity = self.plan.task, self.graph.task
        return StageContext(
            name, folder, self.root, task, reads, should_stop=should_stop, task_identity=identity
        )

    def student(self) -> nn.Module:
        config = self.graph.nodes["live"].config
        return build_seeded_model(config.student, self.plan.task.load(), config, self.context("live"))

    def hinton(self) -> Method:
        return Hinton(self.graph.nodes["live"].config.method)

    def teacher(self, name: str) -> Teacher:
        config, context = self.graph.nodes[name].config, self.context(name)
        if name == "stored":
            return stored_teacher(config, open_stored(config, context), self.transfer, self.hinton())
        teachers = [model_files.load(context.input(ref)) for ref in config.teachers]
        return live_teacher(config, context, teachers, self.hinton())

    def fit(self, step_done: StepDone, method: Method, teacher: str | None = None) -> nn.Module:
        model, config = self.student(), self.graph.nodes["live"].config
        source = None if teacher is None else self.teacher(teacher)
        fit(model, method, self.transfer, None, config, self.context("live", step_done), source)
        return model

    def bare(self, step_done: StepDone, *, with_teacher: bool) -> nn.Module:
        """The loop that anybody would write."""
        model = self.student()
        teacher = self.teacher_model() if with_teacher else None
        optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9)
        model.train()
        for rows in self.transfer.epoch_order(0, 0).split(self.batch):
            inputs, labels = self.inputs(rows), self.transfer.split.labels[rows]
            logits = model(inputs)
            loss = F.cross_entropy(logits, labels)
            if teacher is not None:
                with torch.no_grad():
                    soft = torch.softmax(teacher(inputs) / TEMPERATURE, dim=1)
                student = torch.log_softmax(logits / TEMPERATURE, dim=1)
                divergence = F.kl_div(student, soft, reduction="batchmean") * TEMPERATURE**2
                loss = 0.9 * divergence + 0.1 * loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step_done()
        return model

    def inputs(self, rows: Tensor) -> Tensor:
        known = self.transfer.normalisation
        return (self.transfer.split.inputs[rows].float() / 255 - known.mean) / known.std

    def teacher_model(self) -> nn.Module:
        return model_files.load(StageFolder(self.root / self.graph.nodes["teacher"].folder)).model

    @torch.no_grad()
    def bare_forward_passes(self, step_done: StepDone) -> None:
        model, kept = self.teacher_model(), []
        for rows in torch.arange(len(self.transfer)).split(500):
            step_done()
            kept.append(model(self.inputs(rows)).half())

    def predict_targets(self, step_done: StepDone) -> None:
        context = self.context("teacher.targets", step_done)
        predict_targets(self.graph.nodes["teacher.targets"].config, context)
        assert (context.folder.path / MANIFEST).exists()


def prepare(
    root: Path,
    model: dict[str, Any],
    samples: int,
    *,
    teacher: dict[str, Any] | None = None,
    shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = CLASSES,
    batch: int = BATCH,
) -> Bench:
    """Store what a teacher says of random pictures: that of the stage `teacher`, or one like the student, trained for
    an epoch."""
    draw = np.random.default_rng(0)
    inputs = draw.integers(256, size=(samples + 100, *shape), dtype=np.uint8)
    split = np.array([0] * samples + [2] * 100)
    np.savez(root / "data.npz", inputs=inputs, labels=draw.integers(classes, size=len(inputs)), split=split)
    shared = {"epochs": 1, "batch_size": batch}
    optimizer = {"name": "sgd", "learning_rate": LEARNING_RATE}
    student = {
        "stage": "distill",
        "student": model,
        "teachers": ["teacher"],
        "optimizer": optimizer,
        **shared,
    }
    plan = Plan.model_validate(
        {
            "name": "benchmark",
            "task": {"name": "tensors", "file": str(root / "data.npz"), "validation_fraction": 0},
            "stages": {
                "teacher": teacher or {"stage": "train", "model": model, **shared},
                "stored": student,
                "live": student | {"mode": "live"},
            },
        }
    )
    graph = order_stages(plan)
    states = run_stages(graph.needed_for(["stored"]), LocalBackend(), task=plan.task, root=root)
    assert {state.status for state in states.values()} == {"done"}
    config = graph.nodes["live"].config
    transfer = build_transfer_set(plan.task.load(), config.transfer, Views(), "cpu")
    return Bench(root, graph, plan, transfer, batch)


def check_same_weights(bench: Bench) -> None:
    """Both sides do the same work, or their times say nothing."""
    plain, taught = (bench.bare(nothing, with_teacher=with_teacher) for with_teacher in (False, True))
    pairs = [
        (bench.fit(nothing, Supervised()), plain, 0.0),
        (bench.fit(nothing, bench.hinton(), "live"), taught, 1e-7),
        (bench.fit(nothing, bench.hinton(), "stored"), taught, 1e-5),
    ]
    for ours, bare, tolerance in pairs:
        for one, other in zip(ours.parameters(), bare.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def take_turns(variants: dict[str, Variant]) -> dict[str, list[float]]:
    """Run all variants at once, one step of each after the other; the seconds of every step of each."""
    runners = [Runner(variant) for variant in variants.values()]
    for number in count():
        waiting = [runner for runner in runners if not runner.is_done]
        if not waiting:
            break
        first = number % len(waiting)
        for runner in waiting[first:] + waiting[:first]:
            runner.run_one_step()
    return {name: runner.seconds for name, runner in zip(variants, runners, strict=True)}


class Runner:
    """A variant in a thread of its own, which waits after every step until it is told to go on."""

    def __init__(self, variant: Variant) -> None:
        self.seconds: list[float] = []
        self.is_done = False
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        threading.Thread(target=self._run, args=[variant], daemon=True).start()

    def run_one_step(self) -> None:
        self._turn.release()
        self._back.acquire()

    def _run(self, variant: Variant) -> None:
        self._turn.acquire()
        self._start = time.thread_time()
        try:
            variant(self._step_done)
        finally:
            self.seconds.append(time.thread_time() - self._start)
            self.is_done = True
            self._back.release()

    def _step_done(self) -> None:
        self.seconds.append(time.thread_time() - self._start)
        self._back.release()
        self._turn.acquire()
        self._start = time.thread_time()


def report(name: str, steps: int, rounds: list[dict[str, list[float]]]) -> None:
    print(f"\n{name}, batches of {BATCH}")
    for ours, bare, limit in FIGURES:
        assert {len(times[ours]) - len(times[bare]) for times in rounds} == {0}  # none ended early
        ratios = [sum(times[ours][1:]) / sum(times[bare][1:]) for times in rounds]
        each = 1000 * median(sum(times[bare][1:]) for times in rounds) / (steps - 1)
        print(
            f"  {ours:20} {median(ratios):6.3f} x {bare:23} ({each:7.3f} ms per {BATCH}); "
            f"rounds {min(ratios):.3f} to {max(ratios):.3f}; reach {limit}"
        )


if __name__ == "__main__":
    main()

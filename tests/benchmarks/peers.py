"""What a step of soft targets costs through `fit` and through the loops of other toolboxes: one pair, side by side.

    OMP_NUM_THREADS=1 python tests/benchmarks/peers.py [--steps 8] [--rounds 3]
        [--repdistiller FOLDER] [--mdistiller FOLDER]

ResNet-32x4 teaches ResNet-8x4 on batches of 64 random pictures of 3 x 32 x 32 with 100 classes, which lie in memory:
whatever a loader of files would cost is left out. Every student begins with the same weights, and all must end with the
same ones. The loops take turns after every step, as in `loop.py`, and each is charged the processor time of its own
thread; the first step is left out. RepDistiller and mdistiller are measured where a checkout of each is named (they are
no packages; what they import has to be installed), with their own networks; torchdistill where it is installed.

To reach: `fit` 1.03 times the bare loop with a live teacher, and below every other loop; with stored targets 0.43.
"""

import argparse
import contextlib
import importlib
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from loop import LEARNING_RATE, TEMPERATURE, Bench, StepDone, nothing, prepare, take_turns
from torch import Tensor, nn

from raydistill.models.build import build_model

Peer = Callable[[Bench, StepDone], nn.Module]

STUDENT, TEACHER = "resnet8x4", "resnet32x4"
BATCH, SHAPE, CLASSES = 64, (3, 32, 32), 100
HARD, SOFT = 0.1, 0.9
BARE, LIVE, STORED = "bare loop with teacher", "fit, live teacher", "fit, stored targets"
LIMITS = {LIVE: 1.03, STORED: 0.43}


def main() -> None:
    arguments = parse_arguments()
    peers = known_peers(arguments)
    print(
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, beside {', '.join(peers) or 'nobody'}"
    )
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare_pair(Path(folder), arguments.steps)
        ours = bench.variants()
        variants = {name: ours[name] for name in (BARE, *LIMITS)}
        variants |= {name: partial(peer, bench) for name, peer in peers.items()}
        with quiet():
            check_same_weights(variants)
            rounds = [take_turns(variants) for _ in range(arguments.rounds)]
    report(rounds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repdistiller", type=Path, help="a checkout of it")
    parser.add_argument("--mdistiller", type=Path, help="a checkout of it")
    return parser.parse_args()


def known_peers(arguments: argparse.Namespace) -> dict[str, Peer]:
    peers: dict[str, Peer] = {}
    for name, peer in (("repdistiller", repdistiller), ("mdistiller", mdistiller)):
        if checkout := getattr(arguments, name):
            sys.path.insert(0, str(checkout))
            peers[name] = peer
    if importlib.util.find_spec("torchdistill"):
        peers["torchdistill"] = torchdistill
    return peers


def prepare_pair(root: Path, steps: int) -> Bench:
    """A teacher whose weights were drawn: how fast it answers does not depend on what it has learned."""
    torch.manual_seed(0)
    teacher = build_model(TEACHER, {}, SHAPE, CLASSES)
    torch.save(teacher.state_dict(), root / "teacher.pth")
    stage = {"stage": "pretrained", "model": {"name": TEACHER, "weights": str(root / "teacher.pth")}}
    return prepare(
        root, {"name": STUDENT}, steps * BATCH, teacher=stage, shape=SHAPE, classes=CLASSES, batch=BATCH
    )


class Batches:
    """The batches of an epoch as a loader yields them: inputs, labels, and which samples they are."""

    def __init__(self, bench: Bench, step_done: StepDone) -> None:
        self.bench, self.step_done = bench, step_done
        self.order = bench.transfer.epoch_order(0, 0).split(bench.batch)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for rows in self.order:
            yield self.bench.inputs(rows), self.bench.transfer.split.labels[rows], rows
            self.step_done()


def alike(peer: nn.Module, own: nn.Module) -> nn.Module:
    """Their network with the weights of ours, which has the same layers in the same order."""
    state = zip(peer.state_dict(), own.state_dict().values(), strict=True)
    peer.load_state_dict(dict(state))
    return peer


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, LEARNING_RATE, momentum=0.9)


def repdistiller(bench: Bench, step_done: StepDone) -> nn.Module:
    """`train_distill` of https://github.com/HobbitLong/RepDistiller."""
    models = importlib.import_module("models.resnet")
    loops, zoo = importlib.import_module("helper.loops"), importlib.import_module("distiller_zoo")
    student = alike(getattr(models, STUDENT)(num_classes=CLASSES), bench.student())
    teacher = alike(getattr(models, TEACHER)(num_classes=CLASSES), bench.teacher_model())
    divergence = zoo.DistillKL(TEMPERATURE)
    options = SimpleNamespace(distill="kd", gamma=HARD, alpha=SOFT, beta=0, print_freq=100)
    loops.train_distill(
        1,
        Batches(bench, step_done),
        [student, teacher],
        [nn.CrossEntropyLoss(), divergence, divergence],
        sgd(student.parameters()),
        options,
    )
    return student


def mdistiller(bench: Bench, step_done: StepDone) -> nn.Module:
    """`BaseTrainer.train_iter` of https://github.com/megvii-research/mdistiller, without its bar and its files."""
    models = importlib.import_module("mdistiller.models.cifar.resnet")
    trainers = importlib.import_module("mdistiller.engine.trainer")
    distillers = importlib.import_module("mdistiller.distillers.KD")
    student = alike(getattr(models, STUDENT)(num_classes=CLASSES), bench.student())
    teacher = alike(getattr(models, TEACHER)(num_classes=CLASSES), bench.teacher_model())
    weights = SimpleNamespace(CE_WEIGHT=HARD, KD_WEIGHT=SOFT)
    config = SimpleNamespace(KD=SimpleNamespace(TEMPERATURE=TEMPERATURE, LOSS=weights))
    trainer = object.__new__(trainers.BaseTrainer)
    trainer.distiller = nn.DataParallel(distillers.KD(student, teacher, config)).train()
    trainer.optimizer = sgd(trainer.distiller.module.get_learnable_parameters())
    meter = importlib.import_module("mdistiller.engine.utils").AverageMeter
    meters = {name: meter() for name in ("training_time", "data_time", "losses", "top1", "top5")}
    for batch in Batches(bench, step_done):
        trainer.train_iter(batch, 1, meters)
    return student


def torchdistill(bench: Bench, step_done: StepDone) -> nn.Module:
    """The box and the loop of an epoch as the examples of https://github.com/yoshitomo-matsubara/torchdistill use
    them."""
    distillation = importlib.import_module("torchdistill.core.distillation")
    importlib.import_module("torchdistill.losses.mid_level")
    log = importlib.import_module("torchdistill.misc.log")
    student = bench.student().train()
    logits = {"module_path": ".", "module_io": "output"}
    ends = {f"{who}_{key}": value for who in ("student", "teacher") for key, value in logits.items()}
    loss = {"key": "KDLoss", "kwargs": {**ends, "temperature": TEMPERATURE, "alpha": HARD, "beta": SOFT}}
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LEARNING_RATE, "momentum": 0.9}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
        },
    }
    box = distillation.DistillationBox(
        bench.teacher_model(), student, {}, config, torch.device("cpu"), None, False, 1
    )
    box.train_data_loader = Batches(bench, step_done)
    meters = log.MetricLogger()
    meters.add_meter("lr", log.SmoothedValue(window_size=1, fmt="{value}"))
    box.student_model.train()
    box.teacher_model.eval()
    for inputs, labels, _ in meters.log_every(box.train_data_loader, 100, "epoch"):
        loss = box.forward_process(inputs, labels, None)
        box.post_forward_process(loss)
        meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
    return student


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the toolboxes print; where there is no GPU, what is sent to one stays."""
    logging.disable(logging.INFO)
    stays = patch.object(Tensor, "cuda", lambda tensor, **_: tensor)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as stack:
        if not torch.cuda.is_available():
            stack.enter_context(stays)
        yield
    logging.disable(logging.NOTSET)


def check_same_weights(variants: dict[str, Callable[[StepDone], Any]]) -> None:
    """All do the same work, or their times say nothing."""
    students = [[*variant(nothing).parameters()] for variant in variants.values()]
    for one, other in pairwise(students):
        for left, right in zip(one, other, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def report(rounds: list[dict[str, list[float]]]) -> None:
    (steps,) = {len(times) for times_of in rounds for times in times_of.values()}
    for name in rounds[0]:
        ratios = [sum(times[name][1:]) / sum(times[BARE][1:]) for times in rounds]
        each = 1000 * median(sum(times[name][1:]) for times in rounds) / (steps - 2)
        reach = f"; reach {LIMITS[name]}" if name in LIMITS else ""
        spread = f"rounds {min(ratios):.3f} to {max(ratios):.3f}"
        print(f"  {name:22} {each:8.1f} ms a step, {median(ratios):.3f} x the bare loop; {spread}{reach}")


if __name__ == "__main__":
    main()

"""What a method costs through `fit` beside a loop that somebody would write by hand for it: a row per method.

    OMP_NUM_THREADS=1 python tests/benchmarks/methods.py [--methods hinton semckd] [--samples 1500] [--rounds 3]

Both sides train the same student of the same live teacher on the same batches, from the same weights, and end with the
same ones. They take turns after every step, as in `loop.py`. To reach: 1.05 times the bare loop.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from loop import StepDone, nothing, take_turns
from torch import Tensor, nn

from models.build import build_model
from models.taps import Tapped
from orchestrator.methods.margins import margins
from orchestrator.plan.stage_configs import DistillConfig
from orchestrator.runs.context import StageContext
from orchestrator.runs.folder import StageFolder
from orchestrator.stages.distill import build_method
from orchestrator.stages.teachers import live_teacher
from orchestrator.training.data import TransferSet
from orchestrator.training.loop import fit
from orchestrator.training.method import Features, Method, Setting
from orchestrator.training.model_files import TrainedModel
from tasks.mnist import Mnist
from tasks.splits import TensorSplit

BATCH, SHAPE, CLASSES, LEARNING_RATE = 64, (3, 32, 32), 10, 1e-3
LIMIT = 1.05
TEACHER = {"name": "cnn", "widths": [24, 32, 48], "batch_norm": True}
STUDENT = {"name": "cnn", "widths": [12, 16, 24], "batch_norm": True}
BOTH = {"method": "hinton", "soft_weight": 1, "hard_weight": 1}
LABELS = {"method": "hinton", "soft_weight": 0, "hard_weight": 1}


@dataclass(frozen=True)
class Seen:
    """What a bare step has at hand: logits, labels, and features by name."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    own: Mapping[str, Tensor]
    aims: Mapping[str, Tensor]


BareLoss = Callable[[Seen], Tensor]


def bare_hinton(auxiliary: nn.Module, teacher: nn.Module) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        soft = torch.softmax(seen.teacher / 4, dim=1)
        divergence = F.kl_div(torch.log_softmax(seen.student / 4, dim=1), soft, reduction="batchmean")
        return 16 * divergence + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_semckd(auxiliary: nn.Module, teacher: nn.Module) -> BareLoss:
    """As the release writes it: one pair of stages after the other, losses and attention collected in tables."""
    soft_and_hard = bare_hinton(auxiliary, teacher)
    parts = dict(auxiliary.named_modules())
    prefix = next(path for path in parts if path.endswith("queries")).removesuffix("queries")

    def embed(kind: str, index: int, maps: Tensor) -> Tensor:
        flat = maps.reshape(len(maps), -1)
        hidden = torch.relu(parts[f"{prefix}{kind}.{index}.first"](flat @ flat.t()))
        vector = parts[f"{prefix}{kind}.{index}.second"](hidden)
        return vector / vector.pow(2).sum(1, keepdim=True).sqrt()

    def loss(seen: Seen) -> Tensor:
        own, aims = list(seen.own.values()), list(seen.aims.values())
        queries = torch.stack([embed("queries", index, maps) for index, maps in enumerate(own)], dim=1)
        keys = torch.stack([embed("keys", index, maps) for index, maps in enumerate(aims)], dim=2)
        attention = torch.softmax(torch.bmm(queries, keys), dim=-1)
        distances = torch.zeros_like(attention)
        for s, mine in enumerate(own):
            for t, theirs in enumerate(aims):
                if mine.shape[2] > theirs.shape[2]:
                    source, target = F.adaptive_avg_pool2d(mine, theirs.shape[2:]), theirs
                else:
                    source, target = mine, F.adaptive_avg_pool2d(theirs, mine.shape[2:])
                projected = parts[f"{prefix}projections.{s * len(aims) + t}"](source)
                squares = F.mse_loss(projected, target, reduction="none")
                distances[:, s, t] = squares.reshape(len(squares), -1).mean(-1)
        return soft_and_hard(seen) + (attention * distances).sum() / (len(mine) * len(own))

    return loss


def bare_ofd(auxiliary: nn.Module, teacher: nn.Module) -> BareLoss:
    """As the release writes it: a mask times squares, summed."""
    connectors = next(module for path, module in auxiliary.named_modules() if path.endswith("connectors"))
    thresholds = [
        margins(teacher.get_submodule(f"stage{index}.norm1")).view(1, -1, 1, 1) for index in (1, 2, 3)
    ]

    def loss(seen: Seen) -> Tensor:
        total = F.cross_entropy(seen.student, seen.labels)
        stages = zip(connectors, thresholds, seen.own.values(), seen.aims.values(), strict=True)
        for index, (connector, threshold, mine, theirs) in enumerate(stages):
            source, target = connector(mine), torch.max(theirs, threshold)
            squares = F.mse_loss(source, target, reduction="none")
            partial = squares * ((source > target) | (target > 0)).float()
            total = total + 1e-3 * partial.sum() / len(partial) / 2 ** (2 - index)
        return total

    return loss


@dataclass(frozen=True)
class Row:
    """A method as plans write it, and by hand: a function of the method's own modules and of the teacher."""

    methods: list[dict[str, Any]]
    bare: Callable[[nn.Module, nn.Module], BareLoss]


ROWS = {
    "hinton": Row([BOTH], bare_hinton),
    "semckd": Row([BOTH, {"method": "semckd", "weight": 1}], bare_semckd),
    "ofd": Row([LABELS, {"method": "ofd", "teacher_bn": "running"}], bare_ofd),
}


def main() -> None:
    arguments = parse_arguments()
    print(f"{torch.get_num_threads()} thread(s), {arguments.samples} samples, batches of {BATCH}")
    steps = arguments.samples // BATCH
    with tempfile.TemporaryDirectory() as root:
        for name in arguments.methods:
            bench = Bench(ROWS[name], steps * BATCH, Path(root))
            check_same_weights(bench)
            rounds = [
                take_turns({"fit": bench.fit, "bare loop": bench.bare}) for _ in range(arguments.rounds)
            ]
            report(name, steps, rounds)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


class Bench:
    """A student, its teacher and a method, of which every run starts with a copy."""

    def __init__(self, row: Row, samples: int, root: Path) -> None:
        torch.manual_seed(0)
        self.row, self.root = row, root
        self.student, self.teacher = (
            build_model("cnn", {key: value for key, value in model.items() if key != "name"}, SHAPE, CLASSES)
            for model in (STUDENT, TEACHER)
        )
        self.teacher.eval().requires_grad_(False)
        self.config = DistillConfig.model_validate(
            {
                "stage": "distill",
                "student": STUDENT,
                "teachers": ["teacher"],
                "mode": "live",
                "methods": row.methods,
                "epochs": 1,
                "batch_size": BATCH,
                "optimizer": {"name": "sgd", "learning_rate": LEARNING_RATE},
            }
        )
        setting = Setting(Features(self.student, SHAPE), Features(self.teacher, SHAPE), CLASSES, BATCH)
        self.method = build_method(self.config, setting)
        split = TensorSplit(
            torch.rand(samples, *SHAPE), torch.randint(CLASSES, (samples,)), torch.arange(samples)
        )
        self.transfer = TransferSet(split, torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.3))

    def fit(self, step_done: StepDone) -> nn.Module:
        student, method = copy.deepcopy(self.student), copy.deepcopy(self.method)
        folder = StageFolder(Path(tempfile.mkdtemp(dir=self.root)))

        def should_stop() -> bool:
            step_done()
            return False

        context = StageContext("student", folder, self.root, Mnist(), should_stop=should_stop)
        teacher = live_teacher(self.config, context, [self.trained()], method)
        tapped = Tapped(student, method.student_features)
        fit(tapped if tapped.names else student, method, self.transfer, None, self.config, context, teacher)
        return student

    def trained(self) -> TrainedModel:
        teacher = copy.deepcopy(self.teacher)
        return TrainedModel(teacher, self.transfer.mean, self.transfer.std, (), SHAPE, {})

    def bare(self, step_done: StepDone) -> nn.Module:
        """The loop that anybody would write, with features taken on the way through the stages."""
        student, method = copy.deepcopy(self.student), copy.deepcopy(self.method)
        loss_of = self.row.bare(method, self.teacher)
        parameters = [*student.parameters(), *method.parameters()]
        optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=0.9)
        student.train()
        for rows in self.transfer.epoch_order(0, 0).split(BATCH):
            inputs, labels = self.transfer.split.inputs[rows], self.transfer.split.labels[rows]
            inputs = (inputs - self.transfer.mean) / self.transfer.std
            with torch.no_grad():
                aims = bare_forward(self.teacher, inputs, method)
            own = bare_forward(student, inputs, method)
            loss = loss_of(Seen(own[0], aims[0], labels, own[1], aims[1]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step_done()
        return student


def bare_forward(model: nn.Module, inputs: Tensor, method: Method) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and the stages' features, before their ReLU where the method looks there."""
    is_before = any(name.endswith("_pre") for name in method.student_features)
    features = {}
    for name, part in model.named_children():
        if name.startswith("stage"):
            features[name] = inputs = part[1](part[0](inputs))
            inputs = part[2](inputs)
            if not is_before:
                features[name] = inputs
        else:
            inputs = part(inputs)
    return inputs, features


def check_same_weights(bench: Bench) -> None:
    """Both sides do the same work, or their times say nothing."""
    ours, bare = bench.fit(nothing), bench.bare(nothing)
    moved = 0.0
    pairs = zip(ours.parameters(), bare.parameters(), bench.student.parameters(), strict=True)
    for one, other, start in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        moved = max(moved, (one - start).abs().max().item())
    assert moved > 1e-3


def report(name: str, steps: int, rounds: list[dict[str, list[float]]]) -> None:
    assert {len(times["fit"]) - len(times["bare loop"]) for times in rounds} == {0}  # none ended early
    ratios = [sum(times["fit"][1:]) / sum(times["bare loop"][1:]) for times in rounds]
    each = 1000 * median(sum(times["bare loop"][1:]) for times in rounds) / (steps - 1)
    print(
        f"  {name:10} best {min(ratios):.3f}, median {median(ratios):.3f} x the bare loop ({each:7.2f} ms per step);"
        f" reach {LIMIT}"
    )


if __name__ == "__main__":
    main()

"""What a method costs through `fit` beside a loop that somebody would write by hand for it: a row per method.

    OMP_NUM_THREADS=1 python tests/benchmarks/methods.py [--methods hinton semckd] [--samples 1500] [--rounds 3]

Both sides train the same student of the same live teachers on the same batches, from the same weights, and end with the
same ones. They take turns after every step, as in `loop.py`. To reach: 1.05 times the bare loop.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from bare_losses import (
    BareMethod,
    Seen,
    bare_ae_kd,
    bare_attention,
    bare_bank,
    bare_ca_mkd,
    bare_ca_mkd_features,
    bare_class_attention,
    bare_contrast,
    bare_correlation,
    bare_curriculum,
    bare_dist,
    bare_dkd,
    bare_ebkd,
    bare_exits,
    bare_fsp,
    bare_generation,
    bare_hinton,
    bare_hints,
    bare_information,
    bare_levels,
    bare_mutual,
    bare_neighbours,
    bare_nkd,
    bare_ofd,
    bare_one,
    bare_regression,
    bare_relational,
    bare_review,
    bare_selectivity,
    bare_semckd,
    bare_similarity,
    bare_simkd,
    bare_standardised,
    bare_teacher_labels,
    bare_triplet,
    bare_triplet_logits,
    bare_wsld,
)
from loop import StepDone, nothing, take_turns
from torch import Tensor, nn

from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.online import SelfDistillConfig, TrainBranchesConfig, TrainPeersConfig
from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.methods.mutual import Mutual
from raydistill.methods.one import One
from raydistill.methods.self_distillation import SelfDistillation
from raydistill.methods.simkd import Simkd
from raydistill.models.branched import branch_out
from raydistill.models.build import build_model
from raydistill.models.exits import add_exits
from raydistill.models.reused_head import last_maps, reuse_head
from raydistill.models.taps import Tapped
from raydistill.runs.context import StageContext
from raydistill.runs.folder import StageFolder
from raydistill.stages.distill import build_method
from raydistill.stages.teachers import live_teacher
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.mnist import Mnist
from raydistill.tasks.normalisation import Normalisation
from raydistill.tasks.seeds import SWITCH
from raydistill.tasks.splits import TensorSplit
from raydistill.training.data import TransferSet
from raydistill.training.loop import fit
from raydistill.training.method import Features, Method, MethodContext
from raydistill.training.model_files import TrainedModel
from raydistill.training.peers import Peers

Config = dict[str, Any]
BATCH, SHAPE, CLASSES, LEARNING_RATE = 64, (3, 32, 32), 10, 1e-3
LIMIT = 1.05
SAMPLES = 50_000  # that a method may remember, of which a run sees some
FEW_STEPS = 4  # until weights are compared: what was rounded in another order grows with every one
TEACHER: Config = {"name": "cnn", "widths": [24, 32, 48], "batch_norm": True}
STUDENT: Config = {"name": "cnn", "widths": [12, 16, 24], "batch_norm": True}
STAGES = ["stage1", "stage2", "stage3"]
RESNET: Config = {"name": "resnet8"}  # its last maps are averaged into the classifier
LABELS: Config = {"method": "labels"}
SOFT: Config = {"method": "hinton", "soft_weight": 1, "hard_weight": 0}
BOTH: Config = {"method": "hinton", "soft_weight": 1, "hard_weight": 1}
TRAINING: Config = {
    "epochs": 1,
    "batch_size": BATCH,
    "optimizer": {"name": "sgd", "learning_rate": LEARNING_RATE},
}


class Parts(NamedTuple):
    """What every run starts with copies of; `teachers` may be none."""

    config: TrainingConfig
    model: nn.Module
    method: Method
    teachers: list[nn.Module]


Forward = Callable[[nn.Module, Tensor, Sequence[str]], tuple[Tensor, dict[str, Tensor]]]


def through_stages(
    model: nn.Module, inputs: Tensor, names: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The features on the way through the stages, before and behind each one's ReLU, and the embedding."""
    features = {}
    for name, part in model.named_children():
        if name.startswith("stage"):
            inputs = part[1](part[0](inputs))
            if f"{name}_pre" in names:
                features[f"{name}_pre"] = inputs
            inputs = part[2](inputs)
        else:
            inputs = part(inputs)
        name = "embedding" if name == "flatten" else name
        if name in names:
            features[name] = inputs
        if name == "stage1" and "stem" in names:  # a stage of one convolution is its own first layer
            features["stem"] = inputs
    return inputs, features


def through_parts(model: nn.Module, inputs: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """The features that are what a part of the chain returns."""
    features = {}
    for name, part in model.named_children():
        inputs = part(inputs)
        if name in names:
            features[name] = inputs
    return inputs, features


def through_branches(
    model: nn.Module, inputs: Tensor, names: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    shared = model.trunk(inputs)
    logits = [branch(shared) for branch in model.branches]
    weights = model.gate(shared).unbind(1)
    ensemble = sum(weight.unsqueeze(1) * branch for weight, branch in zip(weights, logits, strict=True))
    return ensemble, dict(zip(names, logits, strict=True))


def through_exits(model: nn.Module, inputs: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    logits, embeddings, end = [], [], inputs
    for name, part in model.network.named_children():
        inputs = part(inputs)
        if name in model.exits:
            *bottleneck, classifier = model.exits[name]
            embeddings.append(nn.Sequential(*bottleneck)(inputs))
            logits.append(classifier(embeddings[-1]))
        if name == "flatten":
            end = inputs
    return inputs, dict(zip(names, [*logits, *embeddings, end], strict=True))


def through_peers(model: nn.Module, inputs: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    logits = [peer(inputs) for peer in model.peers]
    return logits[0], dict(zip(names, logits, strict=True))


@dataclass(frozen=True)
class Row:
    """A method as plans write it, and by hand: its loss, a forward pass that gives features of these names too, and
    which teachers a batch of these rows asks, if not all."""

    parts: Callable[[], Parts]
    bare: BareMethod
    forward: Forward = through_stages
    asked: Callable[[Tensor], Sequence[int]] | None = None


def distilled(
    *methods: Config, student: Config = STUDENT, teacher: Config = TEACHER, teachers: int = 1
) -> Callable[[], Parts]:
    """A student of live teachers."""

    def parts() -> Parts:
        model, *others = (build(config) for config in (student, *[teacher] * teachers))
        for other in others:
            other.eval().requires_grad_(False)
        names = [f"teacher{index}" for index in range(teachers)]
        stage = {
            "stage": "distill",
            "student": student,
            "teachers": names,
            "mode": "live",
            "methods": methods,
        }
        config = DistillConfig.model_validate(stage | TRAINING)
        seen = tuple(Features(other, SHAPE) for other in others)
        single = seen[0] if teachers == 1 else None
        labels = torch.arange(SAMPLES) % CLASSES
        setting = MethodContext(Features(model, SHAPE), single, CLASSES, BATCH, teachers=seen, labels=labels)
        return Parts(config, model, build_method(config, setting), others)

    return parts


def branched() -> Parts:
    """Three branches of a student's last stage that their ensemble teaches."""
    stage = {"stage": "train_branches", "model": STUDENT, "ramp_epochs": 0}
    config = TrainBranchesConfig.model_validate(stage | TRAINING)
    return Parts(config, branch_out([build(STUDENT) for _ in range(3)], SHAPE), One(config), [])


def with_exits() -> Parts:
    """A student whose end teaches an exit behind each earlier stage."""
    config = SelfDistillConfig.model_validate({"stage": "self_distill", "model": STUDENT} | TRAINING)
    model = add_exits(build(STUDENT), SHAPE)
    return Parts(config, model, SelfDistillation(config, len(model.exits)), [])


def reusing() -> Parts:
    """A student that ends in a teacher's classifier."""
    stage = {"stage": "distill", "mode": "live", "student": STUDENT, "teachers": ["teacher"]}
    teacher = build(TEACHER).eval().requires_grad_(False)
    for parameter in teacher.parameters():
        parameter.mul_(3)  # untrained, its maps are too small to move a student in a few steps
    model = reuse_head(build(STUDENT), teacher, SHAPE, 2).hold_reused()
    return Parts(
        DistillConfig.model_validate(stage | TRAINING), model, Simkd(last_maps(teacher, SHAPE)[0]), [teacher]
    )


def peers() -> Parts:
    """A student and a larger network that teach one another."""
    config = TrainPeersConfig.model_validate({"stage": "train_peers", "peers": [STUDENT, TEACHER]} | TRAINING)
    return Parts(config, Peers([build(STUDENT), build(TEACHER)]), Mutual(config), [])


def build(model: Config) -> nn.Module:
    options = {key: value for key, value in model.items() if key != "name"}
    return build_model(model["name"], options, SHAPE, CLASSES)


def drawn(rows: Tensor) -> list[int]:
    """The only teacher that a batch asks where they take turns."""
    return [fold_key(0, SWITCH, 0, int(rows[0])) % 3]


ROWS = {
    "labels": Row(distilled(LABELS, SOFT), bare_hinton),
    "hinton": Row(distilled(BOTH), bare_hinton),
    "hinton, standardised": Row(distilled(BOTH | {"standardize": True}), bare_standardised),
    "dkd": Row(distilled({"method": "dkd"}), bare_dkd),
    "nkd": Row(distilled({"method": "nkd"}), bare_nkd),
    "dist": Row(distilled({"method": "dist"}), bare_dist),
    "multi_level": Row(distilled({"method": "multi_level"}), bare_levels),
    "wsld": Row(distilled({"method": "wsld"}), bare_wsld),
    "curriculum_temperature": Row(distilled({"method": "curriculum_temperature"}), bare_curriculum),
    "teacher_labels": Row(distilled(LABELS, {"method": "teacher_labels"}), bare_teacher_labels),
    "hints": Row(distilled(LABELS, {"method": "hints", "reduction": "mean", "weight": 100}), bare_hints),
    "fsp": Row(distilled({"method": "fsp"}, student=TEACHER), bare_fsp),
    "semckd": Row(distilled(BOTH, {"method": "semckd", "weight": 1}), bare_semckd),
    "ofd": Row(distilled(LABELS, {"method": "ofd", "teacher_bn": "running"}), bare_ofd),
    "triplet": Row(distilled(LABELS, {"method": "triplet"}), bare_triplet),
    "triplet_logits": Row(
        distilled(BOTH | {"temperature": 1}, {"method": "triplet_logits", "negative": "hard", "weight": 2}),
        bare_triplet_logits,
    ),
    "relational": Row(distilled(LABELS, {"method": "relational"}), bare_relational),
    "similarity_preserving": Row(distilled(LABELS, {"method": "similarity_preserving"}), bare_similarity),
    "probabilistic_transfer": Row(distilled(LABELS, {"method": "probabilistic_transfer"}), bare_neighbours),
    "correlation_congruence": Row(distilled(LABELS, {"method": "correlation_congruence"}), bare_correlation),
    "attention_transfer": Row(distilled(LABELS, {"method": "attention_transfer"}), bare_attention),
    "neuron_selectivity": Row(distilled(LABELS, {"method": "neuron_selectivity"}), bare_selectivity),
    "contrastive": Row(distilled(LABELS, {"method": "contrastive"}), bare_contrast),
    "contrastive_bank": Row(distilled(LABELS, {"method": "contrastive_bank"}), bare_bank),
    "class_attention": Row(
        distilled(LABELS, {"method": "class_attention"}, student=RESNET, teacher=RESNET),
        bare_class_attention,
        through_parts,
    ),
    "softmax_regression": Row(
        distilled(LABELS, {"method": "softmax_regression", "weight": 100}, student=RESNET, teacher=RESNET),
        bare_regression,
        through_parts,
    ),
    "review": Row(
        distilled(LABELS, {"method": "review", "teacher_features": STAGES}), bare_review, through_stages
    ),
    "variational_information": Row(
        distilled(LABELS, {"method": "variational_information"}), bare_information
    ),
    "masked_generation": Row(
        distilled(LABELS, {"method": "masked_generation", "masked": 0}), bare_generation
    ),
    "ebkd": Row(distilled({"method": "ebkd"}, teachers=3), bare_ebkd),
    "ca_mkd": Row(distilled({"method": "ca_mkd"}, teachers=3), bare_ca_mkd),
    "ca_mkd, features": Row(
        distilled({"method": "ca_mkd", "feature_weight": 50, "logits_only_epochs": 0}, teachers=3),
        bare_ca_mkd_features,
    ),
    "ae_kd": Row(distilled({"method": "ae_kd"}, teachers=3), bare_ae_kd),
    "teacher_switching": Row(
        distilled({"method": "teacher_switching"}, teachers=3), bare_hinton, asked=drawn
    ),
    "one": Row(branched, bare_one, through_branches),
    "self_distill": Row(with_exits, bare_exits, through_exits),
    "reuse_classifier": Row(reusing, bare_simkd, through_parts),
    "mutual": Row(peers, bare_mutual, through_peers),
}


def main() -> None:
    arguments = parse_arguments()
    print(f"{torch.get_num_threads()} thread(s), {arguments.samples} samples, batches of {BATCH}")
    steps = arguments.samples // BATCH
    with tempfile.TemporaryDirectory() as root:
        for name in arguments.methods:
            check_same_weights(Bench(ROWS[name], FEW_STEPS * BATCH, Path(root)))
            bench = Bench(ROWS[name], steps * BATCH, Path(root))
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
    """A method with all that it trains and learns from, of which every run starts with a copy."""

    def __init__(self, row: Row, samples: int, root: Path) -> None:
        torch.manual_seed(0)
        self.row, self.root = row, root
        self.parts = row.parts()
        split = TensorSplit(
            torch.rand(samples, *SHAPE), torch.randint(CLASSES, (samples,)), torch.arange(samples)
        )
        self.transfer = TransferSet(
            split, Normalisation(torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.3))
        )

    def fit(self, step_done: StepDone) -> nn.Module:
        config, model, method, teachers = copy.deepcopy(self.parts)
        folder = StageFolder(Path(tempfile.mkdtemp(dir=self.root)))

        def should_stop() -> bool:
            step_done()
            return False

        context = StageContext("student", folder, self.root, Mnist(), should_stop=should_stop)
        live = [self.trained(teacher) for teacher in teachers]
        teacher = live_teacher(config, context, live, method) if live else None
        tapped = Tapped(model, method.student_features)
        fit(tapped if tapped.names else model, method, self.transfer, None, config, context, teacher)
        return model

    def trained(self, teacher: nn.Module) -> TrainedModel:
        return TrainedModel(teacher, self.transfer.normalisation, (), SHAPE, {})

    def bare(self, step_done: StepDone) -> nn.Module:
        """The loop that anybody would write, with features taken on the way through the stages."""
        _, model, method, teachers = copy.deepcopy(self.parts)
        loss_of, forward = self.row.bare(method, teachers), self.row.forward
        optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], LEARNING_RATE, momentum=0.9)
        model.train()
        for rows in self.transfer.epoch_order(0, 0).split(BATCH):
            inputs, labels = self.transfer.split.inputs[rows], self.transfer.split.labels[rows]
            inputs = (inputs - self.transfer.normalisation.mean) / self.transfer.normalisation.std
            asked = range(len(teachers)) if self.row.asked is None else self.row.asked(rows)
            with torch.no_grad():
                answers = [forward(teachers[index], inputs, method.teacher_features) for index in asked]
            logits, features = forward(model, inputs, method.student_features)
            members = [list(part) for part in zip(*answers, strict=True)] or [[], []]
            loss = loss_of(Seen(logits, labels, rows, features, *members))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step_done()
        return model


def check_same_weights(bench: Bench) -> None:
    """Both sides do the same work, or their times say nothing."""
    ours, bare = bench.fit(nothing), bench.bare(nothing)
    moved = 0.0
    pairs = zip(ours.parameters(), bare.parameters(), bench.parts.model.parameters(), strict=True)
    for one, other, start in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        moved = max(moved, (one - start).abs().max().item())
    assert moved > 1e-3


def report(name: str, steps: int, rounds: list[dict[str, list[float]]]) -> None:
    assert {len(times["fit"]) - len(times["bare loop"]) for times in rounds} == {0}  # none ended early
    ratios = [sum(times["fit"][1:]) / sum(times["bare loop"][1:]) for times in rounds]
    each = 1000 * median(sum(times["bare loop"][1:]) for times in rounds) / (steps - 1)
    print(
        f"  {name:17} best {min(ratios):.3f}, median {median(ratios):.3f} x the bare loop ({each:7.2f} ms per step);"
        f" reach {LIMIT}"
    )


if __name__ == "__main__":
    main()

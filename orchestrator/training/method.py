"""What a method is: the features it looks at, the modules it trains beside the student, and its named losses."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.kinds.training import OptimizerOptions
from raydistill.models.taps import Output, Tapped
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch

LayersByMethod = Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class Features:
    """A model whose features can be asked for, on inputs of `input_shape`, without the batch."""

    model: nn.Module
    input_shape: tuple[int, ...]
    takes_integers: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the features after each stage of the network, in order."""
        named: dict[str, str] = getattr(self.model, "feature_paths", {})
        return tuple(name for name in named if name.startswith("stage") and name[5:].isdigit())

    def has(self, name: str) -> bool:
        """Whether the network names a feature."""
        return name in getattr(self.model, "feature_paths", {})

    def stages_unless(self, key: str) -> tuple[str, ...]:
        """`stages`; where the network names none, `ValueError` asks for the setting `key`."""
        if not self.stages:
            raise ValueError(f"the model names no stages; say which feature is meant with `{key}`")
        return self.stages

    def shapes(self, names: Sequence[str]) -> list[torch.Size]:
        """Shapes of features, without the batch; `ValueError` names one that the model does not have."""
        with torch.no_grad():
            return [feature.shape[1:] for feature in self.probe(names)]

    def probe(self, names: Sequence[str]) -> list[Tensor]:
        """The features of two inputs in eval mode, with the graph that led to them where gradients are on: numbers from
        -1 to 1, which no ReLU lets pass as they are; tokens are 0."""
        like = next(self.model.parameters(), torch.empty(0, device="cpu"))  # ONNX keeps its own
        if self.takes_integers:
            inputs = torch.zeros(2, *self.input_shape, dtype=torch.int64, device=like.device)
        else:
            count = 2 * math.prod(self.input_shape)
            inputs = torch.linspace(-1, 1, count, dtype=like.dtype, device=like.device)
            inputs = inputs.view(2, *self.input_shape).requires_grad_()
        mode = self.model.training
        tapped = Tapped(self.model.eval(), names)
        try:
            output = tapped(inputs.clone())  # a model may change what it is given in place, but no leaf
        finally:
            tapped.remove_hooks()
            self.model.train(mode)
        return [output.features[name] for name in names]


@dataclass(frozen=True)
class StoredFeatures(Features):
    """The features of a teacher that are stored: `known` has their shapes for a sample."""

    known: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        return name in self.known

    def shapes(self, names: Sequence[str]) -> list[torch.Size]:
        for name in names:
            if name not in self.known:
                stored = ", ".join(f"`{other}`" for other in self.known) or "none"
                raise ValueError(f"`{name}` is not among the features that are stored: {stored}")
        return [torch.Size(self.known[name]) for name in names]


@dataclass(frozen=True)
class MethodContext:
    """The models and numbers that a method is built for. `batch_size` is that of one of `world` workers. `teachers` are
    the live ones; `teacher` is set if there is exactly one, or if features of it are stored. `labels` (N,) are those of
    the transfer set, in the order of `batch.rows`; None where nothing is trained, to see whether the models suit."""

    student: Features | None = None
    teacher: Features | None = None
    num_classes: int = 0
    batch_size: int = 0
    epochs: int = 1
    label_smoothing: float = 0.0
    teachers: tuple[Features, ...] = ()
    labels: Tensor | None = None
    seed: int = 0
    world: int = 1

    def hearing(self, members: Sequence[int]) -> "MethodContext":
        """For a method that hears some of the teachers, by number."""
        teachers = tuple(self.teachers[number] for number in members)
        return replace(self, teachers=teachers, teacher=teachers[0] if len(teachers) == 1 else None)

    def both(self) -> tuple[Features, Features]:
        """The student and its one live teacher, of which the plan makes sure where a method needs features."""
        assert self.student is not None
        assert self.teacher is not None
        return self.student, self.teacher


NO_CONTEXT = MethodContext()


class Method(nn.Module):
    """A training objective, built as `Kind(config, context)`.

    Submodules of a method (connectors, regressors) train with the student, are checkpointed with it, and are left out
    of the exported model. A constructor raises `ValueError` when the student's and the teacher's shapes do not suit.
    Numbers with a fraction among the options are read from `self.config` when they are used: a stage's `changes` give
    it another one.

    What the loop asks of a method, and when:

        once         the attributes below: they are set when the constructor ends, and do not change afterwards
        once         `at_step` with the steps done so far, after a checkpoint was loaded
        an epoch     `change`, before its first batch, in stages that have `changes`; again when a training goes on
        a step       `asked`, with live teachers, before they run; `losses`; `observations`; the gradients: with
                     `accumulate` all of these for each of the step's batches; the optimizer's step; `at_step`

    A method that looks at features (`student_features`) has its `losses` called once more, on the first two samples and
    before the first step, on a copy of itself: what has no gradient then is not trained. On several workers all hooks
    are called on each, and `losses` with that worker's part of the batch. Resuming repeats no step and restores the
    method's parameters and buffers alone: whatever else it remembers has to follow from the step (`at_step`).
    """

    config: Any
    """The options; others while a stage's `changes` hold."""
    student_features: tuple[str, ...] = ()
    """Names of the student's features that the losses look at."""
    teacher_features: tuple[str, ...] = ()
    """Names of the teacher's features that the losses look at."""
    teacher_in_training_mode: bool = False
    """Whether the teacher's batch norms use the statistics of the batch; its own, and its dropout, stay as they are."""

    waits_for_device: bool = False
    """Whether a step asks the device for a number, and so waits until all before it is done."""

    host_work: str = ""
    """What its losses do on the host that is another thing in every step, in words: draw, count, look at files. Its
    steps are launched kernel by kernel where those of other methods are captured (`captured_step.py`)."""

    written_alike: tuple[str, ...] = ()
    """Names of its buffers that all workers write the same to: the main one's are not sent before every step, as those
    of others are."""

    stacks: bool = False
    """Whether its losses are a function of tensors alone, and the hooks below change nothing that they look at: then
    those of several students that learn alike may be computed at once (`stacking.py`)."""

    own_optimizer: tuple[OptimizerOptions, nn.Module] | None = None
    """An optimizer of its own for a module that trains beside the student, such as a generator; schedules leave it."""

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        """Called for every batch: named terms of the loss, each a mean over the batch with its weight applied.

        The loop adds them up and goes backward. All steps name the same terms. Autocast has ended: in stages with
        `precision: bfloat16` logits arrive as bfloat16, as float16 with that, and losses are computed in float32.
        `teacher` is None where the stage has none, and otherwise detached.
        """
        raise NotImplementedError

    @property
    def compared_layers(self) -> Sequence[tuple[str, str]]:
        """Of which student's feature and which teacher's it makes one loss; none where each is compared with all."""
        own, aims = self.student_features, self.teacher_features
        return tuple(zip(own, aims, strict=True)) if len(own) == len(aims) else ()

    def asked(self, batch: Batch, count: int) -> Sequence[int]:
        """Called in every step before the teachers run: which of `count` live ones `losses` will look at.

        The others do not run. Stored targets are read for all, and this is not called.
        """
        return range(count)

    def features_of(self, number: int) -> tuple[str, ...]:
        """Which features of a live teacher, by its number, the losses look at: `teacher_features`."""
        return self.teacher_features

    def undecayed(self) -> Iterable[nn.Parameter]:
        """Of its parameters those without weight decay, whatever the optimizer's: numbers that mean something at 0."""
        return ()

    def change(self, config: TrainingConfig) -> None:
        """Called before an epoch of a stage whose numbers change while it trains, with its config as it is then.

        Also before the rest of an epoch that a resumed training begins with.
        """

    def at_step(self, step: int) -> None:
        """Called where a training begins or goes on, and after every step, with the number of steps done.

        Gradients are still there, the weights have moved. What goes by the step, as an exchange with others, is here;
        what goes by the epoch, as a ramp, reads `batch.epoch`.
        """

    def observations(self) -> dict[str, Tensor]:
        """Called right after `losses`: detached scalars that it came across, by name, in every step the same names.

        They are averaged over the epoch as losses are, and part of no gradient.
        """
        return {}

"""What a method is: the features it looks at, the modules it trains beside the student, and its named losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.kinds.training import OptimizerOptions
from raydistill.models.taps import Output, Tapped
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch


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
        """The features of two inputs of zeros in eval mode, with the graph that led to them where gradients are on."""
        like = next(self.model.parameters())
        dtype = torch.int64 if self.takes_integers else like.dtype
        inputs = torch.zeros(2, *self.input_shape, dtype=dtype, device=like.device)
        inputs.requires_grad_(inputs.is_floating_point())
        mode = self.model.training
        tapped = Tapped(self.model.eval(), names)
        try:
            output = tapped(inputs.clone())  # a model may change what it is given in place, but no leaf
        finally:
            tapped.remove_hooks()
            self.model.train(mode)
        return [output.features[name] for name in names]


@dataclass(frozen=True)
class Setting:
    """What a method is built for. `batch_size` is that of one worker; `teacher` is there for a single live one, and
    `teachers` are all live ones."""

    student: Features | None = None
    teacher: Features | None = None
    num_classes: int = 0
    batch_size: int = 0
    epochs: int = 1
    label_smoothing: float = 0.0
    teachers: tuple[Features, ...] = ()

    def both(self) -> tuple[Features, Features]:
        """The student and its one live teacher, of which the plan makes sure where a method needs features."""
        assert self.student is not None
        assert self.teacher is not None
        return self.student, self.teacher


NO_SETTING = Setting()


class Method(nn.Module):
    """A training objective, built as `Kind(config, setting)`.

    Submodules of a method (connectors, regressors) train with the student, are checkpointed with it, and are left out
    of the exported model. A constructor raises `ValueError` when the student's and the teacher's shapes do not suit.
    Numbers with a fraction among the options are read from `self.config` when they are used: a stage's `changes` give
    it another one.
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

    own_optimizer: tuple[OptimizerOptions, nn.Module] | None = None
    """An optimizer of its own for a module that trains beside the student, such as a generator; schedules leave it."""

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        """Named terms of the loss, each a mean over the batch with its weight applied; the loop adds them up."""
        raise NotImplementedError

    def asked(self, batch: Batch, count: int) -> Sequence[int]:
        """Which of `count` live teachers the losses look at for a batch; the others need not run."""
        return range(count)

    def change(self, config: TrainingConfig) -> None:
        """Called before an epoch of a stage whose numbers change while it trains, with its config as it is then."""

    def at_step(self, step: int) -> None:
        """Called where a training begins or goes on, and after every step, with the number of steps done."""

    def observations(self) -> dict[str, Tensor]:
        """Detached scalars that the last `losses` came across, by name: averaged over the epoch as losses are."""
        return {}

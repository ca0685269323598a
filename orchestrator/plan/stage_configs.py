"""The kinds of stages and what each can be told. The functions that do the work are in `stages/`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.plan.augment_configs import AugmentConfig
from orchestrator.plan.config import (
    Boolean,
    ChosenBy,
    Config,
    Integer,
    ModelRef,
    NonNegative,
    Number,
    Positive,
    Seed,
    TargetsRef,
)
from orchestrator.plan.method_configs import HintonConfig, MethodConfig
from orchestrator.plan.mistakes import located_error
from orchestrator.plan.model_config import ModelConfig
from orchestrator.plan.training_configs import (
    ConstantSchedule,
    EarlyStoppingConfig,
    OptimizerConfig,
    ResourcesConfig,
    ScheduleConfig,
    SgdConfig,
    StepSchedule,
    TransferConfig,
)

Rule = Literal["arithmetic", "geometric"]
Weighting = Literal["uniform", "proportional", "softmax", "logodds", "entropy"]
BatchSize = Annotated[Integer, Field(ge=1, le=1_000_000)]


class StageConfig(Config):
    """What every stage has."""

    resources: ResourcesConfig = ResourcesConfig()


class TrainingConfig(StageConfig):
    """What every stage that trains a model has.

    `max_norm` bounds the Euclidean length of each unit's incoming weights after every step (Srivastava et al.
    2014); `clip_norm` bounds the gradient's norm. `precision: bfloat16` runs the network under autocast; losses
    stay in float32.
    """

    epochs: Annotated[Integer, Field(ge=1, le=1_000_000)]
    batch_size: BatchSize = 128
    optimizer: OptimizerConfig = SgdConfig()
    schedule: ScheduleConfig = ConstantSchedule()
    augment: tuple[AugmentConfig, ...] = ()
    transfer: TransferConfig = TransferConfig()
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    early_stopping: EarlyStoppingConfig | None = None
    clip_norm: Positive | None = None
    max_norm: Positive | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: Boolean = False
    compile: Boolean = False
    seed: Seed = 0
    replicas: Annotated[Integer, Field(ge=1, le=1000)] = 1

    @model_validator(mode="after")
    def _milestones_within_epochs(self) -> "TrainingConfig":
        if isinstance(self.schedule, StepSchedule) and self.schedule.milestones[-1] >= self.epochs:
            raise located_error(
                f"milestone {self.schedule.milestones[-1]} never comes: training ends after {self.epochs}"
                f" epoch{'s' * (self.epochs > 1)}; milestones lie below that",
                "schedule",
                "milestones",
            )
        return self


class TrainConfig(TrainingConfig):
    """Train a model on labels: a teacher, a generalist, a baseline."""

    stage: Literal["train"]
    model: ModelConfig

    @model_validator(mode="after")
    def _labels_are_there(self) -> "TrainConfig":
        if not self.transfer.labelled:
            raise located_error(
                "`train` learns from labels; an unlabelled transfer set needs `distill`", "transfer"
            )
        return self


def _check_some_weight(weights: tuple[float, ...] | str) -> None:
    if isinstance(weights, tuple) and sum(weights) <= 0:
        raise located_error("at least one weight must be above 0", "weights")


class CombineConfig(Config):
    """How the targets of several teachers become one.

    `arithmetic`: mean of the tempered probabilities, formed when read since it depends on T; `geometric`: mean of
    logits. `weights`: numbers, one per teacher, or a weighting: from validation accuracy (`proportional`,
    `softmax` with `scale` in points, `logodds`) or per sample from the teachers' entropy (`entropy`, `scale` in nats).
    """

    rule: Rule = "arithmetic"
    weights: tuple[NonNegative, ...] | Weighting = "uniform"
    scale: Positive = 1.0

    @model_validator(mode="after")
    def _some_weight(self) -> "CombineConfig":
        _check_some_weight(self.weights)
        return self


class DistillConfig(TrainingConfig):
    """Train a student to match its teachers.

    `teachers` are stages that made a model; the graph inserts the stages that store their soft targets. With
    `mode: live` the teachers run inside the student's loop instead. `targets` names a stage of targets that the
    plan defines itself. With stored targets an augmented student needs `views`: how many augmented versions of
    each sample the teachers saw (0: the clean input); epoch e then trains on view e mod `views`.
    """

    stage: Literal["distill"]
    student: ModelConfig
    teachers: tuple[ModelRef, ...] = ()
    targets: TargetsRef | None = None
    mode: Literal["stored", "live"] = "stored"
    combine: CombineConfig = CombineConfig()
    method: MethodConfig = HintonConfig()
    views: Annotated[Integer, Field(ge=0, le=10_000)] = 0
    view_seed: Seed = 0

    @model_validator(mode="after")
    def _teachers_or_targets(self) -> "DistillConfig":
        if self.teachers and self.targets is not None:
            raise located_error("a student has `teachers` or `targets`, not both; keep one", "targets")
        if not self.teachers and self.targets is None:
            raise located_error("nobody teaches: name `teachers`, or stored `targets`", "teachers")
        if self.mode == "live" and self.targets is not None:
            raise located_error("`mode: live` runs `teachers`, not stored `targets`", "mode")
        return self

    @model_validator(mode="after")
    def _views_can_be_replayed(self) -> "DistillConfig":
        if self.mode == "live" and self.views:
            raise located_error("live teachers see every fresh view; `views` is for stored targets", "views")
        if self.mode == "stored" and self.augment and not self.views:
            raise located_error(
                "stored targets cannot follow a random view of every epoch; set `views: 8` (eight stored views per"
                " sample) or `mode: live`",
                "augment",
            )
        if self.views and not self.augment:
            raise located_error("`views` above 0 needs an `augment` that makes them", "views")
        return self

    @model_validator(mode="after")
    def _labels_are_not_hidden(self) -> "DistillConfig":
        if self.method.needs_labels and not self.transfer.labelled:
            raise located_error(
                "an unlabelled transfer set has no hard labels; set `hard_weight: 0`", "method"
            )
        return self


class PredictTargetsConfig(StageConfig):
    """Store a teacher's logits on a transfer set: once on the clean inputs, or on `views` augmented ones."""

    stage: Literal["predict_targets"]
    teacher: ModelRef
    transfer: TransferConfig = TransferConfig()
    augment: tuple[AugmentConfig, ...] = ()
    views: Annotated[Integer, Field(ge=0, le=10_000)] = 0
    view_seed: Seed = 0
    batch_size: BatchSize = 500

    @model_validator(mode="after")
    def _views_and_augment_go_together(self) -> "PredictTargetsConfig":
        if bool(self.views) != bool(self.augment):
            raise located_error("`views` and `augment` go together: give both or neither", "views")
        return self


class CombineTargetsConfig(CombineConfig, StageConfig):
    """Combine stored targets of several teachers into targets of one."""

    stage: Literal["combine_targets"]
    targets: tuple[TargetsRef, ...] = Field(min_length=1)


class EvaluateConfig(StageConfig):
    """Judge a model, or several as an ensemble, on a split."""

    stage: Literal["evaluate"]
    models: tuple[ModelRef, ...] = Field(min_length=1)
    split: Literal["validation", "test"] = "test"
    rule: Rule = "arithmetic"
    weights: tuple[NonNegative, ...] | Literal["uniform"] = "uniform"
    batch_size: BatchSize = 500

    @model_validator(mode="after")
    def _some_weight(self) -> "EvaluateConfig":
        _check_some_weight(self.weights)
        return self


AnyStageConfig = Annotated[
    TrainConfig | DistillConfig | PredictTargetsConfig | CombineTargetsConfig | EvaluateConfig,
    ChosenBy("stage", "stage kind"),
]


@dataclass(frozen=True)
class StageKind:
    """A row of the table of stages.

    `version` is raised by hand when the code changes what the stage produces: it is part of every fingerprint.
    `makes` is what readers of the stage find in its folder.
    """

    config: type[StageConfig]
    run: str
    version: int
    makes: Literal["model", "targets", "judgement"]

    not_identity: ClassVar[frozenset[str]] = frozenset({"resources", "replicas"})


STAGES: dict[str, StageKind] = {
    "train": StageKind(TrainConfig, "orchestrator.stages.train:train", 1, "model"),
    "distill": StageKind(DistillConfig, "orchestrator.stages.distill:distill", 1, "model"),
    "predict_targets": StageKind(
        PredictTargetsConfig, "orchestrator.stages.predict_targets:predict_targets", 1, "targets"
    ),
    "combine_targets": StageKind(
        CombineTargetsConfig, "orchestrator.stages.combine_targets:combine_targets", 1, "targets"
    ),
    "evaluate": StageKind(EvaluateConfig, "orchestrator.stages.evaluate:evaluate", 1, "judgement"),
}

"""What several kinds of stages have in common."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raydistill.kinds.augmentations import AugmentConfig
from raydistill.kinds.training import (
    ChangeConfig,
    ConstantSchedule,
    EarlyStoppingConfig,
    GrowConfig,
    OptimizerConfig,
    ResourcesConfig,
    ScheduleConfig,
    SgdConfig,
    StepSchedule,
    TransferConfig,
)
from raydistill.plan.config import Boolean, Config, Integer, ModelRef, Number, Positive, Seed
from raydistill.plan.mistakes import located_error

BatchSize = Annotated[Integer, Field(ge=1, le=1_000_000)]


class StageConfig(Config):
    """What every stage has."""

    follows: ClassVar[frozenset[str]] = frozenset()
    """Keys under which each copy reads the copy of the same number."""

    shares_work: ClassVar[bool] = False
    """Whether several workers divide the stage among them. Others would each do all of it, and write the same files."""

    resources: ResourcesConfig = ResourcesConfig()
    """What each worker of the stage gets; no part of its identity."""

    @model_validator(mode="after")
    def _one_worker_where_work_is_not_shared(self) -> Self:
        if self.resources.workers > 1 and not self.shares_work:
            raise located_error(
                "workers share trainings alone, and this stage is none: leave `workers` out; `cpus` and `gpus` make it"
                " faster",
                "resources",
                "workers",
            )
        return self

    @property
    def learns_from_test(self) -> bool:
        """Whether the test split decides the result, not only the judgement of it."""
        return False

    def copies(self, stages: Mapping[str, "StageConfig"]) -> int | None:
        """How many numbered nodes of the graph this is; None for a single one without a number.

        Not everything that it reads need be among the plan's `stages`.
        """
        return None

    def numbered(self, index: int) -> Self:
        """The config of one copy, counted from 0."""
        return self

    def siblings(self, index: int) -> tuple[int, ...]:
        """The copies that one copy looks at while they all run; it waits for none of them."""
        return ()


class TrainingConfig(StageConfig):
    """What every stage that trains a model has.

    `initial` names a stage whose weights are the first ones; its model has the same architecture, or with
    `grow: {name: net2net}` a smaller one of the same family.

    `max_norm` bounds the Euclidean length of each unit's incoming weights after every step (Srivastava et al.
    2014); `clip_norm` bounds the gradient's norm. `precision: bfloat16` runs the network under autocast; losses
    stay in float32.

    `until` ends the training early, after that many of its `epochs`, which the schedules still span; its last
    checkpoint stays. `changes` give numbers of the stage other values from some epoch on. A training of which a
    finished stage is the beginning, all else being equal, goes on from there: first `until: 10`, then without.
    """

    shares_work: ClassVar[bool] = True

    initial: ModelRef | None = None
    """A stage whose weights are the first ones; random ones when left out."""
    grow: GrowConfig | None = None
    """How a smaller `initial` network becomes this one."""
    epochs: Annotated[Integer, Field(ge=1, le=1_000_000)]
    """How often the transfer set is seen."""
    until: Annotated[Integer, Field(ge=1)] | None = Field(None, description="epochs; all when left out")
    changes: tuple[ChangeConfig, ...] | None = Field(None, min_length=1)
    """Other values for numbers of the stage from some epoch on."""
    batch_size: BatchSize = 128
    """Samples per step, over all workers."""
    optimizer: OptimizerConfig = SgdConfig()
    """How gradients become steps."""
    schedule: ScheduleConfig = ConstantSchedule()
    """How the learning rate changes."""
    augment: tuple[AugmentConfig, ...] = ()
    """Random changes of the inputs, one after another."""
    transfer: TransferConfig = TransferConfig()
    """Which samples are trained on; the whole training split when left out."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Which part of a label is spread over all classes."""
    early_stopping: EarlyStoppingConfig | None = None
    """When to stop before the last epoch; never when left out."""
    clip_norm: Positive | None = None
    """The longest gradient; longer ones are scaled down. Not at all when left out."""
    max_norm: Positive | None = None
    """The longest vector of a unit's incoming weights; no bound when left out."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's forward and backward pass."""
    channels_last: Boolean = False
    """Lay pictures out channel by channel last, which some machines are faster with."""
    compile: Boolean = False
    """Compile the step with `torch.compile`: seconds at first, less for each step."""
    seed: Seed = 0
    """Decides first weights, order, augmentation and dropout; replicas count on from it."""
    replicas: Annotated[Integer, Field(ge=1, le=1000)] = 1
    """How many are trained alike but for their seeds."""

    @model_validator(mode="after")
    def _grows_from_something(self) -> "TrainingConfig":
        if self.grow is not None and self.initial is None:
            raise located_error("name the stage of the smaller network as `initial`", "grow")
        return self

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

    @model_validator(mode="after")
    def _ends_within_epochs(self) -> "TrainingConfig":
        if self.until is not None and self.until >= self.epochs:
            raise located_error(
                f"the training has {self.epochs} epoch{'s' * (self.epochs > 1)}; end before that, or leave it out",
                "until",
            )
        return self

    @model_validator(mode="after")
    def _changes_in_order(self) -> "TrainingConfig":
        before = 0
        for index, change in enumerate(self.changes or ()):
            place = ("changes", index, "after")
            if change.after <= before:
                raise located_error(
                    "changes stand in order, each after a later epoch than the one before", *place
                )
            if change.after >= self.trained_epochs:
                raise located_error(
                    f"epoch {change.after} is not followed by another: training ends after {self.trained_epochs}",
                    *place,
                )
            before = change.after
        return self

    @property
    def trained_epochs(self) -> int:
        """After how many epochs training ends."""
        return self.until or self.epochs

    def copies(self, stages: Mapping[str, StageConfig]) -> int | None:
        """One per replica."""
        return self.replicas if self.replicas > 1 else None

    def numbered(self, index: int) -> Self:
        """A replica has its own seed."""
        return self.replace(seed=self.seed + index, replicas=1)

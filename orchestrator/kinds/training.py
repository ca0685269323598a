"""How a model is trained: optimizer, schedule, transfer set, resources. Shared by all training stages."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raydistill.plan.config import (
    Boolean,
    ChosenBy,
    Config,
    Duration,
    Integer,
    NonNegative,
    Number,
    Positive,
    Seed,
    SynthesizedRef,
    seconds_of,
    text_like,
)
from raydistill.plan.mistakes import located_error

Memory = Annotated[
    str, text_like(r"[0-9]+(\.[0-9]+)?(MiB|GiB)", "a number with its unit, such as `4GiB` or `500MiB`")
]


class SgdConfig(Config):
    """Stochastic gradient descent with momentum (`torch.optim.SGD`)."""

    name: Literal["sgd"] = "sgd"
    learning_rate: Positive = 0.05
    """Step size, before the schedule."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """What is kept of the last step."""
    nesterov: Boolean = False
    """Look ahead by the momentum before the gradient is taken."""
    weight_decay: NonNegative = 0.0
    """Pulls every weight towards 0, as part of the gradient."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "SgdConfig":
        if self.nesterov and self.momentum == 0:
            raise located_error("`nesterov` needs a `momentum` above 0", "momentum")
        return self


class AdamWConfig(Config):
    """Adam with decoupled weight decay (`torch.optim.AdamW`)."""

    name: Literal["adamw"]
    learning_rate: Positive = 1e-3
    """Step size, before the schedule."""
    betas: tuple[Annotated[Number, Field(ge=0, lt=1)], Annotated[Number, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """What is kept of the running means of the gradient and of its square."""
    weight_decay: NonNegative = 0.0
    """Pulls every weight towards 0, apart from the gradient."""


OptimizerConfig = Annotated[SgdConfig | AdamWConfig, ChosenBy("name", "optimizer")]


class ConstantSchedule(Config):
    """The learning rate never changes."""

    name: Literal["constant"] = "constant"


class StepSchedule(Config):
    """Multiply the learning rate by `factor` after each of the epochs in `milestones`."""

    name: Literal["step"]
    milestones: tuple[Annotated[Integer, Field(ge=1)], ...] = Field(min_length=1)
    """Epochs after each of which the learning rate falls, in order."""
    factor: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    """What the learning rate is multiplied by."""

    @model_validator(mode="after")
    def _increasing(self) -> "StepSchedule":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise located_error("milestones must increase, each above the one before", "milestones")
        return self


class CosineSchedule(Config):
    """Half a cosine from the learning rate down to `final` times it, over the whole training."""

    name: Literal["cosine"]
    final: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """The last learning rate, as a part of the first."""


class OneCycleSchedule(Config):
    """Up to the learning rate during `warmup` of the training, then down by a cosine, momentum unchanged."""

    name: Literal["one_cycle"]
    warmup: Annotated[Number, Field(gt=0, lt=1)] = 0.3
    """Which part of the steps goes up."""


ScheduleConfig = Annotated[
    ConstantSchedule | StepSchedule | CosineSchedule | OneCycleSchedule, ChosenBy("name", "schedule")
]


class TransferConfig(Config):
    """Which part of the training split is used, or of samples that the stages `synthesized` made instead: then the
    training split is not looked at. A class is written by index or by name, in quotes where the name is a number; a
    number that is the name of another class than the one with that index is refused.

    The part is the `fraction` of samples with the smallest hash of (`seed`, sample id), so that a larger
    fraction contains every smaller one.
    """

    synthesized: tuple[SynthesizedRef, ...] | None = Field(None, min_length=1)
    """Stages that made samples; used in place of the training split."""
    fraction: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Which part of the samples."""
    only_classes: tuple[Integer | str, ...] | None = Field(None, min_length=1)
    """Only samples of these classes; all when left out."""
    omit_classes: tuple[Integer | str, ...] = ()
    """No samples of these classes."""
    labelled: Boolean = True
    """Whether the labels may be looked at."""
    seed: Seed = 0
    """Chooses the samples of a `fraction`."""

    @field_validator("synthesized", mode="before")
    @classmethod
    def _one_stage_without_a_list(cls, raw: Any) -> Any:
        return (raw,) if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _one_kind_of_selection(self) -> "TransferConfig":
        if self.only_classes is not None and self.omit_classes:
            raise located_error(
                "`only_classes` and `omit_classes` exclude each other; keep one", "omit_classes"
            )
        return self


class Net2NetConfig(Config):
    """Begin as a smaller network of the family that computes the same (Net2Net, Chen et al. 2016, arXiv 1511.05641).

    For `mlp`, `cnn`, `vgg` and the like: units beyond the smaller network's are copies of random ones of them, whose
    outgoing weights they share; layers that it lacks are the identity. `noise` times the spread of a layer's weights is
    added to what copies read, or they never differ (dropout does it too); with 0 the function is the same to rounding.
    Train on with about a tenth of the learning rate.
    """

    name: Literal["net2net"] = "net2net"
    noise: NonNegative = 0.01
    """On what copied units read, in spreads of their layer's weights."""


GrowConfig = Annotated[Net2NetConfig, ChosenBy("name", "way of growing")]


class ChangeConfig(Config):
    """From the end of epoch `after` on, numbers of the stage have other values: `set: {method.temperature: 3.0}`.

    `optimizer.learning_rate` (the schedule goes on, with another base), `optimizer.weight_decay`,
    `optimizer.momentum`, and the numbers with a fraction of a distillation method: its weights, its temperature, its
    margins. A weight that is 0 stays 0, and no other becomes 0: what training reaches is settled when it begins.
    """

    after: Annotated[Integer, Field(ge=1)]
    """The last epoch with the old values."""
    set: dict[str, Number] = Field(min_length=1)
    """The new values by their paths below the stage."""


class EarlyStoppingConfig(Config):
    """Stop when the validation split has not got better for `patience` epochs, and keep the best epoch's weights.

    The best epoch's weights are kept also when training ran to its last epoch.
    """

    patience: Annotated[Integer, Field(ge=1)]
    """Epochs that may pass without a better one."""
    metric: Literal["accuracy", "loss"] = "accuracy"
    """What of the validation split is looked at."""


class ResourcesConfig(Config):
    """What each worker of a stage needs. Never part of a stage's identity.

    `gpus` may be a fraction, so that several small models share one; left out, a stage takes one GPU where the
    Ray cluster has any. `workers` above one train data-parallel under Ray Train.

    A stage that runs longer than its `timeout` (without waiting for room; each attempt anew) fails: what each of its
    threads was doing then is in its record and in `stacks-rank0.txt` of its folder, its last checkpoint stays. One that
    hangs is ended. With `--local`, and in trials of a search on one worker, it is the driver that hangs: nothing can
    end it but you.
    """

    workers: Annotated[Integer, Field(ge=1)] = 1
    """Processes that train side by side."""
    cpus: Positive = 1.0
    """CPU cores per worker, and its threads."""
    gpus: NonNegative | None = None
    """GPUs per worker, or a fraction of one; one, where there are any, when left out."""
    memory: Memory | None = Field(None, description="such as 4GiB")
    timeout: Duration | None = Field(None, description="such as 90s, 30m or 2h")

    @model_validator(mode="after")
    def _sensible(self) -> "ResourcesConfig":
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise located_error(
                f"{self.gpus:g} GPUs: only a single GPU can be shared; write a whole number", "gpus"
            )
        if self.timeout_seconds == 0:
            raise located_error("no stage ends in no time; leave `timeout` out for none", "timeout")
        return self

    @property
    def timeout_seconds(self) -> float | None:
        """Seconds for an attempt; None: as long as it takes."""
        return None if self.timeout is None else seconds_of(self.timeout)

    @property
    def memory_bytes(self) -> int:
        """Bytes per worker; 0 when nothing was asked for."""
        if self.memory is None:
            return 0
        unit = 2**20 if self.memory.endswith("MiB") else 2**30
        return int(float(self.memory[:-3]) * unit)

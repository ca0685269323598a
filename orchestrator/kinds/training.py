"""How a model is trained: optimizer, schedule, transfer set. Shared by all training stages."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from raydistill.errors import did_you_mean
from raydistill.metrics import METRICS
from raydistill.plan.config import (
    Boolean,
    Config,
    Integer,
    NonNegative,
    Number,
    Positive,
    Seed,
    SynthesizedRef,
)
from raydistill.plan.config_errors import located_error
from raydistill.plan.kind import Choice, Kind
from raydistill.plan.own_metrics import metric_at, module_of
from raydistill.plan.sources import OWN_CODE, source_identity
from raydistill.tasks.pool import Pool
from raydistill.tasks.task import UserPath

if TYPE_CHECKING:
    from raydistill.plan.order import Site
    from raydistill.tasks.task import Task


class OptimizerOptions(Kind):
    """How gradients become steps.

    `implementation` is called as `function(config, parameters)` and returns a `torch.optim.Optimizer`.
    """

    chosen_by = Choice("name", "optimizer", "optimizers", "raydistill.kinds.training:OPTIMIZERS")

    fuses: ClassVar[bool] = False
    """Whether `implementation` takes `fused=True`, as torch's do: then steps are left out on the device."""
    group_keys: ClassVar[tuple[str, ...]] = ()
    """Options that torch's parameter groups have under the same name: they may change while a stage trains."""

    name: str = ""
    """Which one; its options stand beside it."""
    learning_rate: Positive
    """Step size, before the schedule."""


class SgdConfig(OptimizerOptions):
    """Stochastic gradient descent with momentum (`torch.optim.SGD`)."""

    word = "sgd"
    implementation = "raydistill.training.optimizer:sgd"
    fuses = True
    group_keys = ("weight_decay", "momentum")

    learning_rate: Positive = 0.05
    """Step size, before the schedule."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """What is kept of the last step."""
    nesterov: Boolean = False
    """Look ahead by the momentum before the gradient is taken."""
    weight_decay: NonNegative = 0.0
    """Pulls every weight towards 0, as part of the gradient."""
    undecayed: Literal["norms_and_biases"] | None = None
    """`norms_and_biases`: no decay for parameters of one dimension; all are decayed when left out."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "SgdConfig":
        if self.nesterov and self.momentum == 0:
            raise located_error("`nesterov` needs a `momentum` above 0", "momentum")
        return self


class AdamWConfig(OptimizerOptions):
    """Adam with decoupled weight decay (`torch.optim.AdamW`)."""

    word = "adamw"
    implementation = "raydistill.training.optimizer:adamw"
    fuses = True
    group_keys = ("weight_decay",)

    learning_rate: Positive = 1e-3
    """Step size, before the schedule."""
    betas: tuple[Annotated[Number, Field(ge=0, lt=1)], Annotated[Number, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """What is kept of the running means of the gradient and of its square."""
    weight_decay: NonNegative = 0.0
    """Pulls every weight towards 0, apart from the gradient."""
    undecayed: Literal["norms_and_biases"] | None = None
    """`norms_and_biases`: no decay for parameters of one dimension; all are decayed when left out."""


class AdamConfig(AdamWConfig):
    """Adam, whose weight decay is part of the gradient (`torch.optim.Adam`)."""

    word = "adam"
    implementation = "raydistill.training.optimizer:adam"

    weight_decay: NonNegative = 0.0
    """Pulls every weight towards 0, as part of the gradient."""


OPTIMIZERS = (SgdConfig, AdamWConfig, AdamConfig)


class ParameterGroupConfig(Config):
    """Parameters that learn otherwise than the rest. Of several groups that match one, the first counts."""

    match: Annotated[str, Field(min_length=1)]
    """Names of parameters, with `*` for any part: `classifier.*`."""
    lr_scale: Positive = 1.0
    """Times the learning rate, and times what `layer_decay` says."""
    weight_decay: NonNegative | None = None
    """In place of the optimizer's, also where its `undecayed` spares them or `changes` give it another."""

    @model_validator(mode="after")
    def _says_something(self) -> "ParameterGroupConfig":
        if self.lr_scale == 1 and self.weight_decay is None:
            raise located_error("a group that learns as the rest does; write `lr_scale` or `weight_decay`")
        return self


class ScheduleOptions(Kind):
    """How the learning rate changes.

    `implementation` is called as `function(config, optimizer, epochs, steps_per_epoch)` and returns a scheduler of
    torch that is stepped after every step. Where its numbers follow from the learning rate, it has a method
    `rebase(config, learning_rate)`, for when a stage's `changes` give it another.
    """

    chosen_by = Choice("name", "schedule", "schedules", "raydistill.kinds.training:SCHEDULES")

    name: str = ""
    """Which one; its options stand beside it."""

    def check_epochs(self, epochs: int) -> None:
        """`located_error` for what a training of so many epochs never comes to."""


class ConstantSchedule(ScheduleOptions):
    """The learning rate never changes, once a warm-up is over."""

    word = "constant"
    implementation = "raydistill.training.optimizer:constant"

    warmup: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Which part of the steps goes up to the rate in a line; none when left out."""


class StepSchedule(ScheduleOptions):
    """Multiply the learning rate by `factor` after each of the epochs in `milestones`."""

    word = "step"
    implementation = "raydistill.training.optimizer:step"

    milestones: tuple[Annotated[Integer, Field(ge=1)], ...] = Field(min_length=1)
    """Epochs after each of which the learning rate falls, in order."""
    factor: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    """What the learning rate is multiplied by."""
    warmup: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Which part of the steps goes up to the rate in a line; none when left out."""

    @model_validator(mode="after")
    def _increasing(self) -> "StepSchedule":
        if list(self.milestones) != sorted(set(self.milestones)):
            raise located_error("milestones must increase, each above the one before", "milestones")
        return self

    def check_epochs(self, epochs: int) -> None:
        if self.milestones[-1] >= epochs:
            raise located_error(
                f"milestone {self.milestones[-1]} never comes: training ends after {epochs}"
                f" epoch{'s' * (epochs > 1)}; milestones lie below that",
                "milestones",
            )


class CosineSchedule(ScheduleOptions):
    """Half a cosine from the learning rate down to `final` times it, over the whole training, or what a warm-up leaves
    of it."""

    word = "cosine"
    implementation = "raydistill.training.optimizer:cosine"

    final: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """The last learning rate, as a part of the first."""
    warmup: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Which part of the steps goes up to the rate in a line; none when left out."""


class OneCycleSchedule(ScheduleOptions):
    """Up to the learning rate during `warmup` of the training, then down by a cosine, momentum unchanged."""

    word = "one_cycle"
    implementation = "raydistill.training.optimizer:one_cycle"

    warmup: Annotated[Number, Field(gt=0, lt=1)] = 0.3
    """Which part of the steps goes up."""


SCHEDULES = (ConstantSchedule, StepSchedule, CosineSchedule, OneCycleSchedule)


class AlsoConfig(Config):
    """Samples without labels: all pictures in a `folder` and below it, read as the task's own are, or the inputs of a
    `file` (.npz, .npy, .safetensors, .parquet), of the shape and kind of the task's own."""

    folder: UserPath | None = None
    """Pictures at any depth; folders mean nothing. Those in tars (as of `webdataset`) and in Parquet (`image_parquet`)
    are for tasks that decode pictures while training."""
    file: UserPath | None = None
    """Arrays, in place of a folder."""
    inputs: str = "inputs"
    """Array or column of the file with one input per row; a .npy has but one."""

    @model_validator(mode="after")
    def _one_source(self) -> "AlsoConfig":
        if (self.folder is None) == (self.file is None):
            raise located_error("name a `folder` of pictures or a `file` of arrays, one of them")
        return self

    @property
    def pool(self) -> Pool:
        """Where they lie."""
        return Pool(self.folder, self.file, self.inputs)

    def identified(self, values: dict[str, Any]) -> dict[str, Any]:
        """By content: wherever they lie."""
        return {"content": self.pool.content()}

    def check(self, site: "Site") -> None:
        """Samples are there, and somebody can learn from them."""
        if not site.stage(site.name).learns_unlabelled:
            raise site.error(
                "only `distill` and `predict_targets` learn from samples without labels; leave it out"
            )
        try:
            problem = self.pool.missing(site.task)
        except (ValueError, OSError) as error:
            problem = str(error)
        if problem is not None:
            raise site.error(problem)


class TransferConfig(Config):
    """Which part of the training split is used, or of samples that the stages `synthesized` made instead: then the
    training split is not looked at. A class is written by index or by name, in quotes where the name is a number; a
    number that is the name of another class than the one with that index is refused.

    The part is the `fraction` of samples with the smallest hash of (`seed`, sample id), so that a larger
    fraction contains every smaller one.

    Samples without a label are seen by `distill` and `predict_targets`; all other stages leave them out. A student's
    soft losses are over all samples, its hard ones over those of a batch that have a label, and 0 where none has; what
    is mixed has a label where both parts have. `only_classes` leaves them out, `omit_classes` does not.
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
    unlabelled: Boolean | None = None
    """`false` leaves out the samples that have no label, from which a student learns what its teachers say."""
    also: AlsoConfig | None = None
    """Samples without labels beside these: all of them, whatever part of the training split is taken."""
    seed: Seed = 0
    """Chooses the samples of a `fraction`."""

    @field_validator("synthesized", mode="before")
    @classmethod
    def _one_stage_without_a_list(cls, raw: Any) -> Any:
        return (raw,) if isinstance(raw, str) else raw

    @field_validator("unlabelled")
    @classmethod
    def _left_out_or_nothing_said(cls, value: bool | None) -> bool | None:
        return None if value else value  # `true` is the same plan as nothing

    @model_validator(mode="after")
    def _one_kind_of_selection(self) -> "TransferConfig":
        if self.only_classes is not None and self.omit_classes:
            raise located_error(
                "`only_classes` and `omit_classes` exclude each other; keep one", "omit_classes"
            )
        if self.also is not None and (self.synthesized is not None or self.unlabelled is False):
            other = "unlabelled" if self.synthesized is None else "synthesized"
            raise located_error(
                f"`also` adds samples without labels, which `{other}` leaves out; keep one", "also"
            )
        return self

    def may_lack_labels(self, task: "Task") -> bool:
        """Whether some of the samples have no label."""
        if self.also is not None:
            return True
        if self.synthesized is not None or self.unlabelled is False or self.only_classes is not None:
            return False
        return task.unlabelled > 0

    def check(self, site: "Site") -> None:
        """The task has the classes, and some are left."""
        site.check_classes(self.only_classes or (), "only_classes")
        if len(site.check_classes(self.omit_classes, "omit_classes")) >= site.task.num_classes:
            raise site.error("every class is omitted; leave some", "omit_classes")


class GrowthOptions(Kind):
    """How a smaller network becomes a larger one.

    `implementation` is called as `function(config, smaller, larger, seed)` and returns the larger
    one's state, or raises `ValueError`.
    """

    chosen_by = Choice("name", "way of growing", "growing", "raydistill.kinds.training:GROWING")

    name: str = ""
    """Which one; its options stand beside it."""


class Net2NetConfig(GrowthOptions):
    """Begin as a smaller network of the family that computes the same (Net2Net, Chen et al. 2016, arXiv 1511.05641).

    For `mlp`, `cnn`, `vgg` and the like: units beyond the smaller network's are copies of random ones of them, whose
    outgoing weights they share; layers that it lacks are the identity. `noise` times the spread of a layer's weights is
    added to what copies read, or they never differ (dropout does it too); with 0 the function is the same to rounding.
    Train on with about a tenth of the learning rate.
    """

    word = "net2net"
    implementation = "raydistill.training.net2net:net2net"

    noise: NonNegative = 0.01
    """On what copied units read, in spreads of their layer's weights."""


GROWING = (Net2NetConfig,)


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


class FakeQuantizationConfig(Config):
    """Rounding in every training step, as `quantize` will round (Jacob et al. 2018, arXiv 1712.05877).

    Gradients pass as if nothing were rounded; with a teacher this is distillation into int8. Validation and test judge
    the plain network, and the `quantize` stage behind it the integers.
    """

    weight_bits: Annotated[Integer, Field(ge=2, le=8)] = 7
    """Of the weights of convolutions and linear layers, each output by a scale of its own; 7 as `seven_bits` has it."""
    activation_bits: Annotated[Integer, Field(ge=2, le=8)] | None = 8
    """Of the inputs of these layers, by the extremes of each batch; null leaves them."""
    from_epoch: Annotated[Integer, Field(ge=0)] = 0
    """The first epoch, counted from 0, in which is rounded."""


class EmaConfig(Config):
    """The exponential moving average of the weights after every step: it is judged, stored and handed on in place of
    the last weights (arXiv 1703.01780).

    Running statistics of batch norms are averaged alike, counters are copied. The accuracy and the losses of the
    training are those of the weights that learn; every number of `validation` and `test` is the average's. Peers that
    exchange weights while they train exchange those that learn.
    """

    decay: Annotated[Number, Field(gt=0, lt=1)] = 0.999
    """What is kept of the average in a step: it is over about 1 / (1 - decay) steps."""
    warmup: Boolean = True
    """Keep at most (1 + t) / (10 + t) in step t, so that the first weights are soon forgotten."""

    def decay_at(self, step: int) -> float:
        """What is kept of the average in a step, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


class BinaryCrossEntropyConfig(Config):
    """Of the labels, a question of its own for every class: the mean over classes of the cross-entropy of sigmoid(z_c)
    with t_c, in place of that of the softmax ("ResNet strikes back", Wightman et al. 2021, arXiv 2110.00476, where it
    goes with mixup and cutmix).

    t is 1 at the label, in proportion at both labels of a mixed sample, or 1 at each of which there is more than
    `threshold`; then `label_smoothing` ε makes it (1 - ε) t + ε / C. The mean over classes is about C / 2 times smaller
    than a cross-entropy: raise a plain SGD's rate, or `hard_weight` beside a soft loss. Predictions, soft targets and
    `loss` in reports stay those of the softmax of z.
    """

    threshold: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Of a mixed sample, labels of more than this part are all there: 0 as the paper has it, 0.2 as its code; labels
    count in proportion when left out."""


class EarlyStoppingConfig(Config):
    """Stop when the validation split has not got better for `patience` epochs, and keep the best epoch's weights.

    The best epoch's weights are kept also when training ran to its last epoch.
    """

    patience: Annotated[Integer, Field(ge=1)]
    """Epochs that may pass without a better one."""
    metric: str = "accuracy"
    """What of the validation split is looked at: `accuracy`, `loss`, `balanced_accuracy` or any other metric; one of
    your own by its address, as the plan's `metrics` have it."""

    @property
    def metric_name(self) -> str:
        """What the metric is called in a record."""
        return metric_at(self.metric).name if ":" in self.metric else self.metric

    @property
    def own_modules(self) -> tuple[str, ...]:
        """Other code of the metric would keep another epoch."""
        return (module_of(self.metric),) if ":" in self.metric else ()

    def identified(self, values: dict[str, Any]) -> dict[str, Any]:
        """With the code of the user's metric."""
        own = {OWN_CODE: source_identity(self.own_modules)} if self.own_modules else {}
        return super().identified(values) | own

    def check(self, site: "Site") -> None:
        """The metric says something about the stage's model, after every epoch."""
        own = site.own_metrics
        usable = {metric.name: metric for metric in METRICS if metric.better is not None}
        usable |= {address: metric for address, metric in own.items() if metric.better is not None}
        if (metric := usable.get(self.metric)) is None:
            addresses = [address for address, metric in own.items() if metric.name == self.metric]
            hint = f"; write `{addresses[0]}`" if addresses else did_you_mean(self.metric, usable)
            if ":" in self.metric and self.metric not in own:
                hint = "; the plan's `metrics` do not have it: name it there too"
            raise site.error(f"unknown metric `{self.metric}`{hint}", "metric")
        if not metric.every_epoch:
            raise site.error(
                f"`{self.metric}` is computed once, at the end; stop by one that is known after every epoch",
                "metric",
            )
        has_teacher = site.stage(site.name).has_teacher
        if why := metric.why_not(site.num_classes(), has_teacher=has_teacher):
            raise site.error(f"{why}; stop by another metric", "metric")

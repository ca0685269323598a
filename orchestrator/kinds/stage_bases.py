"""What several kinds of stages have in common."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from raydistill.kinds.augmentations import AugmentationOptions
from raydistill.kinds.changes import mistakes_of_changes
from raydistill.kinds.training import (
    BinaryCrossEntropyConfig,
    ChangeConfig,
    ConstantSchedule,
    EarlyStoppingConfig,
    EmaConfig,
    FakeQuantizationConfig,
    GrowthOptions,
    OptimizerOptions,
    ParameterGroupConfig,
    ScheduleOptions,
    SgdConfig,
    TransferConfig,
)
from raydistill.plan.config import (
    Boolean,
    Integer,
    ModelRef,
    NonNegative,
    Number,
    Positive,
    Seed,
    StageRef,
    TargetsRef,
    configs_in,
)
from raydistill.plan.config_errors import located_error, moved
from raydistill.plan.model import ModelConfig, models_in
from raydistill.plan.stage import StageConfig
from raydistill.tasks.task import Task

if TYPE_CHECKING:
    from raydistill.plan.order import Graph, Site


def _on_or_off(raw: Any) -> Any:
    """YAML reads the words as truth values."""
    return {True: "on", False: "off"}[raw] if isinstance(raw, bool) else raw


Precision = Literal["float32", "bfloat16", "float16"]
BatchSize = Annotated[Integer, Field(ge=1, le=1_000_000)]
Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)]


class TargetsConfig(StageConfig):
    """What every stage that makes soft targets is."""

    makes = "targets"

    @property
    def members(self) -> tuple[TargetsRef, ...]:
        """The targets that these are made of; none where they are a model's predictions."""
        return ()

    @property
    def keeps_some(self) -> bool:
        """Whether only some classes of each row are stored."""
        return False

    @property
    def has_logits(self) -> bool:
        """Whether logits are stored."""
        return True

    @property
    def stored_features(self) -> tuple[str, ...]:
        """The features of the teacher that are stored."""
        return ()

    def role(self, *, teaches: bool, has_student: bool) -> str:
        return "targets"


class BalanceConfig(StageConfig):
    """What stages that learn labels can be told of classes with few samples.

    `class_weights` and `logit_adjustment` are about the cross-entropy with the labels alone; a weight multiplies each
    sample's loss (with label smoothing as torch has it), and weights are scaled so that their mean over the samples is
    1. `sampler: balanced` is about all losses: an epoch has as many samples as before, from every class equally many;
    what has no label counts as a class, and a sample that comes again within an epoch comes in the same view.
    `binary_cross_entropy` is another loss with the labels, which the weights are about just as well.
    """

    class_weights: Literal["balanced"] | tuple[NonNegative, ...] | None = Field(
        None, description="`balanced`, or a number per class; all alike when left out"
    )
    sampler: Literal["balanced"] | None = Field(
        None, description="`balanced`: classes come equally often; as they lie when left out"
    )
    logit_adjustment: NonNegative | None = Field(
        None, description="τ: logits + τ · log(share of the class) in training (arXiv 2007.07314)"
    )

    binary_cross_entropy: BinaryCrossEntropyConfig | None = Field(
        None, description="`{}`: one question for every class, in place of the cross-entropy with the labels"
    )

    @model_validator(mode="after")
    def _adjusts_a_softmax(self) -> Self:
        if self.binary_cross_entropy is not None and self.logit_adjustment is not None:
            raise located_error(
                "`logit_adjustment` shifts the logits of a softmax, and `binary_cross_entropy` has none; keep one",
                "logit_adjustment",
            )
        return self

    @model_validator(mode="after")
    def _balanced_once(self) -> Self:
        for key in ("class_weights", "logit_adjustment"):
            if self.sampler is not None and getattr(self, key) is not None:
                raise located_error(
                    f"`sampler: balanced` and `{key}` would correct for the same imbalance twice; keep one",
                    key,
                )
        return self

    def check(self, site: "Site") -> None:
        super().check(site)
        count = site.task.num_classes
        if isinstance(self.class_weights, tuple) and len(self.class_weights) != count:
            raise site.error(
                f"{len(self.class_weights)} weights for {count} classes; write one for each, or `balanced`",
                "class_weights",
            )


class WeightsConfig(StageConfig):
    """What stages of one model have: the file that it begins from may be named beside the model or in it."""

    model_key: ClassVar[str] = "model"
    """Where the model stands."""

    weights: str | None = Field(None, min_length=1, description="file of the model's first weights")
    ignore: tuple[str, ...] | None = Field(None, description="its tensors that stay as drawn, such as `fc.*`")

    @model_validator(mode="before")
    @classmethod
    def _weights_are_the_models(cls, raw: Any) -> Any:
        """Both places are the same plan: from here on they are the model's alone."""
        model = raw.get(cls.model_key) if isinstance(raw, Mapping) else None
        model = {"name": model} if isinstance(model, str) else model
        if not isinstance(model, Mapping):
            return raw
        written = {key: raw[key] for key in ("weights", "ignore") if raw.get(key) is not None}
        for key in written:
            if key in model:
                raise located_error(
                    f"`{key}` stands at the stage and in its `{cls.model_key}`; keep one", key
                )
        rest = {key: value for key, value in raw.items() if key not in written}
        return rest | {cls.model_key: {**model, **written}} if written else raw

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        model = getattr(self, self.model_key)
        if model.weights is not None and getattr(self, "initial", None) is not None:
            raise located_error(
                "the first weights are those of a file (`weights`) or of a stage (`initial`); keep one",
                "initial",
            )
        return self


class TrainingConfig(StageConfig):
    """What every stage that trains a model has.

    `initial` names a stage whose weights are the first ones; its model has the same architecture, or with
    `grow: {name: net2net}` a smaller one of the same family.

    `max_norm` bounds the Euclidean length of each unit's incoming weights after every step (Srivastava et al.
    2014); `clip_norm` bounds the gradient's norm. `precision: bfloat16` runs the network under autocast; losses
    stay in float32. `float16` rounds eight times finer, but its numbers end at 65504 and 6e-8: losses are scaled by a
    factor that doubles after 2000 steps and halves where a gradient overflows, whose step is left out.

    `accumulate: k` makes one step of the optimizer of k batches, for batches that do not fit a device: the gradient is
    that of one batch of all their samples, to rounding, whatever is mixed, smoothed or weighed, and on any number of
    workers; so are schedules, averages and what is counted in steps. Batch norms see one batch at a time, and so do
    losses that compare the samples of a batch with one another.

    `stack` is about `replicas` that would wait for one another: as one batched model in one process they take less time
    where a step costs more Python than arithmetic, and end as they would by themselves, but for rounding. What hinders
    it, or how long steps took, is in the `log.txt` of each.

    `until` ends the training early, after that many of its `epochs`, which the schedules still span; its last
    checkpoint stays. `changes` give numbers of the stage other values from some epoch on. A training of which a
    finished stage is the beginning, all else being equal, goes on from there: first `until: 10`, then without.
    """

    makes = "model"
    resumes_exactly: ClassVar[bool] = True
    """Whether a training that was stopped goes on as if it had not been."""
    judged_samples: ClassVar[str] = ""
    """`package.module:function` of (split, trained, num_classes, config): the part of a split that its model is judged
    by; the whole when left out."""
    shares_work = True
    prepares: ClassVar[str] = ""
    """`package.module:function` of (config, context): all that comes before the first step, as a
    `stages.training_stage.PreparedTraining`. Kinds that say it can be trained stacked."""
    not_identity = StageConfig.not_identity | {"capture", "stack"}
    other_classes = frozenset({"initial"})
    zipped = frozenset({"initial"})

    initial: ModelRef | None = None
    """A stage whose weights are the first ones; random ones when left out."""
    grow: GrowthOptions | None = None
    """How a smaller `initial` network becomes this one."""
    epochs: Annotated[Integer, Field(ge=1, le=1_000_000)]
    """How often the transfer set is seen."""
    until: Annotated[Integer, Field(ge=1)] | None = Field(None, description="epochs; all when left out")
    changes: tuple[ChangeConfig, ...] | None = Field(None, min_length=1)
    """Other values for numbers of the stage from some epoch on."""
    batch_size: BatchSize = 128
    """Samples per step, over all workers."""
    accumulate: Annotated[Integer, Field(ge=1, le=10_000)] | None = None
    """Batches whose gradients make one step; one when left out."""
    optimizer: OptimizerOptions = SgdConfig()
    """How gradients become steps."""
    schedule: ScheduleOptions = ConstantSchedule()
    """How the learning rate changes."""
    augment: tuple[AugmentationOptions, ...] = ()
    """Random changes of the inputs, one after another."""
    transfer: TransferConfig = TransferConfig()
    """Which samples are trained on; the whole training split when left out."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Which part of a label is spread over all classes."""
    ema: EmaConfig | None = None
    """Judge and keep an average of the weights, such as `{decay: 0.999}`; the last weights when left out."""
    early_stopping: EarlyStoppingConfig | None = None
    """When to stop before the last epoch; never when left out."""
    clip_norm: Positive | None = None
    """The longest gradient; longer ones are scaled down. Not at all when left out."""
    max_norm: Positive | None = None
    """The longest vector of a unit's incoming weights; no bound when left out."""
    precision: Precision = "float32"
    """Of the network's forward and backward pass."""
    channels_last: Boolean = False
    """Lay pictures out channel by channel last, which some machines are faster with."""
    compile: Boolean = False
    """Compile the step with `torch.compile`: seconds at first, less for each step."""
    capture: Switch = "auto"
    """Whether steps on a GPU are recorded and replayed as one graph; if that is faster when left out."""
    seed: Seed = 0
    """Decides first weights, order, augmentation and dropout; replicas count on from it."""
    replicas: Annotated[Integer, Field(ge=1, le=1000)] = 1
    """How many are trained alike but for their seeds."""
    stack: Switch = "auto"
    """Whether replicas that would wait for one another are trained as one batched model, with the same numbers but for
    rounding; when left out, on a GPU, if that is faster."""

    @field_validator("accumulate")
    @classmethod
    def _one_or_nothing_said(cls, value: int | None) -> int | None:
        return None if value == 1 else value  # `1` is the same plan as nothing

    @model_validator(mode="after")
    def _grows_from_something(self) -> "TrainingConfig":
        if self.grow is not None and self.initial is None:
            raise located_error("name the stage of the smaller network as `initial`", "grow")
        return self

    @model_validator(mode="after")
    def _milestones_within_epochs(self) -> "TrainingConfig":
        try:
            self.schedule.check_epochs(self.epochs)
        except PydanticCustomError as error:
            raise moved(error, "schedule") from None
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
    def begins_as(self) -> StageRef | None:
        return self.initial

    @property
    def frozen(self) -> tuple[str, ...]:
        """Patterns of the names of parameters that are not trained."""
        return ()

    @property
    def grouped(self) -> tuple[ParameterGroupConfig, ...]:
        """The parameters that learn otherwise than the rest."""
        return ()

    @property
    def rounded(self) -> FakeQuantizationConfig | None:
        """How weights and activations are rounded in training; None when they are not."""
        return None

    @property
    def decayed_by_layer(self) -> float | None:
        """Times the learning rate for each layer before the last; None where all have one rate."""
        return None

    @property
    def samples_per_step(self) -> int:
        """Of how many samples a step of the optimizer is."""
        return self.batch_size * (self.accumulate or 1)

    @property
    def trained_epochs(self) -> int:
        """After how many epochs training ends."""
        return self.until or self.epochs

    @property
    def judged_on(self) -> tuple[str, ...]:
        return ("validation", "test")

    @property
    def sees_transfer(self) -> bool:
        """Whether its models see the task's samples as they are, batch by batch."""
        return True

    @property
    def data_shards(self) -> int:
        """Into how many parts the transfer set is divided, of which each model sees one."""
        return 1

    def trained_models(self, graph: "Graph", task: Task) -> list[tuple[ModelConfig, int]]:
        """The models that it trains, as far as the graph knows them, and their outputs."""
        return [(model, model.num_classes or task.num_classes) for _, model in models_in(self)]

    def changeable(self) -> dict[str, float]:
        """The numbers that may change while it trains, by their paths."""
        keys = ("learning_rate", *self.optimizer.group_keys)
        return {f"optimizer.{key}": getattr(self.optimizer, key) for key in keys}

    def check(self, site: "Site") -> None:
        """Labels fit into the model's outputs; what changes may change."""
        for place, message in mistakes_of_changes(self):
            raise site.error(message, *place)
        for path, model in models_in(self):
            if model.is_exported:
                raise site.error(
                    "a program of a file answers and cannot be trained; it can teach: `{stage: pretrained, model:"
                    " exported, weights: …}`",
                    *path,
                )
        if self.initial is not None:
            beginning = site.stage(self.initial).made_model()
            if beginning is not None and beginning.is_exported:
                raise site.error(
                    f"`{self.initial}` is a program of a file, whose weights fit no network that is trained; it can"
                    " teach",
                    "initial",
                )
        own, wanted = site.num_classes(), site.task.num_classes
        if own < wanted:
            place = next((path for path, _ in models_in(self)), ("model",))
            raise site.error(
                f"{own} outputs are too few for the task's {wanted} classes; leave `num_classes` out",
                *place,
                "num_classes",
            )
        super().check(site)

    def why_alone(self) -> str | None:
        """Why its replicas cannot be trained as one batched model, or should not by themselves, as far as the plan
        tells."""
        tried = self.stack == "auto"
        reasons = (
            (self.stack == "off", "`stack` is off"),
            (not self._is_prepared(), f"`{self.safe_word()}` trains one by one"),
            (self.resources.workers > 1, "several workers share each of them"),
            (self.resources.timeout is not None, "each has a `timeout` of its own"),
            (self.accumulate is not None, "a step is made of several batches (`accumulate`)"),
            (self.precision != "float32", f"the network runs in `{self.precision}`"),
            (self.compile, "compiled steps are of one network (`compile`)"),
            (self.channels_last, "stacked weights have no `channels_last`"),
            (self.rounded is not None, "each rounds its own weights (`fake_quantization`)"),
            (
                tried and self.early_stopping is not None,
                "each may stop early, and its readers would wait for all",
            ),
            (tried and self.resources.memory is not None, "each is given its own `memory`"),
            (
                tried and any(part.own_modules for _, part in configs_in(self)),
                "code of yours may count or draw on the host; if it does not: `stack: on`",
            ),
        )
        return next((reason for holds, reason in reasons if holds), None)

    @classmethod
    def _is_prepared(cls) -> bool:
        """A kind with another implementation than the one that it inherits from prepares in another way, too."""
        origin = next(kind for kind in cls.__mro__ if "implementation" in vars(kind))
        return bool(vars(origin).get("prepares"))

    def num_nodes(self, stages: Mapping[str, StageConfig]) -> int | None:
        """One per replica."""
        return self.replicas if self.replicas > 1 else None

    def for_node(self, index: int) -> Self:
        """A replica has its own seed."""
        return self.replace(seed=self.seed + index, replicas=1)


class PartsConfig(TrainingConfig):
    """What trainings of one model can be told of its parts: which stay as they are, and which learn at other rates.

    `layer_decay` multiplies the learning rate once for every layer between a parameter and the outputs (arXiv
    2106.08254). Layers are the parts of the model in order, such as `stem`, `stage1`, …, `classifier`; in a model that
    names no features a chain or list of modules counts as its entries. What a method trains beside the model learns at
    the whole rate.
    """

    freeze: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of parameters that are not trained, with `*` for any part: `[features.*]`; none when left out. Batch norms
    of these names keep their statistics and normalise by them."""

    parameter_groups: tuple[ParameterGroupConfig, ...] | None = Field(None, min_length=1)
    """Rates and decays of their own for parameters of some names: `[{match: classifier.*, lr_scale: 10}]`."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Times the learning rate for each layer before the last, such as 0.75; one rate for all when left out."""
    fake_quantization: FakeQuantizationConfig | None = Field(
        None, description="`{}`: round in every training step, as `quantize` will; not at all when left out"
    )

    @model_validator(mode="after")
    def _rounds_in_plain_steps(self) -> Self:
        if self.fake_quantization is not None and self.compile:
            raise located_error("steps that round are not compiled; leave it out", "compile")
        return self

    @model_validator(mode="after")
    def _decay_can_be_told(self) -> Self:
        for index, group in enumerate(self.parameter_groups or ()):
            if group.weight_decay is not None and "weight_decay" not in self.optimizer.group_keys:
                raise located_error(
                    f"the optimizer `{self.optimizer.name}` has no `weight_decay`; leave it out",
                    *("parameter_groups", index, "weight_decay"),
                )
        return self

    @property
    def frozen(self) -> tuple[str, ...]:
        return self.freeze or ()

    @property
    def grouped(self) -> tuple[ParameterGroupConfig, ...]:
        return self.parameter_groups or ()

    @property
    def decayed_by_layer(self) -> float | None:
        return self.layer_decay

    @property
    def rounded(self) -> FakeQuantizationConfig | None:
        return self.fake_quantization

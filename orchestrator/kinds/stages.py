"""The kinds of stages and what each can be told. The functions that do the work are in `stages/`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from raydistill.kinds.augmentations import AugmentConfig
from raydistill.kinds.data_free import (
    DistillWithGeneratorConfig,
    RecordStatisticsConfig,
    SynthesizeConfig,
)
from raydistill.kinds.method_options import MethodOptions
from raydistill.kinds.methods import HintonConfig, MethodConfig
from raydistill.kinds.models import ModelConfig
from raydistill.kinds.online import CodistillConfig, TrainBranchesConfig, TrainPeersConfig
from raydistill.kinds.specialists import ConfusionClustersConfig, TrainSpecialistsConfig
from raydistill.kinds.stage_bases import BatchSize, StageConfig, TrainingConfig
from raydistill.kinds.survey import ProbeModelsConfig, SurveyDataConfig
from raydistill.kinds.training import TransferConfig
from raydistill.plan.config import (
    ChosenBy,
    Config,
    Integer,
    ModelRef,
    NonNegative,
    Number,
    Positive,
    Seed,
    SpecialistRef,
    TargetsRef,
)
from raydistill.plan.mistakes import located_error

MOST_TOP_K_CLASSES = 1 << 16  # they are numbered with 16 bits

Rule = Literal["arithmetic", "geometric"]
Weighting = Literal["uniform", "proportional", "softmax", "logodds", "entropy"]


class TrainConfig(TrainingConfig):
    """Train a model on labels: a teacher, a generalist, a baseline."""

    stage: Literal["train"]
    model: ModelConfig
    """What is trained."""

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
    """Mean of probabilities, or of logits."""
    weights: tuple[NonNegative, ...] | Weighting = "uniform"
    """How much each teacher counts."""
    scale: Positive = 1.0
    """How sharply `softmax` and `entropy` weigh: smaller is sharper."""

    @model_validator(mode="after")
    def _some_weight(self) -> "CombineConfig":
        _check_some_weight(self.weights)
        return self


class CommitteeConfig(Config):
    """A generalist and class-cluster specialists that answer as one (arXiv 1503.02531, section 5.4).

    For every sample the specialists are asked whose cluster holds one of the generalist's `active` most probable
    classes (the paper: 1; on kanji 3 was better in every comparison, configs/RESULTS.md); their answers are fused with
    the generalist's by minimising the sum of KL(p ‖ q) over the answers p (`forward`, as in the paper) or of KL(q ‖ p)
    (`reverse`).
    """

    specialists: tuple[SpecialistRef, ...] = Field(min_length=1)
    """Stages of specialists."""
    active: Annotated[Integer, Field(ge=1)] = 3
    """How many of the generalist's first classes call theirs."""
    direction: Literal["forward", "reverse"] = "forward"
    """Of the divergence that the fusion minimises."""


def _check_one_generalist(committee: CommitteeConfig | None, members: Sequence[str], key: str) -> None:
    if committee is not None and len(members) != 1:
        raise located_error(
            f"a committee has one generalist, but `{key}` names {len(members)}; name one", key
        )


class DistillConfig(TrainingConfig):
    """Train a student to match its teachers.

    `teachers` are stages that made a model; the graph inserts the stages that store their soft targets. With
    `mode: live` the teachers run inside the student's loop instead. `targets` names a stage of targets that the
    plan defines itself. With stored targets an augmented student needs `views`: how many augmented versions of
    each sample the teachers saw (0: the clean input); epoch e then trains on view e mod `views`. A `committee`
    adds specialists to the one teacher, the generalist. `methods` sums the losses of several methods.
    """

    stage: Literal["distill"]
    student: ModelConfig
    """The model that is trained."""
    teachers: tuple[ModelRef, ...] = ()
    """Stages whose models teach; one with replicas stands for all of them."""
    targets: TargetsRef | None = None
    """A stage of stored targets, in place of teachers."""
    committee: CommitteeConfig | None = None
    """Specialists who answer with the one teacher."""
    mode: Literal["stored", "live"] = "stored"
    """Targets stored once, or teachers that run in every step."""
    combine: CombineConfig = CombineConfig()
    """How several teachers become one."""
    method: MethodConfig | None = HintonConfig()
    """What is compared with the teachers."""
    methods: tuple[MethodConfig, ...] = ()
    """Several methods whose losses are summed, in place of `method`."""
    views: Annotated[Integer, Field(ge=0, le=10_000)] = 0
    """Augmented versions of each sample that are stored; 0 is the clean input."""
    view_seed: Seed = 0
    """Chooses them."""

    @model_validator(mode="after")
    def _teachers_or_targets(self) -> "DistillConfig":
        if self.teachers and self.targets is not None:
            raise located_error("a student has `teachers` or `targets`, not both; keep one", "targets")
        if not self.teachers and self.targets is None:
            raise located_error("nobody teaches: name `teachers`, or stored `targets`", "teachers")
        if self.mode == "live" and self.targets is not None:
            raise located_error("`mode: live` runs `teachers`, not stored `targets`", "mode")
        if self.committee is not None and self.targets is not None:
            raise located_error("`targets` are made already; a `committee` goes with `teachers`", "committee")
        if self.committee is not None and self.mode == "live":
            raise located_error("a committee teaches through stored targets; leave `mode` out", "mode")
        if self.teachers:
            _check_one_generalist(self.committee, self.teachers, "teachers")
        return self

    @property
    def all_methods(self) -> tuple[MethodOptions, ...]:
        """The methods whose losses are summed: `methods`, or the one `method`."""
        return self.methods if self.method is None else (self.method,)

    @property
    def needs_features(self) -> bool:
        """Whether some method looks at features."""
        return any(method.needs_features or method.needs_member_features for method in self.all_methods)

    @property
    def trains_classifier(self) -> bool:
        """Whether some method of any weight looks at logits; those that need features look at these alone."""
        return any(method.weight > 0 and not method.needs_features for method in self.all_methods)

    @model_validator(mode="before")
    @classmethod
    def _methods_replace_the_default(cls, raw: Any) -> Any:
        is_one = not isinstance(raw, Mapping) or not raw.get("methods")
        return raw if is_one else {"method": None, **raw}

    @model_validator(mode="after")
    def _method_or_methods(self) -> "DistillConfig":
        if bool(self.methods) == (self.method is not None):
            raise located_error("write one `method`, or several as `methods`, not both", "methods")
        names = [method.method for method in self.methods]
        if len(set(names)) < len(names):
            raise located_error("a method is listed twice; give the one its full weight", "methods")
        return self

    @model_validator(mode="after")
    def _features_are_live(self) -> "DistillConfig":
        for method in self.all_methods:
            if (method.needs_features or method.needs_member_features) and self.mode != "live":
                raise located_error(
                    f"`{method.method}` looks at the teacher's features, which are not stored; set `mode: live`",
                    "mode",
                )
            if method.needs_features and len(self.teachers) > 1:
                raise located_error(
                    f"`{method.method}` looks at the features of one teacher; name one", "teachers"
                )
        return self

    @model_validator(mode="after")
    def _one_weighs_the_teachers(self) -> "DistillConfig":
        for method in self.all_methods:
            if method.weighs_teachers and self.combine != CombineConfig():
                raise located_error(
                    f"`{method.method}` weighs the teachers by itself; leave `combine` out, or take `hinton`",
                    "combine",
                )
            if method.weighs_teachers and self.committee is not None:
                raise located_error(
                    f"`{method.method}` weighs several teachers, but a committee answers as one; take `hinton`",
                    "committee",
                )
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
        if not self.transfer.labelled and any(method.needs_labels for method in self.all_methods):
            raise located_error(
                "an unlabelled transfer set has no hard labels; set `hard_weight: 0`, or take a method without labels",
                "methods" if self.methods else "method",
            )
        return self


class PredictTargetsConfig(StageConfig):
    """Store a teacher's logits on a transfer set: once on the clean inputs, or on `views` augmented ones.

    All of them, 2 bytes a class (as differences from the row's largest, so that it does not matter at which level the
    teacher's logits lie); or with `top_k` only the most probable classes of each row, with the mass of all others at
    eight temperatures from 1 to 20, in 4 · top_k + 50 bytes: for label spaces of thousands of classes. A target then
    has the teacher's probabilities for the kept classes and its tail's mass, in equal parts, for the others; between
    1, 1.25, 1.6, 2, 2.8, 4, 8 and 20 the mass is interpolated, to 0.1 % (1 % where logits spread by 20). A student
    reads them as `targets: NAME`, with `method: hinton` at T ≥ 1; several of them can be combined with `rule:
    arithmetic`.
    """

    stage: Literal["predict_targets"]
    teacher: ModelRef
    """Whose logits are stored."""
    transfer: TransferConfig = TransferConfig()
    """On which samples; the whole training split when left out."""
    augment: tuple[AugmentConfig, ...] = ()
    """Random changes of the inputs, one after another."""
    views: Annotated[Integer, Field(ge=0, le=10_000)] = 0
    """Augmented versions of each sample; 0 is the clean input."""
    view_seed: Seed = 0
    """Chooses them."""
    top_k: Annotated[Integer, Field(ge=1, le=MOST_TOP_K_CLASSES)] | None = Field(
        None, description="all classes when left out"
    )
    batch_size: BatchSize = 500
    """Samples at a time."""

    @model_validator(mode="after")
    def _views_and_augment_go_together(self) -> "PredictTargetsConfig":
        if bool(self.views) != bool(self.augment):
            raise located_error("`views` and `augment` go together: give both or neither", "views")
        return self


class CombineTargetsConfig(CombineConfig, StageConfig):
    """Combine stored targets of several teachers into targets of one.

    With a `committee` the one `targets` are the generalist's: the specialists that its predictions call are run on
    the same samples and views, and the fused log-probabilities are stored. Targets with `top_k` have an arithmetic mean
    with fixed weights; a geometric mean, weights from entropy and a committee look at all classes.
    """

    stage: Literal["combine_targets"]
    targets: tuple[TargetsRef, ...] = Field(min_length=1)
    """The stages whose targets become one."""
    committee: CommitteeConfig | None = None
    """Specialists who answer with the one generalist."""

    @model_validator(mode="after")
    def _one_generalist(self) -> "CombineTargetsConfig":
        _check_one_generalist(self.committee, self.targets, "targets")
        return self


class EvaluateConfig(StageConfig):
    """Judge a model, or several as an ensemble, or a generalist with its `committee` of specialists, on a split."""

    stage: Literal["evaluate"]
    models: tuple[ModelRef, ...] = Field(min_length=1)
    """Stages whose models are judged together."""
    committee: CommitteeConfig | None = None
    """Specialists who answer with the one generalist."""
    split: Literal["validation", "test"] = "test"
    """On whose samples."""
    rule: Rule = "arithmetic"
    """Mean of probabilities, or of logits."""
    weights: tuple[NonNegative, ...] | Literal["uniform"] = "uniform"
    """How much each model counts."""
    batch_size: BatchSize = 500
    """Samples at a time."""

    @model_validator(mode="after")
    def _some_weight(self) -> "EvaluateConfig":
        _check_some_weight(self.weights)
        _check_one_generalist(self.committee, self.models, "models")
        return self


class AdjustClassBiasConfig(StageConfig):
    """Shift the logits of some `classes` of a trained model by one number, for a student that saw too few or too many
    of them (arXiv 1503.02531, section 3).

    `prior`: the classes' mean predicted probability on the transfer set, whose labels are not looked at, becomes their
    known `prior`, by default their share of the training split; a warning says where no shift does it (infinite
    logits), the metric `class_bias/prior_reached` how near it came. `validation`: the shift with the fewest errors on
    the validation split. `test_oracle`: on the test split, as in the paper; its test errors are no honest estimate. A
    model with replicas is adjusted once per replica. Classes are written by index or by name, in quotes where it is a
    number.
    """

    follows: ClassVar[frozenset[str]] = frozenset({"model"})

    stage: Literal["adjust_class_bias"]
    model: ModelRef
    """Whose logits are shifted."""
    classes: tuple[Integer | str, ...] = Field(min_length=1)
    """Which ones, by index or name."""
    by: Literal["prior", "validation", "test_oracle"] = "prior"
    """What decides the shift."""
    prior: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """The classes' share, with `by: prior`; that of the training split when left out."""
    transfer: TransferConfig = TransferConfig()
    """On which samples the predictions are looked at."""
    batch_size: BatchSize = 500
    """Samples at a time."""

    @model_validator(mode="after")
    def _prior_is_looked_at(self) -> "AdjustClassBiasConfig":
        if self.prior is not None and self.by != "prior":
            raise located_error(f"`by: {self.by}` asks for no `prior`; leave it out", "prior")
        return self

    @property
    def learns_from_test(self) -> bool:
        """The oracle looks at the test split."""
        return self.by == "test_oracle"

    def copies(self, stages: Mapping[str, StageConfig]) -> int | None:
        """As many as its model has, unless they read one another in a circle."""
        seen: set[str] = set()
        found = stages.get(self.model)
        while isinstance(found, AdjustClassBiasConfig) and found.model not in seen:
            seen.add(found.model)
            found = stages.get(found.model)
        return None if found is None or isinstance(found, AdjustClassBiasConfig) else found.copies(stages)


AnyStageConfig = Annotated[
    TrainConfig
    | DistillConfig
    | PredictTargetsConfig
    | CombineTargetsConfig
    | EvaluateConfig
    | ConfusionClustersConfig
    | TrainSpecialistsConfig
    | AdjustClassBiasConfig
    | RecordStatisticsConfig
    | SynthesizeConfig
    | DistillWithGeneratorConfig
    | TrainBranchesConfig
    | TrainPeersConfig
    | CodistillConfig,
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
    makes: Literal[
        "model", "targets", "judgement", "clusters", "specialist", "statistics", "samples", "survey"
    ]

    not_identity: ClassVar[frozenset[str]] = frozenset({"resources", "replicas"})


STAGES: dict[str, StageKind] = {
    "train": StageKind(TrainConfig, "raydistill.stages.train:train", 1, "model"),
    "distill": StageKind(DistillConfig, "raydistill.stages.distill:distill", 1, "model"),
    "predict_targets": StageKind(
        PredictTargetsConfig, "raydistill.stages.predict_targets:predict_targets", 2, "targets"
    ),
    "combine_targets": StageKind(
        CombineTargetsConfig, "raydistill.stages.combine_targets:combine_targets", 2, "targets"
    ),
    "evaluate": StageKind(EvaluateConfig, "raydistill.stages.evaluate:evaluate", 1, "judgement"),
    "confusion_clusters": StageKind(
        ConfusionClustersConfig, "raydistill.stages.confusion_clusters:confusion_clusters", 1, "clusters"
    ),
    "train_specialists": StageKind(
        TrainSpecialistsConfig, "raydistill.stages.train_specialists:train_specialists", 1, "specialist"
    ),
    "adjust_class_bias": StageKind(
        AdjustClassBiasConfig, "raydistill.stages.adjust_class_bias:adjust_class_bias", 2, "model"
    ),
    "record_statistics": StageKind(
        RecordStatisticsConfig, "raydistill.stages.record_statistics:record_statistics", 1, "statistics"
    ),
    "synthesize": StageKind(SynthesizeConfig, "raydistill.stages.synthesize:synthesize", 1, "samples"),
    "distill_with_generator": StageKind(
        DistillWithGeneratorConfig,
        "raydistill.stages.distill_with_generator:distill_with_generator",
        1,
        "model",
    ),
    "train_branches": StageKind(
        TrainBranchesConfig, "raydistill.stages.train_branches:train_branches", 1, "model"
    ),
    "train_peers": StageKind(TrainPeersConfig, "raydistill.stages.train_peers:train_peers", 1, "model"),
    "codistill": StageKind(CodistillConfig, "raydistill.stages.codistill:codistill", 1, "model"),
}

SURVEYS: dict[str, StageKind] = {
    "survey_data": StageKind(SurveyDataConfig, "raydistill.stages.survey:survey_data", 1, "survey"),
    "probe_models": StageKind(ProbeModelsConfig, "raydistill.stages.survey:probe_models", 1, "survey"),
}
"""What looks at data and models before the first stage: run as stages are, but no plan can name it."""

"""The kinds of stages and what each can be told. The functions that do the work are in `stages/`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from raydistill.kinds.augmentations import AugmentationOptions
from raydistill.kinds.changes import phases
from raydistill.kinds.data_free import (
    DistillWithGeneratorConfig,
    RecordStatisticsConfig,
    SynthesizeConfig,
)
from raydistill.kinds.method_options import MethodOptions
from raydistill.kinds.methods import HintonConfig
from raydistill.kinds.online import CodistillConfig, TrainBranchesConfig, TrainPeersConfig
from raydistill.kinds.pretrained import PretrainedConfig
from raydistill.kinds.specialists import ConfusionClustersConfig, TrainSpecialistsConfig
from raydistill.kinds.stage_bases import BatchSize, TargetsConfig, TrainingConfig, WeightsConfig
from raydistill.kinds.training import TransferConfig
from raydistill.plan.config import (
    Config,
    Integer,
    ModelRef,
    NonNegative,
    Number,
    Positive,
    Seed,
    SpecialistRef,
    StageRef,
    TargetsRef,
)
from raydistill.plan.mistakes import Mistake, Path, located_error
from raydistill.plan.model import ModelConfig
from raydistill.plan.stage import StageConfig

if TYPE_CHECKING:
    from raydistill.plan.order import Node, Site

MOST_TOP_K_CLASSES = 1 << 16  # they are numbered with 16 bits

Rule = Literal["arithmetic", "geometric"]
Weighting = Literal["uniform", "proportional", "softmax", "logodds", "entropy"]


class TrainConfig(WeightsConfig, TrainingConfig):
    """Train a model on labels: a teacher, a generalist, a baseline."""

    word = "train"
    implementation = "raydistill.stages.train:train"
    learns_by = "labels alone"

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


def _check_members(
    site: "Site",
    members: Sequence[str],
    weights: tuple[float, ...] | str,
    key: str,
    place: Path = ("weights",),
) -> None:
    """Nobody is counted twice, and everybody has a weight."""
    site.check_distinct(members, key)
    if members and isinstance(weights, tuple) and len(weights) != len(members):
        raise site.error(
            f"{len(weights)} weights for {len(members)} {key}: {', '.join(members)}; write one for each",
            *place,
        )


def _check_committee(site: "Site", committee: CommitteeConfig | None) -> None:
    if committee is not None:
        site.check_distinct(committee.specialists, "committee", "specialists")


def _check_all_are_kept(
    site: "Site", targets: Sequence[str], look: tuple[str, str, str], *path: str | int
) -> None:
    """For a reader of targets that looks at every class: at which key, why, and what to write instead."""
    key, reason, way_out = look
    wanted, seen = list(reversed(targets)), set(targets)
    while wanted:
        config = site.stage(ref := wanted.pop())
        if not isinstance(config, TargetsConfig):
            continue
        if config.keeps_some:
            keeper = site.stage_name(ref)
            raise site.error(
                f"{reason}, but `{keeper}` stores only some (`top_k`); {way_out}, or leave its `top_k` out",
                *path,
                key,
            )
        new = [other for other in reversed(config.members) if other not in seen]
        seen.update(new)
        wanted += new


def _predictions(targets: str, site: "Site") -> Iterator["Node"]:
    """The nodes of stored predictions that targets are made of, each once."""
    wanted, seen = [targets], {targets}
    while wanted:
        node = site.node(wanted.pop())
        if isinstance(node.config, PredictTargetsConfig):
            yield node
        elif isinstance(node.config, TargetsConfig):
            new = [member for member in reversed(node.config.members) if member not in seen]
            seen.update(new)
            wanted += new


class DistillConfig(WeightsConfig, TrainingConfig):
    """Train a student to match its teachers.

    `teachers` are stages that made a model; the graph inserts the stages that store their soft targets. With
    `mode: live` the teachers run inside the student's loop instead. `targets` names a stage of targets that the
    plan defines itself. With stored targets an augmented student needs `views`: how many augmented versions of
    each sample the teachers saw (0: the clean input); epoch e then trains on view e mod `views`. A `committee`
    adds specialists to the one teacher, the generalist. `methods` sums the losses of several methods.
    """

    word = "distill"
    implementation = "raydistill.stages.distill:distill"
    has_teacher = True
    makes_students = True
    model_key = "student"

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
    method: MethodOptions | None = HintonConfig()
    """What is compared with the teachers."""
    methods: tuple[MethodOptions, ...] = ()
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
    def compares_features(self) -> bool:
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
        words: dict[str, str] = {}
        for index, method in enumerate(self.methods):
            other = words.setdefault(method.safe_word(), method.method)
            if other != method.method:
                raise located_error(
                    f"`{other}` and `{method.method}` have the same name in metrics; rename one of the classes",
                    *("methods", index, "method"),
                )
        if len(words) < len(self.methods):
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

    @property
    def taught_by(self) -> tuple[StageRef, ...]:
        return self.teachers if self.targets is None else (self.targets,)

    def role(self, *, teaches: bool, has_student: bool) -> str:
        return "assistant" if teaches else "student"

    def method_path(self, index: int) -> Path:
        """Where one of `all_methods` stands."""
        return ("methods", index) if self.methods else ("method",)

    def changeable(self) -> dict[str, float]:
        numbers = super().changeable()
        for index, method in enumerate(self.all_methods):
            prefix = ".".join(map(str, self.method_path(index)))
            # Whole numbers shape a method when it is built.
            options = ((key, getattr(method, key)) for key in type(method).model_fields)
            numbers |= {f"{prefix}.{key}": value for key, value in options if isinstance(value, float)}
        return numbers

    def check(self, site: "Site") -> None:
        """Targets that keep some classes are enough for what is made of them, as it is at first and later."""
        super().check(site)
        if self.targets is None:
            return
        for phase in phases(self):
            for index, method in enumerate(phase.all_methods):
                if (look := method.looks_at_all_classes) is not None:
                    _check_all_are_kept(site, (self.targets,), look, *phase.method_path(index))

    def settled(self, site: "Site") -> "DistillConfig":
        """With stored targets in place of teachers."""
        _check_members(site, self.teachers, self.combine.weights, "teachers", ("combine", "weights"))
        _check_committee(site, self.committee)
        if self.targets is not None:
            for node in _predictions(self.targets, site):
                self._check_same_views(node, site)
            return self
        if self.mode == "live":
            return self
        targets = tuple(TargetsRef(self._insert_prediction(teacher, site)) for teacher in self.teachers)
        is_one = len(targets) == 1 and self.committee is None
        source = targets[0] if is_one else TargetsRef(self._insert_combination(targets, site))
        return self.replace(teachers=(), targets=source, combine=CombineConfig(), committee=None)

    def _insert_prediction(self, teacher: str, site: "Site") -> str:
        config = PredictTargetsConfig(
            teacher=ModelRef(teacher),
            transfer=self.transfer.replace(labelled=True),
            augment=self.augment,
            views=self.views,
            view_seed=self.view_seed,
            resources=site.node(teacher).config.resources.replace(workers=1),
        )
        return site.insert(f"{teacher}.targets", config)

    def _insert_combination(self, targets: tuple[TargetsRef, ...], site: "Site") -> str:
        combine, committee = self.combine, self.committee
        config = CombineTargetsConfig(
            targets=targets,
            rule=combine.rule,
            weights=combine.weights,
            scale=combine.scale,
            committee=committee,
        )
        members = (*self.teachers, *(committee.specialists if committee else ()))
        stages = dict.fromkeys(site.node(member).stage for member in members)
        return site.insert(f"{'+'.join(stages)}.targets", config)

    def _check_same_views(self, targets: "Node", site: "Site") -> None:
        stored = targets.config.replace(transfer=targets.config.transfer.replace(labelled=True))
        config = self.replace(transfer=self.transfer.replace(labelled=True))
        if set(config.transfer.synthesized or ()) != set(stored.transfer.synthesized or ()):
            raise site.error(
                f"the student and its targets `{targets.name}` must be about the same samples; write the same"
                " `synthesized` in the `transfer` of both",
                "transfer",
            )
        keys = ["views", "view_seed", "augment"]
        if any(step.mixes_samples for step in config.augment):
            keys.append("transfer")  # partners are drawn from the transfer set
        for key in keys:
            if key == "view_seed" and not config.views and not stored.views:
                continue
            if getattr(config, key) != getattr(stored, key):
                raise site.error(
                    f"the student must see the pixels that the teacher saw, but `{key}` differs from that of the"
                    f" targets `{targets.name}`; write the same `{key}` in both",
                    key,
                )

    def advice(self, site: "Site") -> Iterator[Mistake]:
        place: Path = ("methods" if self.methods else "method",)
        if not self.trains_classifier and not site.is_read_as("initial"):
            yield Mistake(
                place,
                "trains no classifier, and no stage goes on from here with `initial`: the model will guess; add labels"
                " (`{method: labels}`) or soft targets (`{method: hinton}`)",
            )
        if not self.changes and not any(method.hears_teacher for method in self.all_methods):
            yield Mistake(
                place,
                "the teacher is run and not heard: the student learns from the labels alone; raise `soft_weight` or the"
                " method's `weight`, or write `stage: train`",
            )


class PredictTargetsConfig(TargetsConfig):
    """Store a teacher's logits on a transfer set: once on the clean inputs, or on `views` augmented ones.

    All of them, 2 bytes a class (as differences from the row's largest, so that it does not matter at which level the
    teacher's logits lie); or with `top_k` only the most probable classes of each row, with the mass of all others at
    eight temperatures from 1 to 20, in 4 · top_k + 50 bytes: for label spaces of thousands of classes. A target then
    has the teacher's probabilities for the kept classes and its tail's mass, in equal parts, for the others; between
    1, 1.25, 1.6, 2, 2.8, 4, 8 and 20 the mass is interpolated, to 0.1 % (1 % where logits spread by 20). A student
    reads them as `targets: NAME`, with `method: hinton` at T ≥ 1; several of them can be combined with `rule:
    arithmetic`.
    """

    word = "predict_targets"
    implementation = "raydistill.stages.predict_targets:predict_targets"
    version = 2

    teacher: ModelRef
    """Whose logits are stored."""
    transfer: TransferConfig = TransferConfig()
    """On which samples; the whole training split when left out."""
    augment: tuple[AugmentationOptions, ...] = ()
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

    @property
    def taught_by(self) -> tuple[StageRef, ...]:
        return (self.teacher,)

    @property
    def keeps_some(self) -> bool:
        return self.top_k is not None

    def check(self, site: "Site") -> None:
        super().check(site)
        if self.top_k is None:
            return
        count = site.num_classes()
        if self.top_k > count:
            raise site.error(f"there are {count} classes; keep fewer, or leave `top_k` out", "top_k")
        if count > MOST_TOP_K_CLASSES:
            raise site.error(
                f"{count} classes are more than {MOST_TOP_K_CLASSES}; leave `top_k` out", "top_k"
            )


class CombineTargetsConfig(CombineConfig, TargetsConfig):
    """Combine stored targets of several teachers into targets of one.

    With a `committee` the one `targets` are the generalist's: the specialists that its predictions call are run on
    the same samples and views, and the fused log-probabilities are stored. Targets with `top_k` have an arithmetic mean
    with fixed weights; a geometric mean, weights from entropy and a committee look at all classes.
    """

    word = "combine_targets"
    implementation = "raydistill.stages.combine_targets:combine_targets"
    version = 2

    targets: tuple[TargetsRef, ...] = Field(min_length=1)
    """The stages whose targets become one."""
    committee: CommitteeConfig | None = None
    """Specialists who answer with the one generalist."""

    @model_validator(mode="after")
    def _one_generalist(self) -> "CombineTargetsConfig":
        _check_one_generalist(self.committee, self.targets, "targets")
        return self

    @property
    def members(self) -> tuple[TargetsRef, ...]:
        return self.targets

    def check(self, site: "Site") -> None:
        super().check(site)
        if self.committee is not None:
            reason = "a committee looks at the generalist's logits of all classes"
            _check_all_are_kept(site, self.targets, ("committee", reason, "take it out"))
        if self.rule == "geometric":
            reason = "a geometric mean looks at the logits of all classes"
            _check_all_are_kept(site, self.targets, ("rule", reason, "write `arithmetic`"))
        if self.weights == "entropy":
            reason = "the entropy is that of the probabilities of all classes"
            _check_all_are_kept(site, self.targets, ("weights", reason, "write `uniform`, or numbers"))

    def settled(self, site: "Site") -> "CombineTargetsConfig":
        _check_committee(site, self.committee)
        _check_members(site, self.targets, self.weights, "targets")
        return self


class EvaluateConfig(StageConfig):
    """Judge a model, or several as an ensemble, or a generalist with its `committee` of specialists, on a split."""

    word = "evaluate"
    implementation = "raydistill.stages.evaluate:evaluate"
    makes = "judgement"

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

    @property
    def judged_on(self) -> tuple[str, ...]:
        return (self.split,)

    def settled(self, site: "Site") -> "EvaluateConfig":
        _check_committee(site, self.committee)
        _check_members(site, self.models, self.weights, "models")
        return self

    def role(self, *, teaches: bool, has_student: bool) -> str:
        if self.committee is not None:
            return "committee"
        return "ensemble" if len(self.models) > 1 else "evaluation"


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

    word = "adjust_class_bias"
    implementation = "raydistill.stages.adjust_class_bias:adjust_class_bias"
    version = 2
    makes = "model"
    follows = frozenset({"model"})

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
        while found is not None and (other := found.stands_for) is not None:
            found = None if other in seen else stages.get(other)
            seen.add(other)
        return None if found is None else found.copies(stages)

    @property
    def judged_on(self) -> tuple[str, ...]:
        return ("validation", "test")

    def check(self, site: "Site") -> None:
        super().check(site)
        site.check_classes(self.classes, "classes")

    @property
    def stands_for(self) -> ModelRef:
        return self.model


STAGES = (
    TrainConfig,
    DistillConfig,
    PretrainedConfig,
    PredictTargetsConfig,
    CombineTargetsConfig,
    EvaluateConfig,
    ConfusionClustersConfig,
    TrainSpecialistsConfig,
    AdjustClassBiasConfig,
    RecordStatisticsConfig,
    SynthesizeConfig,
    DistillWithGeneratorConfig,
    TrainBranchesConfig,
    TrainPeersConfig,
    CodistillConfig,
)

"""A student that learns from teachers or from their targets: what its stage can be told."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from raydistill.kinds.changes import phases
from raydistill.kinds.method_options import MethodOptions
from raydistill.kinds.methods import HintonConfig
from raydistill.kinds.stage_bases import BalanceConfig, PartsConfig, Precision, WeightsConfig
from raydistill.kinds.targets import (
    LOGITS,
    CombineConfig,
    CombineTargetsConfig,
    CommitteeConfig,
    PredictTargetsConfig,
    check_all_are_kept,
    check_committee,
    check_logits_are_stored,
    check_members,
    check_one_generalist,
    predictions,
)
from raydistill.plan.config import (
    Integer,
    ModelRef,
    Seed,
    StageRef,
    TargetsRef,
)
from raydistill.plan.config_errors import Mistake, Path, located_error
from raydistill.plan.model import ModelConfig
from raydistill.plan.resources import ResourcesConfig

if TYPE_CHECKING:
    from raydistill.plan.order import Node, Site


class DistillConfig(BalanceConfig, WeightsConfig, PartsConfig):
    """Train a student to match its teachers.

    `teachers` are stages that made a model; the graph inserts the stages that store their soft targets. With
    `mode: live` the teachers run inside the student's loop instead. `targets` names a stage of targets that the
    plan defines itself. With stored targets an augmented student needs `views`: how many augmented versions of
    each sample the teachers saw (0: the clean input); epoch e then trains on view e mod `views`. A `committee`
    adds specialists to the one teacher, the generalist. `methods` sums the losses of several methods.
    """

    word = "distill"
    came_later = frozenset({"teacher_precision"})
    not_identity = PartsConfig.not_identity | {"targets_resources"}
    implementation = "raydistill.stages.distill:distill"
    prepares = "raydistill.stages.distill:prepare"
    has_teacher = True
    makes_students = True
    learns_unlabelled = True
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
    teacher_precision: Precision = "float32"
    """Of the teachers' forward passes, live or stored."""
    targets_resources: ResourcesConfig | None = None
    """Of the stages that store the teachers' soft targets, such as `{workers: 16}`; those of the teacher, on one
    worker, when left out. No part of its identity."""

    @model_validator(mode="after")
    def _teachers_or_targets(self) -> "DistillConfig":
        if self.teachers and self.targets is not None:
            raise located_error("a student has `teachers` or `targets`, not both; keep one", "targets")
        if not self.teachers and self.targets is None:
            raise located_error("nobody teaches: name `teachers`, or stored `targets`", "teachers")
        for key in ("teacher_precision", "targets_resources"):
            if self.targets is not None and getattr(self, key) != type(self).model_fields[key].default:
                raise located_error("`targets` are made already, by a stage of their own: say it there", key)
        if self.mode == "live" and self.targets is not None:
            raise located_error("`mode: live` runs `teachers`, not stored `targets`", "mode")
        if self.committee is not None and self.targets is not None:
            raise located_error("`targets` are made already; a `committee` goes with `teachers`", "committee")
        if self.combine.rule == "kl_fusion" and self.mode == "live":
            raise located_error(
                "teachers are fused when their targets are stored; leave `mode` out, or take another `rule`",
                "combine",
                "rule",
            )
        if self.committee is not None and self.mode == "live":
            raise located_error("a committee teaches through stored targets; leave `mode` out", "mode")
        if self.teachers:
            check_one_generalist(self.committee, self.teachers, "teachers")
        return self

    @property
    def all_methods(self) -> tuple[MethodOptions, ...]:
        """The methods whose losses are summed: `methods`, or the one `method`."""
        return self.methods if self.method is None else (self.method,)

    def heard_by(self, method: MethodOptions) -> tuple[ModelRef, ...]:
        """The teachers whose logits and features reach a method."""
        return self.teachers if method.teachers is None else method.teachers

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
            is_new = method.needs_features and not method.stored_features
            if (is_new or method.needs_member_features) and self.mode != "live":
                raise located_error(
                    f"`{method.method}` looks at the teacher's features, which are not stored; set `mode: live`",
                    "mode",
                )
            if method.needs_features and self.committee is not None:
                raise located_error(
                    f"`{method.method}` looks at features, but a committee answers with logits alone; leave it out",
                    "committee",
                )
            if method.needs_features and len(self.heard_by(method)) > 1:
                raise located_error(
                    f"`{method.method}` looks at the features of one teacher; name one", "teachers"
                )
        return self

    @model_validator(mode="after")
    def _methods_hear_live_teachers(self) -> "DistillConfig":
        for index, method in enumerate(self.all_methods):
            if method.teachers is None:
                continue
            place = (*self.method_path(index), "teachers")
            if self.mode != "live":
                raise located_error(
                    "stored targets are those of all teachers together; set `mode: live`, or leave this out",
                    *place,
                )
            if self.combine.rule == "geometric" and method.looks_at_logits:
                raise located_error(
                    "a geometric mean is that of all teachers; leave this out, or `combine`", *place
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

    @model_validator(mode="after")
    def _what_is_remembered_is_not_mixed(self) -> "DistillConfig":
        mixing = next((index for index, step in enumerate(self.augment) if step.mixes_samples), None)
        for method in self.all_methods:
            if method.remembers_samples and mixing is not None:
                raise located_error(
                    f"`{method.method}` remembers samples, and a mixture of two is neither; leave"
                    f" `{self.augment[mixing].name}` out, or take another method",
                    *("augment", mixing),
                )
        return self

    @model_validator(mode="after")
    def _balance_is_about_labels(self) -> "DistillConfig":
        for key in ("class_weights", "logit_adjustment", "binary_cross_entropy"):
            if getattr(self, key) is not None and not any(method.needs_labels for method in self.all_methods):
                raise located_error(
                    f"`{key}` is about the loss with the labels, and no method looks at them; leave it out, or raise a"
                    " `hard_weight`",
                    key,
                )
        return self

    @property
    def taught_by(self) -> tuple[StageRef, ...]:
        return self.teachers if self.targets is None else (self.targets,)

    def why_alone(self) -> str | None:
        live = "the teachers would be loaded for each of them (`mode: live`)"
        return super().why_alone() or (live if self.mode == "live" else None)

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
        if self.transfer.may_lack_labels(site.task):
            self._check_without_labels(site)
        if self.targets is None:
            return
        self._check_outputs(site, self.targets)
        for phase in phases(self):
            for index, method in enumerate(phase.all_methods):
                if (look := method.looks_at_all_classes) is not None:
                    check_all_are_kept(site, (self.targets,), look, *phase.method_path(index))

    @property
    def _looks_at_logits(self) -> bool:
        return any(method.looks_at_logits for method in self.all_methods)

    def _check_outputs(self, site: "Site", targets: str) -> None:
        """What the methods look at is stored."""
        if self._looks_at_logits:
            check_logits_are_stored(site, (targets,), "targets")
        stored = getattr(site.stage(targets), "stored_features", ())
        for index, method in enumerate(self.all_methods):
            for name in method.stored_features if method.needs_features else ():
                if name not in stored:
                    raise site.error(
                        f"`{method.method}` looks at `{name}` of the teacher, which `{targets}` does not store; write"
                        f" `outputs: [{name}]` into a `predict_targets`, or take `teachers`",
                        *self.method_path(index),
                    )

    def _check_without_labels(self, site: "Site") -> None:
        for index, method in enumerate(self.all_methods):
            if method.needs_labels and not method.passes_over_unlabelled:
                raise site.error(
                    f"`{method.method}` looks at the label of every sample, and some of the transfer set have none;"
                    " write `transfer: {unlabelled: false}`, or take another method",
                    *self.method_path(index),
                )

    def settled(self, site: "Site") -> "DistillConfig":
        """With stored targets in place of teachers."""
        check_members(site, self.teachers, self.combine.weights, "teachers", ("combine", "weights"))
        check_committee(site, self.committee)
        for index, method in enumerate(self.all_methods):
            heard = self.heard_by(method)
            if method.needs_features and len(heard) > 1:  # replicas, which a stage's name stands for
                own = self.method_path(index) if method.teachers else ()
                raise site.error(
                    f"`{method.method}` looks at the features of one teacher, and these are"
                    f" {len(heard)}; name one, such as `{heard[0]}`",
                    *(*own, "teachers"),
                )
        self._check_who_is_heard(site)
        if self.targets is not None:
            for node in predictions(self.targets, site):
                self._check_same_views(node, site)
            return self
        if self.mode == "live":
            return self
        targets = tuple(TargetsRef(self._insert_prediction(teacher, site)) for teacher in self.teachers)
        is_one = len(targets) == 1 and self.committee is None
        source = targets[0] if is_one else TargetsRef(self._insert_combination(targets, site))
        return self.replace(
            teachers=(),
            targets=source,
            combine=CombineConfig(),
            committee=None,
            teacher_precision="float32",
            targets_resources=None,
        )

    def _check_who_is_heard(self, site: "Site") -> None:
        """A method hears teachers of the stage, and every teacher is heard."""
        for index, method in enumerate(self.all_methods):
            path = (*self.method_path(index), "teachers")
            site.check_distinct(method.teachers or (), *path)
            if others := [name for name in method.teachers or () if name not in self.teachers]:
                raise site.error(
                    f"`{others[0]}` is not among the stage's `teachers`: {', '.join(self.teachers)}", *path
                )
        heard = {name for method in self.all_methods for name in self.heard_by(method)}
        if unheard := [name for name in self.teachers if name not in heard]:
            raise site.error(
                f"no method hears `{unheard[0]}`; leave it out, or name it in the `teachers` of a method",
                "teachers",
            )

    def _insert_prediction(self, teacher: str, site: "Site") -> str:
        config = PredictTargetsConfig(
            teacher=ModelRef(teacher),
            transfer=self.transfer.replace(labelled=True),
            augment=self.augment,
            views=self.views,
            view_seed=self.view_seed,
            outputs=self._outputs,
            precision=self.teacher_precision,
            resources=self.targets_resources or site.node(teacher).config.resources.replace(workers=1),
        )
        return site.insert(f"{teacher}.targets", config)

    @property
    def _outputs(self) -> tuple[str, ...] | None:
        """What its methods look at; None for logits alone."""
        features = tuple(
            dict.fromkeys(name for method in self.all_methods for name in method.stored_features)
        )
        return ((LOGITS,) if self._looks_at_logits else ()) + features if features else None

    def _insert_combination(self, targets: tuple[TargetsRef, ...], site: "Site") -> str:
        combine, committee = self.combine, self.committee
        config = CombineTargetsConfig(
            targets=targets,
            rule=combine.rule,
            weights=combine.weights,
            scale=combine.scale,
            committee=committee,
            resources=self.targets_resources or ResourcesConfig(),
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
        if config.transfer.also != stored.transfer.also and config.transfer.also is not None:
            raise site.error(
                f"the targets `{targets.name}` are not about these samples; write the same `also` in both",
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

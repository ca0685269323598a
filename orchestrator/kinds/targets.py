"""Stored soft targets: what the stages that predict and combine them can be told."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from raydistill.kinds.augmentations import AugmentationOptions
from raydistill.kinds.stage_bases import BatchSize, Precision, TargetsConfig
from raydistill.kinds.training import TransferConfig
from raydistill.plan.config import (
    Boolean,
    Config,
    Integer,
    ModelRef,
    NonNegative,
    Positive,
    Seed,
    SpecialistRef,
    StageRef,
    TargetsRef,
)
from raydistill.plan.config_errors import Path, located_error

if TYPE_CHECKING:
    from raydistill.plan.order import Node, Site


LOGITS = "logits"  # what the logits are called among the outputs of a teacher
MOST_TOP_K_CLASSES = 1 << 16  # they are numbered with 16 bits

LEAST_LOG_PROBABILITY = math.log(1e-8)  # of what is fused

Rule = Literal["arithmetic", "geometric"]
AnyRule = Rule | Literal["kl_fusion"]
Weighting = Literal["uniform", "proportional", "softmax", "logodds", "entropy"]


def check_some_weight(weights: tuple[float, ...] | str) -> None:
    if isinstance(weights, tuple) and sum(weights) <= 0:
        raise located_error("at least one weight must be above 0", "weights")


class CombineConfig(Config):
    """How the targets of several teachers become one.

    `arithmetic`: mean of the tempered probabilities, formed when read since it depends on T; `geometric`: mean of
    logits; `kl_fusion`, of stored targets: the q with the least Σ w_m KL(p^m ‖ A_m q), where a teacher that knows part
    of the classes (`others` in its `classes`) sees the rest as its dustbin (arXiv 1503.02531, section 5.4): each
    teaches what it knows. `weights`: numbers, one per teacher, or a weighting: from validation accuracy
    (`proportional`, `softmax` with `scale` in points, `logodds`) or per sample from the teachers' entropy (`entropy`,
    `scale` in nats).
    """

    rule: AnyRule = "arithmetic"
    """Mean of probabilities, or of logits, or fusion of teachers who each know a part of the classes."""
    weights: tuple[NonNegative, ...] | Weighting = "uniform"
    """How much each teacher counts."""
    scale: Positive = 1.0
    """How sharply `softmax` and `entropy` weigh: smaller is sharper."""

    @model_validator(mode="after")
    def _some_weight(self) -> "CombineConfig":
        check_some_weight(self.weights)
        numbers = self.weights if isinstance(self.weights, tuple) else ()
        if self.rule == "kl_fusion" and (self.weights == "entropy" or 0 in numbers):
            raise located_error(
                "a fusion weighs each teacher alike for all samples, and above 0; write such numbers, or `uniform`",
                "weights",
            )
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


def check_one_generalist(committee: CommitteeConfig | None, members: Sequence[str], key: str) -> None:
    if committee is not None and len(members) != 1:
        raise located_error(
            f"a committee has one generalist, but `{key}` names {len(members)}; name one", key
        )


def check_members(
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


def check_committee(site: "Site", committee: CommitteeConfig | None) -> None:
    if committee is not None:
        site.check_distinct(committee.specialists, "committee", "specialists")


def check_all_are_kept(
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


def check_logits_are_stored(site: "Site", targets: Sequence[str], *path: str | int) -> None:
    """For a reader of logits."""
    for ref in targets:
        config = site.stage(ref)
        if isinstance(config, TargetsConfig) and not config.has_logits:
            raise site.error(
                f"`{ref}` stores no logits, which are looked at; add `logits` to its `outputs`", *path
            )


def predictions(targets: str, site: "Site") -> Iterator["Node"]:
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


class PredictTargetsConfig(TargetsConfig):
    """Store a teacher's logits on a transfer set: once on the clean inputs, or on `views` augmented ones.

    All of them, 2 bytes a class (as differences from the row's largest, so that it does not matter at which level the
    teacher's logits lie); or with `top_k` only the most probable classes of each row, with the mass of all others at
    eight temperatures from 1 to 20, in 4 · top_k + 50 bytes: for label spaces of thousands of classes. A target then
    has the teacher's probabilities for the kept classes and its tail's mass, in equal parts, for the others; between
    1, 1.25, 1.6, 2, 2.8, 4, 8 and 20 the mass is interpolated, to 0.1 % (1 % where logits spread by 20). A student
    reads them as `targets: NAME`, with `method: hinton` at T ≥ 1; several of them can be combined with `rule:
    arithmetic`.

    `outputs: [logits, embedding]` stores features of the teacher too, by their names or paths, as float16 in 2 bytes a
    number; without `logits` they are all that is stored. Methods that compare one embedding read them (`embedding`,
    `relational`, `triplet`).
    """

    word = "predict_targets"
    came_later = frozenset({"precision", "channels_last", "compile"})
    implementation = "raydistill.stages.predict_targets:predict_targets"
    version = 2
    shares_work = True
    workers_come_and_go = True
    learns_unlabelled = True

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
    outputs: tuple[str, ...] | None = Field(
        None, min_length=1, description="`logits` and features; the logits alone when left out"
    )
    batch_size: BatchSize = 500
    """Samples at a time."""
    precision: Precision = "float32"
    """Of the teacher's forward pass; the metrics say how far its answers are from those in float32."""
    channels_last: Boolean = False
    """Lay pictures out channel by channel last, which some machines are faster with."""
    compile: Boolean = False
    """Compile the teacher with `torch.compile`: seconds at first, less for each batch."""

    @field_validator("outputs")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise located_error("an output is named twice; name each once")
        return None if value == (LOGITS,) else value  # the same plan as nothing

    @model_validator(mode="after")
    def _top_k_of_logits(self) -> "PredictTargetsConfig":
        if self.top_k is not None and not self.has_logits:
            raise located_error(
                "`top_k` is about logits, which are not among the `outputs`; keep one", "top_k"
            )
        return self

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

    @property
    def has_logits(self) -> bool:
        return self.outputs is None or LOGITS in self.outputs

    @property
    def stored_features(self) -> tuple[str, ...]:
        return tuple(name for name in self.outputs or () if name != LOGITS)

    @property
    def compares_features(self) -> bool:
        return bool(self.stored_features)

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
    shares_work = True
    workers_come_and_go = True

    targets: tuple[TargetsRef, ...] = Field(min_length=1)
    """The stages whose targets become one."""
    committee: CommitteeConfig | None = None
    """Specialists who answer with the one generalist."""

    @model_validator(mode="after")
    def _one_generalist(self) -> "CombineTargetsConfig":
        check_one_generalist(self.committee, self.targets, "targets")
        return self

    @property
    def members(self) -> tuple[TargetsRef, ...]:
        return self.targets

    def check(self, site: "Site") -> None:
        super().check(site)
        check_logits_are_stored(site, self.targets, "targets")
        if self.committee is not None:
            reason = "a committee looks at the generalist's logits of all classes"
            check_all_are_kept(site, self.targets, ("committee", reason, "take it out"))
        if self.rule == "kl_fusion":
            check_all_are_kept(
                site, self.targets, ("rule", "a fusion looks at all classes", "write `arithmetic`")
            )
        if self.rule == "geometric":
            reason = "a geometric mean looks at the logits of all classes"
            check_all_are_kept(site, self.targets, ("rule", reason, "write `arithmetic`"))
        if self.weights == "entropy":
            reason = "the entropy is that of the probabilities of all classes"
            check_all_are_kept(site, self.targets, ("weights", reason, "write `uniform`, or numbers"))

    def settled(self, site: "Site") -> "CombineTargetsConfig":
        check_committee(site, self.committee)
        check_members(site, self.targets, self.weights, "targets")
        return self

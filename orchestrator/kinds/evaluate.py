"""Models that are judged, and class biases that are adjusted: what these stages can be told."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from raydistill.kinds.stage_bases import BatchSize
from raydistill.kinds.targets import (
    CommitteeConfig,
    Rule,
    check_committee,
    check_members,
    check_one_generalist,
    check_some_weight,
)
from raydistill.kinds.training import TransferConfig
from raydistill.plan.config import (
    Integer,
    ModelRef,
    NonNegative,
    Number,
)
from raydistill.plan.config_errors import located_error
from raydistill.plan.stage import StageConfig

if TYPE_CHECKING:
    from raydistill.plan.order import Site


class EvaluateConfig(StageConfig):
    """Judge a model, or several as an ensemble, or a generalist with its `committee` of specialists, on a split."""

    word = "evaluate"
    implementation = "raydistill.stages.evaluate:evaluate"
    makes = "judgement"
    shares_work = True
    workers_come_and_go = True

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
        check_some_weight(self.weights)
        check_one_generalist(self.committee, self.models, "models")
        return self

    @property
    def judged_on(self) -> tuple[str, ...]:
        return (self.split,)

    def settled(self, site: "Site") -> "EvaluateConfig":
        check_committee(site, self.committee)
        check_members(site, self.models, self.weights, "models")
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
    zipped = frozenset({"model"})

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

    def num_nodes(self, stages: Mapping[str, StageConfig]) -> int | None:
        """As many as its model has, unless they read one another in a circle."""
        seen: set[str] = set()
        found = stages.get(self.model)
        while found is not None and (other := found.stands_for) is not None:
            found = None if other in seen else stages.get(other)
            seen.add(other)
        return None if found is None else found.num_nodes(stages)

    @property
    def judged_on(self) -> tuple[str, ...]:
        return ("validation", "test")

    def check(self, site: "Site") -> None:
        super().check(site)
        site.check_classes(self.classes, "classes")

    @property
    def stands_for(self) -> ModelRef:
        return self.model

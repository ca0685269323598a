"""What every distillation method can be told."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from raydistill.plan.config import (
    FINE_TEMPERATURE,
    Boolean,
    Config,
    Integer,
    ModelRef,
    NonNegative,
    Temperature,
)
from raydistill.plan.config_errors import located_error
from raydistill.plan.kind import Choice, Kind


class RampConfig(Config):
    """A weight that changes: from `start` to `end` times the method's weight within `epochs`, and `end` from then on.

    `linear`; `cosine`, half a wave; `exponential`, exp(-5 (1 - t)²), the ramp-up of arXiv 1610.02242; or `step`,
    `start` until `epochs` are over: with `start: 1, end: 0` a teacher falls silent before the end (arXiv 1910.01348).
    """

    shape: Literal["linear", "cosine", "exponential", "step"] = "linear"
    """How it goes from the one to the other."""
    start: NonNegative = 0.0
    """Times the method's weight, in the beginning."""
    end: NonNegative = 1.0
    """Times the method's weight, after `epochs`."""
    epochs: Annotated[Integer, Field(ge=1)]
    """How long it takes."""


class MethodOptions(Kind):
    """What every method can be told: the `weight` of all of its losses, and a `ramp` that changes it over epochs.

    `implementation` is a subclass of `training.method.Method`.
    """

    chosen_by = Choice("method", "method", "methods", "raydistill.kinds.methods:METHODS")

    method: str = ""
    """Which method; its options stand beside it."""
    weight: NonNegative = 1.0
    """Times all losses of the method."""
    ramp: RampConfig | None = None
    """How the weight changes over the epochs."""
    teachers: Annotated[tuple[ModelRef, ...], Field(min_length=1)] | None = None
    """Which of the stage's live teachers it hears; all of them, unless they are named."""

    needs_features: ClassVar[bool] = False
    """Whether the losses look at features, and at nothing else, of one teacher."""
    weighs_teachers: ClassVar[bool] = False
    """Whether the losses weigh the teachers by themselves, from the logits of each: nothing is left to `combine`."""

    couples_samples: ClassVar[bool] = False
    """Whether what a sample teaches depends on the rest of its batch, of which each of several workers has a part: two
    then make another student than one."""
    resumes_exactly: ClassVar[bool] = True
    """Whether a training that was stopped goes on as if it had not been: nothing is remembered but what is stored."""
    remembers_samples: ClassVar[bool] = False
    """Whether it keeps something of every sample from one step to another: of a mixture of two there is no place."""
    passes_over_unlabelled: ClassVar[bool] = False
    """Whether losses that look at labels leave out the samples that have none, as `hard_loss` does."""

    @property
    def needs_labels(self) -> bool:
        """Whether the losses look at the true labels."""
        return False

    @property
    def hears_teacher(self) -> bool:
        """Whether what the teachers say reaches the student."""
        return self.weight > 0

    @property
    def needs_member_features(self) -> bool:
        """Whether the losses look at the features of each of several teachers: `mode: live`."""
        return False

    @property
    def looks_at_logits(self) -> bool:
        """Whether the losses look at the teachers' logits."""
        return not self.needs_features

    @property
    def stored_features(self) -> tuple[str, ...]:
        """The teacher's features that it can read from a store; none where it has to see the teacher: `mode: live`."""
        return ()

    @property
    def looks_at_all_classes(self) -> tuple[str, str, str] | None:
        """Why it cannot learn from targets that keep only some classes of each row: the option that decides it, the
        reason, and what to write instead."""
        return "method", f"`{self.method}` looks at the logits of all classes", "take `hinton`"


def need_some_weight(options: MethodOptions, *keys: str, lack: str = "nothing to learn from") -> None:
    """An error at the first of these options when all of them are 0."""
    if not any(getattr(options, key) for key in keys):
        named = " and ".join(f"`{key}`" for key in keys)
        raise located_error(f"{named} are both 0: {lack}; raise one", keys[0])


class SoftTargetOptions(MethodOptions):
    """What methods that match softened distributions, and the labels beside them, can be told."""

    came_later = frozenset({"standardize"})

    temperature: Temperature = 4.0
    """Divides the logits of both before the softmax: the higher, the softer."""
    soft_weight: NonNegative = 1.0
    """Of the loss against the teachers' soft targets."""
    hard_weight: NonNegative = 1.0
    """Of the cross-entropy with the true labels."""
    standardize: Boolean = False
    """Compare logits less their mean and divided by their deviation, both over a sample's classes: the student need not
    learn the teacher's scale (LSKD, arXiv 2403.01427, there at T = 2 and weights 9 and 0.1). No target is surer than
    (C - 1) / √C allows, so that few classes want a low temperature; two have no say at all, and are refused."""

    @property
    def revision(self) -> int:
        """2: divergences at temperatures above 100 are computed in float64."""
        return 2 if self.temperature > FINE_TEMPERATURE else 1

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> "SoftTargetOptions":
        need_some_weight(self, "soft_weight", "hard_weight")
        return self

    @property
    def needs_labels(self) -> bool:
        """Whether the loss looks at the true labels."""
        return self.hard_weight > 0

    @property
    def hears_teacher(self) -> bool:
        """With `soft_weight: 0` the labels alone are left, and whatever features are compared."""
        return self.weight > 0 and (self.soft_weight > 0 or self.needs_member_features)

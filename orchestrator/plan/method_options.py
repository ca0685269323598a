"""What every distillation method can be told."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from orchestrator.plan.config import Config, Integer, NonNegative


class RampConfig(Config):
    """A weight that changes: from `start` to `end` times the method's weight within `epochs`, and `end` from then on.

    `linear`; `cosine`, half a wave; or `exponential`, exp(-5 (1 - t)²), the ramp-up of arXiv 1610.02242.
    """

    shape: Literal["linear", "cosine", "exponential"] = "linear"
    start: NonNegative = 0.0
    end: NonNegative = 1.0
    epochs: Annotated[Integer, Field(ge=1)]


class MethodOptions(Config):
    """What every method can be told: the `weight` of all of its losses, and a `ramp` that changes it over epochs."""

    method: str
    weight: NonNegative = 1.0
    ramp: RampConfig | None = None

    needs_features: ClassVar[bool] = False
    """Whether the losses look at the teacher's features, which are never stored: `mode: live`, one teacher."""

    @property
    def needs_labels(self) -> bool:
        """Whether the losses look at the true labels."""
        return False

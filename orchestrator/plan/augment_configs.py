"""What a plan may write under `augment`: a list of steps, applied in order to inputs in [0, 1].

Every random number of a step belongs to (seed, sample id, view), so an augmented view can be seen again at any time.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShiftConfig(_Step):
    """Move the image by whole pixels in any direction; what moves in is zero (jitter of Hinton, arXiv 1503.02531)."""

    name: Literal["shift"] = "shift"
    pixels: int = Field(default=2, ge=1)
    """Largest shift along each axis."""


class PadCropConfig(_Step):
    """Pad with zeros and cut out the original size anywhere, as CIFAR recipes do (arXiv 1409.5185)."""

    name: Literal["pad_crop"] = "pad_crop"
    padding: int = Field(default=4, ge=1)
    """Zeros added on each side."""


class FlipConfig(_Step):
    """Mirror left and right with probability one half."""

    name: Literal["flip"] = "flip"


class CutoutConfig(_Step):
    """Zero a square whose centre lies anywhere in the image (arXiv 1708.04552)."""

    name: Literal["cutout"] = "cutout"
    size: int = Field(default=16, ge=1)
    """Side of the square in pixels; it may reach over the border."""


class MixupConfig(_Step):
    """Blend each input and its target with those of another training sample (arXiv 1710.09412)."""

    name: Literal["mixup"] = "mixup"
    alpha: float = Field(default=0.2, gt=0)
    """The weight of the sample itself is drawn from Beta(alpha, alpha)."""


AugmentConfig = Annotated[
    ShiftConfig | PadCropConfig | FlipConfig | CutoutConfig | MixupConfig, Field(discriminator="name")
]

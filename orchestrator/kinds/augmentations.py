"""What a plan may write under `augment`: a list of steps, applied in order to inputs in [0, 1].

Every random number of a step belongs to (seed, sample id, view), so an augmented view can be seen again at any time.
"""

from typing import Annotated, Literal

from pydantic import Field

from raydistill.plan.config import ChosenBy, Config, Integer, Positive

Pixels = Annotated[Integer, Field(ge=1, le=10_000)]


class ShiftConfig(Config):
    """Move the image by whole pixels in any direction; what moves in is zero (jitter of Hinton, arXiv 1503.02531)."""

    name: Literal["shift"] = "shift"
    pixels: Pixels = Field(2, description="largest shift along each axis")


class PadCropConfig(Config):
    """Pad with zeros and cut out the original size anywhere, as CIFAR recipes do (arXiv 1409.5185)."""

    name: Literal["pad_crop"] = "pad_crop"
    padding: Pixels = Field(4, description="zeros added on each side")


class FlipConfig(Config):
    """Mirror left and right with probability one half."""

    name: Literal["flip"] = "flip"


class CutoutConfig(Config):
    """Zero a square whose centre lies anywhere in the image (arXiv 1708.04552)."""

    name: Literal["cutout"] = "cutout"
    size: Pixels = Field(16, description="side of the square in pixels; it may reach over the border")


class MixupConfig(Config):
    """Blend each input and its target with those of another training sample (arXiv 1710.09412)."""

    name: Literal["mixup"] = "mixup"
    alpha: Positive = Field(0.2, description="the sample's own weight is drawn from Beta(alpha, alpha)")


AugmentConfig = Annotated[
    ShiftConfig | PadCropConfig | FlipConfig | CutoutConfig | MixupConfig, ChosenBy("name", "augmentation")
]

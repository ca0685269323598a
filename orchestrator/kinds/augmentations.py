"""What a plan may write under `augment`: a list of steps, applied in order to inputs in [0, 1].

Every random number of a step belongs to (seed, sample id, view), so an augmented view can be seen again at any time.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from raydistill.plan.config import Integer, Positive
from raydistill.plan.kind import Choice, Kind

Pixels = Annotated[Integer, Field(ge=1, le=10_000)]


class AugmentationOptions(Kind):
    """A random change of the inputs.

    `implementation` is called as `function(step, inputs, draws)` with a batch of inputs and `training.augment.Draws`,
    and returns inputs of the same shape. One that `mixes_samples` is called as `function(step, draws, population)`, and
    says with which of so many samples each is mixed, and how much of it is left.
    """

    chosen_by = Choice(
        "name", "augmentation", "augmentations", "raydistill.kinds.augmentations:AUGMENTATIONS"
    )

    name: str = ""
    """Which one; its options stand beside it."""

    needs_images: ClassVar[bool] = True
    """Whether inputs must be images, (channels, height, width)."""
    mixes_samples: ClassVar[bool] = False
    """Whether inputs and labels are mixed with those of other samples of the transfer set."""


class ShiftConfig(AugmentationOptions):
    """Move the image by whole pixels in any direction; what moves in is zero (jitter of Hinton, arXiv 1503.02531)."""

    word = "shift"
    implementation = "raydistill.training.augment:shift"

    pixels: Pixels = Field(2, description="largest shift along each axis")


class PadCropConfig(AugmentationOptions):
    """Pad with zeros and cut out the original size anywhere, as CIFAR recipes do (arXiv 1409.5185)."""

    word = "pad_crop"
    implementation = "raydistill.training.augment:pad_crop"

    padding: Pixels = Field(4, description="zeros added on each side")


class FlipConfig(AugmentationOptions):
    """Mirror left and right with probability one half."""

    word = "flip"
    implementation = "raydistill.training.augment:flip"


class CutoutConfig(AugmentationOptions):
    """Zero a square whose centre lies anywhere in the image (arXiv 1708.04552)."""

    word = "cutout"
    implementation = "raydistill.training.augment:cutout"

    size: Pixels = Field(16, description="side of the square in pixels; it may reach over the border")


class MixupConfig(AugmentationOptions):
    """Blend each input and its target with those of another training sample (arXiv 1710.09412)."""

    word = "mixup"
    implementation = "raydistill.training.augment:mixup"
    needs_images = False
    mixes_samples = True

    alpha: Positive = Field(0.2, description="the sample's own weight is drawn from Beta(alpha, alpha)")


AUGMENTATIONS = (ShiftConfig, PadCropConfig, FlipConfig, CutoutConfig, MixupConfig)

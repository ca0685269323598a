"""What a plan may write under `augment`: a list of steps, applied in order to inputs in [0, 1].

Every random number of a step belongs to (seed, sample id, view), so an augmented view can be seen again at any time.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from raydistill.plan.address import is_ours
from raydistill.plan.config import Boolean, Integer, NonNegative, Number, Positive
from raydistill.plan.config_errors import located_error
from raydistill.plan.kind import Choice, Kind

if TYPE_CHECKING:
    from raydistill.plan.order import Site


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise located_error(f"{ends[0]:g} is above {ends[1]:g}; write the smaller end first")
    return ends


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise located_error(f"a kernel has a middle, and {size} is even; write {size + 1}")
    return size


Pixels = Annotated[Integer, Field(ge=1, le=10_000)]
Fraction = Annotated[Number, Field(gt=0, le=1)]
Probability = Annotated[Number, Field(ge=0, le=1)]
Fractions = Annotated[tuple[Fraction, Fraction], AfterValidator(_rising)]
Positives = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]


class AugmentationOptions(Kind):
    """A random change of the inputs.

    `implementation` is called as `function(step, inputs, draws)` with a batch of inputs and `training.augment.Draws`,
    and returns inputs of the same shape. One that `mixes_samples` is called as `function(step, draws, shape)` with the
    shape of one input, and says how much is left of each sample where it is mixed with another: numbers in [0, 1] that
    are (B, ...) with as many axes as inputs have, each of them 1 or the inputs' size. Labels count by their mean.
    """

    chosen_by = Choice(
        "name", "augmentation", "augmentations", "raydistill.kinds.augmentations:AUGMENTATIONS"
    )

    name: str = ""
    """Which one; its options stand beside it."""

    needs_images: ClassVar[bool] = True
    """Whether inputs must be images, (channels, height, width)."""
    channels: ClassVar[tuple[int, ...]] = ()
    """How many channels images may have; any number when empty."""
    mixes_samples: ClassVar[bool] = False
    """Whether inputs and labels are mixed with those of other samples of the transfer set."""

    def mistake(self, shape: tuple[int, ...]) -> str | None:
        """What does not fit inputs of a shape."""
        if self.needs_images and len(shape) != 3:
            return f"augmentation `{self.name}` needs images; an input has the shape {shape}"
        if self.channels and shape[0] not in self.channels:
            known = " or ".join(str(count) for count in self.channels)
            return (
                f"augmentation `{self.name}` needs images of {known} channels, not {shape[0]}; leave it out"
            )
        return None

    def check(self, site: "Site") -> None:
        """The task's inputs are what it changes; those of a task of the user's own are looked at when they are read."""
        if not is_ours(type(site.task).__module__):
            return
        try:
            shape = site.task.input_shape
        except FileNotFoundError:  # which is said where it is about to be read
            return
        if (message := self.mistake(shape)) is not None:
            raise site.error(message)


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


class ResizedCropConfig(AugmentationOptions):
    """Cut out a part of random area and shape, and scale it to the size of the input (arXiv 1409.4842).

    The ratio of its sides is drawn log-uniformly. When none of ten parts fits into the image, it is the largest
    central one whose ratio is allowed. Tasks that read pictures from files do this while reading: see their
    `smallest_area`.
    """

    word = "resized_crop"
    implementation = "raydistill.training.crops:resized_crop"

    scale: Fractions = Field((0.08, 1.0), description="smallest and largest area, as a part of the image's")
    ratio: Positives = Field((0.75, 4 / 3), description="smallest and largest width / height, in pixels")


class ColourJitterConfig(AugmentationOptions):
    """Change brightness, contrast, saturation and hue, in an order that is drawn for each image.

    Factors lie between max(0, 1 - v) and 1 + v, the turn of the hue between -v and v rounds of the circle. Grey images
    have neither saturation nor hue. The pixels are those of torchvision's `ColorJitter`.
    """

    word = "colour_jitter"
    implementation = "raydistill.training.colours:colour_jitter"
    channels = (1, 3)

    brightness: NonNegative = Field(0.4, description="largest change of the factor")
    contrast: NonNegative = Field(0.4, description="largest change of the factor")
    saturation: NonNegative = Field(0.4, description="largest change of the factor")
    hue: Annotated[Number, Field(ge=0, le=0.5)] = Field(0.1, description="largest turn, in rounds")
    probability: Probability = Field(1.0, description="how often it is done at all; SimCLR writes 0.8")


class GreyConfig(AugmentationOptions):
    """Take the colour away: every channel is 0.2989 red + 0.587 green + 0.114 blue. Grey images stay as they are."""

    word = "grey"
    implementation = "raydistill.training.colours:grey"
    channels = (1, 3)

    probability: Probability = Field(0.2, description="how often it is done")


class BlurConfig(AugmentationOptions):
    """Blur with a Gaussian whose deviation is drawn uniformly; the image is mirrored at its borders.

    The taps are those of torchvision's `GaussianBlur`, which samples the bell at steps of 1 / √2 pixel: its picture is
    less blurred than the deviation says.
    """

    word = "blur"
    implementation = "raydistill.training.colours:blur"

    kernel: Annotated[Pixels, AfterValidator(_odd)] = Field(
        3, description="pixels along each axis, an odd number; a tenth of the side is usual"
    )
    sigma: Positives = Field((0.1, 2.0), description="smallest and largest deviation")
    probability: Probability = Field(0.5, description="how often it is done")

    def mistake(self, shape: tuple[int, ...]) -> str | None:
        if (message := super().mistake(shape)) is not None:
            return message
        if self.kernel // 2 < min(shape[1:]):
            return None
        return f"`kernel` {self.kernel} reaches over images of {shape[1]} x {shape[2]}; write a smaller one"


class EraseConfig(AugmentationOptions):
    """Paint over a rectangle of random area and shape (random erasing, arXiv 1708.04896).

    When none of ten rectangles fits into the image, it stays as it is.
    """

    word = "erase"
    implementation = "raydistill.training.crops:erase"

    probability: Probability = Field(0.5, description="how often it is done")
    scale: Fractions = Field((0.02, 0.33), description="smallest and largest area, as a part of the image's")
    ratio: Positives = Field((0.3, 3.3), description="smallest and largest width / height, in pixels")
    value: Probability = Field(0.0, description="what is painted, before normalisation")


class TrivialAugmentConfig(AugmentationOptions):
    """One change of fourteen at a strength of its own for each image (TrivialAugment, arXiv 2103.10158).

    Nothing, shear, shift, rotation, brightness, colour, contrast, sharpness, posterize, solarize, autocontrast or
    equalize, all alike, at one of 31 strengths of the "wide" space, as torchvision has them.
    """

    word = "trivial_augment"
    implementation = "raydistill.training.policies:trivial_augment"
    channels = (1, 3)


class RandAugmentConfig(AugmentationOptions):
    """Some changes of fourteen one after another, all of one strength (RandAugment, arXiv 1909.13719).

    The changes of `trivial_augment` with the smaller strengths that torchvision has here, of which this is number
    `magnitude` of 0 to 30.
    """

    word = "rand_augment"
    implementation = "raydistill.training.policies:rand_augment"
    channels = (1, 3)

    operations: Annotated[Integer, Field(ge=1, le=14)] = Field(2, description="how many changes")
    magnitude: Annotated[Integer, Field(ge=0, le=30)] = Field(9, description="how strong they are")


class AugmixConfig(AugmentationOptions):
    """Blend each image with chains of one to three changes of it (AugMix, arXiv 1912.02781).

    The chains' weights are uniform on the simplex, and the image's own part is uniform on [0, 1] (α = 1 of the paper).
    Only the images: the paper's loss between three views is left out. Pixels are those of torchvision's `AugMix`.
    """

    word = "augmix"
    implementation = "raydistill.training.policies:augmix"
    channels = (1, 3)

    width: Annotated[Integer, Field(ge=1, le=10)] = Field(3, description="chains")
    severity: Annotated[Integer, Field(ge=1, le=10)] = Field(
        3, description="of ten strengths the weakest so many are drawn from"
    )
    colours: Boolean = Field(
        True, description="also brightness, colour, contrast and sharpness, which ImageNet-C tests"
    )


class SpecAugmentConfig(AugmentationOptions):
    """Hide bands of features and spans of frames (SpecAugment, arXiv 1904.08779).

    Of inputs (frames, features), as `speech_frames` has them, or (channels, frames, features). Widths are drawn from 0
    to the widest, all alike, and so is the place. Of spliced frames every sample has masks of its own, and the frame
    that is to be told may be hidden. Time is not warped.
    """

    word = "spec_augment"
    implementation = "raydistill.training.spectra:spec_augment"
    needs_images = False

    feature_masks: Annotated[Integer, Field(ge=0, le=20)] = Field(2, description="bands that are hidden")
    features: Pixels = Field(8, description="of the widest band; the paper has 27 of 80")
    frame_masks: Annotated[Integer, Field(ge=0, le=20)] = Field(1, description="spans that are hidden")
    frames: Pixels = Field(5, description="of the longest span")
    value: Number = Field(0.0, description="what is put there; 0 is the mean where features are normalised")

    def mistake(self, shape: tuple[int, ...]) -> str | None:
        if len(shape) not in (2, 3):
            return f"augmentation `{self.name}` needs frames of features; an input has the shape {shape}"
        widest = (
            ("frames", self.frame_masks, self.frames, shape[-2]),
            ("features", self.feature_masks, self.features, shape[-1]),
        )
        for key, masks, width, length in widest:
            if masks and width > length:
                return f"`{key}` {width} is more than the {length} of an input; write fewer"
        return None


class MixupConfig(AugmentationOptions):
    """Blend each input and its target with those of another training sample (arXiv 1710.09412).

    Labels are blended as the inputs are. Teachers are asked about the blend itself, live or when targets are stored;
    answers are never blended. Beside `cutmix`, each sample gets one of the two, as often the one as the other.
    """

    word = "mixup"
    implementation = "raydistill.training.augment:mixup"
    needs_images = False
    mixes_samples = True

    alpha: Positive = Field(0.2, description="the sample's own weight is drawn from Beta(alpha, alpha)")


class CutmixConfig(AugmentationOptions):
    """Paste a rectangle of another training sample into each image; its target counts by the area (arXiv 1905.04899).

    The rectangle has the image's shape and the area 1 - λ, λ from Beta(alpha, alpha); its middle lies anywhere; what
    reaches over the border is cut off before areas are counted. It comes from the same place of the other image. As for
    `mixup`, teachers are asked about the image that is made.
    """

    word = "cutmix"
    implementation = "raydistill.training.augment:cutmix"
    mixes_samples = True

    alpha: Positive = Field(1.0, description="the part that stays is drawn from Beta(alpha, alpha)")
    probability: Probability = Field(1.0, description="how often a sample is mixed; CIFAR's release has 0.5")


AUGMENTATIONS = (
    ShiftConfig,
    PadCropConfig,
    FlipConfig,
    CutoutConfig,
    ResizedCropConfig,
    ColourJitterConfig,
    GreyConfig,
    BlurConfig,
    EraseConfig,
    TrivialAugmentConfig,
    RandAugmentConfig,
    AugmixConfig,
    SpecAugmentConfig,
    MixupConfig,
    CutmixConfig,
)

"""Methods that bring a student's maps to the teacher's by layers of their own, which are trained and left behind."""

from typing import Annotated, Literal

from pydantic import Field

from raydistill.kinds.augmentations import Probability
from raydistill.kinds.map_methods import MapsOptions
from raydistill.kinds.method_options import MethodOptions
from raydistill.plan.config import Integer, NonNegative


class ReviewConfig(MapsOptions):
    """Each stage of the teacher teaches all of the student's up to it (ReviewKD, Chen et al., CVPR 2021,
    arXiv 2104.09044).

    From the embedding down to the first stage, the student's map is joined to what came from above, place by place, by
    two gates; the joined map is brought to the teacher's channels and compared with its map of that stage.
    loss = weight · Σ_l D(o_l, t_l), where D is a mean of mean squares: of the maps, and of both averaged to 4, 2 and 1
    parts a side, with weights 1, ½, ¼ and ⅛.

    Settings: weight 5 is the release's for ResNet-32x4 → ResNet-8x4, between 0.6 and 8 by the pair, raised over 20
    epochs: `methods: [{method: labels}, {method: review, weight: 5, ramp: {epochs: 20}}]`.
    Published: CIFAR-100 (best epoch): ResNet-32x4 → ResNet-8x4 75.63, → ShuffleNetV2 77.78.
    Pitfalls: as many stages in both networks, the teacher's before their ReLU; grids and channels may differ. The
    joining layers have more weights than a small student.
    Releases: leaves its teacher in training mode on CIFAR; here it is in evaluation mode. mdistiller's reads the width
    of joined maps and does not use it.
    """

    word = "review"
    implementation = "raydistill.methods.review:Review"

    weight: NonNegative = 5.0
    teacher_features: tuple[str, ...] | None = Field(
        None, min_length=1, description="all stages before their ReLU when left out"
    )
    student_embedding: str = "embedding"
    """The student's feature above all stages."""
    teacher_embedding: str = "embedding"
    """The teacher's feature above all stages."""
    channels: Annotated[Integer, Field(ge=1, le=100_000)] | None = Field(
        None, description="of joined maps; those of the student's last stage, at most 512, when left out"
    )


class VariationalInformationConfig(MapsOptions):
    """What the student's maps tell of the teacher's (VID, Ahn et al., CVPR 2019, arXiv 1904.05835).

    Three 1x1 convolutions predict the teacher's map t from the student's as μ, with a variance σ² of each channel's own
    that is learned: loss = weight · Σ_l mean of ½ ((μ - t)² / σ² + ln σ²). Channels that cannot be predicted get a
    large variance and pull no more. The loss may be negative; the error and the variance are logged beside it.

    Settings: weight 1 is the toolboxes', beside labels: `methods: [{method: labels}, {method:
    variational_information}]`. Variances start at 5, end at 0.001 and have no weight decay.
    Published: CIFAR-100 (RepDistiller): ResNet-32x4 → ResNet-8x4 73.09, → ShuffleNetV2 73.40.
    Pitfalls: the loss may be negative, and falls with the variances alone; the error and the variance are logged beside
    it. Of two maps the larger is averaged to the smaller.
    Releases: in mdistiller's the variances never learn; RepDistiller's decays them.
    """

    word = "variational_information"
    implementation = "raydistill.methods.variational_information:VariationalInformation"


class MaskedGenerationConfig(MethodOptions):
    """The student's maps, of which a part is blanked, make the teacher's whole ones (MGD, Yang et al., ECCV 2022,
    arXiv 2205.01529).

    loss = weight · mean of (G(mask · A(F)) - F^T)², with A a 1x1 convolution where channels differ, and G two 3x3
    convolutions with a ReLU between them. The mask is drawn anew for every sample and channel, or place.

    Settings: a mean with weight 2 is about the release's sum with 7e-5 on ImageNet (`reduction: sum`), `masked: 0.15`
    its classification's; dense tasks blank 0.45 to 0.75 of the places. Beside labels: `methods: [{method: labels},
    {method: masked_generation}]`.
    Published: ImageNet: ResNet-34 → ResNet-18 69.90 alone, 71.69; ResNet-50 → MobileNet 69.21, 72.49.
    Pitfalls: two 3x3 convolutions at the teacher's width cost more than a small student; of two maps the larger is
    averaged to the smaller. Each worker draws masks of its own.
    Releases: its text has a default of 0.5 where the code has 0.15; the sum's weight belongs to one size of maps.
    """

    word = "masked_generation"
    implementation = "raydistill.methods.masked_generation:MaskedGeneration"
    couples_samples = True
    needs_features = True

    weight: NonNegative = 2.0
    masked: Probability = 0.15
    """How probable it is that a part is blanked."""
    mask: Literal["channels", "places"] = "channels"
    """What is blanked."""
    reduction: Literal["mean", "sum"] = "mean"
    """The mean of squares, or their sum over channels and places."""
    student_feature: str | None = Field(None, description="the maps that are pooled when left out")
    teacher_feature: str | None = Field(None, description="the maps that are pooled when left out")

"""Methods that look through the linear classifier at a network's end."""

from typing import Annotated

from pydantic import Field, model_validator

from raydistill.kinds.method_options import MethodOptions, need_some_weight
from raydistill.plan.config import Boolean, Integer, NonNegative


class LastMapsOptions(MethodOptions):
    """What methods can be told that compare the maps which a network pools into its classifier."""

    needs_features = True

    student_feature: str | None = Field(None, description="the maps that are pooled when left out")
    teacher_feature: str | None = Field(None, description="the maps that are pooled when left out")


class ClassAttentionConfig(LastMapsOptions):
    """Where each class is seen, for all classes (CAT-KD, Guo et al., CVPR 2023, arXiv 2304.12777).

    M_k = Σ_c W_kc F_c, the map of class k, from the last maps F and the classifier's weights W, averaged to
    `places` x `places`; loss = weight · mean over samples, classes and places of (M^S - M^T)². With `normalize` each
    class's map has length 1 first.

    Settings: weight 400, `places: 2` and `normalize` are the release's defaults, for networks of unlike architecture;
    of like ones it compares maps as they are, with 15 for ResNet-32x4 → ResNet-8x4 and 12 for WRN-40-2 → WRN-16-2:
    `methods: [{method: labels}, {method: class_attention, normalize: false, weight: 15}]`.
    Published: CIFAR-100: ResNet-32x4 → ResNet-8x4 76.91 (best epoch; secondary source).
    Pitfalls: both networks have the same classes, and logits that are one linear layer of pooled maps. With `places: 1`
    and `normalize` only signs are compared; a weight for normalised maps is none for maps as they are.
    Releases: drops the teacher's bias, which stays here; its plans for ImageNet name a method that is not there, and a
    batch of 2.
    """

    word = "class_attention"
    implementation = "raydistill.methods.class_attention:ClassAttention"

    weight: NonNegative = 400.0
    places: Annotated[Integer, Field(ge=1, le=64)] = 2
    """Parts of a side that maps are averaged to."""
    normalize: Boolean = True
    """Give each class's map length 1 first."""


class SoftmaxRegressionConfig(LastMapsOptions):
    """The teacher's classifier judges the student's maps (SRRL, Yang et al., ICLR 2021).

    With F the student's last maps behind a connector (1x1 convolution, batch norm, ReLU) and μ the mean over places:
    loss = weight · (feature_weight · mean of (μ(F) - μ(F^T))² + regression_weight · mean of (h(μ(F)) - h(μ(F^T)))²),
    h the teacher's own classifier, which stays as it is. The student keeps its own head, which this does not train, and
    its own classes; the connector is left behind.

    Settings: weights 1 and 1 are the release's, beside labels: `methods: [{method: labels}, {method:
    softmax_regression}]`; 1 and 5 on CIFAR-100 (cls_KD).
    Published: with soft targets (SimKD's tables), CIFAR-100: ResNet-32x4 → ResNet-8x4 75.39, → VGG-8 73.23.
    Pitfalls: the second mean is over classes: more of them pull each less. A constant added to all logits counts. Grids
    and channels may differ.
    Releases: its connector is in no checkpoint; SimKD's copy works on pooled features, another function.
    """

    word = "softmax_regression"
    implementation = "raydistill.methods.softmax_regression:SoftmaxRegression"

    feature_weight: NonNegative = 1.0
    """Of the pooled maps."""
    regression_weight: NonNegative = 1.0
    """Of what the teacher's classifier makes of them."""

    @model_validator(mode="after")
    def _something_to_compare(self) -> "SoftmaxRegressionConfig":
        need_some_weight(self, "feature_weight", "regression_weight")
        return self

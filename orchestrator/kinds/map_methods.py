"""Methods that compare maps (channels, height, width) of pairs of layers, without parameters of their own."""

from pydantic import Field

from raydistill.kinds.method_options import MethodOptions
from raydistill.plan.config import NonNegative


class MapsOptions(MethodOptions):
    """What methods that compare the maps of several layers can be told. Layers are paired in order."""

    needs_features = True

    student_features: tuple[str, ...] | None = Field(
        None, min_length=1, description="all stages when left out"
    )
    teacher_features: tuple[str, ...] | None = Field(
        None, min_length=1, description="all stages when left out"
    )


class AttentionTransferConfig(MapsOptions):
    """Where a layer is active, whatever its channels (AT, Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928).

    loss = weight · Σ_l mean over samples and places of (A(F_l^S) - A(F_l^T))², with A(F) the mean over channels of F²,
    divided by its length over all places. Channels may differ; of two maps the larger is pooled to the smaller, then
    squared.

    Settings: weight 1000 is the toolboxes', beside labels: `methods: [{method: labels}, {method: attention_transfer}]`.
    Published: CIFAR-100 (RepDistiller): ResNet-32x4 → ResNet-8x4 73.44, WRN-40-2 → WRN-16-2 74.08; ResNet-50 →
    MobileNetV2 58.58, below the student alone.
    Pitfalls: a layer's part is at most 2 / places: with maps of 32, 16 and 8 pixels a side, late stages rule. For
    networks of unlike layout name the last two stages.
    Releases: the paper writes lengths of the differences; all toolboxes, and we, their squares.
    """

    word = "attention_transfer"
    implementation = "raydistill.methods.attention_transfer:AttentionTransfer"

    weight: NonNegative = 1000.0


class NeuronSelectivityConfig(MapsOptions):
    """What the channels of a layer look for, as a set (NST, Huang and Wang 2017, arXiv 1707.01219): maximum mean
    discrepancy of the channels' patterns, with the kernel k(a, b) = (a · b)².

    loss = weight · Σ_l mean over samples of [mean k(t, t') + mean k(s, s') - 2 mean k(s, t)], over all pairs of
    channels, each channel's map divided by its length: at most 2 for a layer, and 0 for maps of one place. Channels may
    differ; the larger map is pooled to the smaller.

    Settings: weight 50 is the toolboxes', beside labels: `methods: [{method: labels}, {method: neuron_selectivity}]`.
    Published: CIFAR-100 (RepDistiller): ResNet-32x4 → ResNet-8x4 73.30, → ShuffleNetV2 74.68.
    Pitfalls: says nothing of maps of one place, and not which channel does what.
    Releases: the toolboxes hold (B, C, C, places) numbers, a gigabyte for 256 channels; here these are matrix products.
    """

    word = "neuron_selectivity"
    implementation = "raydistill.methods.neuron_selectivity:NeuronSelectivity"

    weight: NonNegative = 50.0

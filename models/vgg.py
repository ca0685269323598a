"""VGG (arXiv 1409.1556) as in the common CIFAR-100 benchmark: batch norm, one linear layer instead of three."""

from collections.abc import Sequence

from torch import nn

from raydistill.models.layers import (
    Network,
    average_pool,
    convolution_stage,
    image_shape,
    initialise_classifier,
    initialise_convolutions,
)
from raydistill.models.options import VggOptions

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS_PER_STAGE = {8: 1, 13: 2}


def build_vgg(options: VggOptions, input_shape: Sequence[int], num_classes: int) -> Network:
    """The first stage is the `stem`. Images of 32x32 are pooled three times, of 64x64 and more four times."""
    channels, height, _ = image_shape(input_shape)
    num_pools = 4 if height >= 64 else 3
    parts: dict[str, nn.Module] = {}
    features: dict[str, str] = {}
    for index, width in enumerate(_WIDTHS):
        name = f"stage{index}" if index else "stem"
        widths = [width] * _CONVOLUTIONS_PER_STAGE[options.depth]
        parts[name], last = convolution_stage(channels, widths, batch_norm=True)
        features |= {f"{name}_pre": f"{name}.{last}", name: name}
        if index < num_pools:
            parts[f"{name}_pool"] = nn.MaxPool2d(2)
        channels = width
    classifier = nn.Linear(channels, num_classes)
    network = Network(
        {**parts, "embedding": average_pool(), "classifier": classifier},
        {**features, "embedding": "embedding"},
    )
    initialise_convolutions(network)
    initialise_classifier(classifier)
    return network

"""Plain convolutional networks: of any widths, and those of TAKD (arXiv 1902.03393, by its release)."""

from collections.abc import Sequence

from torch import nn

from raydistill.models.layers import (
    Network,
    average_pool,
    convolution_stage,
    dense_layers,
    image_shape,
    initialise_convolutions,
)
from raydistill.models.options import CnnOptions


def build_cnn(options: CnnOptions, input_shape: Sequence[int], num_classes: int) -> Network:
    channels, height, width = image_shape(input_shape)
    pools = len(options.widths) - options.average
    pooled_height, pooled_width = height >> pools, width >> pools
    if min(pooled_height, pooled_width) == 0:
        raise ValueError(f"{pools} pools leave nothing of an image of {height}x{width}; use fewer stages")
    stages, features = _stages(channels, options)
    flat_size = options.widths[-1] * (1 if options.average else pooled_height * pooled_width)
    hidden, hidden_features = dense_layers(flat_size, options.hidden, options.dropout)
    size_in = options.hidden[-1] if options.hidden else flat_size
    embedding = f"hidden{len(options.hidden)}.relu" if options.hidden else "flatten"
    flatten = average_pool() if options.average else nn.Flatten()
    network = Network(
        {**stages, "flatten": flatten, **hidden, "classifier": nn.Linear(size_in, num_classes)},
        {**features, **hidden_features, "embedding": embedding},
    )
    initialise_convolutions(network)
    return network


def _stages(channels: int, options: CnnOptions) -> tuple[dict[str, nn.Module], dict[str, str]]:
    parts: dict[str, nn.Module] = {}
    features: dict[str, str] = {"stem": "stage1.relu1"}
    counts = options.convolutions or (1,) * len(options.widths)
    for index, (width, count) in enumerate(zip(options.widths, counts, strict=True), start=1):
        stage, last = convolution_stage(channels, [width] * count, batch_norm=options.batch_norm)
        parts[f"stage{index}"] = stage
        if index < len(counts) or not options.average:
            parts[f"pool{index}"] = nn.MaxPool2d(2)
        features |= {f"stage{index}_pre": f"stage{index}.{last}", f"stage{index}": f"stage{index}"}
        channels = width
    return parts, features

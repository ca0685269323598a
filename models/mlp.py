"""Fully connected networks: those of Hinton, Vinyals and Dean (arXiv 1503.02531) for digits and for speech."""

from collections.abc import Sequence
from math import prod

from torch import nn

from raydistill.models.layers import Network, dense_layers
from raydistill.models.options import AcousticOptions, MlpOptions


def build_mlp(options: MlpOptions, input_shape: Sequence[int], num_classes: int) -> Network:
    """PyTorch's own initialisation: for two or three hidden layers it trains as well as any."""
    size_in = prod(input_shape)
    hidden, features = dense_layers(size_in, options.widths, options.dropout)
    depth = len(options.widths)
    return Network(
        {
            "flatten": nn.Flatten(),
            "input_dropout": nn.Dropout(options.input_dropout),
            **hidden,
            "classifier": nn.Linear(options.widths[-1] if depth else size_in, num_classes),
        },
        {**features, "embedding": f"hidden{depth}.relu" if depth else "flatten"},
    )


def build_acoustic_dnn(options: AcousticOptions, input_shape: Sequence[int], num_classes: int) -> Network:
    """He's initialisation: PyTorch's own shrinks the signal by √6 in every ReLU layer, 1,296-fold in eight."""
    widths = (options.width,) * options.layers
    network = build_mlp(MlpOptions(widths=widths, dropout=options.dropout), input_shape, num_classes)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network

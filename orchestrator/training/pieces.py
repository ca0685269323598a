"""A large batch goes through a model in pieces on a CPU.

Activations of hundreds of pictures are larger than what malloc keeps: every layer then waits for the operating system
to hand out, and to clear, fresh pages, which takes longer than a convolution does. Pieces also need a small part of the
memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from raydistill.models.taps import Output

BYTES = 3 * 2**19  # of a piece's inputs; activations are some twenty times as large, and malloc keeps 32 MiB
FEWEST = 16  # samples; of fewer, layers take longer to be called


def pieces_of(inputs: Tensor) -> tuple[Tensor, ...]:
    """A batch (B, ...), in parts of about the same size if it is large and lies on a CPU."""
    # A program that is being written (ONNX, `torch.export`) is for batches of any size.
    if inputs.device.type != "cpu" or not inputs.numel() or torch.compiler.is_compiling():
        return (inputs,)
    largest = max(FEWEST, BYTES // (inputs[0].numel() * inputs.element_size()))
    return inputs.tensor_split(-(-len(inputs) // largest))


def logits_by_pieces(predict: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The logits (B, C) of a model in eval mode."""
    logits = [predict(piece) for piece in pieces_of(inputs)]
    return logits[0] if len(logits) == 1 else torch.cat(logits)


def output_by_pieces(predict: Callable[[Tensor], Output], inputs: Tensor) -> Output:
    """Logits and features of a model in eval mode."""
    outputs = [predict(piece) for piece in pieces_of(inputs)]
    if len(outputs) == 1:
        return outputs[0]
    names = outputs[0].features
    features = {name: torch.cat([output.features[name] for output in outputs]) for name in names}
    return Output(torch.cat([output.logits for output in outputs]), features)

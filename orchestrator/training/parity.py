"""In which precision a frozen network runs, and how far its answers are from those in float32."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from raydistill.kinds.stage_bases import Precision
from raydistill.models.taps import Output, Tapped
from raydistill.training.pieces import output_by_pieces
from raydistill.training.precision import autocast

TEMPERATURES = (1, 4)


def forward_pass(
    model: Tapped, device: str, precision: Precision, *, compiled: bool = False, channels_last: bool = False
) -> Callable[[Tensor], Output]:
    """The function from normalised inputs (B, ...) to logits and features, all float32 again."""
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    # Static: which kernels a batch meets may not hang on which sizes came before it, as several workers see others.
    run = torch.compile(model, dynamic=False) if compiled else model

    def predict(inputs: Tensor) -> Output:
        with autocast(torch.device(device).type, precision):
            output = run(inputs)
        features = {name: feature.float() for name, feature in output.features.items()}
        return Output(output.logits.float(), features)

    # Compiled for one size of batches.
    return predict if compiled else partial(output_by_pieces, predict)


def divergences(logits: Tensor, exact: Tensor, temperature: float) -> Tensor:
    """KL(exact ‖ logits) (B,) float64 in nats, of distributions at a temperature, from logits (B, C)."""
    logs = [torch.log_softmax(each.double() / temperature, dim=1) for each in (logits, exact)]
    return (logs[1].exp() * (logs[1] - logs[0])).sum(dim=1)


def parity(logits: Tensor, exact: Tensor) -> dict[str, float]:
    """Mean and largest divergence of logits (B, C) from those in float32, at T = 1 and 4, in nats."""
    found = {temperature: divergences(logits, exact, temperature) for temperature in TEMPERATURES}
    return {
        f"targets/kl_to_float32/{name}_t{temperature}": value
        for temperature, values in found.items()
        for name, value in (("mean", values.mean().item()), ("largest", values.max().item()))
    }

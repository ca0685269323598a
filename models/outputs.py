"""Logits from models that return something else: one of several outputs, or probabilities.

A hook on the model itself does it, so that names of weights and paths of features stay what they are.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

SUM = 1e-3  # how near to 1 rows of float16 probabilities add up


def take_logits(model: nn.Module, output: str | int | None, gives: str | None) -> nn.Module:
    """The same model, which returns logits (B, C): the `output` of that name or number, and of `probabilities` the
    logarithm."""
    if output is not None or gives == "probabilities":
        model.register_forward_hook(
            partial(_logits, output=output, are_probabilities=gives == "probabilities")
        )
    return model


def _logits(
    model: nn.Module, inputs: Any, outputs: Any, *, output: str | int | None, are_probabilities: bool
) -> Any:
    chosen = outputs if output is None else _chosen(outputs, output)
    if not are_probabilities or not isinstance(chosen, Tensor):
        return chosen
    chosen = chosen.float()
    return chosen.clamp(
        min=torch.finfo(chosen.dtype).tiny
    ).log()  # a probability of 0 has a finite logit, -87


def _chosen(outputs: Any, output: str | int) -> Any:
    if isinstance(outputs, Mapping) and output in outputs:
        return outputs[output]
    if isinstance(output, int):
        items = list(outputs.values()) if isinstance(outputs, Mapping) else outputs
        if isinstance(items, tuple | list) and -len(items) <= output < len(items):
            return items[output]
    elif not isinstance(outputs, Tensor) and hasattr(outputs, output):
        return getattr(outputs, output)
    raise ValueError(f"has no output `{output}`: it returns {described(outputs)}")


def described(outputs: Any) -> str:
    """What a model returns that is not one tensor, in words."""
    kind = type(outputs).__name__
    if isinstance(outputs, Tensor):
        return "one tensor"
    if isinstance(outputs, Mapping):  # the output objects of some libraries are mappings, too
        return f"a {kind} with the keys {', '.join(f'`{key}`' for key in outputs)}"
    if isinstance(outputs, tuple | list):
        return f"a {kind} of {len(outputs)}"
    return f"a {kind}" + (", whose `logits` are meant" if hasattr(outputs, "logits") else "")


def likely_output(outputs: Any) -> str | int | None:
    """What to call the logits among several outputs: those of that name, or else the first tensor."""
    if isinstance(outputs, Mapping):
        names = [key for key, value in outputs.items() if isinstance(value, Tensor)]
        return "logits" if "logits" in names else next(iter(names), None)
    if isinstance(outputs, tuple | list):
        return next((index for index, item in enumerate(outputs) if isinstance(item, Tensor)), None)
    return "logits" if hasattr(outputs, "logits") else None


def are_probabilities(logits: Tensor) -> bool:
    """Whether rows (B, C) are what a softmax gives: logits do not add up to 1."""
    values = logits.float()
    is_bounded = bool(((values >= 0) & (values <= 1)).all())
    return len(values) > 0 and is_bounded and bool(((values.sum(dim=1) - 1).abs() < SUM).all())

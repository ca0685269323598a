"""The mean of a channel's negative responses, from the batch norm that made them (OFD, arXiv 1904.01866)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from raydistill.training.method import Features

RARELY_NEGATIVE = 0.001


def margins(norm: nn.BatchNorm2d) -> Tensor:
    """m (C,) float32, on the CPU: E[t | t < 0] for t ~ N(μ, σ²), with the norm's bias μ and the size σ of its scale.

    m = μ - σ φ(μ/σ) / Φ(-μ/σ); as in the release, -3σ where t < 0 has a probability of 0.001 or less. A channel of
    σ = 0 always gives μ, so m = min(μ, 0).
    """
    zeros = torch.zeros(norm.num_features, dtype=torch.float64)
    mean = zeros if norm.bias is None else norm.bias.detach().double().cpu()
    deviation = zeros + 1 if norm.weight is None else norm.weight.detach().double().cpu().abs()
    ratio = mean / deviation
    # Both φ and Φ vanish far out, their quotient does not.
    log_density = -(ratio**2) / 2 - torch.log(torch.tensor(2 * torch.pi)) / 2
    log_probability = torch.special.log_ndtr(-ratio)
    expected = mean - deviation * torch.exp(log_density - log_probability)
    result = torch.where(log_probability.exp() > RARELY_NEGATIVE, expected, -3 * deviation)
    return torch.where(deviation > 0, result, mean.clamp(max=0)).float()


def batch_norm_behind(features: Features, name: str) -> nn.BatchNorm2d:
    """The batch norm that made a feature, found in the graph of a forward pass: what it returned, or, in a sum, the
    term that most was computed for, a residual block's branch. `ValueError` if there is none.
    """
    made: dict[Node, nn.BatchNorm2d] = {}

    def keep(module: nn.BatchNorm2d, _: object, output: Tensor) -> None:
        if output.grad_fn is not None:
            made[output.grad_fn] = module

    norms = [module for module in features.model.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(keep) for norm in norms]
    try:
        with torch.enable_grad():
            (feature,) = features.probe([name])
    finally:
        for handle in handles:
            handle.remove()
    channels = feature.shape[1]
    terms = [node for node in _terms(feature.grad_fn) if node in made and made[node].num_features == channels]
    if not terms:
        raise ValueError(
            f"OFD needs a network with batch normalisation: none makes all channels of the teacher's `{name}`;"
            " choose another teacher, or name features right behind a batch norm in `teacher_features`"
        )
    return made[max(terms, key=lambda node: len(_upstream(node)))]


def _terms(node: Node | None) -> Iterable[Node]:
    """The nodes whose sum a node is; itself, if it is no sum."""
    if node is None:
        return
    if node.name().startswith("AddBackward"):
        for following, _ in node.next_functions:
            yield from _terms(following)
    else:
        yield node


def _upstream(node: Node) -> set[Node]:
    """All that a node was computed from."""
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        for following, _ in waiting.pop().next_functions:
            if following is not None and following not in found:
                found.add(following)
                waiting.append(following)
    return found

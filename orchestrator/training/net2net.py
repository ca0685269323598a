"""Net2Net (Chen, Goodfellow, Shlens 2016, arXiv 1511.05641): a larger network that begins as the same function.

For chains of convolutions and linear layers, such as `mlp`, `cnn` and `vgg8`; layers are matched by their paths.
*Wider*: a unit of a larger layer is a copy of one of the smaller layer's units, drawn at random beyond the first ones;
what reads a unit that has n copies reads each of them with 1/n of the weight. *Deeper*: a layer that the smaller
network does not have is the identity, which passes what the ReLU before it gives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from raydistill.kinds.training import Net2NetConfig
from raydistill.models.layers import Network

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A weighted layer of a chain, with the batch norm that follows it. `reads_relu`: nothing it reads is negative."""

    path: str
    weighted: nn.Conv2d | nn.Linear
    reads_relu: bool
    norm_path: str = ""
    norm: nn.BatchNorm2d | None = None


def net2net(config: Net2NetConfig, smaller: nn.Module, larger: nn.Module, seed: int) -> StateDict:
    """`grow` as a plan asks for it."""
    return grow(smaller, larger, seed=seed, noise=config.noise)


def grow(smaller: nn.Module, larger: nn.Module, *, seed: int, noise: float = 0.0) -> StateDict:
    """A state for `larger` with which it computes, in eval mode and without noise, what `smaller` does.

    Normal noise, `noise` times the spread of a layer's weights, is added to what copies read: without it, and without
    dropout, copies have equal gradients for ever. `ValueError` says why one network cannot grow into the other.
    """
    sources, targets = {layer.path: layer for layer in chain_of(smaller)}, chain_of(larger)
    _check_shared_parts(smaller, larger, sources, targets)
    generator = torch.Generator().manual_seed(seed)
    state = {key: value.clone() for key, value in larger.state_dict().items()}
    copied = torch.arange(targets[0].weighted.weight.shape[1])
    moments = torch.zeros(0), torch.zeros(0)
    for target in targets:
        copied = _as_read_by(target, copied)
        source = sources.get(target.path)
        if source is None:
            weights, norm = _identity(target, copied), identity_norm(*moments, target.norm)
        else:
            weights, norm = _state(source.weighted), _state(source.norm)
            moments = rectified_moments(norm["bias"], norm["weight"]) if norm else moments
        if weights["weight"].shape[1] != int(copied.max()) + 1:
            raise ValueError(f"`{target.path}` reads inputs of another size in the smaller network")
        units = _draw_units(target, len(weights["weight"]), generator, is_last=target is targets[-1])
        for key, value in widen(weights, copied, units, noise, generator).items():
            state[f"{target.path}.{key}"].copy_(value)
        for key, value in norm.items():
            state[f"{target.norm_path}.{key}"].copy_(value[units] if value.dim() else value)
        copied = units
    return state


def widen(
    weights: Mapping[str, Tensor], copied: Tensor, units: Tensor, noise: float, generator: torch.Generator
) -> StateDict:
    """`weight` (O, I, ...) and `bias` (O,) of a layer that makes copies `units` (O',) of its units from inputs that are
    the copies `copied` (I',) of its inputs."""
    weight = weights["weight"]
    share = 1 / torch.bincount(copied)[copied].to(weight.dtype)
    wider = weight[units][:, copied] * share.view(1, -1, *[1] * (weight.dim() - 2))
    if noise and len(units) > len(weight):
        copies = wider[len(weight) :]
        copies += noise * weight.std() * torch.randn(copies.shape, generator=generator, dtype=weight.dtype)
    return {"weight": wider} | ({"bias": weights["bias"][units]} if "bias" in weights else {})


def rectified_moments(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of max(x, 0) for normal x, elementwise; the sign of the deviation says nothing."""
    mean, deviation = mean.double(), deviation.double().abs().clamp(min=1e-6)
    below = torch.special.ndtr(mean / deviation)
    density = torch.exp(-(mean / deviation).square() / 2) / (2 * torch.pi) ** 0.5
    first = mean * below + deviation * density
    second = (mean.square() + deviation.square()) * below + mean * deviation * density
    return first, (second - first.square()).clamp(min=0)


def identity_norm(mean: Tensor, variance: Tensor, like: nn.BatchNorm2d | None) -> StateDict:
    """A batch norm that is the identity in eval mode, and in training mode on inputs of this mean and variance (C,)."""
    if like is None:
        return {}
    deviation = (variance + like.eps).sqrt()
    return {"weight": deviation, "bias": mean, "running_mean": mean, "running_var": variance}


def chain_of(network: nn.Module) -> list[Layer]:
    """The weighted layers of a plain chain, in order; `ValueError` names what else a network has."""
    if not isinstance(network, Network):
        raise ValueError(f"a {type(network).__name__} is no chain of known layers, such as `mlp` or `cnn`")
    layers: list[Layer] = []
    reads_relu = False
    for path, module in network.named_modules():
        match module:
            case nn.Sequential() | nn.Flatten() | nn.Dropout() | nn.MaxPool2d() | nn.AdaptiveAvgPool2d():
                continue  # leaves what is not negative so, and channels apart
            case nn.Linear() | nn.Conv2d(groups=1):
                layers.append(Layer(path, module, reads_relu))
                reads_relu = False
            case nn.BatchNorm2d() if layers and not reads_relu:
                layers[-1] = replace(layers[-1], norm_path=path, norm=module)
            case nn.ReLU():
                reads_relu = True
            case _:
                raise ValueError(
                    f"`{path}` is a {type(module).__name__}; only plain chains of convolutions and linear layers can"
                    " be grown, such as `mlp`, `cnn` and `vgg8`"
                )
    return layers


def _check_shared_parts(
    smaller: nn.Module, larger: nn.Module, sources: Mapping[str, Layer], targets: Sequence[Layer]
) -> None:
    """What both networks have is of one kind, and what the larger one adds can be the identity."""
    if missing := sources.keys() - {target.path for target in targets}:
        raise ValueError(
            f"the larger network has no `{min(missing)}`; it needs all layers of the smaller one"
        )
    if _pools(smaller) != _pools(larger):
        raise ValueError("the networks pool at different places; give both as many stages")
    for target in targets:
        source = sources.get(target.path)
        if source is None and not target.reads_relu:
            raise ValueError(f"no ReLU comes before the new `{target.path}`, which so cannot be the identity")
        if source is not None and _kind(source) != _kind(target):
            raise ValueError(
                f"`{target.path}` is of another kind in the smaller network: kernel or batch norm"
            )


def _pools(network: nn.Module) -> list[str]:
    return [path for path, module in network.named_modules() if isinstance(module, nn.MaxPool2d)]


def _kind(layer: Layer) -> tuple[object, ...]:
    return type(layer.weighted), layer.weighted.weight.shape[2:], layer.norm is None


def _as_read_by(target: Layer, copied: Tensor) -> Tensor:
    """What each input of a layer is a copy of, where channels (C,) were flattened to channels times places."""
    places = target.weighted.weight.shape[1] // len(copied)
    if places == 1:
        return copied
    return (copied.unsqueeze(1) * places + torch.arange(places)).flatten()


def _identity(target: Layer, copied: Tensor) -> StateDict:
    """StateDict of a layer that gives what it reads, in terms of the units that are copied."""
    size = int(copied.max()) + 1
    weight = torch.empty(size, size, *target.weighted.weight.shape[2:])
    weight = nn.init.dirac_(weight) if weight.dim() > 2 else nn.init.eye_(weight)
    return {"weight": weight} | ({"bias": torch.zeros(size)} if target.weighted.bias is not None else {})


def _draw_units(target: Layer, count: int, generator: torch.Generator, *, is_last: bool) -> Tensor:
    """Of which of `count` units each of a layer's units is a copy: the first ones of themselves."""
    extra = len(target.weighted.weight) - count
    if extra < 0:
        raise ValueError(f"`{target.path}` needs at least {count} units to begin as the smaller network")
    if extra and is_last:
        raise ValueError("the networks have different classes; growing keeps them")
    return torch.cat([torch.arange(count), torch.randint(count, (extra,), generator=generator)])


def _state(module: nn.Module | None) -> StateDict:
    return {} if module is None else {key: value.cpu() for key, value in module.state_dict().items()}

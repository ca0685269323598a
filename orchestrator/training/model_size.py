"""Checks that a network is as large as the file with its weights, before memory is given to it: one line of JSON may
describe a terabyte."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode


def check_size(build: Callable[[], nn.Module], weights: Path) -> None:
    """`ValueError` when the file's tensors are not the network's, which is built without memory for this comparison."""
    with safe_open(weights, "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    with _WithoutMemory(), at_most(len(stored)):
        expected = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    for name, shape in expected.items():
        if stored.get(name) != shape:
            raise ValueError(f"it has no tensor `{name}` of the shape {shape}, which the model needs")
    if strangers := sorted(stored.keys() - expected.keys()):
        raise ValueError(f"it has a tensor `{strangers[0]}` that the model does not know")


class _WithoutMemory(TorchFunctionMode):
    """Weights are made on the meta device. Everything is, under `torch.device`, where RegNets cannot be built."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn):
            options["device"] = "meta"
        return func(*args, **options)


@contextmanager
def at_most(tensors: int) -> Iterator[None]:
    """`ValueError` as soon as networks of far more parameters are being built."""
    count = 0
    allowed = (
        20 * tensors + 100
    )  # some builders replace layers, or build whole networks for their last stages

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += parameter is not None
        if count > allowed:
            raise ValueError(f"it has {tensors} tensors, the model far more")

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()

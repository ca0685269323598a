"""Features of any torch module, by name or by path, without changing the module.

A name is looked up in the model's `feature_paths`, if it has any; anything else is a path as `named_modules`
writes it. The feature is what that submodule returns, or, with `:input` appended, what it is given:
`layer4.1.relu:input` is the sum before a block's last ReLU. A submodule that runs several times in one pass gives
its last value.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raydistill.models.names import suggestion


class Output(NamedTuple):
    """What a tapped model returns: logits (B, C), and the features that were asked for, in that order."""

    logits: Tensor
    features: dict[str, Tensor]


class Tapped(nn.Module):
    """A model that returns its features beside its logits.

    Goes inside `DistributedDataParallel` and `torch.compile`, not around them: both rename the paths. Its hooks
    stay on the model, idle outside of this module's forward, until `remove_hooks`.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(dict.fromkeys(names))
        self._collector = _Collector()
        self._handles = [_attach(model, name, self._collector) for name in self.names]

    def forward(self, inputs: Tensor) -> Output:
        self._collector.start()
        try:
            logits = self.model(inputs)
            return Output(logits, self._collector.features(self.names))
        finally:
            self._collector.stop()

    def remove_hooks(self) -> None:
        """Leave the model as it was; this module returns no features any more."""
        for handle in self._handles:
            handle.remove()


def feature_path(model: nn.Module, name: str) -> tuple[str, bool]:
    """The path of the submodule behind a feature, and whether its input is meant; `ValueError` if none."""
    named: dict[str, str] = getattr(model, "feature_paths", {})
    path, _, side = named.get(name, name).partition(":")
    submodules = model.named_modules(remove_duplicate=False)  # a shared part has several paths
    known = [known_path for known_path, _ in submodules if known_path]
    if path not in known or side not in {"", "input"}:
        shown = list(named) or [child for child, _ in model.named_children()]
        hint = suggestion(name, [*named, *known], listed=shown)
        raise ValueError(f"{type(model).__name__} has no feature `{name}`{hint}")
    return path, side == "input"


def _attach(model: nn.Module, name: str, collector: "_Collector") -> Any:
    path, takes_input = feature_path(model, name)
    module = model.get_submodule(path)
    tap = _Tap(name, collector)
    return (
        module.register_forward_pre_hook(tap.keep_input)
        if takes_input
        else module.register_forward_hook(tap.keep_output)
    )


class _Collector:
    """The features of the pass that is running, with the version each tensor had when it was tapped."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Tensor, int | None]] | None = None

    def start(self) -> None:
        self._kept = {}

    def stop(self) -> None:
        self._kept = None

    def keep(self, name: str, value: Any) -> None:
        if self._kept is None:
            return
        if not isinstance(value, Tensor):
            raise ValueError(f"feature `{name}` is a {type(value).__name__}; only a tensor can be a feature")
        # Where versions cannot be read, a change in place would go unnoticed: keep a copy.
        if torch.compiler.is_compiling() or value.is_inference():
            self._kept[name] = value.clone(), None
        else:
            self._kept[name] = value, value._version

    def features(self, names: Iterable[str]) -> dict[str, Tensor]:
        return {name: self._feature(name) for name in names}

    def _feature(self, name: str) -> Tensor:
        if self._kept is None or name not in self._kept:
            raise ValueError(f"feature `{name}` was not computed: its submodule did not run in this pass")
        value, version = self._kept[name]
        if version is not None and version != value._version:
            raise ValueError(
                f"feature `{name}` was overwritten after it was tapped; make the layer that follows "
                "out of place (`inplace=False`)"
            )
        return value


class _Tap:
    """The two forms of hook for one feature."""

    def __init__(self, name: str, collector: _Collector) -> None:
        self._name = name
        self._collector = collector

    def keep_output(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._collector.keep(self._name, output)

    def keep_input(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._collector.keep(self._name, arguments[0] if arguments else None)

"""From a name and options to a model: one of ours, or a function of the user's."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from socket import gaierror
from traceback import walk_tb
from typing import Any
from urllib.error import URLError

from torch import nn

from raydistill.models import find_architecture
from raydistill.models.names import suggestion


def build_model(
    name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    """Build `name` from `raydistill.models.MODELS`, or call the user's function `package.module:function`.

    `input_shape` is that of one sample, without the batch. The user's function is called with `num_classes`,
    the options, and `input_shape` if it has a parameter of that name. `ValueError` says what is wrong with the
    name or the options, `FileNotFoundError` which weights are missing.
    """
    if num_classes < 1:
        raise ValueError(f"a model needs at least one class, not {num_classes}")
    if ":" in name:
        return _build_users_model(name, options, input_shape, num_classes)
    architecture = find_architecture(name)
    try:
        checked = architecture.read_options(options)
    except ValueError as error:
        raise ValueError(f"model `{name}`: {error}") from error
    model: nn.Module = load_function(architecture.build)(checked, input_shape, num_classes)
    return model


def _build_users_model(
    name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    function = load_function(name)
    signature = inspect.signature(function)
    arguments = {"num_classes": num_classes, **options}
    if "input_shape" in signature.parameters:
        arguments["input_shape"] = input_shape
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"model `{name}` cannot be called with {', '.join(sorted(arguments))}: {error}"
        ) from error
    try:
        model = function(**arguments)
    except Exception as error:  # whatever a user's function does
        if (wanted := wanted_download(error)) is None:
            raise
        raise ValueError(
            f"model `{name}` wants to download {wanted}, which cannot be reached from here; fetch it where it can, let"
            " the function not load anything, and name the file as `weights`"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model `{name}` returned {type(model).__name__}, not a torch.nn.Module")
    return model


def wanted_download(error: BaseException | None) -> str | None:
    """What a function tried to fetch from a network that it did not reach; None where it failed otherwise."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    if not any(_is_about_a_network(found) for found in seen):
        return None
    names = (name for found in seen for name in _named_sources(found))
    return next((f"`{name}`" for name in names), "something")


def _is_about_a_network(error: BaseException) -> bool:
    """Errors of urllib and of sockets, and those of libraries by their names: none of them has to be installed."""
    known = (
        "ConnectError",
        "ConnectionError",
        "ConnectTimeout",
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
    )
    return (
        isinstance(error, URLError | ConnectionError | gaierror)
        or any(kind.__name__ in known for kind in type(error).__mro__)
        or "no internet connection" in str(error)
    )


def _named_sources(error: BaseException) -> Iterator[str]:
    """What the functions that failed were asked for: an address, or a repository; the innermost one first."""
    frames = [frame.f_locals for frame, _ in walk_tb(error.__traceback__)]
    for values in reversed(frames):
        for key in ("url", "repo_id", "github"):
            if isinstance(value := values.get(key), str):
                yield value


def load_function(address: str) -> Callable[..., Any]:
    """Import `package.module:function`; `ValueError` names the half that does not exist."""
    module_name, _, attribute = address.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise ValueError(f"`{address}` is not of the form `package.module:function`")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ValueError(f"model `{address}`: cannot import `{module_name}`: {error}") from error
    function = getattr(module, attribute, None)
    if function is None:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ValueError(
            f"module `{module_name}` has no `{attribute}`{suggestion(attribute, public, listed=())}"
        )
    if not callable(function):
        raise ValueError(f"`{address}` is a {type(function).__name__}, not a function that builds a model")
    loaded: Callable[..., Any] = function
    return loaded

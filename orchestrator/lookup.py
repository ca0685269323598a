"""From a written address, `package.module:name`, to the object: imported only when it is needed."""

import importlib
from importlib.util import find_spec
from typing import Any

from raydistill.errors import StageError


def load_object(address: str) -> Any:
    """Import `package.module:name`; `StageError` says which half does not exist."""
    module_name, _, name = address.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise StageError(f"cannot import `{module_name}`: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise StageError(f"`{module_name}` has no `{name}`") from error


def missing_onnx_writer() -> str | None:
    """What to install before ONNX can be written; None where all is there. Nothing is imported."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        named = " and ".join(f"`{name}`" for name in missing)
        return f"ONNX is written with {named}; install them: `pip install 'raydistill[deploy]'`"
    return None

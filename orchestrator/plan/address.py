"""A class of the user's at the address `package.module:Class`: found, or one line for what is wrong.

Python imports a module once. What was imported is remembered by its source, so that a program or a notebook which goes
on after an edit is told so, instead of a result of the old code under the name of the new one.
"""

import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from raydistill.errors import did_you_mean
from raydistill.plan.source_code import find_module, read_source

ADDRESS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
OUR_PACKAGE = __name__.partition(".")[0]

PACKAGES = {"timm": "timm", "transformers": "transformers", "open_clip": "open_clip_torch"}
"""Well-known modules → what they are installed as. Other names are not guessed: anybody may have taken them."""

_met: dict[str, Mapping[str, str]] = {}
"""The code of each of the user's modules when this process first met it."""


def is_ours(module: str) -> bool:
    """Whether a module is part of this project."""
    return module.partition(".")[0] == OUR_PACKAGE


def missing_module(name: str) -> str | None:
    """Why a module of the user's cannot be imported here; None when it is there. It is not imported to find out."""
    found = find_module(name)
    if found is None or found.file is None:
        if package := PACKAGES.get(name.partition(".")[0]):
            return f"`{name}` is not installed: `pip install {package}`"
        return (
            f"no module `{name}` on the import path; run `distill` in the folder that holds it, or install its"
            " package"
        )
    return None


def class_at(address: str, base: type, noun: str) -> type[Any]:
    """The class at an address, a subclass of `base`; `ValueError` says what is wrong."""
    if ADDRESS.fullmatch(address) is None:
        raise ValueError(f"a {noun} of your own is written `package.module:Class`, not `{address}`")
    module_name, _, name = address.partition(":")
    if missing := missing_module(module_name):
        raise ValueError(f"{noun} `{address}`: {missing}")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, where `find_module` looks too
    try:
        module = import_module(module_name)
    except Exception as error:  # whatever a user's module does while it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{noun} `{address}`: `{module_name}` cannot be imported: {reason}") from error
    if changed := changed_since_met(module_name):
        raise ValueError(f"{noun} `{address}` was imported before it changed: {changed}; start a new process")
    found = getattr(module, name, None)
    if found is None:
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ValueError(f"`{module_name}` has no class `{name}`{did_you_mean(name, classes)}")
    if not isinstance(found, type) or not issubclass(found, base):
        raise ValueError(f"`{address}` is no {noun}: it should subclass `{base.__name__}`")
    return found


def changed_since_met(module: str) -> str | None:
    """What became of a module's code, or of what it imports, since this process imported it; None: nothing did."""
    source = read_source(module)
    code = {} if source is None else dict(source.modules)
    before = _met.setdefault(module, code)
    if before != code and module in sys.modules:
        return difference(before, code)
    _met[module] = code
    return None


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """What differs between two states of the code, in words."""
    became: Callable[[str], str] = lambda name: (  # noqa: E731
        "is new" if name not in old else "is gone" if name not in new else "changed"
    )
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"module `{name}` {became(name)}" for name in names)

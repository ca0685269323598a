"""Nested options as one level of paths: `optimizer.learning_rate`."""

from collections.abc import Mapping
from typing import Any

from raydistill.runs.files import json_line


def flatten(value: Any, path: str = "") -> dict[str, str]:
    """Texts of nested values by their paths: `optimizer.learning_rate`; lists of plain values stay in one piece."""
    if isinstance(value, Mapping) and value:
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {path: value if isinstance(value, str) else json_line(value)} if path else {}
    flat: dict[str, str] = {}
    for key, item in items:
        flat |= flatten(item, f"{path}.{key}" if path else key)
    return flat


def with_names(value: Any, names: Mapping[str, str]) -> Any:
    """A config in which inputs are called as in the plan, instead of by their fingerprints."""
    if isinstance(value, Mapping):
        if value.keys() == {"input"}:
            return names.get(value["input"], value["input"])
        return {key: with_names(item, names) for key, item in value.items()}
    return [with_names(item, names) for item in value] if isinstance(value, list) else value

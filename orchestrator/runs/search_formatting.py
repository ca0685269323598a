"""Searched paths and their values in few letters: in lines, tables, plots and in MLflow."""

from collections.abc import Iterable, Mapping
from typing import Any

from raydistill.runs.search_run import TrialRecord


def called(record: TrialRecord) -> str:
    """`trial 7`, or in a population `member 3, round 2/5`."""
    return f"trial {record.number}" if record.segment is None else record.segment.shown


def shown_values(values: Mapping[str, Any], space: Iterable[str]) -> str:
    """Values on one line, by the last words of their paths."""
    names = short_names(list(space))
    return ", ".join(f"{names[path]} {short(value)}" for path, value in values.items())


def shown_cost(cost: str, value: float | None) -> str:
    """`12,345`; a latency, which is in seconds, as `1.23 ms`."""
    if value is None:
        return ""
    return f"{1000 * value:.3g} ms" if cost == "latency" else f"{value:,.0f}"


def short(value: Any) -> str:
    """A value for a table's cell."""
    if isinstance(value, list):
        return "+".join(short(item) for item in value)
    if isinstance(value, Mapping):
        return next((str(item) for item in value.values() if isinstance(item, str)), "{…}")
    return f"{value:g}" if isinstance(value, float) else str(value)


def short_names(paths: list[str]) -> dict[str, str]:
    """The shortest ends of paths that tell them apart."""
    names = {}
    for path in paths:
        parts = path.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        names[path] = next(
            end
            for end in ends
            if end == path
            or (not end.isdecimal() and sum(f".{other}".endswith(f".{end}") for other in paths) == 1)
        )
    return names

"""New points of a `metrics.jsonl` that grows while we read, and is cut back when a stage resumes from a checkpoint.

After such a cut the same steps come again with other times. MLflow would show them twice, so per metric only steps
above the highest one that was sent count.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.runs.files import parse_json

TAIL = 96  # bytes before the offset; they hold a time in milliseconds, so they tell one writing from another


@dataclass(frozen=True)
class Point:
    """One value of one metric; `timestamp` in milliseconds is the time when the stage wrote it."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass(frozen=True)
class Position:
    """How far a file was read: bytes, and the last of them, to notice that the file was rewritten."""

    offset: int = 0
    tail: str = ""


def read_lines(path: Path, position: Position) -> tuple[list[dict[str, Any]], Position]:
    """Whole lines after `position`, and the position after them; all lines when the file was rewritten."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return [], Position()
    with stream:
        tail = position.tail.encode()
        stream.seek(position.offset - len(tail))
        start = position.offset if stream.read(len(tail)) == tail else 0
        stream.seek(start)
        content = stream.read()
        end = start + content.rfind(b"\n") + 1
        stream.seek(max(end - TAIL, 0))
        tail = stream.read(min(TAIL, end))
    lines = [line for text in content[: end - start].splitlines() if (line := _parsed(text)) is not None]
    return lines, Position(end, tail.decode(errors="replace"))


def fresh_points(lines: Iterable[Mapping[str, Any]], highest: Mapping[str, int]) -> Iterator[Point]:
    """The points above the `highest` step of their metric."""
    seen = dict(highest)
    for line in lines:
        step, timestamp = int(line["step"]), int(line["time"] * 1000)
        for key, value in line.items():
            if key in ("step", "time") or not is_number(value) or step <= seen.get(key, -1):
                continue
            seen[key] = step
            yield Point(key, float(value), timestamp, step)


def is_number(value: Any) -> bool:
    """Whether MLflow can draw it; True and False are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = parse_json(text)
    except ValueError:
        return None
    is_whole = isinstance(line, dict) and is_number(line.get("step")) and is_number(line.get("time"))
    return line if is_whole else None

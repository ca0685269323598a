"""From what pydantic found wrong to what a person reads: the place in the plan, the mistake, the way out.

A mistake found below a nested validation travels upwards inside a custom error, so that the loader sees the paths of
all of them and can report the one that comes first in the file.
"""

import datetime
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from raydistill.errors import did_you_mean

Path = tuple[str | int, ...]

WHOLE, NUMBER, TEXT, LIST, MAPPING = (
    "a whole number",
    "a number",
    "text",
    "a list",
    "a mapping (`key: value`)",
)
WANTED = {
    "int_type": WHOLE,
    "int_parsing": WHOLE,
    "int_parsing_size": WHOLE,
    "int_from_float": WHOLE,
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": "a finite number",
    "bool_type": "`true` or `false`",
    "bool_parsing": "`true` or `false`",
    "string_type": TEXT,
    "path_type": TEXT,
    "tuple_type": LIST,
    "list_type": LIST,
    "dict_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
}
"""Kind of a pydantic error → what the value should be."""


class Mistake(NamedTuple):
    """Something wrong at `path`, in one line."""

    path: Path
    message: str


def located_error(message: str, *path: str | int) -> PydanticCustomError:
    """An error whose place is `path` below the config that raises it."""
    return _error_of([Mistake(path, message)])


def unknown_key(key: str, known: Iterable[str]) -> PydanticCustomError:
    """The error for a key that the schema does not have."""
    return located_error(f"unknown key `{key}`{did_you_mean(key, known)}", key)


def relocated(error: ValidationError, raw: Any) -> PydanticCustomError:
    """The mistakes of a nested validation of `raw`, as one error of the surrounding one."""
    return _error_of(mistakes(error, raw))


def moved(error: PydanticCustomError, *path: str | int) -> PydanticCustomError:
    """The same mistakes, with their places below `path`."""
    found: Sequence[Mistake] = (error.context or {})["mistakes"]
    return _error_of([Mistake((*path, *inner), message) for inner, message in found])


def mistakes(error: ValidationError, raw: Any) -> list[Mistake]:
    """Every mistake of a validation of `raw`. What the members of a union say about one value is one mistake."""
    found: list[Mistake] = []
    refused: dict[Path, list[Any]] = {}
    for item in error.errors(include_url=False):
        path, context = _written_path(item["loc"], raw), item.get("ctx", {})
        if item["type"] == "located":
            found.extend(Mistake((*path, *inner), message) for inner, message in context["mistakes"])
        elif item["type"] == "missing":
            found.append(Mistake(path, _missing(item["loc"][-1])))
        elif item["type"] in ("value_error", "assertion_error"):
            found.append(Mistake(path, str(context["error"])))
        else:
            refused.setdefault(path, []).append(item)
    found.extend(Mistake(path, _refusal(items)) for path, items in _deepest(refused))
    return found


def shown(value: Any) -> str:
    """A value as the user may have written it, short and on one line."""
    is_plain = isinstance(value, (str, datetime.date))
    text = str(value) if is_plain else json.dumps(value, default=str, ensure_ascii=False)
    line = one_line(text)
    return f"`{line if len(line) <= 60 else line[:57] + '...'}`"


def one_line(text: str) -> str:
    """The text without line ends and control characters."""
    return "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))


def _error_of(found: Sequence[Mistake]) -> PydanticCustomError:
    return PydanticCustomError("located", "{message}", {"message": found[0].message, "mistakes": found})


def _written_path(location: Sequence[str | int], raw: Any) -> Path:
    """The part of a pydantic location that the user wrote; the rest names members of unions."""
    written: list[str | int] = []
    for part in location:
        is_key = isinstance(raw, Mapping) and part in raw
        is_index = isinstance(raw, (list, tuple)) and isinstance(part, int) and part < len(raw)
        if is_key or is_index:
            raw = raw[part]
            written.append(part)
    return tuple(written)


def _deepest(refused: Mapping[Path, list[Any]]) -> Iterator[tuple[Path, list[Any]]]:
    """A union refuses a list as a whole and item by item: the item is what the user has to mend."""
    enclosing = {path[:end] for path in refused for end in range(len(path))}
    for path, items in refused.items():
        if path not in enclosing:
            yield path, items


def _missing(key: str | int) -> str:
    return f"`{key}` is missing" if isinstance(key, str) else f"value number {key + 1} is missing"


def _refusal(items: Sequence[Any]) -> str:
    """`should be a list or one of ..., not ...`, with a hint."""
    value, context = items[0]["input"], items[0].get("ctx", {})
    if items[0]["type"] == "too_short":
        return f"should have at least {_count(context['min_length'])}, not {shown(value)}"
    if items[0]["type"] == "too_long":
        return f"should have at most {_count(context['max_length'])}, not {shown(value)}"
    wanted = list(dict.fromkeys(_wanted(item) for item in items))
    return f"should be {' or '.join(wanted)}, not {shown(value)}{_hint(wanted, value)}"


def _wanted(item: Mapping[str, Any]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "literal_error":
        names = re.findall(r"'([^']+)'|(\d+)", context["expected"])
        return _listed([f"`{text or number}`" for text, number in names])
    if kind in WANTED:
        return WANTED[kind].format(**{name: _number(bound) for name, bound in context.items()})
    message: str = item["msg"]
    return message.removeprefix("Input should be ").lower()


def _hint(wanted: Sequence[str], value: Any) -> str:
    if value is None:
        return "; write a value, or leave the key out"
    names = [name for text in wanted for name in re.findall(r"`(\w+)`", text)]
    if isinstance(value, str) and names:
        close = get_close_matches(value, names, n=1)
        return f"; did you mean `{close[0]}`?" if close else ""
    if isinstance(value, str) and {WHOLE, NUMBER} & set(wanted):
        return "; leave out the quotes" if _is_number(value) else ""
    if TEXT in wanted and isinstance(value, (bool, int, float)):
        return "; write it in quotes"
    if LIST in wanted and not isinstance(value, (list, Mapping)):
        return f"; write `[{shown(value)[1:-1]}]`"
    return ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _count(entries: int) -> str:
    return f"{entries} {'entry' if entries == 1 else 'entries'}"


def _number(bound: Any) -> str:
    return f"{int(bound):,}" if isinstance(bound, (int, float)) and int(bound) == bound else str(bound)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False

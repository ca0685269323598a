"""What a look at the data finds before anything is trained on it: samples per class, and what deserves a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line about the data that names the place and the way out. An `error` stops; a `warning` is in the report."""

    level: Literal["error", "warning", "note"]
    text: str


@dataclass(frozen=True)
class Survey:
    """`counts`: split → samples per class, in the order of the labels; `findings` in the order of their weight."""

    counts: Mapping[str, tuple[int, ...]]
    findings: tuple[Finding, ...] = ()

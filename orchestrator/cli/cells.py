"""Tables on the terminal, and what stands in their cells."""

import datetime
from typing import Any

COLOURS = {"SUCCEEDED": "green", "FAILED": "bold red", "STOPPED": "yellow", "RUNNING": "bold blue"} | {
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
}


def new_table(*columns: str) -> Any:
    """A table with these columns."""
    from raydistill import terminal

    return terminal.new_table(*columns)


def print_table(table: Any) -> None:
    """On the terminal, as wide as it is."""
    from raydistill.terminal import console

    console().print(table)


def coloured(word: str) -> str:
    """A status or verdict in its colour."""
    return f"[{COLOURS[word]}]{word.lower()}[/]" if word in COLOURS else word.lower()


def plain(text: str) -> str:
    """Text in which rich and the terminal find nothing to obey."""
    from raydistill.plain import escape

    return escape(text)


def moment(seconds: float | None) -> str:
    """A time of the clock; empty when it is not known."""
    return "" if seconds is None else datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float | None) -> str:
    """Seconds as a person reads them; empty when they are not known."""
    if seconds is None:
        return ""
    minutes = int(seconds) // 60
    return (
        f"{seconds:.1f} s"
        if minutes < 2
        else f"{minutes // 60} h {minutes % 60:02d} min {int(seconds) % 60:02d} s"
    )

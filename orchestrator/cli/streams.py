"""Output in whatever encoding the terminal or the pipe has: what it cannot show is shown plainly."""

import codecs
import logging
import os
import sys
from pathlib import Path

import click

from raydistill.plain import printable_lines
from raydistill.tasks.picture_files import printable

PLAIN = {
    "×": "x",
    "±": "+-",
    "→": "->",
    "←": "<-",
    "…": "...",
    "≥": ">=",
    "≤": "<=",
    "−": "-",
    "·": "*",
    "—": "-",
}
LINES = "─━═┄╌│┃║┌┐└┘├┤┬┴┼╭╮╯╰╴╵╶╷╸╹╺╻"


class PlainFormatter(logging.Formatter):
    """What is logged about files of other people holds nothing that a terminal would obey."""

    def format(self, record: logging.LogRecord) -> str:
        """As usual, escaped."""
        return printable_lines(super().format(record))


def flush_output() -> None:
    """Raise now what could not be written: at the end of the process Python would say it in its own words."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - what is left is lost
        raise


def say_error(message: str) -> None:
    """One line on stderr. Its first word is red on a terminal that shows colours, unless `NO_COLOR` says no
    (no-color.org)."""
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    label = "error:" if is_plain else click.style("error:", fg="red", bold=True)
    click.echo(f"{label} {printable(message)}", err=True)  # which takes the colour away where no terminal is


def degrade_output() -> None:
    """Keep a finished run from ending in `UnicodeEncodeError` where the locale is no UTF-8."""
    codecs.register_error("degrade", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") != "utf8":
            stream.reconfigure(errors="degrade")  # type: ignore[union-attr]


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(PLAIN.get(one, "-" if one in LINES else "?") for one in characters), error.end

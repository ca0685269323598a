"""Text out of files that other people may have written, made fit for a terminal: shown, never obeyed."""

import sys
from contextlib import suppress

from raydistill.tasks.picture_files import printable


def printable_lines(text: str) -> str:
    """A text of several lines with what a terminal would obey, or cannot show, as an escape."""
    return "\n".join(map(printable, text.split("\n")))


def escape(text: str) -> str:
    """A text for a table: neither rich nor the terminal finds anything in it to obey."""
    from rich import markup

    return markup.escape(printable(text))


def say(line: str) -> None:
    """A line on stderr about what goes on; nobody loses a run because it could not be told."""
    with suppress(OSError, ValueError):  # a full disk, a closed stream
        sys.stderr.write(f"{printable(line)}\n")
        sys.stderr.flush()

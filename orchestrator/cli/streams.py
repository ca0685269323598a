"""Output in whatever encoding the terminal or the pipe has: what it cannot show is shown plainly."""

import codecs
import sys

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

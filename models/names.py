"""What to say about a name that is not known."""

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(word: str, known: Iterable[str], *, listed: Iterable[str] | None = None) -> str:
    """The end of a message about an unknown name: the closest known one, or else the `listed` (all by default)."""
    words = list(known)
    close = get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{close[0]}`?"
    names = ", ".join(f"`{name}`" for name in (words if listed is None else listed))
    return f"; known: {names}" if names else ""

"""Numbers and outcomes as text, the same on the page and in the plots."""

from collections import Counter
from collections.abc import Iterable, Sequence

from raydistill.report.comparison import Spread
from raydistill.runs.view import StageView

SPACE = "\N{NO-BREAK SPACE}"


def whole(number: float) -> str:
    """A whole number with its thousands apart: 1,276,810."""
    return f"{number:,.0f}"


def compact(parameters: int | None) -> str:
    """A number of parameters in short: 812, 39.8 k, 1.28 M, 25.6 M."""
    if parameters is None:
        return "–"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if parameters >= limit:
            return f"{parameters / limit:.3g} {unit}"
    return str(parameters)


def percent(fraction: float | None, decimals: int = 1) -> str:
    """A fraction as a percentage: 10.1 %."""
    return "–" if fraction is None else f"{100 * fraction:.{decimals}f}{SPACE}%"


def elapsed(seconds: float) -> str:
    """Seconds as a person would say them: 0.4 s, 21 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if seconds < 0.05:
        text = "< 0.1 s"
    elif seconds < 9.95:
        text = f"{seconds:.1f} s"
    elif whole < 120:
        text = f"{whole} s"
    elif whole < 7200:
        text = f"{whole // 60} min {whole % 60:02d} s"
    else:
        text = f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return text.replace(" ", SPACE)


def ratio(number: float) -> str:
    """A factor: 0.70×, 6.1×, 18×."""
    return f"{number:.2f}×" if number < 1.995 else f"{number:.1f}×" if number < 9.95 else f"{number:,.0f}×"


def mean(spread: Spread | None, decimals: int = 1) -> str:
    """Mean, with the standard deviation where there are replicas: 101.3 ± 4.2; nothing of no values."""
    if spread is None:
        return ""
    if spread.deviation is None:
        return f"{spread.mean:,.0f}" if float(spread.mean).is_integer() else f"{spread.mean:,.{decimals}f}"
    return f"{spread.mean:,.{decimals}f}{SPACE}±{SPACE}{spread.deviation:.{decimals}f}"


def signed(spread: Spread | None, decimals: int) -> str:
    """A change, with its sign: +2.70 ± 0.05."""
    if spread is None:
        return "–"
    text = f"{spread.mean:+,.{decimals}f}".replace("-", "−")
    return text if spread.deviation is None else f"{text}{SPACE}±{SPACE}{spread.deviation:.{decimals}f}"


def change(number: int) -> str:
    """A change of a whole number, with its sign: +88, −3, 0."""
    return f"{number:+,}".replace("-", "−") if number else "0"


def change_percent(fraction: float, decimals: int = 1) -> str:
    """A relative change, with its sign: +4.4 %."""
    text = f"{100 * fraction:+.{decimals}f}".replace("-", "−")
    return f"{text}{SPACE}%"


def mean_percent(spread: Spread | None, decimals: int = 1, nothing: str = "–") -> str:
    """Like `mean`, of fractions: 89.9 ± 0.4 %."""
    if spread is None:
        return nothing
    deviation = spread.deviation
    around = f"{SPACE}±{SPACE}{100 * deviation:.{decimals}f}" if deviation is not None else ""
    return f"{100 * spread.mean:.{decimals}f}{around}{SPACE}%"


def shorten(text: str, letters: int) -> str:
    """A text of at most so many letters."""
    return text if len(text) <= letters else text[: letters - 1] + "…"


def tally(members: Iterable[StageView]) -> dict[str, int]:
    """How many stages ended how, in the order in which that occurs."""
    return Counter(member.status for member in members)


def outcome_of(members: Sequence[StageView]) -> str:
    """How a stage and its replicas ended, and how long they took together."""
    found = tally(members)
    text = ", ".join(status if len(found) == 1 else f"{times} {status}" for status, times in found.items())
    seconds = sum(member.seconds for member in members)
    return f"{text} · {elapsed(seconds)}" if seconds else text


def listing(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


FORMATS = (
    change, change_percent, elapsed, listing, mean, mean_percent, percent, ratio, signed, compact, tally, whole
)  # fmt: skip
"""What templates call by these names."""

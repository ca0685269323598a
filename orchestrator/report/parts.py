"""Pieces of HTML that every section of the page is made of. What comes from files is escaped by the caller."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from raydistill.report.comparison import Competitor
from raydistill.report.story import Story
from raydistill.report.theme import STYLE, role_colour
from raydistill.report.words import count

if TYPE_CHECKING:
    from raydistill.report.plots import Plot


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page of those sections that are not empty."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        "<body><main>\n" + "\n".join(section for section in sections if section) + "\n</main></body></html>\n"
    )


def cluster_section(stage: str) -> str:
    """Where the plots of a stage's clusters belong."""
    return f"clusters-{stage}"


def figures(plots: "Sequence[Plot]", section: str, style: str = "figures") -> str:
    """The plots of a section side by side, as far as there is room; without a style, one after another."""
    figures = "".join(f"<figure>{plot.svg}</figure>" for plot in plots if plot.section == section)
    return f'<div class="{style}">{figures}</div>' if style and figures else figures


def gap(story: Story, section: str) -> str:
    """Why a section is empty."""
    return f'<p class="muted">{escape(story.gaps.get(section, "There is nothing to show."))}</p>'


def table(head: str, rows: str) -> str:
    """A table that scrolls sideways where it does not fit."""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def number(text: str, exact: float | None = None) -> str:
    """A cell with a number; `text` is ours, `exact` appears when it is pointed at."""
    title = f' title="{count(exact)}"' if exact is not None else ""
    return f'<td class="number"{title}>{text}</td>'


def times(row: Competitor) -> str:
    """How many replicas a row stands for."""
    return f" <small>×{len(row.members)}</small>" if len(row.members) > 1 and not row.computed else ""


def swatch(role: str) -> str:
    """A square in the colour of a role."""
    return f'<span class="swatch" style="color:var(--{role_colour(role)})"></span>'

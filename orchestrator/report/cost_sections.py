"""Which method should I pick? Trainings of one model that differ in what taught it, by errors and by what they cost."""

from collections.abc import Sequence
from html import escape
from typing import Any

from raydistill.report.comparison import Competitor, Spread
from raydistill.report.parts import number, swatch, table, times
from raydistill.report.story import Story
from raydistill.report.words import SPACE, listing, mean, size

MEBIBYTE = 2**20
HEAD = (
    "<th>model</th><th>methods</th><th class=number>test errors</th><th class=number>step × plain</th>"
    "<th class=number>extra parameters</th><th class=number>peak memory</th>"
)


def costs(story: Story) -> str:
    """The students of the baseline's size and the baseline, the fewest errors first; empty if there is one student."""
    for plain in story.comparison.in_role("baseline"):
        students = story.comparison.in_role("student")
        rivals = [
            row for row in students if row.parameters == plain.parameters and row.cost("seconds_per_step")
        ]
        if len(rivals) > 1 and plain.cost("seconds_per_step"):
            return _section(plain, rivals)
    return ""


def _section(plain: Competitor, rivals: Sequence[Competitor]) -> str:
    rows = sorted([plain, *rivals], key=lambda row: row.errors.mean if row.errors else float("inf"))
    return (
        '<h2 id="costs">Which method should I pick?</h2>'
        + table(HEAD, "".join(_row(row, plain) for row in rows))
        + f'<p class="note">“Step × plain”: time of a training step over that of {escape(plain.name)}, each the mean'
        " over its fastest epoch, as other work on the machine only adds to it. Extra parameters are trained beside the"
        " model and are no part of it. Memory is that of the device; on a CPU, of the whole process, the data"
        " included. Errors are means over replicas ± standard deviation.</p>"
    )


def _row(row: Competitor, plain: Competitor) -> str:
    trained = row.cost("trained_parameters")
    extra = round(trained.mean) - row.parameters if trained and row.parameters is not None else None
    peak = row.cost("peak_bytes")
    cells = [
        f"<td>{swatch(row.role)}{escape(row.name)}{times(row)}</td>",
        f"<td>{escape(listing(methods_of(row)))}</td>",
        number(mean(row.errors) if row.errors else "–"),
        number(_times_plain(row.cost("seconds_per_step"), plain.cost("seconds_per_step"))),
        number("–" if extra is None else size(extra), extra),
        number(f"{peak.mean / MEBIBYTE:,.0f}{SPACE}MiB" if peak else "–"),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _times_plain(own: Spread | None, plain: Spread | None) -> str:
    """The fastest replica against the fastest: a slow one was disturbed."""
    return f"{min(own.values) / min(plain.values):.2f}" if own and plain else "–"


def methods_of(row: Competitor) -> list[str]:
    """Names of the methods that taught a model; the stage's kind where it is a method of its own."""
    first = row.members[0]
    if first.kind == "train":
        return ["labels alone"]
    configs: Any = first.config.get("methods") or [first.config.get("method")]
    names = [str(config["method"]) for config in configs if isinstance(config, dict) and "method" in config]
    return names or [first.kind]

"""Models that differ in one thing: the part of the data they learned from, or the temperature of their targets."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from raydistill.report.parts import figures, number, swatch, table, times
from raydistill.report.story import Story
from raydistill.report.sweep import Sweep, SweepLine
from raydistill.report.transfers import TransferGroup, TransferRow
from raydistill.report.words import count, listing, mean, mean_percent, percent

if TYPE_CHECKING:
    from raydistill.report.plots import Plot


def transfers(story: Story, plots: "Sequence[Plot]") -> str:
    """Hard and soft targets on parts of the data, a section per architecture."""
    return "".join(_group(story, place, group, plots) for place, group in enumerate(story.transfers))


def _group(story: Story, place: int, group: TransferGroup, plots: "Sequence[Plot]") -> str:
    several = f": {escape(group.model)}" if len(story.transfers) > 1 else ""
    head = (
        "<th>model</th><th>targets</th><th>part of the data</th><th class=number>train</th>"
        "<th class=number>validation</th><th class=number>test</th>"
        "<th class=aside>epochs</th>"
    )
    return (
        f'<h2 id="transfers-{place}">Targets and parts of the data{several}</h2>'
        f"{table(head, ''.join(_row(story, row) for row in group.rows))}"
        '<p class="note">The same architecture throughout. Train: accuracy on the samples as they were learned from,'
        " over the last epoch, with early stopping over the epoch that was kept; unlabelled samples have none."
        " Validation chooses the epoch where training is stopped early; test is looked at once."
        f" {_spread_note(group)}</p>{figures(plots, f'transfers-{place}', style='wider')}{_curves_note(group)}"
    )


def _row(story: Story, row: TransferRow) -> str:
    competitor = row.competitor
    cells = [
        f"<td>{swatch(competitor.role)}{escape(competitor.name)}{times(competitor)}</td>",
        f"<td>{escape(row.targets)}</td>",
        f"<td>{_part(story, row.fraction, row.transfer)}</td>",
        number(mean_percent(row.train)),
        number(mean_percent(competitor.validation)),
        number(mean_percent(row.test)),
        f'<td class="aside">{_epochs(row)}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _part(story: Story, fraction: float, transfer: Mapping[str, Any]) -> str:
    """`10 %, without 3, unlabelled`."""

    def named(labels: object) -> str:
        names = labels if isinstance(labels, list) else []
        shown = [story.class_name(name) if isinstance(name, int) else str(name) for name in names]
        return escape(listing(shown) if len(shown) <= 6 else f"{len(shown)} classes")

    parts = [f"{100 * fraction:.4g} %"]
    if transfer.get("only_classes"):
        parts.append(f"only {named(transfer['only_classes'])}")
    if transfer.get("omit_classes"):
        parts.append(f"without {named(transfer['omit_classes'])}")
    if transfer.get("labelled") is False:
        parts.append("unlabelled")
    return ", ".join(parts)


def _epochs(row: TransferRow) -> str:
    if row.epochs is None:
        return "–"
    if row.kept is None:
        return mean(row.epochs)
    return f"kept {mean(row.kept)} of {mean(row.epochs)}"


def _spread_note(group: TransferGroup) -> str:
    is_repeated = any(len(row.competitor.results) > 1 for row in group.rows)
    return "± is the standard deviation over replicas." if is_repeated else ""


def _curves_note(group: TransferGroup) -> str:
    missing = [escape(row.competitor.name) for row in group.rows if row.train is None]
    if not missing:
        return ""
    return f'<p class="note">No train accuracy is known of {listing(missing)}.</p>'


def temperatures(story: Story, plots: "Sequence[Plot]") -> str:
    """Test errors against temperature, a line per student."""
    if story.sweep is None:
        return ""
    sweep = story.sweep
    head = (
        "<th>student</th>"
        + "".join(f"<th class=number>T = {heat:g}</th>" for heat in sweep.temperatures)
        + "<th class=aside>chosen T</th>"
    )
    return (
        '<h2 id="temperatures">Temperature and student</h2>'
        f"{figures(plots, 'temperatures', style='wide')}"
        f"{table(head, ''.join(_line(sweep, line) for line in sweep.lines))}"
        f'<p class="note">Test errors{_samples(sweep)}, below them the validation accuracy. T is chosen by validation'
        " accuracy alone (bold); the test split has no say in it, so the fewest test errors may stand elsewhere."
        " Close: validation accuracy not below that of the chosen T by more than its standard deviation.</p>"
    )


def _line(sweep: Sweep, line: SweepLine) -> str:
    cells = "".join(_point(line, heat) for heat in sweep.temperatures)
    chosen = listing([f"{heat:g}" for heat in line.best]) or "–"
    close = listing([f"{heat:g}" for heat in line.close])
    also = f"<br><small>close: {close}</small>" if close else ""
    return f'<tr><td>{escape(line.label)}</td>{cells}<td class="aside"><b>{chosen}</b>{also}</td></tr>'


def _point(line: SweepLine, heat: float) -> str:
    row = line.at(heat)
    if row is None or row.errors is None:
        return "<td></td>"
    errors = mean(row.errors)
    shown = f"<b>{errors}</b>" if heat in line.best else errors
    below = mean_percent(row.validation) if row.validation else percent(None)
    return number(f"{shown}<br><small>{below}</small>")


def _samples(sweep: Sweep) -> str:
    sizes = {row.samples for line in sweep.lines for _, row in line.points if row.samples}
    of = f" of {count(max(sizes))}" if len(sizes) == 1 else ""
    is_repeated = any(len(row.results) > 1 for line in sweep.lines for _, row in line.points)
    return f"{of}, mean ± standard deviation over replicas" if is_repeated else of

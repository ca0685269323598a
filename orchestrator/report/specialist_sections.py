"""The generalist and its specialists: which classes are grouped, and what a committee gains and costs."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from raydistill.report.clusters import MATRIX_CELLS, Clustering
from raydistill.report.committees import CommitteeResult, by_generalist, fold_coverage
from raydistill.report.parts import cluster_section, figures, gap, number, swatch, table
from raydistill.report.predictions import Agreement
from raydistill.report.story import Story
from raydistill.report.words import change, change_percent, count, duration, listing, percent

if TYPE_CHECKING:
    from raydistill.report.plots import Plot

NAMED_CLASSES = 12
SHOWN_CLUSTERS = 20
OPEN_COMMITTEES = 3


def clusters(story: Story, plots: "Sequence[Plot]") -> str:
    """A section for every stage that groups classes."""
    sections = "".join(_clustering(story, clustering, plots) for clustering in story.clusterings)
    if "clusters" in story.gaps:
        sections += f"<h2>Clusters of classes</h2>{gap(story, 'clusters')}"
    return sections


def _clustering(story: Story, clustering: Clustering, plots: "Sequence[Plot]") -> str:
    name = escape(clustering.stage.name)
    drawing = figures(plots, cluster_section(clustering.stage.name), style="")
    return (
        f'<h2 id="clusters-{name}">Clusters of classes: {name}</h2>{_facts(clustering)}'
        f"{_warnings(story, clustering)}"
        f'<div class="figures">{drawing}<figure>{_lists(clustering)}</figure></div>{_matrix_note(clustering)}'
    )


def _facts(clustering: Clustering) -> str:
    sizes, config = clustering.sizes, clustering.stage.config
    covered = clustering.num_classes - len(clustering.uncovered)
    smallest, largest = min(sizes), max(sizes)
    span = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    mean = f", {clustering.mean_size:.1f} on average" if smallest != largest else ""
    parts = [
        f"{count(covered)} of {count(clustering.num_classes)} classes in {count(len(sizes))} clusters"
        f" of {span} classes{mean}."
    ]
    if clustering.shared:
        parts.append(f"{_classes(clustering.shared)} in more than one cluster.")
    if clustering.cells is not None:
        matrix = escape(str(config.get("matrix", "correlation")))
        where = "validation split" if config.get("split") == "validation" else "training split"
        views = f", {config['views']} views of each sample" if config.get("views") else ""
        parts.append(f"Found from the {matrix} of the generalist's predictions on the {where}{views}.")
    held = clustering.stage.metric("clusters/confusions_held")
    if held is not None:
        parts.append(f"{percent(held)} of what it predicts together is in one cluster.")
    return f"<p>{' '.join(parts)}</p>"


def _classes(number_of: int) -> str:
    return "1 class is" if number_of == 1 else f"{count(number_of)} classes are"


def _warnings(story: Story, clustering: Clustering) -> str:
    sentences = []
    for index in clustering.lopsided:
        size = clustering.sizes[index]
        sentences.append(
            f"Cluster {index} holds {count(size)} of {count(clustering.num_classes)} classes,"
            f" {size / clustering.mean_size:.0f} times the mean: its specialist is hardly one. Set"
            " <code>maximum_size</code>, or <code>matrix: correlation</code>."
        )
    if missing := clustering.uncovered:
        names = [escape(story.class_name(label)) for label in missing]
        sentences.append(
            f"{_classes(len(missing))} in no cluster, so that the generalist alone decides on"
            f" {'it' if len(missing) == 1 else 'them'}: {_named(names)}"
        )
    if (twins := clustering.twins) is not None:
        first, second, both = twins
        sizes = clustering.sizes
        sentences.append(
            f"Clusters {first} and {second} share {count(both)} of {count(min(sizes[first], sizes[second]))} classes:"
            " two specialists for nearly the same."
        )
    return "".join(f'<div class="failure">{sentence}</div>' for sentence in sentences)


def _named(names: Sequence[str]) -> str:
    """All names, or the first dozen with the rest folded away."""
    if len(names) <= NAMED_CLASSES:
        return listing(names)
    more = f"{', '.join(names[:NAMED_CLASSES])} and {count(len(names) - NAMED_CLASSES)} more"
    return _folded(more, ", ".join(names[NAMED_CLASSES:]), "names")


def _folded(summary: str, content: str, style: str = "") -> str:
    return f'<details class="{style}"><summary>{summary}</summary>{content}</details>'


def _matrix_note(clustering: Clustering) -> str:
    if clustering.cells is None:
        return f'<p class="note">{escape(clustering.gap)}</p>'
    sentences = [
        "How alike the classes are to the generalist, rows and columns in the order of the clusters, which are framed:"
        " the stronger the colour, the more alike; of the less alike half of all pairs nothing is drawn. Grey: a class"
        " beside itself."
    ]
    if clustering.shared:
        sentences.append("A class of several clusters appears in each.")
    if clustering.uncovered:
        sentences.append("Classes without a cluster come last.")
    if clustering.step > 1:
        sentences.append(f"Neighbouring classes share a cell: there are {MATRIX_CELLS} at most on each side.")
    return f'<p class="note">{" ".join(sentences)}</p>'


def _lists(clustering: Clustering) -> str:
    """The clusters by number, which is also that of their specialist."""
    head = "<th>cluster</th><th class=number>classes</th><th class=aside>which</th>"
    rows = [
        f"<tr><td>{index}</td>{number(count(len(names)))}"
        f'<td class="text aside">{_named([escape(name) for name in names])}</td></tr>'
        for index, names in enumerate(clustering.names)
    ]
    shown, rest = rows[:SHOWN_CLUSTERS], rows[SHOWN_CLUSTERS:]
    folded = _folded(f"{len(rest)} more clusters", table(head, "".join(rest))) if rest else ""
    return table(head, "".join(shown)) + folded


def committees(story: Story) -> str:
    """A section for every generalist that was judged with specialists."""
    sections = "".join(_group(group) for group in by_generalist(story.committees))
    if "committees" in story.gaps:
        sections += f"<h2>Generalist and specialists</h2>{gap(story, 'committees')}"
    return sections


def _group(group: Sequence[CommitteeResult]) -> str:
    first = group[0]
    name = escape(first.generalist.name)
    on_validation = " on validation" if first.split == "validation" else ""
    details = "".join(_coverage(committee, folded=len(group) > OPEN_COMMITTEES) for committee in group)
    return (
        f'<h2 id="committees-{name}">Generalist and specialists: {name}{on_validation}</h2>'
        f"<p>{_verdict(group)}</p>{_systems(group)}{_systems_note(group)}"
        f"<h3>Change by number of specialists that know the true class</h3>{details}"
        '<p class="note">Change: newly right minus newly wrong samples. Relative: to what the generalist alone gets'
        " right of them.</p>"
        f"<h3>Cost</h3><p>{_saving(group)}</p>{_costs(group)}"
        '<p class="note">Training seconds as the stages recorded them, alone on the machine or not; side by side: on'
        " machines enough for all, the slowest specialist's. Asked: specialists that are run for a sample, on"
        " average.</p>"
    )


def _verdict(group: Sequence[CommitteeResult]) -> str:
    """Whether specialists pay, in one sentence."""
    if len(group) == 1:
        return _verdict_on_one(group[0])
    verdicts = [committee.verdict for committee in group]
    changes = [committee.tables.change for committee in group]
    samples = count(group[0].tables.samples)
    tally = [
        f"<b>{number_of} {'is' if number_of == 1 else 'are'} {words}</b>"
        for verdict, words in (
            ("gain", "better than it is alone"),
            ("loss", "worse than it is alone"),
            ("unclear", "no different beyond chance"),
        )
        if (number_of := verdicts.count(verdict))
    ]
    return (
        f"Of {len(group)} committees with this generalist, {listing(tally)}; the number of right answers changes by"
        f" {change(min(changes))} to {change(max(changes))} of {samples}."
    )


def _verdict_on_one(committee: CommitteeResult) -> str:
    tables = committee.tables
    net, samples = tables.change, count(tables.samples)
    who = f"{tables.cost.specialists} specialists"
    accuracies = (
        f"{percent(tables.committee.accuracy)} instead of {percent(tables.generalist.accuracy)} top-1,"
        f" {change_percent(tables.relative)} relative"
    )
    if committee.verdict == "gain":
        return f"The {who} <b>pay</b>: with them {count(net)} more of {samples} samples are right ({accuracies})."
    if committee.verdict == "loss":
        return f"The {who} <b>do harm</b>: with them {count(-net)} fewer of {samples} samples are right ({accuracies})."
    if not net:
        return f"The {who} <b>change nothing</b> in sum: as many of {samples} samples are right with them as without."
    more = "more" if net > 0 else "fewer"
    found = f"with them {count(abs(net))} {more} of {samples} samples are right ({accuracies})"
    if committee.pair is None:
        return (
            f"Whether that is chance cannot be told without the generalist's predictions, but {found}: {who}."
        )
    changed = committee.pair.only_other_wrong + committee.pair.only_student_wrong
    return (
        f"The {who} make <b>no difference that could not be chance</b>: {found}, while {count(changed)} answers"
        " became right or wrong."
    )


def _systems(group: Sequence[CommitteeResult]) -> str:
    """The paper's first table: generalist, and generalist with specialists."""
    columns = _settings(group)
    head = (
        "<th>system</th>"
        + "".join(f"<th>{title}</th>" for title, _ in columns)
        + "<th class=number>conditional</th><th class=number>top-1</th><th class=number>relative</th>"
        "<th class=number>change</th><th class=aside>became right, wrong</th>"
    )
    generalist = group[0].tables.generalist
    blanks = "<td></td>" * len(columns)
    first = (
        f"<tr><td>{swatch(group[0].generalist.role)}{escape(group[0].generalist.name)}</td>{blanks}"
        f"{number(percent(generalist.conditional))}{number(percent(generalist.accuracy))}{'<td></td>' * 3}</tr>"
    )
    rows = [
        _system(committee, [values[index] for _, values in columns]) for index, committee in enumerate(group)
    ]
    return table(head, first + "".join(rows))


def _settings(group: Sequence[CommitteeResult]) -> list[tuple[str, list[str]]]:
    """In what these committees differ: column title and a value for each."""
    columns = [
        ("specialists", [_specialists(committee) for committee in group]),
        ("head", [listing(committee.heads) for committee in group]),
        ("n", [committee.active for committee in group]),
        ("direction", [committee.direction for committee in group]),
    ]
    return [(title, values) for title, values in columns if len(set(values)) > 1]


def _specialists(committee: CommitteeResult) -> str:
    return f"{listing(committee.groups)} ×{count(committee.tables.cost.specialists)}"


def _system(committee: CommitteeResult, settings: Sequence[str]) -> str:
    tables, pair = committee.tables, committee.pair
    many = "" if settings else f" <small>+ {count(tables.cost.specialists)} specialists</small>"
    cells = [
        f"<td>{swatch('committee')}{escape(committee.stage.name)}{many}</td>",
        *(f"<td>{escape(value)}</td>" for value in settings),
        number(percent(tables.committee.conditional)),
        number(percent(tables.committee.accuracy)),
        number(change_percent(tables.relative)),
        number(change(tables.change)),
        f'<td class="aside">{_became(pair, tables.change) if pair else "–"}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _became(pair: Agreement, net: int) -> str:
    """Newly right and newly wrong samples. Stored predictions are rounded: the first follows from the exact change."""
    return f"{count(pair.only_student_wrong + net)}, {count(pair.only_student_wrong)}"


def _systems_note(group: Sequence[CommitteeResult]) -> str:
    first = group[0]
    same = {title for title, _ in _settings(group)}
    settings = [
        f"{words} {escape(value)}"
        for title, words, value in (
            ("head", "head", listing(first.heads)),
            ("n", "n =", first.active),
            ("direction", "direction", first.direction),
        )
        if title not in same
    ]
    covered = "; ".join(
        dict.fromkeys(f"{count(item.tables.covered)} of {count(item.tables.samples)}" for item in group)
    )
    facts = f" Here {', '.join(settings)}." if settings else ""
    return (
        f'<p class="note">Conditional: only samples of the specialists\' classes ({covered}), among which alone'
        f" predictions choose. Relative: change of the top-1 accuracy.{facts} A difference counts as chance unless"
        " McNemar's test finds it less probable than 5 %.</p>"
    )


def _coverage(committee: CommitteeResult, *, folded: bool) -> str:
    """The paper's second table."""
    head = (
        "<th>specialists</th><th class=number>samples</th><th class=number>right before</th>"
        "<th class=number>change</th><th class=number>relative</th>"
    )
    rows = "".join(
        f"<tr><td>{name}</td>{number(count(row.samples))}{number(count(row.right))}{number(change(row.change))}"
        f"{number(change_percent(row.relative))}</tr>"
        for name, row in fold_coverage(committee.tables.coverage)
    )
    name = escape(committee.stage.name)
    shown = f'<div class="narrow">{table(head, rows)}</div>'
    return _folded(name, shown) if folded else f"<h4>{name}</h4>{shown}"


def _saving(group: Sequence[CommitteeResult]) -> str:
    """What asking only the active specialists saves."""
    costs = [committee.tables.cost for committee in group]
    saved = [1 - cost.share for cost in costs]
    low, high = percent(min(saved), 0), percent(max(saved), 0)
    span = high if low == high else f"{low} to {high}"
    if max(saved) <= 0:
        return "Every sample asks all specialists: nothing is saved."
    return f"Asking only the active specialists saves {span} of the work of asking all."


def _costs(group: Sequence[CommitteeResult]) -> str:
    head = (
        "<th>committee</th><th class=number>generalist</th><th class=number>specialists, one after another</th>"
        "<th class=number>side by side</th><th class=number>asked</th><th class=number>of all</th>"
        "<th class=number>samples that ask any</th>"
    )
    return table(head, "".join(_cost(committee) for committee in group))


def _cost(committee: CommitteeResult) -> str:
    cost = committee.tables.cost
    cells = [
        f"<td>{swatch('committee')}{escape(committee.stage.name)}</td>",
        number(duration(cost.generalist_seconds)),
        number(duration(cost.specialists_seconds_serial)),
        number(duration(cost.specialists_seconds_parallel)),
        number(f"{cost.active:.2f} of {count(cost.specialists)}"),
        number(percent(cost.share)),
        number(percent(cost.asked)),
    ]
    return f"<tr>{''.join(cells)}</tr>"

"""The page: one HTML file without scripts and without anything to fetch.

Everything that comes from a file is escaped where it enters the page.
"""

import base64
import io
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from orchestrator.report.comparison import (
    Competitor,
    original_teachers,
    total_parameters,
    wilson_interval,
)
from orchestrator.report.data import StageResult
from orchestrator.report.examples import Bar, Example, Picture
from orchestrator.report.graph import graph_svg
from orchestrator.report.layout import place_graph

from orchestrator.report.story import Agreement, Story, teacher_name, teacher_role
from orchestrator.report.theme import ROLE_LABELS, STYLE, role_colour
from orchestrator.report.words import count, duration, listing, mean, mean_percent, percent, ratio, size

if TYPE_CHECKING:
    from orchestrator.report.plots import Plot

CONFUSED_PAIRS = 12
TRACEBACK_LINES = 15


def build_page(story: Story, plots: "Sequence[Plot]") -> str:
    """The whole report."""
    run = story.run
    sections = [
        _head(story),
        _lead(story),
        _failures(story),
        _comparison(story, plots),
        _graph(story),
        _stages(story),
        _curves(plots),
        _confusion(story, plots),
        _calibration(story, plots),
        _soft_targets(story),
        _reproduce(story),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(run.plan)} · {escape(run.run_id)}</title><style>{STYLE}</style></head>\n"
        "<body><main>\n" + "\n".join(section for section in sections if section) + "\n</main></body></html>\n"
    )


# Head and lead ----------------------------------------------------------------------------------------------------


def _head(story: Story) -> str:
    run, task = story.run, story.run.task
    splits = [f"{count(task[split])} {split}" for split in ("train", "validation", "test") if task.get(split)]
    parts = [
        f"Run {run.run_id}",
        duration(run.seconds),
        f"task {task.get('name', 'unknown')}, {task.get('num_classes', '?')} classes",
        f"{' / '.join(splits)} samples" if splits else "",
    ]
    tone = {"done": "good", "failed": "bad", "interrupted": "bad"}.get(run.status, "muted")
    return (
        f'<h1>{escape(run.plan)}<span class="status {tone}">{escape(run.status)}</span></h1>'
        f'<p class="facts">{escape(" · ".join(part for part in parts if part))}</p>'
    )


def _lead(story: Story) -> str:
    """The answer first: how good the student is, next to what."""
    main = story.main
    if main is None:
        return '<p class="lead">This plan trains no model.</p>'
    if main.errors is None or not main.samples:
        return f'<p class="lead"><b>{escape(main.name)}</b> has no test result: {escape(_statuses(main.members))}.</p>'
    sentences = [_errors_sentence(story, main), _size_sentence(story, main), _gap_sentence(story, main)]
    return (
        f'<p class="lead">{" ".join(sentence for sentence in sentences if sentence)}</p>'
        f'<p class="note">{_precision_sentence(main)}</p>'
    )


def _errors_sentence(story: Story, main: Competitor) -> str:
    assert main.errors is not None
    assert main.samples is not None
    replicas = f" (mean of {len(main.errors.values)} replicas)" if len(main.errors.values) > 1 else ""
    own = (
        f"<b>{escape(main.name)}</b> makes <b>{mean(main.errors)} errors</b> on {count(main.samples)} test samples"
        f"{replicas}: {percent(main.error_rate)}."
    )
    baseline, share = story.comparison.baseline_of(main), story.comparison.share_of_baseline(main)
    if baseline is None or share is None or baseline.errors is None:
        return own
    kind = (
        "the same model without a teacher"
        if baseline.parameters == main.parameters
        else f"a baseline of another size, {size(baseline.parameters)} parameters"
    )
    return f"{own} That is <b>{share:.2f} times</b> the {mean(baseline.errors)} errors of {escape(baseline.name)}, {kind}."


def _size_sentence(story: Story, main: Competitor) -> str:
    teachers = original_teachers(story.run, main)
    total = total_parameters(teachers)
    if not total or not main.parameters:
        return f"It has {size(main.parameters)} parameters." if main.parameters else ""
    if len(teachers) == 1:
        return (
            f"Its {size(main.parameters)} parameters are {ratio(total / main.parameters)} fewer than those of its"
            f" teacher ({size(total)})."
        )
    return (
        f"Its {size(main.parameters)} parameters are {ratio(total / main.parameters)} fewer than those of its"
        f" {len(teachers)} teachers together ({size(total)})."
    )


def _gap_sentence(story: Story, main: Competitor) -> str:
    """How much of the way from baseline to teacher the student went; only where the three can be compared."""
    baseline = story.comparison.baseline_of(main)
    teacher = _teacher_row(story)
    if baseline is None or teacher is None or not (baseline.errors and teacher.errors and main.errors):
        return ""
    if baseline.parameters != main.parameters or not baseline.samples == teacher.samples == main.samples:
        return ""
    way = baseline.errors.mean - teacher.errors.mean
    if way <= 0:
        return f"The teacher, {escape(teacher.name)}, is no better than the baseline: {mean(teacher.errors)} errors."
    closed = (baseline.errors.mean - main.errors.mean) / way
    went = f"{100 * closed:.0f} % of the way" if closed > 0 else "none of the way"
    return (
        f"It went {went} from the baseline to what taught it, {escape(teacher.name)}"
        f" ({mean(teacher.errors)} errors)."
    )


def _precision_sentence(main: Competitor) -> str:
    assert main.samples is not None
    assert main.error_rate is not None
    low, high = wilson_interval(main.error_rate, main.samples)
    return (
        f"With {count(main.samples)} test samples, an error rate of {percent(main.error_rate)} is known to lie between"
        f" {percent(low)} and {percent(high)} (95 % Wilson interval). ± is the standard deviation over replicas, which"
        " differ in their seed."
    )


def _teacher_row(story: Story) -> Competitor | None:
    """The row of the comparison that stands for what taught the main model."""
    if story.teaching is None:
        return None
    names = set(story.teaching.names)
    for row in story.comparison.competitors:
        is_single = len(names) == 1 and {member.name for member in row.members} == names
        is_computed = row.computed and {member.name for member in row.members} == names
        is_judged = row.role == "ensemble" and any(set(stage.reads) == names for stage in row.results)
        if row.errors and (is_single or is_computed or is_judged):
            return row
    return None


def _statuses(members: Iterable[StageResult]) -> str:
    return ", ".join(f"{member.name} {member.status}" for member in members)


# Failures ---------------------------------------------------------------------------------------------------------


def _failures(story: Story) -> str:
    run = story.run
    failed = [stage for stage in run.stages.values() if stage.status == "failed"]
    unread = [
        stage for stage in run.stages.values() if stage.status in ("done", "cached") and not stage.has_result
    ]
    unfinished = [
        stage for stage in run.stages.values() if stage.status in ("skipped", "stopped", "running", "waiting")
    ]
    if not (failed or unread or unfinished):
        return ""
    parts = [_failure(stage) for stage in failed] + [_unreadable(stage) for stage in unread]
    if unfinished:
        rows = "".join(
            f"<tr><td>{escape(stage.name)}</td><td>{escape(stage.status)}</td><td>{_because(story, stage)}</td></tr>"
            for stage in unfinished
        )
        parts.append(_table("<th>stage</th><th>outcome</th><th>because</th>", rows))
    return f'<h2 id="failures">What has no result</h2>{"".join(parts)}'


def _failure(stage: StageResult) -> str:
    traceback = stage.record.traceback if stage.record else None
    lines = (traceback or "").rstrip().splitlines()
    shown = "\n".join(lines[-TRACEBACK_LINES:])
    log = f'<p class="note">The whole log: <code>{escape(str(stage.folder.path / "log.txt"))}</code></p>'
    return (
        f'<div class="failure"><h3>{escape(stage.name)} failed</h3><p>{escape(stage.error or "No reason was recorded.")}'
        f"</p>{f'<pre>{escape(shown)}</pre>' if shown else ''}{log}</div>"
    )


def _unreadable(stage: StageResult) -> str:
    return (
        f'<div class="failure"><h3>{escape(stage.name)}: its result cannot be read</h3>'
        f"<p>{escape(stage.error or 'The record is missing.')}</p></div>"
    )


def _because(story: Story, stage: StageResult) -> str:
    if stage.status != "skipped":
        return escape(stage.error or "")
    blamed = [name.name for name in story.run.blamed(stage.name)]
    return escape(f"it needs {listing(blamed)}, which failed" if blamed else stage.error or "")


# Comparison -------------------------------------------------------------------------------------------------------


def _comparison(story: Story, plots: "Sequence[Plot]") -> str:
    rows = story.comparison.competitors
    if not rows:
        return ""
    head = (
        "<th>model</th><th>role</th><th class=number>parameters</th><th class=number>teachers ÷ it</th>"
        "<th class=number>test errors</th><th class=number>error rate</th><th class=number>× baseline</th>"
        "<th class=number>ECE</th>"
    )
    table = _table(head, "".join(_competitor(story, row) for row in rows))
    figures = _figures(plots, "comparison", style="wide")
    return (
        f'<h2 id="comparison">Student, teachers, baseline</h2>{figures}{table}{_comparison_notes(story)}'
        f"{_agreements(story)}"
    )


def _competitor(story: Story, row: Competitor) -> str:
    teachers = total_parameters(original_teachers(story.run, row)) if row.role != "ensemble" else None
    compression = ratio(teachers / row.parameters) if teachers and row.parameters else ""
    share = story.comparison.share_of_baseline(row)
    baseline = story.comparison.baseline_of(row)
    mark = "†" if baseline and baseline.parameters != row.parameters else ""
    chosen = ' class="chosen"' if row is story.main else ""
    missing = len(row.members) - len(row.results)
    note = f" <small>{missing} without result</small>" if missing else ""
    ours = " <small>*</small>" if row.computed else ""
    return (
        f"<tr{chosen}><td>{_swatch(row.role)}{escape(row.name)}{_times(row)}{ours}{note}</td><td>{escape(row.role)}</td>"
        f"{_number(size(row.parameters), row.parameters)}{_number(compression)}"
        f"{_number(mean(row.errors) if row.errors else '–')}{_number(percent(row.error_rate))}"
        f"{_number(f'{share:.2f}{mark}' if share is not None else '')}{_number(mean_percent(row.ece))}</tr>"
    )


def _comparison_notes(story: Story) -> str:
    rows = story.comparison.competitors
    notes = []
    if any(row.errors and row.errors.deviation is not None for row in rows):
        notes.append("Errors are means over replicas ± standard deviation.")
    notes.append("ECE is the expected calibration error on the test split (15 bins).")
    if any(original_teachers(story.run, row) for row in rows):
        notes.append("“Teachers ÷ it”: parameters of all original teachers together over those of the model.")
    if any(_is_marked(story, row) for row in rows):
        notes.append("† The baseline has another size.")
    if any(row.computed for row in rows):
        notes.append(
            "* No stage of the plan judges this ensemble: its numbers were computed here from the stored predictions"
            " of its members."
        )
    return f'<p class="note">{" ".join(notes)}</p>'


def _is_marked(story: Story, row: Competitor) -> bool:
    baseline = story.comparison.baseline_of(row)
    return baseline is not None and baseline.parameters != row.parameters


def _agreements(story: Story) -> str:
    sentences = []
    student = escape(story.student.name) if story.student else ""
    if (pair := story.with_baseline) is not None:
        sentences.append(
            f"Sample by sample, {student} is right on {count(pair.only_other_wrong)} test samples that"
            f" {escape(pair.other)} gets wrong, and wrong on {count(pair.only_student_wrong)} that it gets right; both err"
            f" on {count(pair.both_wrong)}."
        )
    if (pair := story.with_teacher) is not None:
        sentences.append(_agreement_with_teacher(student, pair))
    return f"<p>{' '.join(sentences)}</p>" if sentences else ""


def _agreement_with_teacher(student: str, pair: Agreement) -> str:
    return (
        f"It gives the same answer as its teacher ({escape(pair.other)}) on {percent(pair.same_answer / pair.samples)}"
        f" of them, errs with it on {count(pair.both_wrong)} and without it on {count(pair.only_student_wrong)}."
    )


# Graph and stages -------------------------------------------------------------------------------------------------


def _graph(story: Story) -> str:
    stages = story.run.stages.values()
    if not stages:
        return ""
    roles = dict.fromkeys(stage.role for stage in stages)
    legend = "".join(
        f"<span>{_swatch(role)}{escape(ROLE_LABELS.get(role, role or 'other'))}</span>" for role in roles
    )
    return (
        '<h2 id="graph">The graph</h2>'
        f'<div class="scroll">{graph_svg(place_graph(story.run))}</div><div class="legend">{legend}</div>'
        '<p class="note">Left to right: what reads, right of what it reads. Replicas share a box. Dashed: no result.'
        " Point at a box for its stages, fingerprints and numbers.</p>"
    )


def _stages(story: Story) -> str:
    groups: dict[str, list[StageResult]] = {}
    for stage in story.run.stages.values():
        groups.setdefault(stage.group, []).append(stage)
    head = (
        "<th>stage</th><th>kind</th><th>outcome</th><th class=number>time</th><th class=number>parameters</th>"
        "<th class=number>validation</th><th class=number>test</th><th class=number>errors</th>"
    )
    rows = "".join(_stage_rows(name, members) for name, members in groups.items())
    return (
        f'<h2 id="stages">Stages</h2>{_table(head, rows)}<p class="note">Validation and test are accuracies after the'
        " last epoch. Cached stages show the time of the run that made them.</p>"
    )


def _stage_rows(name: str, members: Sequence[StageResult]) -> str:
    if len(members) == 1 and members[0].name == name:
        return _stage_row(members[0], "")
    rows = [_group_row(name, members)]
    for index, member in enumerate(members):
        last = " last" if index == len(members) - 1 else ""
        rows.append(_stage_row(member, f"member{last}"))
    return "".join(rows)


def _stage_row(stage: StageResult, style: str) -> str:
    errors, samples = stage.metric("test/errors"), stage.metric("test/samples")
    of = f" <small>of {count(samples)}</small>" if samples and not style else ""
    return (
        f'<tr class="{style}"><td>{"" if style else _swatch(stage.role)}{escape(stage.name)}</td>'
        f"<td>{escape(stage.kind)}</td><td>{_outcome(stage.status)}</td>{_number(_time(stage.seconds))}"
        f"{_number(size(stage.parameters) if stage.parameters is not None else '', stage.parameters)}"
        f"{_number(_accuracy(stage, 'validation'))}{_number(_accuracy(stage, 'test'))}"
        f"{_number(f'{count(errors)}{of}' if errors is not None else '')}</tr>"
    )


def _group_row(name: str, members: Sequence[StageResult]) -> str:
    from orchestrator.report.comparison import spread

    def over(metric: str) -> list[float]:
        return [value for member in members if (value := member.metric(metric)) is not None]

    errors, samples = spread(over("test/errors")), over("test/samples")
    tally: dict[str, int] = {}
    for member in members:
        tally[member.status] = tally.get(member.status, 0) + 1
    outcomes = ", ".join(
        f"{f'{number} ' if len(tally) > 1 else ''}{_outcome(status)}" for status, number in tally.items()
    )
    parameters = next((member.parameters for member in members if member.parameters is not None), None)
    of = f" <small>of {count(samples[0])}</small>" if samples else ""
    validation, test = spread(over("validation/accuracy")), spread(over("test/accuracy"))
    return (
        f'<tr class="group"><td>{_swatch(members[0].role)}{escape(name)} <small>×{len(members)}</small></td>'
        f"<td>{escape(members[0].kind)}</td><td>{outcomes}</td>"
        f"{_number(_time(sum(member.seconds for member in members)))}"
        f"{_number(size(parameters) if parameters is not None else '', parameters)}"
        f"{_number(mean_percent(validation, 2) if validation else '')}{_number(mean_percent(test, 2) if test else '')}"
        f"{_number(f'{mean(errors)}{of}' if errors else '')}</tr>"
    )


def _accuracy(stage: StageResult, split: str) -> str:
    value = stage.metric(f"{split}/accuracy")
    return percent(value, 2) if value is not None else ""


def _time(seconds: float) -> str:
    return duration(seconds) if seconds else ""


def _outcome(status: str) -> str:
    tone = "bad" if status == "failed" else "" if status in ("done", "cached") else "muted"
    return f'<span class="{tone}">{escape(status)}</span>'


# Curves, confusion, calibration -----------------------------------------------------------------------------------


def _curves(plots: "Sequence[Plot]") -> str:
    figures = _figures(plots, "curves")
    if not figures:
        return ""
    return (
        f'<h2 id="curves">Learning curves</h2>{figures}<p class="note">Lines are means over replicas, bands reach from'
        " the lowest to the highest. The beginning of a curve may lie below the picture. Training losses of different"
        " stages measure different things (hard labels, softened targets) and are to be compared within a stage"
        " only.</p>"
    )


def _confusion(story: Story, plots: "Sequence[Plot]") -> str:
    title = f'<h2 id="confusion">What {escape(story.student.name) if story.student else "the student"} confuses</h2>'
    if story.confusion is None:
        return f"{title}{_gap(story, 'confusion')}"
    matrix = story.confusion
    never = [label for label in range(len(matrix)) if not matrix[:, label].sum() and matrix[label].sum()]
    sentences = []
    if never:
        names = [escape(story.class_name(label)) for label in never[:12]]
        more = f" and {len(never) - 12} more" if len(never) > 12 else ""
        verb = "is" if len(never) == 1 else "are"
        sentences.append(
            f"{'Class' if len(never) == 1 else 'Classes'} {listing(names)}{more} {verb} never predicted."
        )
    cell = " Up to 100 cells a side: neighbouring classes share one." if len(matrix) > 100 else ""
    sentences.append(
        "Rows are true classes, columns what was predicted; right answers are grey, errors the darker the more frequent."
        + cell
    )
    return (
        f'{title}<div class="figures">{_figures(plots, "confusion", style="")}<figure>{_pairs(story)}</figure></div>'
        f'<p class="note">{" ".join(sentences)}</p>'
    )


def _pairs(story: Story) -> str:
    """The most frequent errors as a table."""
    matrix = story.confusion
    assert matrix is not None
    errors = matrix.copy()
    errors[range(len(errors)), range(len(errors))] = 0
    order = [int(index) for index in (-errors).ravel().argsort(kind="stable")[:CONFUSED_PAIRS]]
    pairs = [divmod(index, len(errors)) for index in order if errors.flat[index]]
    if not pairs:
        return "<p>It makes no errors on the test split.</p>"
    rows = "".join(
        f"<tr><td>{escape(story.class_name(true))}</td><td>{escape(story.class_name(predicted))}</td>"
        f"{_number(count(errors[true, predicted]))}"
        f"{_number(percent(errors[true, predicted] / matrix[true].sum()))}</tr>"
        for true, predicted in pairs
    )
    return _table(
        "<th>true</th><th>taken for</th><th class=number>times</th><th class=number>of the class</th>", rows
    )


def _calibration(story: Story, plots: "Sequence[Plot]") -> str:
    title = '<h2 id="calibration">Whether its confidence can be trusted</h2>'
    if not story.calibrations:
        return f"{title}{_gap(story, 'calibration')}"
    return (
        f'{title}{_figures(plots, "calibration", style="figures small")}<p class="note">Test samples in 15 bins by the confidence of the'
        " prediction. A bar above the dashed line is a model that is right more often than it claims, below it one that"
        " claims too much; the ECE is the mean distance (black), weighted by the samples in each bin. Pale bars"
        " stand for fewer than 20 samples and say little.</p>"
    )


# Soft targets -----------------------------------------------------------------------------------------------------


def _soft_targets(story: Story) -> str:
    title = '<h2 id="soft-targets">What the teacher sees</h2>'
    if not story.examples or story.teaching is None:
        if story.student is not None and story.student.kind == "train":
            return ""
        return f"{title}{_gap(story, 'examples')}"
    role = teacher_role(story.run, story.teaching)
    teacher, student = teacher_name(story.run, story.teaching), story.student.name if story.student else ""
    legend = (
        f'<div class="legend"><span>{_swatch(role)}{escape(teacher)}</span><span>{_swatch("student")}'
        f"{escape(student)}</span></div>"
    )
    heads = _temperatures(story)
    cards = "".join(_card(story, example, role) for example in story.examples)
    softened = (
        f" At T = {heads[-1]:g}, the temperature of its training, {escape(student)} learned from distributions like those"
        " on the right."
        if len(heads) > 1
        else ""
    )
    return (
        f"{title}<p>Test samples chosen because they tell something: those about which the teacher is right and least"
        f" sure, then errors of {escape(student)} of which it is most sure.{softened}</p>"
        f'{legend}<div class="cards">{cards}</div>'
    )


def _temperatures(story: Story) -> list[float]:
    return [1.0] if story.temperature == 1 else [1.0, story.temperature]


def _card(story: Story, example: Example, role: str) -> str:
    heads = _temperatures(story)
    single = " single" if len(heads) == 1 else ""
    head = "<b></b>" + "".join(f"<b>T = {temperature:g}</b>" for temperature in heads)
    largest = [
        max(max(bar.teacher[place], bar.student[place]) for bar in example.bars)
        for place in range(len(heads))
    ]
    rows = "".join(_bar_row(story, bar, role, largest) for bar in example.bars)
    name = story.class_name
    return (
        f'<div class="card"><img alt="test sample {example.sample}" src="{_picture(example.picture)}">'
        f'<p><span class="muted">label</span> <b>{escape(name(example.label))}</b><br>'
        f"{_says('teacher', example.teacher_says, example.label, story)}<br>"
        f"{_says('student', example.student_says, example.label, story)}</p>"
        f'<div class="bars{single}">{head}{rows}</div></div>'
    )


def _says(who: str, answer: int, label: int, story: Story) -> str:
    if answer == label:
        return f'<span class="muted">{who}: right</span>'
    return f'{who}: <span class="bad">{escape(story.class_name(answer))}</span>'


def _bar_row(story: Story, bar: Bar, role: str, largest: Sequence[float]) -> str:
    name = escape(story.class_name(bar.label))
    cells = "".join(
        f"<div>{_bar(bar.teacher[place], largest[place], role)}{_bar(bar.student[place], largest[place], 'student')}</div>"
        for place in range(len(largest))
    )
    return f'<span class="name" title="{name}">{name}</span>{cells}'


def _bar(share: float, largest: float, role: str) -> str:
    width = 66 * share / largest if largest else 0
    return (
        f'<div class="bar"><i style="width:{width:.1f}%;background:var(--{role_colour(role)})"></i>'
        f"{_share(share)}</div>"
    )


def _share(share: float) -> str:
    return (
        f"{100 * share:.0f} %"
        if share >= 0.0995
        else f"{100 * share:.1f} %"
        if share >= 0.001
        else "&lt;0.1 %"
    )


def _picture(picture: Picture) -> str:
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((160, 160))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


# Reproduce --------------------------------------------------------------------------------------------------------


def _reproduce(story: Story) -> str:
    run = story.run
    again = shlex.join(["distill", "run", str(run.folder / "plan.yaml")])
    command = run.command or again
    saved = f"<p>The plan as it was run, with all defaults, is kept in the run's folder:</p><pre class=wrap>{escape(again)}</pre>"
    rows = "".join(
        f"<tr><td>{escape(stage.name)}</td><td><code>{escape(stage.fingerprint)}</code></td>"
        f"<td><code>{escape(stage.folder.path.relative_to(run.root).as_posix())}</code></td></tr>"
        for stage in run.stages.values()
    )
    fingerprints = _table("<th>stage</th><th>fingerprint</th><th>folder below the storage root</th>", rows)
    plan = (
        f"<details><summary>The plan</summary><pre>{escape(run.plan_text)}</pre></details>"
        if run.plan_text
        else ""
    )
    return (
        f'<h2 id="reproduce">Run it again</h2><pre class=wrap>{escape(command)}</pre>'
        f"{saved if run.command and run.plan_text else ''}"
        f"<dl>{_facts(story)}</dl><details><summary>Fingerprints</summary>{fingerprints}</details>{plan}"
    )


def _facts(story: Story) -> str:
    run = story.run
    records = [stage.record for stage in run.stages.values() if stage.record and stage.has_result]
    commits = sorted({record.git_commit for record in records if record.git_commit})
    versions = dict(run.versions) or (dict(records[-1].versions) if records else {})
    facts = {
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Git commit": ", ".join(commits),
        "Storage root": str(run.root),
        "Tracking": str(run.mlflow.get("tracking_uri") or ""),
    }
    return "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)


# Parts ------------------------------------------------------------------------------------------------------------


def _figures(plots: "Sequence[Plot]", section: str, style: str = "figures") -> str:
    """The plots of a section side by side, as far as there is room; without a style, one after another."""
    figures = "".join(f"<figure>{plot.svg}</figure>" for plot in plots if plot.section == section)
    return f'<div class="{style}">{figures}</div>' if style and figures else figures


def _gap(story: Story, section: str) -> str:
    return f'<p class="muted">{escape(story.gaps.get(section, "There is nothing to show."))}</p>'


def _table(head: str, rows: str) -> str:
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _number(text: str, exact: float | None = None) -> str:
    """A cell with a number; `text` is ours, `exact` appears when it is pointed at."""
    title = f' title="{count(exact)}"' if exact is not None else ""
    return f'<td class="number"{title}>{text}</td>'


def _times(row: Competitor) -> str:
    return f" <small>×{len(row.members)}</small>" if len(row.members) > 1 and not row.computed else ""


def _swatch(role: str) -> str:
    return f'<span class="swatch" style="color:var(--{role_colour(role)})"></span>'

"""The answer: how good the student is, beside its teachers, their ensemble and the baseline."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from raydistill.report.comparison import (
    TOGETHER,
    Adjustment,
    Competitor,
    original_teachers,
    total_parameters,
    wilson_interval,
)
from raydistill.report.parts import figures, number, swatch, table, times
from raydistill.report.story import Agreement, Story
from raydistill.report.words import (
    count,
    listing,
    mean,
    mean_percent,
    percent,
    ratio,
    shorten,
    signed,
    size,
)
from raydistill.runs.view import StageView

if TYPE_CHECKING:
    from raydistill.report.plots import Plot

NAMED_CLASSES = 4


def lead(story: Story) -> str:
    """The answer first: how good the student is, next to what."""
    main = story.main
    if main is None:
        return '<p class="lead">This plan trains no model.</p>'
    if main.errors is None or not main.samples:
        return f'<p class="lead"><b>{escape(main.name)}</b> has no test result: {escape(_statuses(main.members))}.</p>'
    sentences = [
        _errors_sentence(story, main),
        _adjusted_sentence(story, main),
        _size_sentence(story, main),
        _gap_sentence(story, main),
    ]
    return (
        f'<p class="lead">{" ".join(sentence for sentence in sentences if sentence)}</p>'
        f'<p class="note">{_choice_sentence(story, main)}{_precision_sentence(main)}</p>'
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
    kind = "a model of the same size without a teacher"
    if baseline.parameters != main.parameters:
        kind = f"a baseline of another size, {size(baseline.parameters)} parameters"
    theirs = f"the {mean(baseline.errors)} errors of {escape(baseline.name)}"
    return f"{own} That is <b>{share:.2f} times</b> {theirs}, {kind}."


def _adjusted_sentence(story: Story, main: Competitor) -> str:
    """What the honest adjustments of the main model's class bias changed."""
    adjusted = [
        (row.adjusted, row.errors)
        for row in story.comparison.competitors
        if row.errors and row.adjusted and row.adjusted.source == main.name and not row.adjusted.is_oracle
    ]
    if not adjusted:
        return ""
    classes = {_classes(story, adjustment) for adjustment, _ in adjusted}
    whose = classes.pop() if len(classes) == 1 else "some classes"
    how = {"prior": "chosen by their known frequency", "validation": "chosen on validation"}
    results = [
        f"{mean(errors)} ({how.get(adjustment.by, escape(adjustment.by))})" for adjustment, errors in adjusted
    ]
    return f"With the bias of {whose} adjusted after training it makes {listing(results)}."


def _classes(story: Story, adjustment: Adjustment) -> str:
    names = [
        escape(shorten(story.class_name(label) if isinstance(label, int) else label, 16))
        for label in adjustment.classes
    ]
    return listing(names) if len(names) <= NAMED_CLASSES else f"{len(names)} classes"


def _shift(story: Story, adjustment: Adjustment) -> str:
    """`3: +2.70 ± 0.05 by validation`."""
    by = "test" if adjustment.is_oracle else escape(adjustment.by)
    return f"{_classes(story, adjustment)}: {signed(adjustment.offset, 2)} by {by}"


def _size_sentence(story: Story, main: Competitor) -> str:
    teachers = original_teachers(story.run, main)
    total = total_parameters(teachers)
    if not main.parameters:
        return ""
    if not total or main.role in TOGETHER:
        return f"It has {size(main.parameters)} parameters."
    whose = "its teacher" if len(teachers) == 1 else f"its {len(teachers)} teachers together"
    if any(stage.role == "specialist" for stage in teachers):
        whose = "generalist and specialists together"
    sizes = f"({size(main.parameters)} against {size(total)} parameters)"
    if total <= main.parameters:
        return f"It is no smaller than {whose} {sizes}."
    return f"It is {ratio(total / main.parameters).rstrip('×')} times smaller than {whose} {sizes}."


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


def _choice_sentence(story: Story, main: Competitor) -> str:
    if story.sweep is None or main is not story.sweep.chosen:
        return ""
    return (
        f"{escape(main.name)} has the best validation accuracy of {len(story.sweep.students)} students that differ in"
        ' temperature: see <a href="#temperatures">below</a>. '
    )


def _precision_sentence(main: Competitor) -> str:
    assert main.samples is not None
    assert main.error_rate is not None
    low, high = wilson_interval(main.error_rate, main.samples)
    replicas = ""
    if main.errors is not None and main.errors.deviation is not None:
        replicas = " ± is the standard deviation over replicas, which differ in their seed."
    return (
        f"{count(main.samples)} test samples leave the error rate of {percent(main.error_rate)} uncertain:"
        f" {percent(low)} to {percent(high)} (95 % Wilson interval).{replicas}"
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


def _statuses(members: Iterable[StageView]) -> str:
    return ", ".join(f"{member.name} {member.status}" for member in members)


def comparison(story: Story, plots: "Sequence[Plot]") -> str:
    """All models side by side, as a plot and as a table."""
    rows = story.comparison.competitors
    if not rows:
        return ""
    head = (
        "<th>model</th><th class=number>test errors</th><th class=number>error rate</th>"
        "<th class=number>× baseline</th><th class=number>parameters</th><th class=number>teachers ÷ it</th>"
        "<th class=number>ECE</th><th class=aside>role</th>"
    )
    return (
        '<h2 id="comparison">Student, teachers, baseline</h2>'
        + figures(plots, "comparison", style="wide")
        + table(head, "".join(_competitor(story, row) for row in rows))
        + _comparison_notes(story)
        + _agreements(story)
    )


def _competitor(story: Story, row: Competitor) -> str:
    teachers = total_parameters(original_teachers(story.run, row)) if row.role not in TOGETHER else None
    compression = ratio(teachers / row.parameters) if teachers and row.parameters else ""
    share = story.comparison.share_of_baseline(row)
    baseline = story.comparison.baseline_of(row)
    mark = "†" if baseline and baseline.parameters != row.parameters else ""
    chosen = ' class="chosen"' if row is story.main else ""
    missing = len(row.members) - len(row.results)
    why = row.members[0].status if len(row.members) == 1 else f"{missing} without result"
    note = f" <small>{escape(why)}</small>" if missing else ""
    if row.adjusted:
        note += f"<br><small>{_shift(story, row.adjusted)}</small>"
    ours = " <small>*</small>" if row.computed else ""
    cells = [
        f"<td>{swatch(row.role)}{escape(row.name)}{times(row)}{ours}{note}</td>",
        number(mean(row.errors) if row.errors else "–"),
        number(percent(row.error_rate)),
        number(f"{share:.2f}{mark}" if share is not None else ""),
        number(size(row.parameters), row.parameters),
        number(compression),
        number(mean_percent(row.ece)),
        f'<td class="aside">{escape(row.role)}{_adjusted_role(row)}</td>',
    ]
    return f"<tr{chosen}>{''.join(cells)}</tr>"


def _adjusted_role(row: Competitor) -> str:
    if row.adjusted is None:
        return ""
    return ', <b class="bad">oracle</b>' if row.adjusted.is_oracle else ", adjusted"


def _comparison_notes(story: Story) -> str:
    rows = story.comparison.competitors
    notes = []
    if any(row.errors and row.errors.deviation is not None for row in rows):
        notes.append("Errors are means over replicas ± standard deviation.")
    notes.append("ECE is the expected calibration error on the test split (15 bins).")
    if any(original_teachers(story.run, row) for row in rows):
        notes.append("“Teachers ÷ it”: parameters of all original teachers together over those of the model.")
    if any(row.role == "committee" for row in rows):
        notes.append("A committee's parameters are those of its generalist and all its specialists.")
    if any(stage.role == "specialist" for stage in story.run.stages.values()):
        notes.append("Specialists answer only in a committee and are no row of their own.")
    notes += _adjusted_notes(rows)
    if any(_is_marked(story, row) for row in rows):
        notes.append("† The baseline has another size.")
    if any(row.computed for row in rows):
        notes.append(
            "* No stage of the plan judges this ensemble: its numbers were computed here from the stored predictions"
            " of its members."
        )
    return f'<p class="note">{" ".join(notes)}</p>'


def _adjusted_notes(rows: Iterable[Competitor]) -> list[str]:
    adjusted = [row.adjusted for row in rows if row.adjusted]
    notes = []
    if adjusted:
        notes.append(
            "Adjusted: the same model with one number added to the logits of the classes named after its training: by"
            " prior, their known frequency; by validation, the fewest errors on it."
        )
    if any(adjustment.is_oracle for adjustment in adjusted):
        notes.append(
            "Oracle: that number was chosen on the test split itself, as the paper did; its test errors are no honest"
            " estimate."
        )
    return notes


def _is_marked(story: Story, row: Competitor) -> bool:
    baseline = story.comparison.baseline_of(row)
    return baseline is not None and baseline.parameters != row.parameters


def _agreements(story: Story) -> str:
    sentences = []
    student = escape(story.student.name) if story.student else ""
    if (pair := story.with_baseline) is not None:
        sentences.append(
            f"Sample by sample, {student} is right on {count(pair.only_other_wrong)} test samples that"
            f" {escape(pair.other)} gets wrong, and wrong on {count(pair.only_student_wrong)} that it gets right; both"
            f" err on {count(pair.both_wrong)}."
        )
    if (pair := story.with_teacher) is not None:
        sentences.append(_agreement_with_teacher(student, pair))
    return f"<p>{' '.join(sentences)}</p>" if sentences else ""


def _agreement_with_teacher(student: str, pair: Agreement) -> str:
    return (
        f"{student} gives the same answer as its teacher ({escape(pair.other)}) on"
        f" {percent(pair.same_answer / pair.samples)} of the test samples, errs with it on {count(pair.both_wrong)} and"
        f" without it on {count(pair.only_student_wrong)}."
    )

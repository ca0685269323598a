"""What the student predicts: its confusions, its calibration, and what its teacher sees in a few pictures."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from raydistill.report.examples import Bar, Example, Picture
from raydistill.report.parts import figures, gap, number, swatch, table
from raydistill.report.story import Story
from raydistill.report.theme import role_colour
from raydistill.report.words import count, listing, percent

if TYPE_CHECKING:
    from raydistill.report.plots import Plot


CONFUSED_PAIRS = 12
MATRIX_CELLS = 100


def confusion(story: Story, plots: "Sequence[Plot]") -> str:
    """Which classes the student takes for which."""
    title = f'<h2 id="confusion">What {escape(story.student.name) if story.student else "the student"} confuses</h2>'
    if story.confusion is None:
        return f"{title}{gap(story, 'confusion')}"
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
    sentences.append("Rows are true classes, columns what was predicted.")
    sentences.append("Right answers are grey; the more frequent an error, the stronger its colour.")
    if len(matrix) > MATRIX_CELLS:
        sentences.append(f"Neighbouring classes share a cell: there are {MATRIX_CELLS} at most on each side.")
    return (
        f'{title}<div class="figures">{figures(plots, "confusion", style="")}<figure>{_pairs(story)}</figure></div>'
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
        f"<tr><td class=text>{escape(story.class_name(true))}</td>"
        f"<td class=text>{escape(story.class_name(predicted))}</td>"
        f"{number(count(errors[true, predicted]))}"
        f"{number(percent(errors[true, predicted] / matrix[true].sum()))}</tr>"
        for true, predicted in pairs
    )
    return table(
        "<th>true</th><th>taken for</th><th class=number>times</th><th class=number>of the class</th>", rows
    )


def calibration(story: Story, plots: "Sequence[Plot]") -> str:
    """Reliability diagrams of student, teacher and baseline."""
    title = '<h2 id="calibration">Whether its confidence can be trusted</h2>'
    if not story.calibrations:
        return f"{title}{gap(story, 'calibration')}"
    note = (
        "Test samples in 15 bins by the confidence of the prediction. A bar above the dashed line is a model that is"
        " right more often than it claims, below it one that claims too much; the ECE is the mean distance (thin"
        " lines), weighted by the samples in each bin. Pale bars stand for fewer than 20 samples and say little."
    )
    return f'{title}{figures(plots, "calibration", style="figures small")}<p class="note">{note}</p>'


def soft_targets(story: Story) -> str:
    """Test pictures beside the probabilities that teacher and student give them."""
    title = '<h2 id="soft-targets">What the teacher sees</h2>'
    if not story.examples or story.teaching is None:
        if story.student is not None and story.student.kind != "distill":
            return ""
        return f"{title}{gap(story, 'examples')}"
    role, student = story.teaching.role, story.student.name if story.student else ""
    legend = (
        f'<div class="legend"><span>{swatch(role)}{escape(story.teaching.name)}</span><span>{swatch("student")}'
        f"{escape(student)}</span></div>"
    )
    heads = _temperatures(story)
    cards = "".join(_card(story, example, role) for example in story.examples)
    softened = (
        f" At T = {heads[-1]:g}, the temperature of its training, {escape(student)} learned from distributions like"
        " those on the right."
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
    rows = "".join(_bar_row(story, bar, example.label, role, largest) for bar in example.bars)
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


def _bar_row(story: Story, bar: Bar, label: int, role: str, largest: Sequence[float]) -> str:
    name = escape(story.class_name(bar.label))
    cells = [
        _bar(bar.teacher[place], limit, role) + _bar(bar.student[place], limit, "student")
        for place, limit in enumerate(largest)
    ]
    style = "name true" if bar.label == label else "name"
    return (
        f'<span class="{style}" title="{name}">{name}</span>{"".join(f"<div>{cell}</div>" for cell in cells)}'
    )


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

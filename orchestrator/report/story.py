"""What a report has to say about a run, worked out before anything is drawn or written."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import StoreError
from raydistill.report.attention import AttentionMap, read_attention
from raydistill.report.clusters import Clustering, read_clusterings
from raydistill.report.committees import CommitteeResult, read_committees
from raydistill.report.comparison import Comparison, Competitor, compare, spread, total_parameters
from raydistill.report.examples import Example, choose_samples, describe_examples, load_pictures
from raydistill.report.predictions import (
    Agreement,
    Predictions,
    Teaching,
    agreement,
    read_predictions,
    read_teaching,
    temperature_of,
)
from raydistill.report.sweep import Sweep, find_sweep
from raydistill.report.transfers import TransferGroup, group_by_model
from raydistill.runs.files import read_json
from raydistill.runs.view import RunView, StageView
from raydistill.training.judgement import ReliabilityBins, confusion_matrix, reliability_bins


class Calibration(NamedTuple):
    """How far one model's confidence can be trusted."""

    name: str
    role: str
    bins: ReliabilityBins
    error: float


@dataclass(frozen=True)
class Story:
    """Everything the page and the plots show. What is None or empty is explained in `gaps`, by section."""

    run: RunView
    comparison: Comparison
    main: Competitor | None = None
    student: StageView | None = None
    class_names: tuple[str, ...] = ()
    temperature: float = 1.0
    confusion: NDArray[np.int64] | None = None
    calibrations: tuple[Calibration, ...] = ()
    with_teacher: Agreement | None = None
    with_baseline: Agreement | None = None
    examples: tuple[Example, ...] = ()
    teaching: Teaching | None = None
    clusterings: tuple[Clustering, ...] = ()
    committees: tuple[CommitteeResult, ...] = ()
    transfers: tuple[TransferGroup, ...] = ()
    sweep: Sweep | None = None
    attention: tuple[AttentionMap, ...] = ()
    gaps: dict[str, str] = field(default_factory=dict)

    def class_name(self, label: int) -> str:
        """The name of a class."""
        return self.class_names[label] if label < len(self.class_names) else str(label)


def tell(run: RunView) -> Story:
    """Work out the story of a run; what is missing leaves a gap, not an error."""
    story = _with_series(Story(run, compare(run)))
    main = choose_main(story.comparison, story.sweep)
    if main is None:
        return _without_predictions(story, "No model was trained.")
    student = main.results[0] if main.results else main.members[0]
    story = replace(story, main=main, student=student, temperature=temperature_of(student))
    try:
        predictions = read_predictions(student)
    except StoreError as error:
        return _without_predictions(story, error.message)
    story = replace(story, class_names=_class_names(student, predictions.logits.shape[1]))
    return _with_examples(_with_judgements(story, student, predictions), student, predictions)


def _with_series(story: Story) -> Story:
    """What several stages tell only together: clusters and committees, parts of the data, temperatures, attention."""
    clusterings, no_clusters = read_clusterings(story.run)
    committees, no_committees = read_committees(story.run)
    gaps = {"clusters": "; ".join(no_clusters), "committees": "; ".join(no_committees)}
    return replace(
        story,
        clusterings=tuple(clusterings),
        committees=tuple(committees),
        transfers=tuple(group_by_model(story.comparison.competitors)),
        sweep=find_sweep(story.comparison.competitors),
        attention=read_attention(story.comparison.competitors),
        gaps={section: reason for section, reason in gaps.items() if reason},
    )


def _without_predictions(story: Story, reason: str) -> Story:
    gaps = dict.fromkeys(("confusion", "calibration", "examples"), reason)
    return replace(story, gaps={**story.gaps, **gaps})


def choose_main(comparison: Comparison, sweep: Sweep | None = None) -> Competitor | None:
    """The model the report is about: the stage called `student`, else the last student, else the last model.

    Those with results come first. What was adjusted after training is told beside the model it was made from. Of the
    students of a sweep over temperatures, or of several of one size, it is the one that validation chooses.
    """
    last = _last_student(comparison)
    if last is None or last.name == "student":
        return last
    if sweep is not None and last in sweep.students:
        return sweep.chosen
    rivals = [row for row in comparison.in_role("student") if _are_rivals(row, last)]
    return max(rivals, key=lambda row: row.validation.mean if row.validation else 0.0, default=last)


def _are_rivals(one: Competitor, other: Competitor) -> bool:
    is_measured = one.validation is not None and not one.adjusted
    return is_measured and one.parameters is not None and one.parameters == other.parameters


def _last_student(comparison: Comparison) -> Competitor | None:
    trained = [competitor for competitor in comparison.competitors if not competitor.adjusted]
    for candidates in ([row for row in trained if row.role == "student"], trained):
        measured = [candidate for candidate in candidates if candidate.results] or candidates
        named = [candidate for candidate in measured if candidate.name == "student"]
        if measured:
            return (named or measured)[-1]
    return None


def _with_judgements(story: Story, student: StageView, predictions: Predictions) -> Story:
    """Confusion, calibration, and the comparison with teacher and baseline sample by sample."""
    matrix = confusion_matrix(predictions.predicted(), predictions.labels, predictions.logits.shape[1])
    calibrations = [_calibrate(student, predictions)]
    with_baseline = None
    if (baseline := _baseline_of(story)) is not None:
        try:
            others = read_predictions(baseline)
        except StoreError:
            pass
        else:
            calibrations.append(_calibrate(baseline, others))
            with_baseline = agreement(baseline.name, others.predicted(), predictions, others.ids)
    story = replace(story, confusion=matrix, with_baseline=with_baseline)
    try:
        teaching = read_teaching(story.run, student, predictions)
    except StoreError as error:
        return replace(
            story, calibrations=tuple(calibrations), gaps={**story.gaps, "examples": error.message}
        )
    probabilities = teaching.probabilities()
    bins = reliability_bins(probabilities, teaching.labels)
    taught = Calibration(teaching.name, teaching.role, bins, bins.error)
    answers = probabilities.argmax(axis=1)
    return replace(
        story,
        comparison=_with_teacher_row(story, teaching, answers, taught),
        calibrations=(calibrations[0], taught, *calibrations[1:]),
        with_teacher=agreement(teaching.name, answers, predictions, teaching.ids),
        teaching=teaching,
    )


def _with_examples(story: Story, student: StageView, predictions: Predictions) -> Story:
    if story.teaching is None:
        return story
    positions = choose_samples(predictions, story.teaching)
    if not positions:
        return replace(story, gaps={**story.gaps, "examples": "There are no test samples."})
    pictures = load_pictures(
        _description(student).get("task", {}), predictions.ids[positions], predictions.labels[positions]
    )
    if isinstance(pictures, str):
        return replace(story, gaps={**story.gaps, "examples": pictures})
    examples = describe_examples(positions, predictions, story.teaching, story.temperature, pictures)
    return replace(story, examples=tuple(examples))


def _with_teacher_row(
    story: Story, teaching: Teaching, answers: NDArray[Any], calibration: Calibration
) -> Comparison:
    """Add the ensemble that taught the student, unless a stage of the plan judges it."""
    judged = [
        stage
        for competitor in story.comparison.in_role("ensemble")
        for stage in competitor.results
        if set(stage.reads) == set(teaching.names)
    ]
    if len(teaching.names) == 1 or judged:
        return story.comparison
    members = tuple(story.run.stages[name] for name in teaching.names)
    row = Competitor(
        name=calibration.name,
        role="ensemble",
        members=members,
        errors=spread([float((answers != teaching.labels).sum())]),
        samples=len(teaching.labels),
        ece=spread([calibration.error]),
        parameters=total_parameters(members),
        computed=True,
    )
    others = story.comparison.competitors
    place = sum(competitor.role in ("teacher", "ensemble") for competitor in others)
    return Comparison((*others[:place], row, *others[place:]))


def _baseline_of(story: Story) -> StageView | None:
    baseline = story.comparison.baseline_of(story.main) if story.main else None
    return baseline.results[0] if baseline else None


def _calibrate(stage: StageView, predictions: Predictions) -> Calibration:
    bins = reliability_bins(predictions.probabilities(), predictions.labels)
    recorded = stage.metric("test/ece")
    return Calibration(stage.name, stage.role, bins, bins.error if recorded is None else recorded)


def _description(student: StageView) -> dict[str, Any]:
    try:
        description = read_json(student.folder.payload("model.json"))
    except StoreError:
        return {}
    return description if isinstance(description, dict) else {}


def _class_names(student: StageView, count: int) -> tuple[str, ...]:
    names: Sequence[object] = _description(student).get("class_names") or ()
    return tuple(str(name) for name in names) if len(names) == count else tuple(map(str, range(count)))

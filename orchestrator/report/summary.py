"""What a report has to say about a run, worked out before anything is drawn or written."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raydistill.errors import StoreError
from raydistill.metrics import CalibrationError
from raydistill.report.attention import AttentionMap, read_attention
from raydistill.report.clusters import Clustering, read_clusterings
from raydistill.report.committees import CommitteeResult, read_committees
from raydistill.report.comparison import Comparison, Competitor, compare, spread, total_parameters
from raydistill.report.examples import Example, choose_samples, describe_examples, load_pictures
from raydistill.report.formatting import listing, shorten
from raydistill.report.model_comparisons import ModelComparison, read_model_comparisons
from raydistill.report.predictions import (
    ErrorOverlap,
    Teaching,
    error_overlap,
    read_teaching,
    temperature_of,
)
from raydistill.report.sweep import Sweep, find_sweep
from raydistill.report.transfers import TransferGroup, group_by_model
from raydistill.runs.files import read_json
from raydistill.runs.stored_predictions import StoredColumns, StoredPredictions
from raydistill.runs.view import RunView, StageView
from raydistill.training.calibration import ReliabilityBins, bins_by_confidence, confusion_matrix

NAMED_CLASSES = 6
MOST_CLASSES = 5000  # in a confusion matrix, which has 200 MB then


class Calibration(NamedTuple):
    """How far one model's confidence can be trusted."""

    name: str
    role: str
    bins: ReliabilityBins
    error: float


@dataclass
class RunSummary:
    """Everything the page and the plots show. What is None or empty is explained in `gaps`, by section. Where logits
    of a part of the test samples are stored, `sampled` says of how many."""

    run: RunView
    comparison: Comparison
    main: Competitor | None = None
    student: StageView | None = None
    class_names: tuple[str, ...] = ()
    temperature: float = 1.0
    confusion: NDArray[np.int64] | None = None
    teacher_confusion: NDArray[np.int64] | None = None
    calibrations: list[Calibration] = field(default_factory=list)
    with_teacher: ErrorOverlap | None = None
    with_baseline: ErrorOverlap | None = None
    examples: list[Example] = field(default_factory=list)
    teaching: Teaching | None = None
    sampled: int | None = None
    clusterings: list[Clustering] = field(default_factory=list)
    committees: list[CommitteeResult] = field(default_factory=list)
    model_comparisons: list[ModelComparison] = field(default_factory=list)
    transfers: list[TransferGroup] = field(default_factory=list)
    sweep: Sweep | None = None
    attention: tuple[AttentionMap, ...] = ()
    gaps: dict[str, str] = field(default_factory=dict)

    def class_name(self, label: int) -> str:
        """The name of a class."""
        return self.class_names[label] if label < len(self.class_names) else str(label)

    def all_names(self, labels: Iterable[int | str]) -> list[str]:
        """Classes by their names; what a plan calls by name is one already."""
        return [self.class_name(label) if isinstance(label, int) else str(label) for label in labels]

    def names_of(self, labels: Sequence[int | str]) -> str:
        """A few classes by their names, of more how many they are."""
        names = [shorten(name, 16) for name in self.all_names(labels)]
        return listing(names) if len(names) <= NAMED_CLASSES else f"{len(names)} classes"

    @property
    def temperatures(self) -> list[float]:
        """At which soft targets are shown: 1, and the one the student learned at."""
        return [1.0] if self.temperature == 1 else [1.0, self.temperature]

    @property
    def teacher_role(self) -> str:
        """The role of what taught the student."""
        return self.teaching.role if self.teaching else "teacher"

    @property
    def teacher_row(self) -> Competitor | None:
        """The row of the comparison that stands for what taught the main model: its one teacher, or an ensemble that
        a stage judged or that was computed here."""
        names = set(self.teaching.names) if self.teaching else set()
        for row in self.comparison.competitors:
            is_they = {member.name for member in row.members} == names and (row.computed or len(names) == 1)
            is_judged = row.role == "ensemble" and any(set(stage.reads) == names for stage in row.results)
            if names and row.errors and (is_they or is_judged):
                return row
        return None


def summarize_run(run: RunView) -> RunSummary:
    """Work out what a run says; what is missing leaves a gap, not an error."""
    summary = RunSummary(run, compare(run))
    rows = summary.comparison.competitors
    summary.clusterings, no_clusters = read_clusterings(run)
    summary.committees, no_committees = read_committees(run)
    summary.model_comparisons, no_comparisons = read_model_comparisons(run)
    gaps = {"clusters": no_clusters, "committees": no_committees, "model_comparisons": no_comparisons}
    summary.gaps = {section: "; ".join(reasons) for section, reasons in gaps.items() if reasons}
    summary.transfers = list(group_by_model(rows))
    summary.sweep = find_sweep(rows)
    summary.attention = read_attention(rows)
    try:
        _add_predictions(summary)
    except StoreError as error:
        summary.gaps |= dict.fromkeys(("confusion", "calibration", "examples"), error.message)
    return summary


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


def _add_predictions(summary: RunSummary) -> None:
    """Add what stored predictions tell; `StoreError` says why the main model has none."""
    main = summary.main = choose_main(summary.comparison, summary.sweep)
    if main is None:
        raise StoreError("No model was trained.")
    student = summary.student = main.results[0] if main.results else main.members[0]
    summary.temperature = temperature_of(student)
    predictions = student.predictions()
    classes = predictions.logits.shape[1]
    description = _description(student)
    names = description.get("class_names") or ()
    summary.class_names = tuple(map(str, names if len(names) == classes else range(classes)))
    summary.sampled = len(predictions.ids) if predictions.is_sample else None
    everything = predictions.of_all()
    if classes <= MOST_CLASSES:
        summary.confusion = confusion_matrix(everything.predicted, everything.labels, classes)
    else:
        summary.gaps["confusion"] = f"A matrix of {classes:,} × {classes:,} classes is not made."
    summary.calibrations = [_calibrate(student, predictions)]
    try:
        teaching = summary.teaching = read_teaching(summary.run, student, predictions)
    except StoreError as error:
        summary.gaps["examples"] = error.message
    else:
        _add_teaching(summary, teaching, everything)
        _add_examples(summary, teaching, predictions, description.get("task", {}))
    baseline = summary.comparison.baseline_of(main)
    try:
        others = baseline.results[0].predictions() if baseline else None
    except StoreError:
        others = None
    if baseline and others:
        stage = baseline.results[0]
        summary.calibrations.append(_calibrate(stage, others))
        told = others.of_all()
        summary.with_baseline = error_overlap(stage.name, told.predicted, everything, told.ids)


def _add_teaching(summary: RunSummary, teaching: Teaching, student: StoredColumns) -> None:
    """Compare the student with its teachers, who become a row where no stage of the plan judges them together."""
    if (told := teaching.of_all()) is None:
        return  # a mean of logits that are those of a sample says nothing of the split
    bins = bins_by_confidence(told.confidences, told.is_right)
    summary.calibrations.append(Calibration(teaching.name, teaching.role, bins, bins.error))
    if summary.confusion is not None:
        summary.teacher_confusion = confusion_matrix(told.predicted, told.labels, len(summary.confusion))
    summary.with_teacher = error_overlap(teaching.name, told.predicted, student, told.ids)
    ensembles = summary.comparison.in_role("ensemble")
    judged = [set(stage.reads) for row in ensembles for stage in row.results]
    if len(teaching.names) == 1 or set(teaching.names) in judged:
        return
    members = tuple(summary.run.stages[name] for name in teaching.names)
    row = Competitor(
        name=teaching.name,
        role="ensemble",
        members=members,
        errors=spread([float((~told.is_right).sum())]),
        samples=len(told.labels),
        ece=spread([bins.error]),
        parameters=total_parameters(members),
        computed=True,
    )
    others = summary.comparison.competitors
    place = sum(competitor.role in ("teacher", "ensemble") for competitor in others)
    summary.comparison = Comparison((*others[:place], row, *others[place:]))


def _add_examples(summary: RunSummary, teaching: Teaching, predictions: StoredPredictions, task: Any) -> None:
    positions = choose_samples(predictions, teaching)
    found: list[Any] | str = "There are no test samples."
    if positions:
        found = load_pictures(task, predictions.ids[positions], predictions.labels[positions])
    if isinstance(found, str):
        summary.gaps["examples"] = found
        return
    summary.examples = describe_examples(positions, predictions, teaching, summary.temperature, found)


def _calibrate(stage: StageView, predictions: StoredPredictions) -> Calibration:
    told = predictions.of_all()
    bins = bins_by_confidence(told.confidences, told.is_right)
    recorded = stage.metric(CalibrationError.on("test"))
    return Calibration(stage.name, stage.role, bins, bins.error if recorded is None else recorded)


def _description(student: StageView) -> dict[str, Any]:
    try:
        description = read_json(student.folder.payload("model.json"))
    except StoreError:
        return {}
    return description if isinstance(description, dict) else {}

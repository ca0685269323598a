"""The pages: HTML files without scripts and without anything to fetch, from the templates beside this file.

Jinja escapes whatever enters a page, and a template that names what there is not is an error. The templates say
everything; here is only what takes more than a line to work out.
"""

import math
import os
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from raydistill import metrics
from raydistill.report import formatting
from raydistill.report.committees import group_committees
from raydistill.report.comparison import measured, wilson_interval
from raydistill.report.costs import compare_costs
from raydistill.report.importance import Importance
from raydistill.report.layout import group_stages
from raydistill.report.search_summary import SearchSummary, outcome_of_trial
from raydistill.report.summary import RunSummary
from raydistill.report.theme import COLOURS, role_colour, role_label
from raydistill.runs.run_files import REPORT
from raydistill.runs.search_formatting import called, short, shown_cost
from raydistill.runs.search_run import TrialRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raydistill.report.figures import Plot

TONES = {"done": "good", "failed": "bad", "interrupted": "bad"}
CONFUSED_PAIRS = 12
WORST_CLASSES = 20


@cache
def _environment() -> Environment:
    templates = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {format.__name__: format for format in formatting.FORMATS}
    environment.filters |= {
        "g": "{:g}".format,
        "tone": lambda status: TONES.get(status, "muted"),
        "measured": measured,
        "role_colour": role_colour,
        "role_label": role_label,
        "called": called,
        "short": short,
        "shown_cost": lambda value, cost: shown_cost(cost, value),
        "outcome_of_trial": outcome_of_trial,
    }
    environment.globals |= {"colours": COLOURS, "metrics": metrics}
    return environment


def _render(template: str, plots: "Iterable[Plot]", **values: Any) -> str:
    by_section: defaultdict[str, list[Plot]] = defaultdict(list)
    for plot in plots:
        by_section[plot.section].append(plot)
    return _environment().get_template(template).render(plots=by_section, **values)


def build_page(summary: RunSummary, plots: "Sequence[Plot]") -> str:
    """The whole report of a plan run."""
    run, main = summary.run, summary.main
    rate = (main.error_rate, main.samples) if main and main.error_rate is not None and main.samples else None
    return _render(
        "run.html",
        plots,
        run=run,
        summary=summary,
        facts=_facts(summary),
        adjusted=_adjusted(summary),
        interval=wilson_interval(*rate) if rate else None,
        has_specialist=main is not None and any(stage.role == "specialist" for stage in main.teachers),
        warnings=_warnings(summary),
        class_sizes=[f"{split}: {_range_of(sizes)}" for split, sizes in run.survey.counts.items() if sizes],
        costs=compare_costs(summary.comparison),
        committee_groups=group_committees(summary.committees),
        boxes=list(group_stages(run).values()),
        confusion=_confusion(summary),
        by_class=_by_class(summary),
        again=shlex.join(["distill", "run", str(run.folder / "plan.yaml"), "--runs", str(run.root)]),
        origins=_origins(summary),
    )


def _facts(summary: RunSummary) -> list[str]:
    run, task = summary.run, summary.run.results.task
    splits = {"train": task.train, "validation": task.validation, "test": task.test}
    sizes = [f"{formatting.whole(size)} {split}" for split, size in splits.items() if size]
    about = f"task {task.name}, {task.num_classes or '?'} classes"
    facts = [f"Run {run.run_id}", formatting.elapsed(run.seconds), about]
    facts += [f"{' / '.join(sizes)} samples"] if sizes else []
    facts += [f"what ran took {run.hours}"] if run.hours else []
    saved = f"what was cached took {formatting.elapsed(run.saved_seconds)} when it ran"
    facts += [f"{saved}: {run.saved_hours}"] if run.saved_hours else [saved] if run.saved_seconds else []
    return facts


def _adjusted(summary: RunSummary) -> dict[str, Any]:
    """What the honest adjustments of the main model's class bias changed."""
    how = {"prior": "chosen by their known frequency", "validation": "chosen on validation"}
    rows = [
        (row.adjusted, row.errors)
        for row in summary.comparison.competitors
        if row.errors and row.adjusted and summary.main and row.adjusted.source == summary.main.name
    ]
    honest = [(adjustment, errors) for adjustment, errors in rows if not adjustment.is_oracle]
    classes = {summary.names_of(adjustment.classes) for adjustment, _ in honest}
    results = [f"{formatting.mean(errors)} ({how.get(found.by, found.by)})" for found, errors in honest]
    return {"classes": classes.pop() if len(classes) == 1 else "some classes", "results": results}


def _warnings(summary: RunSummary) -> list[tuple[str, str]]:
    """What the survey of data and models remarks, and what stages warn of."""
    stages = summary.run.stages.values()
    found = summary.run.survey.remarks
    remarks = [(", ".join(remark.stages) or "data", remark.text) for remark in found]
    records = [(stage.name, stage.record) for stage in stages if stage.record]
    return remarks + [(name, text) for name, record in records for text in record.warnings]


def _range_of(sizes: Sequence[int]) -> str:
    few, many = formatting.whole(min(sizes)), formatting.whole(max(sizes))
    return few if few == many else f"{few} to {many}"


def _confusion(summary: RunSummary) -> dict[str, Any]:
    """Classes that are never predicted, and the most frequent errors."""
    matrix, name = summary.confusion, summary.class_name
    if matrix is None:
        return {}
    never = [label for label in range(len(matrix)) if not matrix[:, label].sum() and matrix[label].sum()]
    errors = matrix.copy()
    errors[range(len(errors)), range(len(errors))] = 0
    order = [int(index) for index in (-errors).ravel().argsort(kind="stable")[:CONFUSED_PAIRS]]
    pairs = [
        {
            "true": name(true),
            "predicted": name(predicted),
            "times": times,
            "share": times / int(matrix[true].sum()),
        }
        for true, predicted in (divmod(index, len(errors)) for index in order)
        if (times := int(errors[true, predicted]))
    ]
    return {"never": [name(label) for label in never], "pairs": pairs}


def _by_class(summary: RunSummary) -> dict[str, Any]:
    """What the student does with each class, the worst recall first; of many the worst alone."""
    if summary.confusion is None:
        return {"rows": []}
    own = _counts(summary.confusion)
    recall, precision, f1 = own.recall(), own.precision(), own.f1()
    teacher = None if summary.teacher_confusion is None else _counts(summary.teacher_confusion).recall()
    there = [label for label in range(len(recall)) if own.samples[label]]
    there.sort(key=lambda label: (recall[label], label))
    rows = [
        {
            "name": summary.class_name(label),
            "samples": int(own.samples[label]),
            "recall": recall[label],
            "precision": None if math.isnan(precision[label]) else precision[label],
            "f1": f1[label],
            "teacher": None if teacher is None else teacher[label],
        }
        for label in there[:WORST_CLASSES]
    ]
    others = there[WORST_CLASSES:]
    mean = float(recall[others].mean()) if others else None
    return {"rows": rows, "others": len(others), "mean": mean, "has_teacher": teacher is not None}


def _counts(confusion: "NDArray[np.int64]") -> metrics.ByClass:
    """From counts (C, C) of true classes by predicted ones."""
    return metrics.ByClass(confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal())


def _origins(summary: RunSummary) -> dict[str, str]:
    """All that decides the numbers, beside the plan."""
    run = summary.run
    records = [stage.record for stage in run.stages.values() if stage.record and stage.has_result]
    versions = dict(run.results.versions) or (dict(records[-1].versions) if records else {})
    return {
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Git commit": ", ".join(sorted({record.git_commit for record in records if record.git_commit})),
        "Workers": _made_by_several(summary),
        "Storage root": str(run.root),
        "Tracking": str(run.results.mlflow.get("tracking_uri") or ""),
    }


def _made_by_several(summary: RunSummary) -> str:
    """Sums over several processes round otherwise than in one."""
    counts = {name: stage.record.workers for name, stage in summary.run.stages.items() if stage.record}
    told = [f"{name} by {count}" for name, count in counts.items() if count and count > 1]
    return ", ".join(told) + "; all else by one" if told else ""


def build_search_page(summary: SearchSummary, importance: Importance, plots: "Sequence[Plot]") -> str:
    """The whole report of a search."""
    view, about, best = summary.view, summary.view.about, summary.best
    over = sum(trial.is_over for trial in summary.trials)
    history = best.segment.history if best and best.segment else {}
    reasons: defaultdict[str, list[TrialRecord]] = defaultdict(list)
    for trial in summary.failed:
        reasons[trial.error or "No reason was recorded."].append(trial)
    command = shlex.join(["distill", "run", str(view.best_plan), "--runs", str(view.root)])
    return _render(
        "search.html",
        plots,
        search=summary,
        view=view,
        about=about,
        importance=importance,
        facts=[
            f"Search {about.fingerprint}",
            formatting.elapsed(about.seconds),
            f"{formatting.whole(over)} of {formatting.whole(about.samples)} trials",
            f"{'highest' if about.mode == 'max' else 'lowest'} {summary.metric} of {view.stage}"
            f"{f' against {about.cost}' if about.cost else ''}",
            f"searcher {about.searcher.name}",
            f"scheduler {about.scheduler.name}",
        ],
        over=over,
        outcome_texts=[f"{number} {outcome}" for outcome, number in summary.outcomes.items()],
        changes=[formatting.whole(epoch) for epoch in sorted(history) if epoch],
        judged=_judged(summary.judged),
        reasons=reasons,
        front_plans={
            trial.id: view.plan_of(trial.id).relative_to(view.folder)
            for trial in summary.front
            if view.plan_of(trial.id).exists()
        },
        best_command=command if view.best_plan.exists() else "",
        plan_runs=_plan_runs(summary),
    )


def _judged(judged: Mapping[str, float]) -> dict[str, Any]:
    """The winner's result on the test split; empty before there is one."""
    accuracy, errors, samples = (
        judged.get(metric.on("test")) for metric in (metrics.Accuracy, metrics.Errors, metrics.Samples)
    )
    if accuracy is None or not math.isfinite(accuracy):
        return {}
    interval = wilson_interval(1 - accuracy, round(samples)) if errors is not None and samples else None
    return {"accuracy": accuracy, "errors": errors, "samples": samples, "interval": interval}


def _plan_runs(summary: SearchSummary) -> dict[str, str]:
    """The plan runs of the search, with the way to their reports where there are some."""
    view = summary.view
    reports = {path: view.root / path / REPORT for path in view.plan_runs}
    return {
        path: Path(os.path.relpath(report, view.folder)).as_posix() if report.exists() else ""
        for path, report in reports.items()
    }

"""The page: one HTML file without scripts and without anything to fetch.

Everything that comes from a file is escaped where it enters the page.
"""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from raydistill.report.cost_sections import costs
from raydistill.report.parts import document, figures
from raydistill.report.prediction_sections import calibration, confusion, soft_targets
from raydistill.report.series_sections import temperatures, transfers
from raydistill.report.specialist_sections import clusters, committees
from raydistill.report.stage_sections import failures, graph, reproduce, stages, warnings
from raydistill.report.story import Story
from raydistill.report.verdict import comparison, lead
from raydistill.report.words import count, duration

if TYPE_CHECKING:
    from raydistill.report.plots import Plot


def build_page(story: Story, plots: "Sequence[Plot]") -> str:
    """The whole report."""
    run = story.run
    sections = [
        _head(story),
        lead(story),
        failures(story),
        warnings(story),
        comparison(story, plots),
        costs(story),
        temperatures(story, plots),
        transfers(story, plots),
        committees(story),
        clusters(story, plots),
        graph(story),
        stages(story),
        _curves(plots),
        _attention(plots),
        confusion(story, plots),
        calibration(story, plots),
        soft_targets(story),
        reproduce(story),
    ]
    return document(f"{run.plan} · {run.run_id}", sections)


def _head(story: Story) -> str:
    run, task = story.run, story.run.results.task
    sizes = {"train": task.train, "validation": task.validation, "test": task.test}
    splits = [f"{count(size)} {split}" for split, size in sizes.items() if size]
    parts = [
        f"Run {run.run_id}",
        duration(run.seconds),
        f"task {task.name}, {task.num_classes or '?'} classes",
        f"{' / '.join(splits)} samples" if splits else "",
    ]
    tone = {"done": "good", "failed": "bad", "interrupted": "bad"}.get(run.status, "muted")
    return (
        f'<h1>{escape(run.plan)}<span class="status {tone}">{escape(run.status)}</span></h1>'
        f'<p class="facts">{escape(" · ".join(part for part in parts if part))}</p>'
    )


def _curves(plots: "Sequence[Plot]") -> str:
    shown = figures(plots, "curves")
    if not shown:
        return ""
    return (
        f'<h2 id="curves">Learning curves</h2>{shown}<p class="note">Lines are means over replicas, bands reach from'
        " the lowest to the highest. The beginning of a curve may lie below the picture. Training losses of different"
        " stages measure different things (hard labels, softened targets) and are to be compared within a stage"
        " only.</p>"
    )


def _attention(plots: "Sequence[Plot]") -> str:
    shown = figures(plots, "attention")
    if not shown:
        return ""
    return (
        f'<h2 id="attention">Attention</h2>{shown}<p class="note">How much each layer of a student listens to each'
        " layer of its teacher: the mean over the samples of the last epoch and over replicas; each row sums to 1."
        " The curves show the same over the epochs, in the colours of the teacher’s layers; at the dashed line a layer"
        " would count as much as any other.</p>"
    )

"""The page of a search: its best trial first, then all trials, what mattered, and how to go on."""

import os
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.report.comparison import wilson_interval
from raydistill.report.importance import Importance
from raydistill.report.parts import document, figures, number, table
from raydistill.report.search_story import SearchStory
from raydistill.report.words import count, duration, listing, percent
from raydistill.runs.search_run import TrialRecord
from raydistill.runs.search_words import called, short

if TYPE_CHECKING:
    from raydistill.report.plots import Plot

SHOWN = 10
STATUSES = {"done": "done", "stopped_early": "stopped early", "failed": "failed", "running": "running"}
TONES = {"done": "good", "failed": "bad", "interrupted": "bad"}


def build_search_page(story: SearchStory, importance: Importance, plots: "Sequence[Plot]") -> str:
    """The whole report of a search."""
    sections = [
        _head(story),
        _lead(story),
        _failures(story),
        _best_trials(story),
        _space(story),
        _population(story, plots),
        _parallel(plots),
        _values(story, plots),
        _importance(importance, plots),
        _over_time(story, plots),
        _curves(story, plots),
        _reproduce(story),
    ]
    return document(f"{story.view.plan} · search {story.view.about.fingerprint}", sections)


def _head(story: SearchStory) -> str:
    about, status = story.view.about, story.view.status
    parts = [
        f"Search {about.fingerprint}",
        duration(about.seconds),
        f"{_counted(story)} of {count(about.samples)} trials",
        f"{_word(story)} {story.metric} of {story.view.stage}",
        f"searcher {about.searcher.name}",
        f"scheduler {about.scheduler.name}",
    ]
    return (
        f'<h1>{escape(story.view.plan)}<span class="status {TONES.get(status, "muted")}">{escape(status)}</span></h1>'
        f'<p class="facts">{escape(" · ".join(parts))}</p>'
    )


def _word(story: SearchStory) -> str:
    return "highest" if story.view.about.mode == "max" else "lowest"


def _counted(story: SearchStory) -> str:
    return count(sum(trial.is_over for trial in story.trials))


def _lead(story: SearchStory) -> str:
    if story.best is None:
        return f'<p class="lead">No trial has come to its end: {escape(_outcomes(story))}.</p>'
    best = story.best
    sentences = [
        f"<b>{called(best).capitalize()}</b> is the best of {_rivals(story)}:"
        f" <b>{escape(story.shown_values(best.values))}</b> reached <b>{story.shown(best.metric)}</b>"
        f" {escape(story.metric)}.",
        _lineage_sentence(story, best) if story.view.is_population else _own_sentence(story, best),
        _test_sentence(story),
    ]
    return f'<p class="lead">{" ".join(filter(None, sentences))}</p><p>{_precision(story, best)}</p>'


def _rivals(story: SearchStory) -> str:
    """Whom the best was compared with."""
    return f"{count(len(story.done))} members" if story.view.is_population else _counted(story)


def _lineage_sentence(story: SearchStory, best: TrialRecord) -> str:
    """What the best member went through."""
    assert best.segment is not None
    changes = sorted(epoch for epoch in best.segment.history if epoch)
    if not changes:
        return "These have been its values from the start."
    after = listing([count(epoch) for epoch in changes])
    first = escape(story.shown_values(best.segment.history[0]))
    return f"It began with {first}; its values changed after epoch{'s' * (len(changes) > 1)} {after}."


def _outcomes(story: SearchStory) -> str:
    tally: dict[str, int] = {}
    for trial in story.trials:
        status = STATUSES.get(trial.status, trial.status)
        tally[status] = tally.get(status, 0) + 1
    return listing([f"{number} {status}" for status, number in tally.items()]) or "none was begun"


def _own_sentence(story: SearchStory, best: TrialRecord) -> str:
    own = story.own_trial
    if own is best:
        return "These are the plan’s own values."
    if own is not None:
        return (
            f"The plan’s own values ({escape(story.shown_values(own.values))}, trial {own.number}) reached"
            f" {story.shown(own.metric)}."
        )
    if len(story.view.about.own) < len(story.axes):
        return ""
    return f"The plan’s own values ({escape(story.shown_values(story.view.about.own))}) were not tried."


def _test_sentence(story: SearchStory) -> str:
    judged = story.judged
    accuracy, errors, samples = (judged.get(f"test/{name}") for name in ("accuracy", "errors", "samples"))
    if accuracy is None:
        return ""
    if errors is None or samples is None:
        return f"On the test split, which only the winner was judged on, it is right on {percent(accuracy)}."
    low, high = wilson_interval(1 - accuracy, round(samples))
    return (
        f"On the test split, which only the winner was judged on, it makes <b>{errors:,.4g} errors</b> on"
        f" {count(samples)} samples: {percent(1 - accuracy)} (95 % Wilson interval: {percent(low)} to {percent(high)})."
    )


def _precision(story: SearchStory, best: TrialRecord) -> str:
    """How much of the lead may be luck."""
    replicas = story.view.about.replicas
    mean_of = f" Values are means over {replicas} replicas." if replicas > 1 else ""
    chosen = (
        f"The best of many trials is partly the luckiest: its {escape(story.metric)} was chosen for being the"
        f" {_word(story)}, so expect somewhat worse."
    )
    error = story.standard_error
    if not error:
        return chosen + mean_of
    near = sum(story.sign * (story.value(best) - story.value(trial)) <= error for trial in story.done) - 1
    samples = count(best.metrics["validation/samples"])
    return (
        f"{chosen} {samples} validation samples leave a standard error of {percent(error, 2)};"
        f" {_trials(near)} within it of the best.{mean_of}"
    )


def _trials(number: int) -> str:
    return (
        "no other trial is"
        if not number
        else "1 other trial is"
        if number == 1
        else f"{number} other trials are"
    )


def _failures(story: SearchStory) -> str:
    """Failed trials by their reason, and what to do."""
    if not story.failed:
        return ""
    reasons: dict[str, list[TrialRecord]] = {}
    for trial in story.failed:
        reasons.setdefault(trial.error or "No reason was recorded.", []).append(trial)
    parts = [_failure(story, reason, trials) for reason, trials in reasons.items()]
    folder = story.view.folder / "trials"
    return (
        f'<h2 id="failures">Trials that failed</h2>{"".join(parts)}'
        '<p class="note">A trial that failed counts as tried and is not repeated. To try one again when its reason is'
        f" gone, delete its record in <code>{escape(str(folder))}</code> and run the command below. Values that can"
        " never work are best taken out of the space.</p>"
    )


def _failure(story: SearchStory, reason: str, trials: Sequence[TrialRecord]) -> str:
    rows = "".join(
        f"<tr><td>{called(trial)}</td><td>{escape(story.shown_values(trial.values))}</td>"
        f"<td><code>{escape(trial.id)}.json</code></td><td>{_stage_folders(trial)}</td></tr>"
        for trial in trials[:SHOWN]
    )
    more = f'<p class="note">And {len(trials) - SHOWN} more.</p>' if len(trials) > SHOWN else ""
    head = "<th>trial</th><th>values</th><th>record</th><th>stages below the storage root</th>"
    return f'<div class="failure"><h3>{_named(trials)}</h3><p>{escape(reason)}</p>{table(head, rows)}{more}</div>'


def _named(trials: Sequence[TrialRecord]) -> str:
    return called(trials[0]).capitalize() if len(trials) == 1 else f"{len(trials)} trials"


def _stage_folders(trial: TrialRecord) -> str:
    return "<br>".join(f"<code>{escape(folder)}</code>" for folder in trial.stages.values())


def _best_trials(story: SearchStory) -> str:
    if not story.trials:
        return ""
    head = (
        "<th>trial</th>"
        + "".join(f"<th class=number>{escape(axis.name)}</th>" for axis in story.axes)
        + f"<th class=number>{escape(story.metric)}</th><th class=number>epochs</th>"
        "<th class=number>seconds</th><th class=aside>outcome</th>"
    )
    first, rest = story.ranked[:SHOWN], story.ranked[SHOWN:]
    shown = table(head, "".join(_row(story, trial) for trial in first))
    others = table(head, "".join(_row(story, trial) for trial in rest))
    more = f"<details><summary>{len(rest)} more trials</summary>{others}</details>" if rest else ""
    return f'<h2 id="trials">The best trials</h2>{shown}{more}{_early_note(story)}'


def _row(story: SearchStory, trial: TrialRecord) -> str:
    cells = [
        f"<td>{trial.number if trial.segment is None else trial.segment.shown}</td>",
        *(number(escape(short(trial.values.get(axis.path, "")))) for axis in story.axes),
        number(story.shown(trial.metric)),
        number(str(max(trial.epochs, default="–"))),
        number(f"{trial.seconds:,.1f}"),
        f'<td class="aside">{_outcome(trial)}</td>',
    ]
    chosen = ' class="chosen"' if trial is story.best else ""
    return f"<tr{chosen}>{''.join(cells)}</tr>"


def _outcome(trial: TrialRecord) -> str:
    status = STATUSES.get(trial.status, trial.status)
    if trial.status == "failed":
        reason = (trial.error or "").partition("\n")[0]
        return f'<span class="bad">{status}</span>: {escape(reason)}'
    return escape(status)


def _early_note(story: SearchStory) -> str:
    if not any(trial.status == "stopped_early" for trial in story.trials):
        return ""
    return (
        '<p class="note">Trials that were stopped early stand below those that trained to their end: their value is'
        " that of their last epoch.</p>"
    )


def _space(story: SearchStory) -> str:
    head = (
        "<th>option</th><th>values</th><th class=number>in the plan</th><th class=number>best</th>"
        "<th class=aside>path</th>"
    )
    rows = "".join(
        f"<tr><td>{escape(axis.name)}</td><td>{escape(_domain(axis.domain.kind, axis.domain.ends))}</td>"
        f"{number(escape(short(story.view.about.own[axis.path])) if axis.path in story.view.about.own else '–')}"
        f"{number(escape(short(story.best.values[axis.path])) if story.best else '–')}"
        f"<td class=aside><code>{escape(axis.path)}</code></td></tr>"
        for axis in story.axes
    )
    return f'<h2 id="space">What was searched</h2>{table(head, rows)}'


def _domain(kind: str, ends: Sequence[object]) -> str:
    if kind == "choice":
        return listing([short(value) for value in ends])
    scale = ", by the logarithm" if kind.startswith("log") else ""
    whole = ", whole numbers" if kind.endswith("integer") else ""
    return f"{short(ends[0])} to {short(ends[-1])}{scale}{whole}"


def _population(story: SearchStory, plots: "Sequence[Plot]") -> str:
    shown = figures(plots, "population")
    if not shown:
        return ""
    return (
        f'<h2 id="population">What the members went through</h2>{shown}<p class="note">A line is a member. Where it'
        " took another’s place, a dotted line leads from there to its new values. The thick line is the way of the"
        f" best. The plots below are about the {count(len(story.measured))} segments of round"
        f" {story.last_round + 1}, the last one that was reached.</p>"
    )


def _parallel(plots: "Sequence[Plot]") -> str:
    shown = figures(plots, "parallel", style="wider")
    if not shown:
        return ""
    return (
        f'<h2 id="parallel">All trials across all options</h2>{shown}<p class="note">A line is a trial, from its values'
        " to its metric; the better its rank, the stronger its colour. The best trial is thick and of another colour,"
        " dashed ones were stopped early.</p>"
    )


def _values(story: SearchStory, plots: "Sequence[Plot]") -> str:
    shown = figures(plots, "values")
    if not shown:
        return ""
    title = story.metric.partition("/")[2].capitalize()
    return (
        f'<h2 id="values">{escape(title)} against each option</h2>{shown}'
        '<p class="note">A point is a trial, the largest the best one; hollow ones were stopped early, triangles lie'
        " beyond the edge. The dashed line is the plan’s own value. The other options differ from point to point.</p>"
    )


def _importance(importance: Importance, plots: "Sequence[Plot]") -> str:
    if importance.gap:
        return f'<h2 id="importance">Which options mattered</h2><p class="muted">{escape(importance.gap)}</p>'
    return (
        f'<h2 id="importance">Which options mattered</h2>{figures(plots, "importance", style="wide")}'
        f'<p class="note">A random forest learned to rank {importance.trials} finished trials by their values (R² of'
        f" {importance.score:.2f} on trials it had not seen). A bar is what that loses when one option’s values are"
        " shuffled among the trials, with the standard deviation over four parts of them. It tells what mattered within"
        " the ranges that were searched, and says nothing about values nobody tried.</p>"
    )


def _over_time(story: SearchStory, plots: "Sequence[Plot]") -> str:
    shown = figures(plots, "time", style="wide")
    if not shown:
        return ""
    failed = " Crosses at the bottom failed." if story.failed else ""
    return (
        f'<h2 id="time">How it went</h2>{shown}<p class="note">Trials in the order in which they began; the line is the'
        f" best of those that came to their end.{failed}</p>"
    )


def _curves(story: SearchStory, plots: "Sequence[Plot]") -> str:
    shown = figures(plots, "curves", style="wide")
    if not shown:
        return ""
    stopped = sum(trial.status == "stopped_early" for trial in story.trials)
    early = f" {count(stopped)} were stopped early and end in a ring." if stopped else ""
    return (
        f'<h2 id="curves">Learning curves</h2>{shown}<p class="note">A line is a trial; the better its rank, the'
        f" stronger its colour.{early} The beginning of a curve may lie below the picture.</p>"
    )


def _reproduce(story: SearchStory) -> str:
    view, command = story.view, story.view.about.command
    best = shlex.join(["distill", "run", str(view.best_plan), "--runs", str(view.root)])
    wrote = view.best_plan.exists()
    plan = f"<details><summary>The plan</summary><pre>{escape(view.plan_text)}</pre></details>"
    return (
        '<h2 id="reproduce">Go on from here</h2>'
        + (
            f"<p>The best plan, complete, without its search:</p><pre class=wrap>{escape(best)}</pre>"
            if wrote
            else ""
        )
        + (f"<p>{_more(story)}</p><pre class=wrap>{escape(command)}</pre>" if command else "")
        + f"<dl>{_facts(story)}</dl>{plan if view.plan_text else ''}"
    )


def _more(story: SearchStory) -> str:
    if story.view.is_population:
        return "Another population: the same command with another <code>search.scheduler.seed</code>."
    return "More trials: the same command with a larger <code>search.samples</code>."


def _facts(story: SearchStory) -> str:
    facts = {
        "Plan runs": ", ".join(_plan_run(story, path) for path in story.view.plan_runs),
        "Trials": escape(_outcomes(story)),
        "Fingerprint": f"<code>{escape(story.view.about.fingerprint)}</code>",
        "Storage root": escape(str(story.view.root)),
    }
    return "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items() if value)


def _plan_run(story: SearchStory, path: str) -> str:
    """A plan run of the search; a link to its report where there is one."""
    report = story.view.root / path / "report.html"
    if not report.exists():
        return escape(path)
    return (
        f'<a href="{escape(Path(os.path.relpath(report, story.view.folder)).as_posix())}">{escape(path)}</a>'
    )

"""What every stage did: outcomes, failures, the table of stages, and how to run it all again."""

import shlex
from collections import Counter
from collections.abc import Sequence
from html import escape

from raydistill.report.comparison import Spread, spread
from raydistill.report.graph import graph_svg
from raydistill.report.layout import Box, group_stages, place_graph
from raydistill.report.parts import number, swatch, table
from raydistill.report.story import Story
from raydistill.report.theme import ROLE_LABELS
from raydistill.report.words import count, duration, listing, mean, mean_percent, percent, size
from raydistill.runs.view import StageView

TRACEBACK_LINES = 15


def failures(story: Story) -> str:
    """Every stage without a result and why; empty when all went well."""
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
        parts.append(table("<th>stage</th><th>outcome</th><th>because</th>", rows))
    return f'<h2 id="failures">What has no result</h2>{"".join(parts)}'


def _failure(stage: StageView) -> str:
    traceback = stage.record.traceback if stage.record else None
    lines = (traceback or "").rstrip().splitlines()
    shown = "\n".join(lines[-TRACEBACK_LINES:])
    log = f'<p class="note">The whole log: <code>{escape(str(stage.folder.path / "log.txt"))}</code></p>'
    return (
        f'<div class="failure"><h3>{escape(stage.name)} failed</h3>'
        f"<p>{escape(stage.error or 'No reason was recorded.')}</p>"
        f"{f'<pre>{escape(shown)}</pre>' if shown else ''}{log}</div>"
    )


def _unreadable(stage: StageView) -> str:
    return (
        f'<div class="failure"><h3>{escape(stage.name)}: its result cannot be read</h3>'
        f"<p>{escape(stage.error or 'The record is missing.')}</p></div>"
    )


def _because(story: Story, stage: StageView) -> str:
    if stage.status != "skipped":
        return escape(stage.error or "")
    blamed = [name.name for name in story.run.blamed(stage.name)]
    return escape(f"it needs {listing(blamed)}, which failed" if blamed else stage.error or "")


def warnings(story: Story) -> str:
    """What the survey of data and models remarks, and what stages warn of; empty when there is nothing."""
    run = story.run
    lines = [(", ".join(remark.stages) or "data", remark.text) for remark in run.survey.remarks]
    lines += [
        (stage.name, text)
        for stage in run.stages.values()
        for text in (stage.record.warnings if stage.record else ())
    ]
    if not lines:
        return ""
    items = "".join(f"<li><b>{escape(about)}</b>: {escape(text)}</li>" for about, text in lines)
    counted = [f"{split}: {_class_sizes(sizes)}" for split, sizes in run.survey.counts.items() if sizes]
    note = f'<p class="note">Samples per class. {escape("; ".join(counted))}.</p>' if counted else ""
    return f'<h2 id="warnings">Warnings</h2><ul>{items}</ul>{note}'


def _class_sizes(sizes: Sequence[int]) -> str:
    few, many = min(sizes), max(sizes)
    return count(few) if few == many else f"{count(few)} to {count(many)}"


def graph(story: Story) -> str:
    """The picture of the graph and its legend."""
    stages = story.run.stages.values()
    if not stages:
        return ""
    roles = dict.fromkeys(stage.role for stage in stages)
    legend = "".join(
        f"<span>{swatch(role)}{escape(ROLE_LABELS.get(role, role or 'other'))}</span>" for role in roles
    )
    return (
        '<h2 id="graph">The graph</h2>'
        f'<div class="scroll">{graph_svg(place_graph(story.run))}</div><div class="legend">{legend}</div>'
        '<p class="note">Left to right: what reads, right of what it reads. Replicas share a box. Dashed: no result.'
        " Point at a box for its stages, fingerprints and numbers.</p>"
    )


def stages(story: Story) -> str:
    """The table of stages, replicas below their mean."""
    head = (
        "<th>stage</th><th>kind</th><th>outcome</th><th class=number>time</th><th class=number>parameters</th>"
        "<th class=number>validation</th><th class=number>test</th><th class=number>test errors</th>"
        "<th class=number>worst class</th>"
    )
    rows = "".join(_box_rows(box) for box in group_stages(story.run).values())
    return (
        f'<h2 id="stages">Stages</h2>{table(head, rows)}<p class="note">Validation and test are accuracies after the'
        " last epoch, with early stopping those of the epoch that was kept; of the worst class, the share of its test"
        " samples that are told. Cached stages show the time of the run that"
        f" made them.{_note_on_specialists(story)}</p>"
    )


def _note_on_specialists(story: Story) -> str:
    if not any(stage.role == "specialist" for stage in story.run.stages.values()):
        return ""
    return (
        " Specialists are judged on samples of their own classes and on others in the proportion of their training:"
        " their numbers do not compare with those of other stages."
    )


def _box_rows(box: Box) -> str:
    """One row, or a row for all and one for each; stages that the graph inserted and that went well share one."""
    if len(box.members) == 1 and box.members[0].name == box.label:
        return _stage_row(box.members[0], "")
    if all(member.inserted and member.has_result for member in box.members):
        return _group_row(box, "")
    last = len(box.members) - 1
    members = [
        _stage_row(member, "member last" if place == last else "member")
        for place, member in enumerate(box.members)
    ]
    return _group_row(box, "group") + "".join(members)


def _stage_row(stage: StageView, style: str) -> str:
    errors, worst = stage.metric("test/errors"), stage.metric("test/worst_class_recall")
    cells = [
        f"<td>{'' if style else swatch(stage.role)}{escape(stage.name)}</td>",
        f"<td>{escape(stage.kind)}</td><td>{_outcome(stage.status)}</td>",
        number(_time(stage.seconds)),
        number(_size(stage.parameters), stage.parameters),
        number(_accuracy(stage, "validation")),
        number(_accuracy(stage, "test")),
        number("" if errors is None else count(errors)),
        number("" if worst is None else percent(worst, 1)),
    ]
    return f'<tr class="{style}">{"".join(cells)}</tr>'


def _group_row(box: Box, style: str) -> str:
    members = box.members
    errors, worst = _over(members, "test/errors"), _over(members, "test/worst_class_recall")
    parameters = next((member.parameters for member in members if member.parameters is not None), None)
    cells = [
        f"<td>{swatch(box.role)}{escape(box.label)} <small>×{len(members)}</small></td>",
        f"<td>{escape(members[0].kind)}</td><td>{_outcomes(members)}</td>",
        number(_time(sum(member.seconds for member in members))),
        number(_size(parameters), parameters),
        *(_mean_accuracy(members, split) for split in ("validation", "test")),
        number(mean(errors) if errors else ""),
        number(mean_percent(worst, 1) if worst else ""),
    ]
    return f'<tr class="{style}">{"".join(cells)}</tr>'


def _over(members: Sequence[StageView], metric: str) -> Spread | None:
    return spread([value for member in members if (value := member.metric(metric)) is not None])


def _mean_accuracy(members: Sequence[StageView], split: str) -> str:
    accuracy = _over(members, f"{split}/accuracy")
    return number(mean_percent(accuracy, 2) if accuracy else "")


def _size(parameters: int | None) -> str:
    return "" if parameters is None else size(parameters)


def _outcomes(members: Sequence[StageView]) -> str:
    tally = Counter(member.status for member in members)
    if len(tally) == 1:
        return _outcome(members[0].status)
    return ", ".join(f"{times} {_outcome(status)}" for status, times in tally.items())


def _accuracy(stage: StageView, split: str) -> str:
    value = stage.metric(f"{split}/accuracy")
    return percent(value, 2) if value is not None else ""


def _time(seconds: float) -> str:
    return duration(seconds) if seconds else ""


def _outcome(status: str) -> str:
    tone = "bad" if status == "failed" else "" if status in ("done", "cached") else "muted"
    return f'<span class="{tone}">{escape(status)}</span>'


def reproduce(story: Story) -> str:
    """The command, and all that decides the numbers."""
    run = story.run
    again = shlex.join(["distill", "run", str(run.folder / "plan.yaml"), "--runs", str(run.root)])
    saved = (
        "<p>The plan as it was run, with all defaults, is kept in the run's folder:</p>"
        f"<pre class=wrap>{escape(again)}</pre>"
    )
    plan = f"<details><summary>The plan</summary><pre>{escape(run.plan_text)}</pre></details>"
    return (
        f'<h2 id="reproduce">Run it again</h2><pre class=wrap>{escape(run.results.command or again)}</pre>'
        f"{saved if run.results.command and run.plan_text else ''}<dl>{_facts(story)}</dl>"
        f"<details><summary>Fingerprints</summary>{_fingerprints(story)}</details>{plan if run.plan_text else ''}"
    )


def _fingerprints(story: Story) -> str:
    rows = "".join(
        f"<tr><td>{escape(stage.name)}</td><td><code>{escape(stage.fingerprint)}</code></td>"
        f"<td><code>{escape(stage.folder.path.relative_to(story.run.root).as_posix())}</code></td></tr>"
        for stage in story.run.stages.values()
    )
    return table("<th>stage</th><th>fingerprint</th><th>folder below the storage root</th>", rows)


def _facts(story: Story) -> str:
    run = story.run
    records = [stage.record for stage in run.stages.values() if stage.record and stage.has_result]
    commits = sorted({record.git_commit for record in records if record.git_commit})
    versions = dict(run.results.versions) or (dict(records[-1].versions) if records else {})
    facts = {
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Git commit": ", ".join(commits),
        "Storage root": str(run.root),
        "Tracking": str(run.results.mlflow.get("tracking_uri") or ""),
    }
    return "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)

"""How a stage looks in MLflow: its params, its last values, the words about a failure, the table of a plan run."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from raydistill.metrics import METRICS, Accuracy, Errors
from raydistill.runs.record import Record
from raydistill.runs.run_files import StageEntry
from raydistill.runs.view import RunView, StageView
from raydistill.tracking.curves import is_number
from raydistill.tracking.state import State

COMPARED = {
    *(metric.on(split) for metric in METRICS if metric.compared for split in ("validation", "test")),
    "test/conditional_accuracy",
    "committee/active",
    "class_bias/offset",
}
TEACHING = ("teacher", "assistant", "specialist")
MAX_NOTE = 7800  # of the 8,000 characters that MLflow keeps of a tag


def last_lines(record: Record | None, step: int) -> list[dict[str, Any]]:
    """What the record adds to the curves at the last `step`: the final judgement, as lines of a metrics.jsonl."""
    if record is None:
        return []
    own = {"seconds": record.seconds, "parameters": record.parameters}
    costs = {f"cost/{key}": value for key, value in record.costs.items()}
    return [{"step": step, "time": record.finished, **record.metrics, **costs, **own}]


def failure_tags(error: str, record: Record | None = None) -> dict[str, str]:
    """The error, and as the run's description the error with its traceback."""
    note = f"**{error}**"
    if record and record.traceback:
        note += f"\n\n```\n{record.traceback[-6000:]}\n```"
    return {"error": error, "mlflow.note.content": note}


def judgement(entry: StageEntry, own: Collection[str] = ()) -> Iterator[tuple[str, float]]:
    """What is compared between stages, from an entry of results.json, with the deviation over replicas: the user's
    `own` metrics, and what we compare by."""
    compared = {*COMPARED, *(f"{split}/{name}" for name in own for split in ("validation", "test"))}
    yield from ((key, value) for key, value in entry.metrics.items() if key in compared and is_number(value))
    yield from (
        (f"{key}/std", value) for key, value in entry.std.items() if key in compared and is_number(value)
    )


def address(experiment_id: str | None, run_id: str) -> str:
    """Where the UI shows a run; without the last part, between pages about agents."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def links_of(state: State) -> dict[str, str]:
    """Where the UI shows the run of each stage that has one."""
    runs = state.cached | {name: child.run_id for name, child in state.stages.items() if child.run_id}
    return {name: address(state.experiment_id, run_id) for name, run_id in runs.items() if run_id}


def readable(run_id: str) -> str:
    """The id of a plan run as a person reads it: day, time, and the end that tells it from others."""
    parts = re.fullmatch(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)-(.+)", run_id)
    return "{}-{}-{} {}:{}:{} {}".format(*parts.groups()) if parts else run_id


def lineage_tags(node: StageView, run: RunView, links: Mapping[str, str]) -> dict[str, str]:
    """What the stage was made from: a tag with the names of its teachers, whatever lies between, and the run's
    description with links to the runs of all. Nothing for a stage that reads no other."""
    if not node.reads:
        return {}
    above = _ancestors(node, run)
    teachers = [other.name for other in above if other.role in TEACHING]
    direct = ", ".join(_linked(name, links) for name in node.reads)
    further = ", ".join(_linked(other.name, links) for other in above if other.name not in node.reads)
    note = f"Reads {direct}." + (f"\n\nThose were made from {further}." if further else "")
    return {"mlflow.note.content": note[:MAX_NOTE], **({"teachers": ", ".join(teachers)} if teachers else {})}


def _ancestors(node: StageView, run: RunView) -> list[StageView]:
    """All stages that this one hangs on, the nearest first."""
    found: dict[str, StageView] = {}
    waiting = list(node.reads)
    while waiting:
        name = waiting.pop(0)
        if name not in found and (other := run.stages.get(name)) is not None:
            found[name] = other
            waiting += other.reads
    return list(found.values())


def _linked(name: str, links: Mapping[str, str]) -> str:
    return f"[{name}]({links[name]})" if name in links else name


def table_of(nodes: Iterable[StageView], links: Mapping[str, str]) -> str:
    """A Markdown table, one line per stage; `links` lead to the MLflow run of a stage."""
    lines = [
        "| stage | role | outcome | parameters | validation | test | test errors |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [_row(node, links.get(node.name)) for node in nodes]
    text = "\n".join(lines)
    return text if len(text) <= MAX_NOTE else text[:MAX_NOTE].rpartition("\n")[0] + "\n| … |"


def _row(node: StageView, link: str | None) -> str:
    outcome = f"{node.status}: {node.error}" if node.error else node.status
    accuracies = [node.entry.metrics.get(Accuracy.on(split)) for split in ("validation", "test")]
    errors = node.entry.metrics.get(Errors.on("test"))
    cells = [
        _linked(node.name, {} if link is None else {node.name: link}),
        node.role,
        outcome.replace("|", "/"),
        "" if node.entry.parameters is None else f"{node.entry.parameters:,}",
        *("" if accuracy is None else Accuracy.text(accuracy) for accuracy in accuracies),
        "" if errors is None else Errors.text(errors),
    ]
    return f"| {' | '.join(cells)} |"

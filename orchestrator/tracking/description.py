"""How a stage looks in MLflow: its params, its last values, the words about a failure, the table of a plan run."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from raydistill.metrics import METRICS, Accuracy, Errors
from raydistill.runs.record import Record
from raydistill.runs.run_files import StageEntry
from raydistill.runs.view import StageView
from raydistill.tracking.curves import is_number

COMPARED = {
    *(metric.on(split) for metric in METRICS if metric.compared for split in ("validation", "test")),
    "test/conditional_accuracy",
    "committee/active",
    "class_bias/offset",
}
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
        f"[{node.name}]({link})" if link else node.name,
        node.role,
        outcome.replace("|", "/"),
        "" if node.entry.parameters is None else f"{node.entry.parameters:,}",
        *("" if accuracy is None else Accuracy.text(accuracy) for accuracy in accuracies),
        "" if errors is None else Errors.text(errors),
    ]
    return f"| {' | '.join(cells)} |"

"""What a run would do: for every node whether its result is there, and if not, why not."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raydistill.errors import StoreError
from raydistill.execution.estimate import Estimate, Estimator
from raydistill.execution.makespan import Room
from raydistill.execution.needed import WHY_NOT, not_needed
from raydistill.plan.fingerprint import DATA_CHANGED, differences
from raydistill.plan.order import Graph, Node
from raydistill.runs.data_files import DataFiles
from raydistill.runs.folder import CHECKPOINT, CONFIG, StageFolder
from raydistill.runs.record import Record
from raydistill.runs.remote_stage import refresh_stages
from raydistill.runs.view import read_graph, read_identity, runs_of
from raydistill.tasks.task import Task

SHOWN = 3


@dataclass(frozen=True)
class Preview:
    """One node: `cached`, `new`, to `judge` because its model is there and the test split another, or `not needed`;
    and why. `seconds`: about how long a new one takes; None when no record tells."""

    node: Node
    state: Literal["cached", "new", "judge", "not needed"]
    reason: str = ""
    seconds: float | None = None

    @property
    def is_cached(self) -> bool:
        """Whether nothing is to be done."""
        return self.state in ("cached", "not needed")

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `folder` is below the storage root."""
        return {
            "name": self.node.name,
            "kind": self.node.kind,
            "reads": list(self.node.reads),
            "resources": self.node.config.resources.model_dump(mode="json"),
            "fingerprint": self.node.fingerprint,
            "folder": self.node.folder,
            "state": self.state,
            "reason": self.reason,
            "seconds": self.seconds,
        }


class DryRun(list[Preview]):
    """Every node, and of those that are to run an `estimate`: None where the machines are not known. `misfit` says why
    these have no room for one of them."""

    estimate: Estimate | None = None
    misfit: str = ""


def estimated(prospects: Sequence[Preview], graph: Graph, root: Path, room: Room) -> DryRun:
    """With what the stages that are to run take there."""
    estimator = Estimator(graph, root, room)
    found = DryRun(
        replace(prospect, seconds=estimator.seconds(prospect.node.name))
        if prospect.state == "new"
        else prospect
        for prospect in prospects
    )
    found.estimate = estimator.of({one.node.name: one.seconds for one in found if not one.is_cached})
    return found


def look_ahead(
    graph: Graph, root: Path, plan_name: str, forced: Collection[str] = (), task: Task | None = None
) -> list[Preview]:
    """Judge every node of a graph without starting anything. With the `task`, changed data is told file by file."""
    refresh_stages(root / node.folder for node in graph.nodes.values())
    before, data = _earlier_folders(root, plan_name), DataFiles(root, task) if task is not None else None
    prospects = {
        prospect.node.name: prospect for prospect in _prospects(graph, root, before, set(forced), data)
    }
    finished = {name for name, prospect in prospects.items() if prospect.is_cached}
    for name in not_needed(graph, root, finished, forced):
        prospects[name] = Preview(graph.nodes[name], "not needed", WHY_NOT)
    return list(prospects.values())


def _prospects(
    graph: Graph, root: Path, before: dict[str, Path], forced: set[str], data: DataFiles | None
) -> Iterator[Preview]:
    for node in graph.nodes.values():
        if node.name in forced:
            yield Preview(node, "new", "forced")
            continue
        try:
            folder = StageFolder(root / node.folder)
            record = folder.record()
            damage = folder.damage_since(record) if record is not None else None
        except StoreError as error:
            yield Preview(node, "new", error.message)
            continue
        if damage is not None:
            yield Preview(node, "new", damage)
            continue
        if record is not None and record.status == "done":
            yield _finished(node, record, graph, data)
        elif record is not None:
            yield Preview(node, "new", f"failed before: {record.error}")
        elif (root / node.folder / CHECKPOINT).is_dir():
            yield Preview(node, "new", "continues from its checkpoint")
        else:
            yield Preview(node, "new", _why_new(node, graph, before.get(node.name), data))


def _finished(node: Node, record: Record, graph: Graph, data: DataFiles | None) -> Preview:
    if record.untested:
        return Preview(node, "judge", "to be judged on the test split")
    if record.is_judged_on(graph.test):
        if missing := record.missing_metrics(graph.metrics):
            return Preview(
                node, "judge", f"to be judged by {', '.join(f'`{address}`' for address in missing)}"
            )
        return Preview(node, "cached")
    files = data.changed_test(record.judged_on) if data is not None and record.judged_on else None
    return Preview(node, "judge", f"judged again: {files or 'the test split changed'}")


def _why_new(node: Node, graph: Graph, before: Path | None, data: DataFiles | None) -> str:
    if before is None:
        return "never run"
    try:
        old = read_identity(before)
    except StoreError as error:
        return error.message
    names = {read.fingerprint: read.name for read in graph.nodes.values()}
    changed = [text.replace("config.", "", 1) for text in differences(old, dict(node.identity))]
    readable = [_with_names(text, names) for text in changed]
    if DATA_CHANGED in readable and data is not None:
        files = data.changed_learned(old["task"])
        readable = [files or text if text == DATA_CHANGED else text for text in readable]
    more = f" and {len(readable) - SHOWN} more" if len(readable) > SHOWN else ""
    return ", ".join(readable[:SHOWN]) + more if readable else "begun, not finished"


def _with_names(text: str, names: dict[str, str]) -> str:
    """An input that changed is named by its stage, not by its fingerprint."""
    for fingerprint, name in names.items():
        if text.endswith(f'"{fingerprint}"'):
            return f"{text.partition(':')[0]}: `{name}` changed"
    return text


def _earlier_folders(root: Path, plan_name: str) -> dict[str, Path]:
    """Where the nodes of earlier runs of the plan lie, by name; the latest run that had begun a node decides."""
    folders: dict[str, Path] = {}
    for run in runs_of(root, plan_name):
        with suppress(StoreError):
            for node in read_graph(run).nodes:
                if node.name not in folders and (root / node.folder / CONFIG).exists():
                    folders[node.name] = root / node.folder
    return folders

"""The data of a stage as MLflow's data set: a name, a digest of all that is in it, and how many samples there are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydistill.errors import PlanError
from raydistill.plan.fingerprint import fingerprint
from raydistill.plan.written import MAX_STORED, yaml_values
from raydistill.runs.files import read_text
from raydistill.runs.run_files import PLAN
from raydistill.runs.view import RunView, StageView
from raydistill.tracking.session import Session
from raydistill.tracking.state import ChildState

PLACES = ("folder", "file", "inputs")
"""Options of tasks that say where the data lies."""


def push_dataset(session: Session[RunView], node: StageView, state: ChildState) -> None:
    """Log what a stage was trained or judged on, once it has loaded it; MLflow takes the same one twice."""
    run = session.run
    identity = node.identity.get("task")
    if not isinstance(identity, dict) or not identity:
        return
    client = session.client
    from mlflow.entities import Dataset, DatasetInput, InputTag

    written = _written(run.folder)
    sizes = run.results.task.model_dump(exclude={"name"}, exclude_none=True)
    found = Dataset(
        name=name_of(str(identity.get("name", "unknown")), written),
        digest=fingerprint({**identity, "test": run.graph.test}),
        source_type="task",
        source=json.dumps({"task": written or identity.get("name")}),
        profile=json.dumps(sizes),
    )
    purpose = "evaluation" if node.makes == "judgement" else "training"
    client.log_inputs(state.run_id, [DatasetInput(found, [InputTag("mlflow.data.context", purpose)])])


def name_of(task: str, written: Mapping[str, Any]) -> str:
    """The task's name, and the last part of where its data lies: `image_folder birds`."""
    places = (written.get(option) for option in PLACES)
    place = next((one for one in places if isinstance(one, str) and one), None)
    return task if place is None else f"{task} {Path(place).name}"


def _written(folder: Path) -> dict[str, Any]:
    """The task as the plan of a run has it."""
    try:
        task = yaml_values(read_text(folder / PLAN), PLAN, MAX_STORED).get("task")
    except (PlanError, AttributeError):
        return {}
    return task if isinstance(task, dict) else {}

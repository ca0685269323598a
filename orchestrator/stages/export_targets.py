"""Writes stored targets to a file that other programs read."""

from pathlib import Path

from raydistill.errors import StoreError
from raydistill.plan.schema import build_task
from raydistill.runs.files import read_json
from raydistill.runs.folder import StageFolder
from raydistill.runs.run_files import GRAPH
from raydistill.runs.view import open_run
from raydistill.stages.external_targets import paths_by_id
from raydistill.stages.verify_targets import holds_targets
from raydistill.targets.export import write_targets
from raydistill.targets.reader import open_targets
from raydistill.targets.store import Description
from raydistill.training.model_description import DESCRIPTION


def export_targets(folder: Path | str, file: Path | str, root: Path | str = "runs") -> Path:
    """Write the targets of a stage, or of a run with one stage of them, to a .npz, .safetensors or .parquet file.

    It has a row per sample and view: `ids`, `names` where samples are files (no texts in safetensors), `view`, and
    `logits`, float32, as a student reads them; of `top_k` targets `indices` and `log_probabilities`. Returns the file.
    """
    root, file = Path(root).absolute(), Path(file)
    stage = _stage_with_targets(Path(folder).absolute(), root)
    if damage := StageFolder(stage).damage():
        raise StoreError(damage)
    targets = open_targets(stage, root=root, expect=None)
    write_targets(targets, file, _names(targets.description, root))
    return file


def _stage_with_targets(folder: Path, root: Path) -> Path:
    if not (folder / GRAPH).exists():
        if not holds_targets(folder):
            raise StoreError(f"`{folder}` holds no targets; they lie in `{root}/stages/predict_targets-…`")
        return folder
    stages = {name: stage.folder.path for name, stage in open_run(folder, root).stages.items()}
    found = {name: path for name, path in stages.items() if holds_targets(path)}
    if len(found) != 1:
        names = ", ".join(f"`{path}` ({name})" for name, path in found.items()) or "none"
        raise StoreError(f"`{folder}` has {len(found)} stages with targets, not one; name it: {names}")
    return next(iter(found.values()))


def _names(description: Description, root: Path) -> dict[int, str] | None:
    """The files of samples, where the teacher's task is made of files that are still here."""
    try:
        teacher = StageFolder.of_fingerprint(description.teachers[0], root)
        task = build_task(read_json(teacher.payload(DESCRIPTION))["task"])
    except (LookupError, TypeError, ValueError, StoreError):
        return None  # not a model's own
    return None if task.missing_files() else paths_by_id(task)

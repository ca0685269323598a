"""Checks that stored files are what they were: compares checksums, and computes a random sample of targets again."""

from pathlib import Path

import torch

from raydistill.errors import StoreError
from raydistill.kinds.targets import PredictTargetsConfig
from raydistill.models.taps import Tapped
from raydistill.plan.schema import build_task
from raydistill.runs.folder import CONFIG, StageFolder
from raydistill.runs.record import summary_of
from raydistill.runs.run_files import GRAPH
from raydistill.runs.view import STAGES_FOLDER, open_run, open_stage, read_identity
from raydistill.stages.transfer_data import described_transfer_set
from raydistill.targets.reader import open_targets
from raydistill.targets.store import FROM_FILE, MANIFEST, load_manifest
from raydistill.targets.verify import SLACKS, VerifyResult, compare_features, compare_rows
from raydistill.training import model_files
from raydistill.training.parity import forward_pass


def holds_targets(folder: Path) -> bool:
    """Whether a stage's folder holds soft targets."""
    return (folder / MANIFEST).is_file()


def verify_files(folder: Path, root: Path) -> tuple[int, list[str]]:
    """Compare every file of a run's stages, or of one stage, with the sums in their records.

    Returns how many finished stages there are, and what is wrong with some of them. `StoreError` when there is nothing
    to compare.
    """
    if (folder / GRAPH).exists():  # some of its stages may have failed, or are gone
        found = {stage.fingerprint: stage.folder for stage in open_run(folder, root).stages.values()}
        stages = [stage for stage in found.values() if open_stage(stage.path).status == "done"]
    else:
        stages = [StageFolder(folder)]
    for stage in stages:
        _check_place(stage.path, root)
    return len(stages), [damage for stage in stages if (damage := stage.damage())]


def _check_place(folder: Path, root: Path) -> None:
    """What lies elsewhere was received: it may name any model, task or augmentation, whose code would run."""
    if folder.resolve().parent != root.resolve() / STAGES_FOLDER:
        raise StoreError(f"`{folder}` lies outside the storage root `{root}`; name it with `--runs`")


def verify_targets(folder: Path, root: Path, rows: int, seed: int = 0) -> dict[str, VerifyResult]:
    """Compare `rows` random rows of a store with its teacher, logits and each feature; of a mixture, each member's."""
    if not folder.is_dir():
        raise StoreError(f"`{folder}` does not exist; targets lie in `{root}/stages/predict_targets-…`")
    _check_place(folder, root)
    if damage := StageFolder(folder).damage():
        raise StoreError(damage)
    manifest = load_manifest(folder)
    if manifest.form == "mixture":
        members = [root / "stages" / member for member in manifest.members]
        return {
            name: result
            for member in members
            for name, result in verify_targets(member, root, rows, seed).items()
        }
    if len(manifest.teachers) > 1:
        raise StoreError(
            f"`{folder}` was combined from several teachers; verify the targets it was combined from"
        )
    if manifest.teachers[0].startswith(FROM_FILE):
        raise StoreError(
            f"the files of `{folder}` are as they were written; its targets came from a file: no model here can compute"
            " them again"
        )
    return _verify_teacher(folder, root, rows, seed)


def _verify_teacher(folder: Path, root: Path, rows: int, seed: int) -> dict[str, VerifyResult]:
    try:
        config = PredictTargetsConfig.model_validate(_config_of(folder))
        found = StageFolder.of_fingerprint(read_identity(folder)["config"]["teacher"]["input"], root)
    except (LookupError, TypeError, ValueError, StoreError) as error:
        raise StoreError(f"`{folder / CONFIG}` is damaged: {summary_of(error)}") from None
    teacher = model_files.load(found)
    task = build_task(teacher.description["task"])
    targets = open_targets(folder, root=root, expect=None)
    transfer = described_transfer_set(targets.description, root, task, task.load, "cpu")
    generator = torch.Generator().manual_seed(seed)
    view = int(torch.randint(max(targets.views, 1), (1,), generator=generator))
    chosen = torch.randperm(len(transfer), generator=generator)[:rows].sort().values
    precision = load_manifest(folder).precision
    predict = forward_pass(Tapped(teacher.model, targets.feature_shapes), "cpu", precision)
    with torch.no_grad():
        outputs = [predict(batch.inputs) for batch in transfer.batches(chosen.split(config.batch_size), view)]
    at = targets.rows_of(transfer.split.ids[chosen])
    results = {}
    if targets.num_teachers:
        logits = torch.cat([output.logits for output in outputs])
        results[folder.name] = compare_rows(targets, at, view, logits, slack=SLACKS[precision])
    for name in targets.feature_shapes:
        feature = torch.cat([output.features[name] for output in outputs])
        results[f"{folder.name} {name}"] = compare_features(
            targets, name, at, view, feature, slack=SLACKS[precision]
        )
    return results


def _config_of(folder: Path) -> dict[str, object]:
    values = read_identity(folder)["config"]
    # Other stages are stored as fingerprints, and the user's code beside its options; the manifest tells what was seen.
    return {"teacher": "teacher", **{key: values[key] for key in ("batch_size",) if key in values}}

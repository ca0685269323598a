"""Finished stages that trained the first epochs of a longer one, which goes on from their last checkpoint.

They are found by fingerprint, so they are the beginning of that very training: the longer one gives the same bits with
and without them.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from raydistill.errors import StoreError
from raydistill.kinds.changes import beginnings
from raydistill.runs.context import StageContext
from raydistill.runs.files import read_json, store_errors
from raydistill.runs.folder import CHECKPOINT, CONFIG, METRICS, StageFolder
from raydistill.runs.plan_run import finished_record
from raydistill.training.checkpoint import STATE


def warm_starts(context: StageContext, epochs: int) -> Iterator[Path]:
    """Folders of finished stages that are this stage cut after fewer than `epochs` epochs; the longest first."""
    try:
        identity = read_json(context.folder.path / CONFIG)
    except StoreError:  # a stage that nobody described, as in tests of the loop
        return
    for fingerprint in beginnings(identity, epochs):
        folder = context.folder.path.with_name(f"{identity['kind']}-{fingerprint}")
        StageFolder(folder).bring_checkpoint()
        if folder.is_dir() and finished_record(folder) is not None and _has_its_metrics(folder):
            yield folder


def _has_its_metrics(folder: Path) -> bool:
    """Whether the metrics are those that the checkpoint was written after."""
    try:
        size = read_json(folder / CHECKPOINT / STATE)["progress"]["metrics_size"]
        return (folder / METRICS).stat().st_size >= int(size)
    except (StoreError, OSError, KeyError, TypeError, ValueError):
        return False


def copy_metrics(beginning: Path, context: StageContext) -> None:
    """Let the lines of `metrics.jsonl` begin as those of a stage that trained the first epochs."""
    if context.is_main:
        context.check_current()
        path = context.folder.path / METRICS
        with store_errors(path):
            shutil.copyfile(beginning / METRICS, path)

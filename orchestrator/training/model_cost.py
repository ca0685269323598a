"""What a finished stage's model costs whoever will use it, as a search counts it: the same on every machine."""

from pathlib import Path

from raydistill.plan.search import Cost
from raydistill.runs.folder import StageFolder


def counted_cost(folder: Path, cost: Cost) -> float | None:
    """Parameters, multiply-adds for one input, or bytes on disk; None where the stage could not count them, and for a
    latency, which is measured."""
    stage = StageFolder(folder)
    record = stage.done_record()
    if cost == "bytes":
        from raydistill.training.model_files import files_of_model  # which loads torch

        return float(sum(stage.payload(name).stat().st_size for name in files_of_model(stage)))
    known = record.parameters if cost == "parameters" else record.costs.get(cost)
    return None if known is None else float(known)

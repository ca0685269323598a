"""What the model of a trial costs whoever will use it, from what its stage left."""

from pathlib import Path

from raydistill.plan.search import Cost
from raydistill.runs.folder import StageFolder


def counted_cost(folder: Path, cost: Cost) -> float | None:
    """Parameters, multiply-adds for one input, or bytes on disk of a finished stage's model; None where its stage could
    not count them. They are the same on every machine."""
    stage = StageFolder(folder)
    record = stage.done_record()
    if cost == "bytes":
        from raydistill.training.model_files import files_of_model

        return float(sum((folder / name).stat().st_size for name in files_of_model(stage)))
    known = record.parameters if cost == "parameters" else record.costs.get(cost)
    return None if known is None else float(known)

"""Workers on machines that share no folder: what one of them made, the others read."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from raydistill.execution.run_stage import run_stage
from raydistill.runs.mirror import open_storage
from raydistill.stages import record_statistics
from raydistill.targets.confusion import Moments
from raydistill.training.ensemble import Ensemble

SHARED = {
    "evaluate": {"models": ["teacher"], "split": "test", "batch_size": 2},
    "confusion_clusters": {"generalist": "teacher", "clusters": 1, "batch_size": 5},
    "record_statistics": {"teacher": "teacher"},
}


@pytest.mark.parametrize("kind", SHARED)
def test_what_a_worker_on_another_machine_made_is_not_made_again(
    stages: Any,
    teacher: dict[str, Any],
    storage_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    plan = {"teacher": teacher | {"epochs": 1}, "shared": {"stage": kind, **SHARED[kind]}}
    alone = stages.run(plan).record("shared")
    here = replace(stages, root=open_storage(storage_url))
    here.write(plan)
    assert here.attempt("teacher").status == "done"
    request = here.request("shared")
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "elsewhere"))
    outcome = run_stage(request, rank=1, world=2)
    assert (outcome.status, outcome.error) == ("done", None)
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "machine"))

    def made_again(*_: object) -> NoReturn:
        raise AssertionError("it was made already")

    monkeypatch.setattr(Ensemble, "logits", made_again)
    monkeypatch.setattr(Moments, "add", made_again)
    monkeypatch.setattr(record_statistics, "_moments", made_again)
    outcome = run_stage(request, rank=0, world=2)
    assert (outcome.status, outcome.error) == ("done", None)
    together = here.record("shared")
    assert (together.metrics, together.payload) == (alone.metrics, alone.payload)

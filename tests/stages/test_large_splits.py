"""Splits whose logits are more than anybody holds are judged as if they were not."""

from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from raydistill.runs.stored_predictions import load_predictions
from raydistill.training import evaluation

LARGEST, SAMPLE = 30, 12  # logits, of three classes: ten samples fit, of more four are drawn


def test_a_large_split_is_judged_as_one_that_fits_and_stores_a_sample_of_its_logits(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(models: list[str], **more: Any) -> dict[str, Any]:
        return {"stage": "evaluate", "models": models, "split": "test", "batch_size": 4, **more}

    plan = {
        "teacher": teacher,
        "other": teacher | {"seed": 1, "epochs": 1},
        "student": student | {"teachers": ["teacher"], "mode": "live"},
        "ensemble": judged(["teacher", "other"]),
        "groups": {"stage": "confusion_clusters", "given": [[0, 1]]},
        "experts": {"stage": "train_specialists", "generalist": "other", "clusters": "groups", "epochs": 1},
        "committee": judged(["other"], committee={"specialists": ["experts.0"]}),
    }
    whole = stages.run(plan)
    monkeypatch.setattr(evaluation, "MOST_LOGITS", LARGEST)
    monkeypatch.setattr(evaluation, "SAMPLED_LOGITS", SAMPLE)
    sampled = stages.elsewhere("sampled").run(plan)
    assert "test/agreement" in sampled.record("student").metrics
    for name in plan.keys() - {"experts"}:
        assert sampled.record(name).metrics == whole.record(name).metrics, name
    assert (
        load_file(sampled.folder("committee").path / "predictions-test.safetensors")["logits"].shape[0] == 4
    )
    for name in ("teacher", "student", "ensemble", "committee"):
        here, there = (
            load_predictions(run.folder(name).path / "predictions-test.safetensors")
            for run in (sampled, whole)
        )
        assert (here.is_sample, there.is_sample) == (True, False)
        assert len(here.logits) == SAMPLE // 3
        places = there.ids.tolist()
        rows = [places.index(sample) for sample in here.ids.tolist()]
        # Of large logits the rounding of float16 is stored too, which one of the two may be without.
        np.testing.assert_allclose(here.logits, there.logits[rows], rtol=1e-3)
        np.testing.assert_array_equal(here.of_all().ids, there.ids)
        np.testing.assert_array_equal(here.of_all().predicted, there.predicted())
        np.testing.assert_allclose(here.of_all().confidences, there.probabilities().max(axis=1), atol=1e-3)
    biggest = max(
        value.size
        for run_file in sampled.root.rglob("predictions-*.safetensors")
        for value in load_file(run_file).values()
    )
    assert biggest == 30, "of the 30 test samples one number each"

"""Steps that are recorded and replayed make the bytes of the plain ones, for every kind of stage and every method.

`pytest` runs it on the twin, which records what it did, `pytest -m gpu` on a GPU.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from raydistill.methods.supervised import Supervised
from raydistill.plan.stage import StageConfig
from raydistill.targets import reader
from tests.gpu.test_devices import AVERAGED, LIVE, METHODS, MODEL, PLANS, STUDENT, TEACHER

EPOCHS = 4  # of 3 batches at least, of which the last may be short: tried, recorded, compared, replayed
# Why steps of ours are not captured; those of all other stages and methods are.
STAGES = {
    "accumulated": "a step is made of several batches (`accumulate`)",
    "old.0": "its method works on the host: peers come and go",
    "old.1": "its method works on the host: peers come and go",
    "drawn": "its optimizer takes the learning rate from the host",
}
BY_METHOD = {
    "ae_kd": "its method asks the device for numbers in every step",
    "teacher_switching": "its method works on the host: a teacher is drawn for every batch",
}


def both_ways(plans: Any, stages: Mapping[str, Any], device: str) -> dict[str, str]:
    """Train all stages plainly and captured, and compare; why steps were not captured, by stage."""
    made = {}
    for word in ("off", "on"):
        captured = {name: with_capture(stage, word) for name, stage in stages.items()}
        made[word] = plans.elsewhere(word).files(captured, device)
    if device == "cuda" and made["on"] != made["off"]:
        again = {name: with_capture(stage, "off") for name, stage in stages.items()}
        if plans.elsewhere("again").files(again, device) != made["off"]:
            pytest.xfail("this GPU's kernels do not repeat themselves: two plain runs differ")
    assert made["on"] == made["off"]
    reasons: dict[str, str] = plans.elsewhere("on").captured(captured, device)
    return reasons


def with_capture(stage: Mapping[str, Any], word: str) -> dict[str, Any]:
    trains = "capture" in StageConfig.find(stage["stage"]).model_fields
    return {**stage, **({"epochs": EPOCHS, "capture": word} if trains else {})}


@pytest.mark.parametrize("name", PLANS)
def test_every_kind_of_stage_makes_the_same_captured(plans: Any, recording_device: str, name: str) -> None:
    reasons = both_ways(plans, PLANS[name], recording_device)
    assert reasons == {stage: STAGES.get(stage, "") for stage in reasons}
    assert len(reasons) >= 2  # a stage whose batches are all short has nothing to say


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_the_same_captured(plans: Any, recording_device: str, method: str) -> None:
    slow = {"name": "sgd", "learning_rate": 0.005}
    taught = LIVE | {"method": {"method": method}, "batch_size": 14, "optimizer": slow}
    taught["student"] = AVERAGED.get(method, taught["student"])
    teacher = TEACHER | {"model": AVERAGED.get(method, TEACHER["model"])}
    reasons = both_ways(plans, {"teacher": teacher, "student": taught}, recording_device)
    assert reasons["student"] == BY_METHOD.get(method, "")


def test_a_captured_step_asks_the_host_nothing(
    plans: Any, recording_device: str, watched: Any, in_steps: Any
) -> None:
    """Once it is neither tried nor compared any more."""
    plan = {
        "teacher": TEACHER
        | {"augment": [{"name": "pad_crop"}, {"name": "mixup"}], "schedule": {"name": "cosine"}},
        "student": STUDENT | {"optimizer": {"name": "adamw"}, "clip_norm": 1.0, "ema": {}},
    }
    captured = {name: with_capture(stage, "on") for name, stage in plan.items()}
    with watched() as waits:
        plans.elsewhere("asked").files(captured, recording_device)
    assert plans.elsewhere("asked").captured(captured, recording_device) == {"teacher": "", "student": ""}
    assert [frames for frames in in_steps(waits) if "_try" not in frames] == []
    assert any("_compare" in frames for frames in waits)


def test_targets_that_do_not_fit_on_the_device_are_read_step_by_step(
    plans: Any, recording_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MOST_RESIDENT", 100)
    reasons = both_ways(plans.elsewhere("large"), {"teacher": TEACHER, "student": STUDENT}, recording_device)
    assert reasons == {"teacher": "", "student": "targets of 0.0 GiB are not kept on the device"}


def test_what_counts_on_the_host_is_noticed(
    plans: Any, recording_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording keeps the number of its own step: the next one is another."""
    count, losses = [0], Supervised.losses

    def counting(self: Supervised, *given: Any) -> Any:
        count[0] += 1
        return {"hard": losses(self, *given)["hard"] * (1 + 0.1 * count[0])}

    monkeypatch.setattr(Supervised, "losses", counting)
    plan = {"teacher": with_capture(MODEL, "on")}
    counted = plans.elsewhere("counted")
    counted.files(plan, recording_device)
    assert counted.captured(plan, recording_device)["teacher"].startswith("a replayed step differs")

"""A teacher whose batch norms use the statistics of the batch: nothing else about it changes."""

from typing import Any

import torch
from torch import nn

from raydistill.stages.teachers import normalise_by_batch

NORMED = {"name": "cnn", "widths": [4, 6], "batch_norm": True}


def test_the_batch_decides_what_the_norms_do_and_they_keep_their_statistics() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(5.0)
    teacher = nn.Sequential(nn.Dropout(0.9), norm).eval()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    normalise_by_batch(teacher)
    inputs = torch.randn(8, 3)
    expected = (inputs - inputs.mean(dim=0)) / (inputs.var(dim=0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(teacher(inputs), expected)  # which also says that nothing was dropped
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_soft_targets_beside_ofd_come_from_the_mode_that_ofd_asks_for(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    def taught(**ofd: Any) -> dict[str, Any]:
        methods = [{"method": "hinton"}, {"method": "ofd", **ofd}]
        model = {**NORMED, "widths": [3, 4]}
        return student | {"student": model, "teachers": ["teacher"], "mode": "live", "methods": methods}

    plan = {
        "teacher": teacher | {"model": NORMED},
        "batch": taught(),
        "running": taught(teacher_bn="running"),
        "unused": taught(weight=0),
    }
    stages.run(plan)
    soft = {
        name: stages.metrics(name)[0]["train/loss/hinton/soft"] for name in ("batch", "running", "unused")
    }
    assert soft["batch"] != soft["running"]
    assert {line["train/loss/ofd/features"] > 0 for line in stages.metrics("batch")} == {True}
    assert not any("ofd" in key for line in stages.metrics("unused") for key in line)


def test_the_attention_of_semckd_is_written_for_every_epoch(
    stages: Any, teacher: dict[str, Any], student: dict[str, Any]
) -> None:
    methods = [{"method": "hinton"}, {"method": "semckd", "weight": 1}]
    taught = {"student": NORMED, "teachers": ["teacher"], "mode": "live", "methods": methods}
    stages.run({"teacher": teacher | {"model": NORMED}, "student": student | taught})
    for line in stages.metrics("student"):
        for own in ("stage1", "stage2"):
            row = [line[f"train/semckd/attention/{own}/{aim}"] for aim in ("stage1", "stage2")]
            assert abs(sum(row) - 1) < 1e-5

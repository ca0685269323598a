"""A teacher of other classes: its probabilities add up to the task's, live and stored, at the temperature."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raydistill.errors import PlanError
from raydistill.models.outputs import merge_classes, unmapped_mass
from raydistill.targets.reader import open_targets

GROUPS = [[0, 4], [2], [1, 5]]
NAMES = ["tabby", "beagle", "jay", "poodle", "tiger cat", "husky"]
OWN = """
from torch import nn
def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def by_hand(row: list[float], temperature: float) -> tuple[list[float], float]:
    """The groups' shares, and what none of them has."""
    powers = [np.exp(np.float64(value) / temperature) for value in row]
    sums = [sum(powers[index] for index in group) for group in GROUPS]
    return [each / sum(sums) for each in sums], 1 - sum(sums) / sum(powers)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_probabilities_of_members_add_up(temperature: float) -> None:
    logits = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    shares = (merge_classes(logits, GROUPS, temperature) / temperature).softmax(1)
    rest = unmapped_mass(logits, GROUPS, temperature)
    for row, found, left in zip(logits.tolist(), shares.tolist(), rest.tolist(), strict=True):
        expected, dropped = by_hand(row, temperature)
        assert found == pytest.approx(expected, rel=1e-10)
        assert left == pytest.approx(dropped, abs=1e-6)


def test_logits_far_apart_stay_finite_and_single_classes_what_they_were() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 3.0, -1e4, 5.0]])
    assert merge_classes(logits, GROUPS, 1.0).isfinite().all()
    assert torch.equal(merge_classes(logits, [[5], [0], [3]], 7.0), logits[:, [5, 0, 3]])


@pytest.fixture
def teacher(stages: Any, users_models: Callable[[str], str], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A network of six classes, trained by somebody, as a stage."""
    torch.manual_seed(1)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)).state_dict(), tmp_path / "six.pth")
    stages.write({"any": {"stage": "train", "epochs": 1, "model": {"name": "mlp"}}})
    task_names = stages.plan.task.class_names
    address = f"{users_models(OWN)}:build"

    def stage(**changes: Any) -> dict[str, Any]:
        groups = {name: [NAMES[i] for i in group] for name, group in zip(task_names, GROUPS, strict=True)}
        classes = {"names": NAMES, "map": groups, "temperature": 2.0, **changes}
        model = {"name": address, "classes": classes}
        return {"stage": "pretrained", "model": model, "weights": str(tmp_path / "six.pth")}

    return stage


def own_logits(stages: Any, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the six-class network says of the validation samples, and of all."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    network.load_state_dict(torch.load(folder / "six.pth", weights_only=True))
    data = stages.plan.task.load()
    inputs = torch.from_numpy(np.load(stages.file)["inputs"])
    with torch.no_grad():
        return network(data.normalisation(data.validation.inputs)), network(data.normalisation(inputs))


def test_a_pretrained_teacher_answers_in_the_task_s_classes(
    stages: Any, teacher: Any, tmp_path: Path
) -> None:
    stages.run({"teacher": teacher()})
    validation, everything = own_logits(stages, tmp_path)
    shares = (stages.logits("teacher") / 2.0).softmax(1)
    for row, found in zip(everything.tolist(), shares.tolist(), strict=True):
        assert found == pytest.approx(by_hand(row, 2.0)[0], abs=1e-5)
    dropped = np.mean([by_hand(row, 2.0)[1] for row in validation.tolist()])
    assert stages.record("teacher").metrics["validation/unmapped"] == pytest.approx(dropped, abs=1e-5)


def test_it_teaches_live_and_stored_and_in_an_ensemble(
    stages: Any, teacher: Any, student: dict[str, Any]
) -> None:
    other = {"stage": "train", "epochs": 1, "batch_size": 16, "model": {"name": "mlp", "widths": [8]}}
    learner = student | {"teachers": ["teacher", "other"], "method": {"method": "hinton", "temperature": 2.0}}
    predicted = {"stage": "predict_targets", "teacher": "teacher"}
    stages.run(
        {
            "teacher": teacher(),
            "other": other,
            "targets": predicted,
            "live": learner | {"mode": "live"},
            "stored": learner | {"mode": "stored"},
        }
    )
    targets = open_targets(stages.folder("targets").path, root=stages.root, expect=None)
    assert targets.num_classes == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"names": [*NAMES, "jay"]}, "`jay` 2 times"),
        ({"map": {"nobody": ["jay"]}}, "no class `nobody`"),
        ({"map": None}, "are left empty"),
    ],
)
def test_a_bad_map_is_said_when_the_plan_is_read(
    changes: dict[str, Any], said: str, stages: Any, teacher: Any
) -> None:
    with pytest.raises(PlanError, match=said):
        stages.write({"teacher": teacher(**changes)})


def test_the_map_is_part_of_what_the_teacher_is(stages: Any, teacher: Any) -> None:
    one = stages.write({"teacher": teacher()}).nodes["teacher"].fingerprint
    other = stages.write({"teacher": teacher(temperature=3.0)}).nodes["teacher"].fingerprint
    assert one != other


def spread_by_hand(row: list[float], temperature: float) -> list[float]:
    """Of six classes two are the task's first two, and the sum of three others is shared by its last three."""
    powers = [np.exp(np.float64(value) / temperature) for value in row]
    shared = powers[0] + powers[4] + powers[5]
    total = powers[1] + powers[3] + shared
    return [powers[1] / total, powers[3] / total, *[shared / total / 3] * 3]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_what_a_teacher_does_not_know_is_spread_evenly(temperature: float) -> None:
    logits = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    rest = [0, 4, 5]
    found = (merge_classes(logits, [[1], [3], rest, rest, rest], temperature) / temperature).softmax(1)
    for row, shares in zip(logits.tolist(), found.tolist(), strict=True):
        assert shares == pytest.approx(spread_by_hand(row, temperature), rel=1e-10)
    assert unmapped_mass(logits, [[1], [3], rest, rest, rest], 1.0) == pytest.approx(logits.softmax(1)[:, 2])


def test_a_teacher_of_a_part_moves_what_it_knows_and_leaves_the_order_of_the_others(
    stages: Any, teacher: Any, student: dict[str, Any], tmp_path: Path
) -> None:
    stages.write({"any": {"stage": "train", "epochs": 1, "model": {"name": "mlp"}}})
    first = stages.plan.task.class_names[0]
    part = teacher(map={first: ["tabby"]}, others="rest", temperature=1.0)
    whole = {"stage": "train", "epochs": 2, "batch_size": 16, "model": {"name": "mlp", "widths": [8]}}
    means = {"stage": "combine_targets", "targets": ["partly", "wholly"], "rule": "geometric"}
    stages.run(
        {
            "part": part,
            "whole": whole,
            "partly": {"stage": "predict_targets", "teacher": "part"},
            "wholly": {"stage": "predict_targets", "teacher": "whole"},
            "both": means,
            "student": student | {"targets": "both"},
        }
    )
    _, everything = own_logits(stages, tmp_path)
    shares = everything.double().softmax(1)
    found = stages.logits("part").double().softmax(1)
    torch.testing.assert_close(found[:, 0], shares[:, 0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[:, 1], (1 - shares[:, 0]) / 2, rtol=1e-4, atol=1e-6)
    assert torch.equal(found[:, 1], found[:, 2])
    both, wholly = (
        open_targets(stages.folder(name).path, root=stages.root, expect=None) for name in ("both", "wholly")
    )
    rows = torch.arange(len(both.ids))
    fused, alone = (targets.read(rows).logits[:, 0] for targets in (both, wholly))
    torch.testing.assert_close(2 * (fused[:, 1] - fused[:, 2]), alone[:, 1] - alone[:, 2], rtol=0, atol=0.05)
    assert (fused[:, 0] - fused[:, 1] - (alone[:, 0] - alone[:, 1]) / 2).abs().max() > 0.1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"others": "rest"}, "the teacher knows all classes of the task; leave `others` out"),
        ({"map": {"0": ["tabby"]}, "others": ["tabby"]}, "the map names `tabby` 2 times"),
        ({"map": {"0": ["tabby"]}, "others": ["nobody"]}, "the teacher has no class `nobody`"),
        ({"map": {"0": NAMES}, "others": "rest"}, "as `others`: the map leaves it no rest"),
    ],
)
def test_others_that_do_not_suit_are_said_when_the_plan_is_read(
    changes: dict[str, Any], said: str, stages: Any, teacher: Any
) -> None:
    stages.write({"any": {"stage": "train", "epochs": 1, "model": {"name": "mlp"}}})
    first = stages.plan.task.class_names[0]
    renamed = {key: {first: value["0"]} if key == "map" else value for key, value in changes.items()}
    with pytest.raises(PlanError, match=said):
        stages.write({"teacher": teacher(**renamed)})


def test_teachers_of_parts_are_fused_each_teaching_its_own(
    stages: Any, teacher: Any, student: dict[str, Any], tmp_path: Path
) -> None:
    stages.write({"any": {"stage": "train", "epochs": 1, "model": {"name": "mlp"}}})
    first, second, _ = stages.plan.task.class_names
    parts = {
        "cats": teacher(map={first: ["tabby", "tiger cat"]}, others="rest", temperature=1.0),
        "jays": teacher(map={second: ["jay"]}, others="rest", temperature=1.0),
    }
    learner = student | {"teachers": list(parts), "combine": {"rule": "kl_fusion", "weights": [1, 3]}}
    stages.run({**parts, "student": learner})
    _, everything = own_logits(stages, tmp_path)
    shares = everything.double().softmax(1)
    cats, jays = shares[:, 0] + shares[:, 4], shares[:, 2]
    expected = torch.stack([cats, jays, 1 - cats - jays], dim=1)
    targets = open_targets(stages.folder("cats+jays.targets").path, root=stages.root, expect=None)
    ids = np.load(stages.file)["ids"]
    chosen = np.isin(ids, targets.ids.numpy())
    found = targets.read(targets.rows_of(torch.from_numpy(ids[chosen]))).logits[:, 0].double().softmax(1)
    torch.testing.assert_close(found, expected[torch.from_numpy(chosen)], rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match="teachers are fused when their targets are stored"):
        stages.write({**parts, "student": learner | {"mode": "live"}})

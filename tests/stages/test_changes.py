"""Trainings whose numbers change, that are cut, and that go on from finished beginnings: as if nothing had been."""

import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD

from raydistill.kinds.training import TransferConfig
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.seeds import Purpose
from raydistill.training import model_files
from raydistill.training.data import Views, build_transfer_set

HEAT, RATE = "method.temperature", "optimizer.learning_rate"
CHANGES = [
    {"after": 2, "set": {HEAT: 3.0, RATE: 0.02, "optimizer.weight_decay": 1e-3}},
    {"after": 4, "set": {HEAT: 1.5, "optimizer.momentum": 0.5}},
]


def slowly(*values: Any) -> list[Any]:
    """More of the same, for those who have time."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture
def changing(student: dict[str, Any]) -> dict[str, Any]:
    """Six epochs with dropout and a schedule, whose numbers change after the second and the fourth."""
    return student | {
        "student": {"name": "mlp", "widths": [8], "dropout": 0.3},
        "teachers": ["teacher"],
        "epochs": 6,
        "method": {"method": "hinton", "temperature": 5.0, "soft_weight": 1, "hard_weight": 0.1},
        "schedule": {"name": "cosine", "final": 0.1},
        "changes": CHANGES,
    }


def cut(config: dict[str, Any], until: int) -> dict[str, Any]:
    """The same training, ended earlier, as a person would write it."""
    earlier = [change for change in CHANGES if change["after"] < until]
    rest = {key: value for key, value in config.items() if key != "changes"}
    return {**rest, "until": until, **({"changes": earlier} if earlier else {})}


def log_of(stages: Any, name: str) -> str:
    text: str = (stages.folder(name).path / "log.txt").read_text()
    return text


def assert_same(one: Any, other: Any, name: str = "student") -> None:
    assert one.record(name).payload == other.record(name).payload
    assert one.record(name).metrics == other.record(name).metrics
    assert one.metrics(name) == other.metrics(name)


def by_hand(stages: Any, heats: list[float], rates: list[float], momenta: list[float]) -> Tensor:
    """Logits of all training inputs after a plain loop over whole epochs, with torch alone."""
    node, data = stages.graph.nodes["student"], stages.plan.task.load()
    transfer = build_transfer_set(data, TransferConfig(), Views(), "cpu")
    torch.manual_seed(fold_key(0, Purpose.INITIAL))
    model = model_files.build(node.config.student, stages.plan.task, data.normalisation)
    optimizer, teacher = SGD(model.parameters(), rates[0], momenta[0]), stages.model("teacher").model
    for epoch, (heat, rate, momentum) in enumerate(zip(heats, rates, momenta, strict=True)):
        optimizer.param_groups[0].update(lr=rate, momentum=momentum)
        for rows in transfer.epoch_order(0, epoch).split(16):
            inputs, labels = transfer.normalised(data.train.inputs[rows]), data.train.labels[rows]
            aim, logits = F.softmax(teacher(inputs) / heat, dim=1), model(inputs)
            soft = heat**2 * F.kl_div(F.log_softmax(logits / heat, dim=1), aim, reduction="batchmean")
            optimizer.zero_grad()
            (soft + 0.1 * F.cross_entropy(logits, labels)).backward()
            optimizer.step()
    result: Tensor = model(transfer.normalised(data.train.inputs)).detach()
    return result


@pytest.mark.parametrize("mode", ["stored", *slowly("live")])
def test_changes_are_what_a_plain_loop_would_do(
    stages: Any, teacher: dict[str, Any], changing: dict[str, Any], mode: str
) -> None:
    plain = {"schedule": {"name": "constant"}, "student": {"name": "mlp", "widths": [8]}, "mode": mode}
    changes = [
        {"after": 2, "set": {HEAT: 3.0, RATE: 0.02}},
        {"after": 3, "set": {HEAT: 1.0, "optimizer.momentum": 0.5}},
    ]
    stages.run({"teacher": teacher, "student": changing | plain | {"epochs": 4, "changes": changes}})
    found = stages.model("student").logits(stages.plan.task.load().train.inputs)
    expected = by_hand(stages, [5, 5, 3, 1], [0.05, 0.05, 0.02, 0.02], [0.9, 0.9, 0.9, 0.5])
    close = 1e-4 if mode == "live" else 5e-3  # stored logits have 11 bits
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    without = by_hand(stages, [5] * 4, [0.05] * 4, [0.9] * 4)
    assert (found - without).abs().max() > 0.05


@pytest.mark.parametrize("cuts", [[2, 4], *slowly([2], [3], [5], [1, 3, 5])])
def test_a_finished_beginning_changes_nothing_but_the_time(
    stages: Any, teacher: dict[str, Any], changing: dict[str, Any], cuts: list[int]
) -> None:
    whole = stages.elsewhere("whole").run({"teacher": teacher, "student": changing})
    for until in cuts:
        stages.run({"teacher": teacher, "student": cut(changing, until)})
        assert len(stages.metrics("student")) == until
    stages.run({"teacher": teacher, "student": changing})
    assert "begins as `distill-" in log_of(stages, "student")
    assert "begins as" not in log_of(whole, "student")
    assert_same(stages, whole)


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "one_cycle", "warmup": 0.5},
        *slowly({"name": "constant"}, {"name": "step", "milestones": [1, 4]}),
    ],
)
def test_every_schedule_and_optimizer_goes_on_from_a_beginning(
    stages: Any, teacher: dict[str, Any], schedule: dict[str, Any]
) -> None:
    changes = [{"after": after, "set": {RATE: rate}} for after, rate in ((1, 3e-3), (3, 2e-3), (4, 0.01))]
    adamw = {"name": "adamw", "learning_rate": 5e-3, "weight_decay": 0.1}
    plan = teacher | {"epochs": 6, "schedule": schedule, "optimizer": adamw}
    whole = stages.elsewhere("whole").run({"teacher": plan | {"changes": changes}})
    stages.run({"teacher": plan | {"changes": changes[:2], "until": 4}})
    stages.run({"teacher": plan | {"changes": changes}})
    assert "begins as `train-" in log_of(stages, "teacher")
    assert_same(stages, whole, "teacher")


def test_a_training_goes_on_where_another_plan_ended_it(stages: Any, teacher: dict[str, Any]) -> None:
    whole = stages.elsewhere("whole").run({"teacher": teacher})
    stages.run({"teacher": teacher | {"until": 3}})
    assert (stages.folder("teacher").path / "checkpoint").is_dir()
    stages.run({"teacher": teacher})
    assert "begins as `train-" in log_of(stages, "teacher")
    assert not (stages.folder("teacher").path / "checkpoint").exists()
    assert_same(stages, whole, "teacher")


@pytest.mark.parametrize("steps", [14, *slowly(3, 20, 27)])
def test_a_segment_that_is_stopped_goes_on_from_its_own_checkpoint(
    stages: Any, teacher: dict[str, Any], changing: dict[str, Any], steps: int
) -> None:
    whole = stages.elsewhere("whole").run({"teacher": teacher, "student": changing})
    stages.run({"teacher": teacher, "student": cut(changing, 2)})
    stages.write({"teacher": teacher, "student": changing})
    calls = iter(range(1, 1000))
    assert stages.attempt("student", should_stop=lambda: next(calls) == steps).status == "stopped"
    stages.run({"teacher": teacher, "student": changing})
    assert "resumed at step" in log_of(stages, "student")
    assert_same(stages, whole)


@pytest.mark.parametrize("damage", ["weights", *slowly("record.json", "checkpoint", "metrics.jsonl")])
def test_a_damaged_beginning_is_passed_over(
    stages: Any, teacher: dict[str, Any], changing: dict[str, Any], damage: str
) -> None:
    whole = stages.elsewhere("whole").run({"teacher": teacher, "student": changing})
    stages.run({"teacher": teacher, "student": cut(changing, 3)})
    shorter = stages.folder("student").path.name
    stages.run({"teacher": teacher, "student": cut(changing, 5)})
    folder = stages.folder("student").path
    if damage == "weights":
        (weights,) = (folder / "checkpoint").glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "checkpoint":
        shutil.rmtree(folder / damage)
    else:
        (folder / damage).write_text("")
    stages.run({"teacher": teacher, "student": changing})
    assert f"begins as `{shorter}`" in log_of(stages, "student")
    assert_same(stages, whole)


def test_early_stopping_within_the_beginning_ends_the_whole(
    stages: Any, teacher: dict[str, Any], changing: dict[str, Any]
) -> None:
    hasty = changing | {
        "early_stopping": {"patience": 1},
        "optimizer": {"name": "sgd", "learning_rate": 1e-9},
    }
    hasty["changes"] = [{"after": 4, "set": {HEAT: 2.0}}]
    whole = stages.elsewhere("whole").run({"teacher": teacher, "student": hasty})
    short = {key: value for key, value in hasty.items() if key != "changes"} | {"until": 4}
    stages.run({"teacher": teacher, "student": short})
    stages.run({"teacher": teacher, "student": hasty})
    assert len(stages.metrics("student")) == 2
    assert_same(stages, whole)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ({"method": "ebkd"}, {"temperature": 2.0, "soft_weight": 0.5, "hard_weight": 2.0}),
        ({"method": "ae_kd"}, {"cap": 0.9}),
        ({"method": "triplet_logits"}, {"margin": 0.5, "weight": 2.0}),
        ({"method": "hinton", "weight": 2.0}, {"weight": 0.5}),
    ],
)
def test_numbers_of_other_methods_change_too(
    stages: Any, teacher: dict[str, Any], changing: dict[str, Any], method: Any, change: Any
) -> None:
    base = changing | {"method": method, "epochs": 3, "changes": None}
    changes = [{"after": 1, "set": {f"method.{key}": value for key, value in change.items()}}]
    two = {"teacher": teacher | {"replicas": 2}}
    stages.run({**two, "plain": base, "student": base | {"changes": changes}})
    plain, changed = stages.metrics("plain"), stages.metrics("student")
    assert plain[0] == changed[0]
    assert plain[1]["train/loss"] != changed[1]["train/loss"]

"""From YAML to values: numbers, places, overrides, and every plan that we ship."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raydistill.errors import PlanError
from raydistill.plan.load import check_plan, load_plan, read_source
from raydistill.plan.order import order_stages
from raydistill.plan.schema import Plan
from raydistill.plan.written import parse_source
from raydistill.runs.plan_run import plan_text
from raydistill.tasks.tensors import Tensors

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml"))
PLAN = """\
name: probe
task: {name: mnist}
stages:
  teacher:
    stage: train
    model: {name: mlp}
    epochs: 2
    optimizer:
      name: sgd
      learning_rate: 1e-3
    augment:
      - {name: flip}
      - name: shift
        pixels: 3
"""

WritePlan = Callable[[str | bytes], Path]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("+2e2", 200.0),
        (".5e1", 5.0),
        ("0.1", 0.1),
        ("12", 12),
        ("'1e-3'", "1e-3"),
        ("1e-3x", "1e-3x"),
        ("e3", "e3"),
        ("resnet8", "resnet8"),
        ("true", True),
        ("~", None),
        ("a # b", "a"),
    ],
)
def test_a_scalar_is_what_people_mean_by_it(text: str, value: object) -> None:
    found = parse_source(f"key: {text}", "plan.yaml").values["key"]
    assert found == value
    assert type(found) is type(value)


def test_every_value_knows_its_line() -> None:
    source = parse_source(PLAN, "plan.yaml")
    stage = ("stages", "teacher")
    assert source.place(("name",)) == "plan.yaml:1"
    assert source.place((*stage, "optimizer", "learning_rate")) == "plan.yaml:10"
    assert source.place((*stage, "augment", 1, "pixels")) == "plan.yaml:14"


def test_what_is_not_written_has_the_line_of_what_encloses_it() -> None:
    source = parse_source(PLAN, "plan.yaml")
    assert source.place(("stages", "teacher", "optimizer", "momentum")) == "plan.yaml:8"
    assert source.place(("stages", "teacher", "augment", 1, "name", "x")) == "plan.yaml:13"
    assert source.place(("tracking",)) == "plan.yaml:1"


def test_an_alias_stands_for_the_value_it_names(write_plan: WritePlan) -> None:
    text = PLAN.replace("{name: mlp}", "&model {name: mlp, widths: [7]}")
    text += "  other: {stage: train, model: *model, epochs: 1}\n"
    source = read_source(write_plan(text), ["stages.other.model.widths.0=9"])
    plan = check_plan(source)
    assert plan.stages["other"].model.options["widths"] == [9]
    assert plan.stages["teacher"].model.options["widths"] == [7]


def test_an_override_changes_adds_and_replaces(write_plan: WritePlan) -> None:
    overrides = [
        "stages.teacher.epochs=5",
        "stages.teacher.augment.1.pixels=1",
        "stages.teacher.optimizer={name: adamw, learning_rate: 1e-2}",
        "stages.teacher.schedule.name=cosine",
        "stages.extra={stage: evaluate, models: [teacher]}",
        "task.validation_fraction=0.2",
    ]
    plan = load_plan(write_plan(PLAN), overrides)
    teacher = plan.stages["teacher"]
    assert teacher.epochs == 5
    assert teacher.augment[1].pixels == 1
    assert (teacher.optimizer.name, teacher.optimizer.learning_rate) == ("adamw", 0.01)
    assert teacher.schedule.name == "cosine"
    assert plan.stages["extra"].models == ("teacher",)
    assert plan.task.validation_fraction == 0.2


def test_the_last_of_two_overrides_of_one_path_holds(write_plan: WritePlan) -> None:
    plan = load_plan(write_plan(PLAN), ["stages.teacher.epochs=5", "stages.teacher.epochs=7"])
    assert plan.stages["teacher"].epochs == 7


def test_an_override_keeps_the_spaces_of_its_value(write_plan: WritePlan) -> None:
    plan = load_plan(write_plan(PLAN), ["tracking.experiment='two  spaces = one name'"])
    assert plan.tracking.experiment == "two  spaces = one name"


def test_a_whole_number_may_stand_for_a_number_and_is_the_same(graph_of: Callable) -> None:
    one, same = (graph_of(PLAN.replace("1e-3", text)) for text in ("1", "1.0"))
    assert one.nodes["teacher"].fingerprint == same.nodes["teacher"].fingerprint


def test_a_plan_is_frozen(write_plan: WritePlan) -> None:
    plan = load_plan(write_plan(PLAN))
    with pytest.raises(ValueError, match="frozen"):
        plan.stages["teacher"].epochs = 3


@pytest.mark.parametrize("name", ["plan.yml", "plna.yaml"])
def test_a_file_that_is_not_there_is_answered_with_the_closest(name: str, write_plan: WritePlan) -> None:
    file = write_plan(PLAN)
    with pytest.raises(PlanError, match=f"`{file}`\\?$"):
        load_plan(file.with_name(name))


def test_a_folder_is_no_plan(write_plan: WritePlan) -> None:
    file = write_plan(PLAN)
    with pytest.raises(PlanError, match=f"is a folder; name the plan's file, such as `{file}`"):
        load_plan(file.parent)


Shipped = Callable[[Path], tuple[Plan, str | None]]


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """A shipped plan, over made-up data when its own is not on this machine; then also why.

    As many classes are made up as the name of the plan's data ends with: `data/glyphs200`.
    """
    folder = tmp_path_factory.mktemp("data")

    def read(path: Path) -> tuple[Plan, str | None]:
        plan = Plan.model_validate(read_source(ROOT / path).values)
        if (missing := plan.task.missing_files()) is None:
            return plan, None
        number = re.search(r"glyphs(\d+)", str(getattr(plan.task, "folder", "")))
        classes = int(number[1]) if number else 100
        file = folder / f"{classes}.npz"
        np.savez(file, inputs=np.zeros((classes, 1, 2, 2), np.uint8), labels=np.arange(classes))
        return plan.replace(task=Tensors(name="tensors", file=file)), missing

    return read


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_shipped_plan_loads_and_orders(path: Path, shipped: Shipped) -> None:
    plan, missing = shipped(path)
    assert set(order_stages(plan).replicas) == set(plan.stages)
    if missing is None:
        check_plan(read_source(ROOT / path))
        return
    with pytest.raises(PlanError) as caught:
        check_plan(read_source(ROOT / path))
    assert caught.value.message.endswith(missing)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_shipped_plan_says_how_to_run_it_and_keeps_its_name(path: Path) -> None:
    lines = (ROOT / path).read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert lines[0].startswith("# ")
    command = "tune" if any(line.startswith("search:") for line in lines) else "run"
    assert any(f"distill {command} {path}" in line for line in header)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_a_plan_written_out_with_its_defaults_is_the_same_plan(path: Path, shipped: Shipped) -> None:
    plan, _ = shipped(path)
    again = check_plan(parse_source(plan_text(plan), "written.yaml"))
    assert again == plan
    before, after = order_stages(plan), order_stages(again)
    assert {name: node.fingerprint for name, node in before.nodes.items()} == {
        name: node.fingerprint for name, node in after.nodes.items()
    }


def test_a_stage_takes_over_what_another_one_has_and_changes_some_of_it(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(
        """
name: probe
task: {name: mnist}
stages:
  small: &small {stage: train, model: &network {name: mlp, widths: [30]}, epochs: 2, seed: 1}
  large: {epochs: 5, <<: *small, model: {<<: *network, widths: [90]}}
  both: {<<: [{seed: 7}, *small]}
"""
    )
    stages = load_plan(file).stages
    assert (stages["large"].epochs, stages["large"].seed) == (5, 1)
    assert stages["large"].model.options["widths"] == [90]
    assert stages["small"].model.options["widths"] == [30]
    assert (stages["both"].seed, stages["both"].epochs) == (7, 2)

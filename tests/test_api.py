"""What Python programs may call: plans, runs and models without the command line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import raydistill

STAGES: dict[str, Any] = {
    "teacher": {"stage": "train", "model": {"name": "mlp", "widths": [16]}, "epochs": 1},
    "student": {
        "stage": "distill",
        "student": {"name": "mlp", "widths": [8]},
        "teachers": ["teacher"],
        "epochs": 2,
    },
}
VALUES = {"name": "small", "task": "mnist", "stages": STAGES, "tracking": "none"}


def test_importing_the_package_loads_nothing_else() -> None:
    probe = (
        "import sys; before = set(sys.modules); import raydistill; print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert {name.partition(".")[0] for name in loaded.split()} <= {"raydistill", *sys.stdlib_module_names}
    assert loaded.split().count("raydistill") == 1


def test_every_public_name_is_there_and_no_other() -> None:
    for name in raydistill.__all__:
        assert getattr(raydistill, name).__doc__
    assert set(raydistill.__all__) <= set(dir(raydistill))
    modules = {path.stem for path in Path(raydistill.__file__).parent.iterdir()}
    assert not modules & set(raydistill.__all__), "a module would take the name's place once it is imported"
    with pytest.raises(AttributeError, match="no attribute `trian`"):
        _ = raydistill.trian


def test_a_plan_is_built_from_values_and_overridden_by_values_or_text() -> None:
    plan = raydistill.build_plan(VALUES, {"stages.student.epochs": 7})
    assert plan.stages["student"].epochs == 7
    other = raydistill.override_plan(plan, ["stages.teacher.model.widths=[20]"])
    assert other.stages["teacher"].model.options["widths"] == [20]
    assert other.stages["student"].epochs == 7
    assert plan.stages["teacher"].model.options["widths"] == [16]


def test_a_plan_that_code_put_together_can_be_overridden_too() -> None:
    plan = raydistill.Plan.model_validate(raydistill.build_plan(VALUES).model_dump(mode="json"))
    changed = raydistill.override_plan(plan, {"stages.student.seed": 3})
    assert changed.stages["student"].seed == 3
    assert changed.stages["teacher"] == plan.stages["teacher"]


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        (VALUES | {"nome": 1}, {}, "the plan: nome: unknown key `nome`"),
        (VALUES, {"stages.student.epochs": 0}, "--set stages.student.epochs=0: stages.student.epochs: "),
        (VALUES, {"stages.pupil.epochs": 1}, "`stages.pupil` does not exist in the plan"),
        (VALUES | {"task": object()}, {}, "only what YAML can hold"),
        (VALUES, {"stages.student.epochs": float("nan")}, "only what YAML can hold"),
    ],
)
def test_a_mistake_in_values_names_its_place(
    values: dict[str, Any], overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(raydistill.PlanError) as caught:
        raydistill.build_plan(values, overrides)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_plan_of_a_file_names_its_lines_wherever_the_mistake_is_met(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("name: p\ntask: mnist\nstages:\n  a: {stage: evaluate, models: [b]}\n")
    with pytest.raises(raydistill.PlanError, match=r"plan.yaml:4: .*which the plan does not define"):
        raydistill.dry_run(raydistill.load_plan(file), runs=tmp_path / "runs")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root in which the small plan was run."""
    root = tmp_path_factory.mktemp("api") / "runs"
    raydistill.run(raydistill.build_plan(VALUES), runs=root, local=True)
    return root


def test_a_run_is_looked_at_as_values(root: Path) -> None:
    run = raydistill.open_run("small", runs=root)
    assert run.status == "done"
    rows = {row["stage"]: row for row in run.table()}
    assert rows["teacher"]["role"] == "teacher"
    assert rows["student"]["test/accuracy"] == run["student"].metrics["test/accuracy"]
    assert len(run["student"].curve("train/loss").values) == 2
    assert raydistill.open_run(run.folder).run_id == run.run_id
    with pytest.raises(KeyError, match="did you mean `student`"):
        run["studnet"]


def test_a_second_run_starts_nothing_and_a_dry_run_says_so(root: Path) -> None:
    plan = raydistill.build_plan(VALUES)
    assert all(prospect.is_cached for prospect in raydistill.dry_run(plan, runs=root))
    again = raydistill.run(plan, runs=root, local=True)
    assert {stage.status for stage in again.stages.values()} == {"cached"}
    changed = raydistill.override_plan(plan, {"stages.student.epochs": 3})
    states = {found.node.name: found.state for found in raydistill.dry_run(changed, runs=root)}
    assert states["student"] == "new"
    assert states["teacher"] == "cached"


def test_a_dry_run_estimates_from_the_records_of_earlier_runs(root: Path) -> None:
    plan = raydistill.build_plan(VALUES)
    taken = raydistill.open_run("small", runs=root)["student"].seconds
    longer = raydistill.override_plan(plan, {"stages.student.epochs": 6, "stages.student.seed": 9})
    found = raydistill.dry_run(longer, runs=root, local=True)
    assert found.estimate is not None
    assert found.estimate.seconds == pytest.approx(3 * taken)
    assert (found.estimate.known, found.estimate.stages, found.estimate.side_by_side) == (1, 1, 1)
    assert [one.seconds for one in found if one.is_cached] == [None] * (len(found) - 1)
    wider = raydistill.override_plan(plan, {"stages.student.student.widths": [9]})
    unknown = raydistill.dry_run(wider, runs=root, local=True).estimate
    assert unknown is not None
    assert (unknown.known, unknown.seconds) == (0, None)


def test_a_dry_run_says_what_this_machine_has_no_room_for(tmp_path: Path) -> None:
    plan = raydistill.build_plan(VALUES, {"stages.teacher.resources": {"cpus": 9999.0}})
    found = raydistill.dry_run(plan, runs=tmp_path)
    assert "stage `teacher` asks for 9999 CPUs" in found.misfit
    assert not raydistill.dry_run(raydistill.build_plan(VALUES), runs=tmp_path).misfit


def test_a_model_takes_raw_pictures_and_says_what_the_evaluation_saw(root: Path) -> None:
    run, task = raydistill.open_run("small", runs=root), raydistill.build_plan(VALUES).task
    test = task.load().test
    pictures = test.inputs[:100]
    said = raydistill.predict(run["student"], pictures.numpy())
    model = raydistill.load_model(run["student"])
    logits = model(pictures)
    np.testing.assert_allclose(torch.softmax(logits, 1).detach().numpy(), said.probabilities, atol=1e-6)
    assert said.labels == [model.class_names[index] for index in logits.argmax(1)]


def test_all_predictions_give_the_test_errors_of_the_record(root: Path) -> None:
    stage = raydistill.open_run("small", runs=root)["student"]
    test = raydistill.build_plan(VALUES).task.load().test
    said = raydistill.predict(stage.folder.path, test.inputs.numpy(), runs=root)
    wrong = (said.probabilities.argmax(1) != test.labels.numpy()).sum()
    assert wrong == stage.metrics["test/errors"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda root: raydistill.open_run("nothing", runs=root), "neither the folder of a run nor a plan"),
        (lambda root: raydistill.open_run("", runs=root), "neither the folder of a run nor a plan"),
        (lambda root: raydistill.open_run("small", runs=""), "`runs` is empty"),
        (lambda root: raydistill.load_model(root), "holds no model"),
        (
            lambda root: raydistill.predict(
                raydistill.open_run("small", runs=root)["student"], np.zeros((2, 3))
            ),
            "the batch has the shape (2, 3); the model takes",
        ),
        (
            lambda root: raydistill.predict(
                raydistill.open_run("small", runs=root)["student"], np.array(["a"])
            ),
            "the batch is no array of numbers",
        ),
    ],
)
def test_what_is_not_there_is_one_line(root: Path, call: Callable[[Path], Any], message: str) -> None:
    with pytest.raises(raydistill.DistillError) as caught:
        call(root)
    assert message in caught.value.message
    assert "\n" not in caught.value.message

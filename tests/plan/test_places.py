"""Paths in a plan are relative to the working folder or to the plan's, whichever has them."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from raydistill.cli import main
from raydistill.errors import PlanError
from raydistill.plan.load import check_plan, read_source
from raydistill.plan.order import Graph, order_stages
from raydistill.plan.places import placed_values, remarks_on_places

PLAN = """\
name: probe
task: {name: tensors, file: data/digits.npz}
stages:
  teacher: {stage: train, model: {name: torchvision, architecture: resnet18, weights: start.pth}, epochs: 1}
  clusters: {stage: confusion_clusters, given: groups.yaml}
  specialists: {stage: train_specialists, generalist: teacher, clusters: clusters, epochs: 1}
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan in `plans/`; the working folder is beside it."""
    for name in ("plans", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "plans" / "plan.yaml").write_text(PLAN)
    return tmp_path / "plans" / "plan.yaml"


def fill(folder: Path, *, seed: int = 0) -> None:
    """The three files that the plan names."""
    (folder / "data").mkdir()
    inputs = np.random.default_rng(seed).random((40, 3, 8, 8), dtype=np.float32)
    np.savez(folder / "data" / "digits.npz", inputs=inputs, labels=np.arange(40) % 4)
    (folder / "start.pth").write_bytes(b"weights %d" % seed)
    (folder / "groups.yaml").write_text("[[0, 1], [2, 3]]")


def graph_of(plan: Path) -> Graph:
    source = read_source(plan)
    return order_stages(check_plan(source))


def test_files_are_found_in_either_folder_and_make_the_same_stages(plan: Path) -> None:
    fill(plan.parent)
    beside = graph_of(plan)
    elsewhere = plan.parent.rename(plan.parent.with_name("elsewhere")) / "plan.yaml"
    fill(Path.cwd())
    for name in ("start.pth", "groups.yaml", "data/digits.npz"):
        (elsewhere.parent / name).unlink()
    here = graph_of(elsewhere)
    assert {name: node.fingerprint for name, node in beside.nodes.items()} == {
        name: node.fingerprint for name, node in here.nodes.items()
    }


def test_what_only_the_plans_folder_has_is_said_with_its_place(
    plan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(plan.parent)
    assert list(remarks_on_places(read_source(plan))) == [
        f"{plan}:2: task.file: `data/digits.npz` is in the plan's folder: `{plan.parent}/data/digits.npz`",
        f"{plan}:4: stages.teacher.model.weights: `start.pth` is in the plan's folder: `{plan.parent}/start.pth`",
        f"{plan}:5: stages.clusters.given: `groups.yaml` is in the plan's folder: `{plan.parent}/groups.yaml`",
    ]
    told = CliRunner().invoke(main, ["run", str(plan), "--dry-run"])
    assert told.exit_code == 0, told.output
    assert caplog.text.count("is in the plan's folder") == 3


def test_what_the_working_folder_has_is_taken_from_there_without_a_word(plan: Path) -> None:
    fill(Path.cwd())
    source = read_source(plan)
    assert list(remarks_on_places(source)) == []
    assert check_plan(source).task.file == Path.cwd() / "data" / "digits.npz"


def test_two_files_that_differ_are_refused_and_two_that_do_not_are_one(plan: Path) -> None:
    fill(plan.parent)
    fill(Path.cwd())
    assert graph_of(plan).nodes
    (Path.cwd() / "start.pth").write_bytes(b"other weights")
    with pytest.raises(
        PlanError, match=r"plan.yaml:4: stages.teacher.model.weights: .* they differ; write the whole"
    ):
        graph_of(plan)


def test_two_folders_of_one_name_are_refused(plan: Path) -> None:
    plan.write_text("name: a\ntask: {name: image_folder, folder: birds}\nstages: {}\n")
    for folder in (plan.parent, Path.cwd()):
        (folder / "birds").mkdir()
    with pytest.raises(
        PlanError, match=r"plan.yaml:2: task.folder: `birds` is in the plan's folder and in the working"
    ):
        placed_values(read_source(plan))


def test_a_word_that_is_no_path_is_left_alone_whatever_lies_beside_the_plan(plan: Path) -> None:
    plan.write_text(
        "name: a\ntask: mnist\nstages:\n"
        "  teacher.x: {stage: train, model: {name: resnet, depth: 8, block: basic}, epochs: 1, optimizer: sgd}\n"
    )
    for name in ("mnist", "basic", "sgd", "train", "teacher.x", "resnet"):
        (plan.parent / name).write_text("")
    source = read_source(plan)
    assert placed_values(source) is source.values

"""Plans to begin with: those that come along, found by name, and those that `distill new` writes."""

from pathlib import Path

import pytest
import torch
import torchvision
from click.testing import CliRunner, Result
from packed_pictures import as_folders, as_parquet, as_tars, some_pictures

import raydistill
from raydistill.cli import main
from raydistill.plan import shipped
from raydistill.plan.load import read_source, validated


def distill(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_shipped_plan_is_found_by_its_name_from_any_folder() -> None:
    listed = distill("plans").stdout
    assert len(raydistill.shipped_plans()) > 40
    for name, file in raydistill.shipped_plans().items():
        assert name in listed
        assert raydistill.find_plan(name) == file
        assert validated(read_source(Path(name))).stages
        assert 10 < len(raydistill.headline(file)) < 180


def test_a_shipped_plan_runs_by_its_name() -> None:
    ended = distill("run", "mnist_quickstart", "--dry-run")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "26 stages: 26 to run" in ended.stdout
    assert distill("report", "mnist_quickstart").stderr.startswith(
        "error: plan `mnist-quickstart` has no run"
    )


def test_a_file_comes_before_the_shipped_plan_of_its_name(elsewhere: Path) -> None:
    (elsewhere / "mnist_quickstart").write_text(
        "name: mine\ntask: mnist\nstages: {one: {stage: train, model: mlp, epochs: 1}}"
    )
    assert raydistill.load_plan("mnist_quickstart").name == "mine"


def test_a_plan_that_needs_a_module_beside_it_is_not_offered() -> None:
    assert (shipped.FOLDER / "few_labels.py").is_file()
    assert not {"few_labels", "method_comparison_digits"} & set(raydistill.shipped_plans())
    assert "method_comparison_glyphs30" in raydistill.shipped_plans()


@pytest.mark.parametrize(
    ("command", "name", "words"),
    [
        ("run", "mnist_quikstart", "`mnist_quikstart` does not exist; did you mean `mnist_quickstart`"),
        ("run", "configs/mnist_hinton.yaml", "did you mean `mnist_hinton`"),
        (
            "run",
            "zzz",
            "`zzz` does not exist, and no shipped plan has this name; `distill plans` lists those",
        ),
        (
            "plans",
            "mnist_quikstart",
            "no shipped plan is called `mnist_quikstart`; did you mean `mnist_quickstart`?",
        ),
    ],
)
def test_an_unknown_name_is_one_line_with_near_ones(command: str, name: str, words: str) -> None:
    ended = distill(command, name)
    assert ended.exit_code == 2
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_shipped_plan_is_printed_to_be_changed(elsewhere: Path) -> None:
    (elsewhere / "mine.yaml").write_text(distill("plans", "mnist_hinton").stdout)
    assert raydistill.load_plan("mine.yaml") == raydistill.load_plan("mnist_hinton")


def weights(architecture: str, num_classes: int) -> None:
    model = torchvision.models.get_model(architecture, num_classes=num_classes)
    torch.save(model.state_dict(), "teacher.pth")


def exported() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 224 * 224, 3)).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3, 224, 224),)), "teacher.pt2")


def pictures(folder: Path) -> None:
    as_folders(folder / "birds", some_pictures())


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data", "birds/"],
        ["--data", "birds", "--model", "mobilenet_v2"],
        ["--data", "birds", "--model", "mobilenet_v3_small"],
        ["--model", "my_nets:build"],
        ["--data", "birds", "--teacher", "teacher.pth", "--architecture", "resnet18"],
        ["--data", "birds", "--teacher", "teacher.pt2"],
        ["--data", "packed.tars"],
        ["--data", "my shards"],
        ["--data", "birds/table.csv"],
    ],
    ids=" ".join,
)
def test_a_written_plan_is_short_and_passes_a_dry_run(options: list[str], elsewhere: Path) -> None:
    if "--data" in options:
        pictures(elsewhere)
        rows = [
            f"{file.relative_to(elsewhere / 'birds')},{file.parent.name}" for file in elsewhere.rglob("*.png")
        ]
        (elsewhere / "birds/table.csv").write_text("\n".join(["path,label", *rows]))
        as_tars(elsewhere / "packed.tars", some_pictures())
        as_parquet(elsewhere / "my shards", some_pictures())
    (elsewhere / "my_nets.py").write_text("def build(num_classes): ...\n")
    if "teacher.pth" in options:
        weights("resnet18", 3)
    if "teacher.pt2" in options:
        exported()
    written = distill("new", "first", *options)
    assert (written.exit_code, written.stderr) == (0, "")
    text = (elsewhere / "first.yaml").read_text()
    assert len(text.splitlines()) <= 15
    ended = distill("run", "first.yaml", "--dry-run")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "4 stages: 4 to run" in ended.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--teacher", "teacher.pth"], "of which network are these weights?"),
        (["--teacher", "absent.pth", "--architecture", "resnet18"], "the file `absent.pth` does not exist"),
        (["--architecture", "resnt18"], "no network is called `resnt18`; did you mean `resnet18`?"),
        (["--model", "resnet21"], "no network is called `resnet21`; did you mean"),
        (["--data", "nowhere"], "nowhere"),
    ],
    ids=" ".join,
)
def test_what_could_not_run_is_not_written(options: list[str], words: str, elsewhere: Path) -> None:
    ended = distill("new", "first", *options)
    assert ended.exit_code == 2
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


def test_no_file_is_written_over(elsewhere: Path) -> None:
    (elsewhere / "first.yaml").write_text("mine")
    ended = distill("new", "first")
    assert (ended.exit_code, ended.stderr) == (2, "error: `first.yaml` exists; choose another name\n")
    assert (elsewhere / "first.yaml").read_text() == "mine"

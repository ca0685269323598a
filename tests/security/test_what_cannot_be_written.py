"""A full disk, a full pipe and folders that nobody may write to: one line, and what was done stays done."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from raydistill import report
from raydistill.cli import main
from raydistill.report import plots
from raydistill.runs.files import atomic_write

FULL = Path("/dev/full")
PLAN = """\
name: tiny
task: mnist
tracking: none
stages:
  student: {stage: train, model: {name: mlp, widths: [4]}, epochs: 1}
"""
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan, an input, and the storage root of a finished run."""
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(plots, "finished", lambda drawings: [])
        Path("plan.yaml").write_text(PLAN)
        np.save("input.npy", np.zeros((1, 28, 28), np.float32))
        result = CliRunner().invoke(main, ["run", "plan.yaml", "--local"])
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def here(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a copy of it."""
    monkeypatch.setattr(plots, "finished", lambda drawings: [])
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Mounts folders, with words of `mount`, where that is allowed; else the test is skipped."""
    places: list[Path] = []

    def mount(*words: str) -> Path:
        place = tmp_path_factory.mktemp("mounted")
        if (
            os.geteuid()
            or subprocess.run(["mount", *words, str(place)], capture_output=True, check=False).returncode
        ):
            pytest.skip("nothing may be mounted here")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def student() -> str:
    return str(next(Path("runs/stages").iterdir()))


def code_of(words: list[str]) -> int | str | None:
    """The exit code of a command whose output goes where `sys.stdout` does."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


@pytest.mark.parametrize(
    "words",
    [["list"], ["list", "--json"], ["--help"], ["explain", "hinton"], ["run", "plan.yaml", "--dry-run"]],
)
def test_an_output_that_is_full_is_one_line_and_not_a_success(
    words: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert code_of(words) == 1
        with pytest.raises(OSError, match="No space"):
            full.close()
    assert capsys.readouterr().err == "error: the output cannot be written: No space left on device\n"


def test_a_process_whose_output_is_full_ends_with_one_line() -> None:
    with FULL.open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "raydistill.cli", "explain", "hinton"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr


def test_a_run_whose_table_and_progress_cannot_be_written_leaves_its_results(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("runs")
    with FULL.open("w") as full, FULL.open("w") as too:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", too)
        with pytest.raises((SystemExit, OSError)):
            main(["run", "plan.yaml", "--local"])
        for stream in (full, too):
            with pytest.raises(OSError, match="No space"):
                stream.close()
    (results,) = Path("runs/plans/tiny").glob("*/results.json")
    assert json.loads(results.read_text())["status"] == "done"


def test_a_report_that_fills_the_disk_is_one_line_and_is_not_named(
    here: Path,
    mounted: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def draw(folder: Path, root: Path) -> Path:
        with atomic_write(folder / "report.html") as temporary:
            temporary.write_bytes(b"\0" * 4_000_000)
        return folder / "report.html"

    monkeypatch.setattr(report, "write_report", draw)
    disk = mounted("-t", "tmpfs", "-o", "size=3m", "tmpfs")
    result = CliRunner().invoke(main, ["run", "plan.yaml", "--local", "--runs", str(disk / "runs")])
    assert result.exit_code == 0
    assert "report:" not in result.output
    (told,) = [record.getMessage() for record in caplog.records if "report" in record.getMessage()]
    assert "No space left on device" in told
    assert "\n" not in told
    assert not list(disk.rglob("*.tmp"))
    assert list(disk.glob("runs/plans/tiny/*/results.json"))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("run plan.yaml --local --runs {root}", 1),
        ("report plan.yaml --runs {root}", 1),
        ("export {student} {root}/exported", 1),
        ("predict {student} input.npy --output {root}/labels.csv", 2),
        ("sync --runs {root} --tracking-uri sqlite:///elsewhere.db", 0),
        ("list --runs {root}", 0),
        ("verify {root}/stages/{name} --runs {root}", 0),
        ("clean --yes --runs {root}", 0),
        ("run plan.yaml --dry-run --runs {root}", 0),
    ],
)
def test_a_root_that_may_not_be_written_is_one_line_where_that_matters(
    words: str, code: int, here: Path, mounted: Callable[..., Path]
) -> None:
    root = mounted("--bind", str(here / "runs"))
    subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)
    name = Path(student()).name
    result = CliRunner().invoke(main, words.format(root=root, student=student(), name=name).split())
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1 if code else 0), result.output
    if code:
        assert str(root) in result.stderr

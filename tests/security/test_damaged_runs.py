"""Damaged files of runs, searches and stages: whatever is wrong with one, every command that reads it does without it,
or answers with a line that says so."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from raydistill.cli import main
from raydistill.report import plots
from raydistill.runs.view import runs_of

SECONDS = 5.0
PLAN = """\
name: tiny
task: mnist
stages:
  teacher: {stage: train, model: {name: mlp, widths: [8]}, epochs: 1}
  student: {stage: distill, student: {name: mlp, widths: [4]}, teachers: [teacher], epochs: 1}
search:
  metric: student.validation/accuracy
  space: {student.method.temperature: {choice: [2.0, 4.0]}}
"""
COMMANDS = {
    "run": "run plan.yaml --local --no-tracking",
    "dry run": "run plan.yaml --dry-run",
    "tune": "tune plan.yaml --local --no-tracking",
    "dry tune": "tune plan.yaml --local --dry-run",
    "report": "report plan.yaml",
    "list": "list",
    "list runs": "list runs",
    "list stages": "list stages --json",
    "list searches": "list searches",
    "show run": "show {run}",
    "show stage": "show {student}",
    "show search": "show {search}",
    "compare runs": "compare {run} {run}",
    "compare stages": "compare {student} {teacher}",
    "clean": "clean",
    "verify run": "verify {run_folder}",
    "verify targets": "verify {targets_folder}",
    "predict": "predict {student_folder} input.npy",
    "evaluate": "evaluate {student_folder}",
    "export": "export {student_folder} exported",
}
# Of each file: the commands that read it, with their exit code if it is no JSON of the right shape at all.
READERS: dict[str, dict[str, int]] = {
    "{run_folder}/graph.json": {
        "run": 0, "dry run": 0, "report": 1, "list": 0, "list runs": 0, "show run": 1, "compare runs": 1, "clean": 1,
        "verify run": 1,
    },
    "{run_folder}/results.json": {
        "run": 0, "dry run": 0, "report": 1, "list": 0, "list runs": 0, "show run": 1, "compare runs": 1, "clean": 1,
    },
    "{run_folder}/survey.json": {"run": 0, "report": 0, "show run": 0},
    "{run_folder}/plan.yaml": {"run": 0, "report": 0, "show run": 0, "compare runs": 0},
    "{run_folder}/tracking.json": {"run": 0},
    "{search_folder}/search.json": {
        "tune": 0, "dry tune": 0, "report": 1, "list searches": 0, "show search": 1, "clean": 1,
    },
    "{trial}": {"tune": 0, "dry tune": 0, "report": 0, "show search": 0, "clean": 0},
    "{student_folder}/record.json": {
        "run": 0, "dry run": 0, "report": 0, "list stages": 0, "show stage": 0, "compare stages": 0, "clean": 0,
        "verify run": 1, "predict": 1,
    },
    "{student_folder}/config.json": {
        "run": 0, "report": 0, "list stages": 0, "show stage": 0, "compare stages": 0, "clean": 0, "predict": 1,
    },
    "{student_folder}/model.json": {"run": 0, "report": 0, "verify run": 1, "predict": 1, "evaluate": 1, "export": 1},
    "{student_folder}/metrics.jsonl": {"run": 0, "report": 0},
    "{student_folder}/stamps.json": {"run": 0, "dry run": 0},
    "{student_folder}/attempt.json": {"run": 0},
    "{student_folder}/lease-1.json": {"run": 0, "clean": 0},
    "{targets_folder}/manifest.json": {"run": 0, "verify run": 1, "verify targets": 1},
    "{targets_folder}/config.json": {"run": 0, "verify targets": 1},
    "{found}": {"run": 0, "dry run": 0},
    "{sizes}": {"run": 0, "report": 0},
}  # fmt: skip
SLOW = {"run", "tune", "report", "verify targets"}
FOR_SLOW = {"deep", "NaN", "too large for a float", "emptied"}
NO_SUCH_SHAPE: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"kind": "tr',
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "null": b"null",
}


def every(kind: type | tuple[type, ...], other: Any) -> Callable[[Any], Any]:
    """Puts `other` in the place of every value of a kind, wherever it stands."""

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: changed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [changed(item) for item in value]
        return other if isinstance(value, kind) and not isinstance(value, bool) else value

    return changed


def emptied(value: Any) -> Any:
    return {key: type(item)() if isinstance(item, dict | list) else item for key, item in value.items()}


NUMBERS = (int, float)
OTHER_VALUES: dict[str, Callable[[Any], Any]] = {
    "NaN": every(NUMBERS, math.nan),
    "too large for a float": every(NUMBERS, 10**400),
    "negative numbers": every(NUMBERS, -7),
    "numbers for texts": every(str, 3),
    "texts for numbers": every(NUMBERS, "many"),
    "null for all": every((str, *NUMBERS), None),
    "what a terminal obeys": every(str, "../\x1b[2J\n"),
    "emptied": emptied,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a plan that was searched and run, and its storage root `runs`."""
    folder = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(plots, "finished", lambda drawings: [])  # the pictures take most of the time
        Path("plan.yaml").write_text(PLAN)
        np.save("input.npy", np.zeros((1, 28, 28), np.float32))
        for words in (COMMANDS["tune"], COMMANDS["run"]):
            result = CliRunner().invoke(main, words.split())
            assert result.exit_code == 0, result.output
        yield folder


@pytest.fixture
def names(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A copy, which is the working folder, and what things are called in it."""
    monkeypatch.setattr(plots, "finished", lambda drawings: [])
    monkeypatch.chdir(tmp_path)
    bring_back(sound)
    run = runs_of(Path("runs").absolute(), "tiny")[0]
    stages = {node["name"]: node["folder"] for node in json.loads((run / "graph.json").read_text())["nodes"]}
    (search,) = Path("runs/searches").iterdir()
    return {
        "run": run.name,
        "run_folder": f"runs/plans/tiny/{run.name}",
        "search": search.name,
        "search_folder": str(search),
        "trial": str(min((search / "trials").glob("*.json"))),
        "teacher": "tiny/teacher",
        "student": stages["student"].rpartition("-")[2],
        "student_folder": f"runs/{stages['student']}",
        "targets_folder": f"runs/{stages['teacher.targets']}",
        "found": str(next(Path("runs/surveys").glob("survey_data-*/found.json"))),
        "sizes": str(next(Path("runs/tasks").glob("mnist-*.json"))),
    }


def bring_back(sound: Path) -> None:
    """Make the working folder as it was; files are links, as whoever writes them replaces them."""
    for name in ("runs", "exported"):
        shutil.rmtree(name, ignore_errors=True)
    shutil.copytree(sound, ".", copy_function=link, dirs_exist_ok=True)


def link(source: str, target: str) -> None:
    if not Path(target).exists():
        os.link(source, target)


def distill(words: str) -> tuple[Result, float]:
    """What a command answers, and the seconds that it worked."""
    began = time.process_time()
    result = CliRunner().invoke(main, words.split())
    return result, time.process_time() - began


def told(result: Result, seconds: float, file: str) -> str:
    """What is wrong with an answer; empty when all is well."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {result.exception}"
    if "Traceback" in result.output or "\x1b" in result.output:
        return f"not one plain line: {result.output[-500:]}"
    if seconds > SECONDS:
        return f"{seconds:.1f} s"
    if result.exit_code and (len(errors), Path(file).name in "".join(errors)) != (1, True):
        return f"not one line that names the file: {errors}"
    return ""


@pytest.mark.parametrize("file", READERS)
def test_a_damaged_file_is_one_line_or_done_without(file: str, sound: Path, names: dict[str, str]) -> None:
    path, problems = Path(file.format(**names)), []
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    before = path.read_bytes()
    changed: dict[str, bytes] = dict(NO_SUCH_SHAPE)
    if path.suffix in (".json", ".jsonl"):
        lines = [json.loads(line) for line in (before.splitlines() if path.suffix == ".jsonl" else [before])]
        for kind, change in OTHER_VALUES.items():
            changed[kind] = "\n".join(json.dumps(change(line)) for line in lines).encode()
    for kind, content in changed.items():
        for command, code in READERS[file].items():
            if command in SLOW and kind not in FOR_SLOW:
                continue
            bring_back(sound)
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            result, seconds = distill(COMMANDS[command].format(**names))
            if problem := told(result, seconds, path.name):
                problems.append(f"{command}, {kind}: {problem}")
            elif kind in NO_SUCH_SHAPE and result.exit_code != code:
                problems.append(f"{command}, {kind}: code {result.exit_code}: {result.stderr[-300:]}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("file", READERS)
def test_a_folder_in_the_place_of_a_file_is_one_line_or_done_without(
    file: str, sound: Path, names: dict[str, str]
) -> None:
    path, problems = Path(file.format(**names)), []
    for command in READERS[file]:
        bring_back(sound)
        path.unlink(missing_ok=True)
        path.mkdir(parents=True)
        result, seconds = distill(COMMANDS[command].format(**names))
        if problem := told(result, seconds, ""):
            problems.append(f"{command}: {problem}")
    assert not problems, "\n".join(problems)


@pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)
def test_a_damaged_run_keeps_no_other_from_being_sent(
    sound: Path, names: dict[str, str], tracking_database: Path
) -> None:
    for folder in (*Path("runs/plans").glob("*/*"), Path(names["search_folder"])):
        plan = (folder / "plan.yaml").read_text()
        (folder / "plan.yaml").unlink()
        (folder / "plan.yaml").write_text(plan.replace("tracking: none", "tracking: {}"))
    shutil.copyfile(tracking_database, "runs/mlflow.db")
    for damaged in ("{run_folder}/graph.json", "{search_folder}/search.json"):
        path = Path(damaged.format(**names))
        path.unlink()
        path.write_bytes(b"[" * 100_000)
    result = CliRunner().invoke(main, ["sync"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
    assert "graph.json` is damaged: it is nested too deep (and 1 more)" in result.stderr
    others = len(list(Path("runs/plans").glob("*/*"))) - 1
    assert result.stdout.count("→") == others > 0

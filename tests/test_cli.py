"""The `distill` command: help, exit codes, and what it says when asked for something that is not there."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from built_runs import BuiltRun
from click.testing import CliRunner, Result

import raydistill.run_plan
from raydistill import api
from raydistill.cli import main
from raydistill.errors import PlanError, StageError
from raydistill.plan import load
from raydistill.runs.view import open_run

PLAN = """\
name: probe
task: {name: mnist}
stages:
  teacher: {stage: train, replicas: 2, model: {name: mlp, widths: [30]}, epochs: 2}
  student: {stage: distill, student: {name: mlp, widths: [20]}, teachers: [teacher], epochs: 2}
"""


def distill(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    return file


def explained() -> list[str]:
    """Every name that `distill explain` lists."""
    lines = distill("explain").stdout.split("\n\n")[0].splitlines()
    return [name for line in lines for name in line.split(maxsplit=1)[1].split(", ")]


@pytest.mark.parametrize("command", sorted(main.commands))
def test_the_help_of_every_command_shows_two_examples(command: str) -> None:
    result = distill(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.count(f"\n  distill {command}") >= 2


def test_the_help_lists_every_command_and_an_example() -> None:
    result = distill("--help")
    assert result.exit_code == 0
    assert "\n  distill run configs/mnist_quickstart.yaml\n" in result.stdout
    assert all(f"\n  {command} " in result.stdout for command in main.commands)


def test_the_shell_completes_commands_and_names_of_plans() -> None:
    def completed(line: str) -> str:
        words = {"_DISTILL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        return CliRunner().invoke(main, env=words, prog_name="distill").stdout

    assert completed("distill pl") == "plain,plans\n"
    assert completed("distill run mnist_qu") == "plain,mnist_quickstart\nfile,mnist_qu\n"


@pytest.mark.parametrize(
    ("variables", "start"),
    [
        ({}, b"\x1b[31m\x1b[1merror:\x1b[0m `"),
        ({"NO_COLOR": ""}, b"\x1b[31m\x1b[1merror:\x1b[0m `"),  # set, but empty: no-color.org
        ({"NO_COLOR": "1"}, b"error: `"),
        ({"TERM": "dumb"}, b"error: `"),
    ],
)
def test_an_error_is_coloured_on_a_terminal_that_wants_it(
    tmp_path: Path, variables: dict[str, str], start: bytes
) -> None:
    command = [sys.executable, "-m", "raydistill.cli", "run", str(tmp_path / "missing.yaml")]
    plain = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            command, stderr=theirs, env={**plain, "TERM": "xterm", **variables}, check=False
        )
        shown = os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert shown.startswith(start)


def test_an_error_in_a_pipe_has_no_colour(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "raydistill.cli", "run", str(tmp_path / "missing.yaml")]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "TERM": "xterm"}, check=False)
    assert done.stderr.startswith(b"error: `")


def test_the_examples_of_the_help_name_plans_that_are_there() -> None:
    text = "".join(distill(command, "--help").stdout for command in main.commands)
    named = {word for word in text.split() if word.startswith("configs/")}
    assert named
    assert all((Path(__file__).parents[1] / name).is_file() for name in named)


def test_every_name_that_explain_lists_is_explained() -> None:
    names = explained()
    assert {"distill", "hinton", "mlp", "mnist", "adamw", "cosine", "shift", "resources"} <= set(names)
    for name in names:
        result = distill("explain", name)
        assert (name, result.exit_code, result.stderr) == (name, 0, "")
        assert result.stdout.startswith(f"{name}\n\n")
        assert result.stdout.splitlines()[2], f"`{name}` has no docstring"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "hintn"], "nothing is called `hintn`; did you mean `hinton`?"),
        (["run", "plna.yaml"], "`plna.yaml` does not exist; did you mean `plan.yaml`?"),
        (["run", "plan.yaml", "--set", "stages.student.epochs=0"], "should be at least 1, not `0`"),
        (["run", "plan.yaml", "--only", "studnt"], "the plan has no such stage; did you mean `student`?"),
        (["run", "plan.yaml", "--force", "teacher.9"], "the plan has no such stage; did you mean `teacher"),
        (["run", "plan.yaml", "--dryrun"], "--dry-run"),
        (["run", "plan.yaml", "--max-cpus", "2", "--local"], "--max-cpus is about a Ray cluster"),
        (["run"], "Missing argument 'PLAN'"),
        (["rnu"], "No such command 'rnu'"),
        (
            ["report", "plan.yaml"],
            "plan `probe` has no run under `runs`; start one with `distill run plan.yaml`",
        ),
    ],
    ids=" ".join,
)
def test_a_wrong_command_ends_with_code_2_and_what_to_do(
    arguments: list[str], words: str, plan: Path
) -> None:
    result = distill(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert list(plan.parent.iterdir()) == [plan]


def test_a_dry_run_shows_every_node_and_writes_nothing(plan: Path) -> None:
    result = distill("run", plan, "--dry-run")
    assert result.exit_code == 0
    rows = [line.split()[0] for line in result.stdout.splitlines() if "never run" in line]
    inserted = ["teacher.0.targets", "teacher.1.targets", "teacher.targets"]
    assert sorted(rows) == sorted(["teacher.0", "teacher.1", "student", *inserted])
    assert result.stdout.count("(inserted)") == 3
    assert "6 stages: 6 to run, 0 cached" in result.stdout
    assert list(plan.parent.iterdir()) == [plan]


def test_a_dry_run_counts_the_samples_of_each_class_without_torch(plan: Path) -> None:
    labels = np.repeat(np.arange(25), 40)
    labels[:35] = 24
    np.savez("digits.npz", inputs=np.ones((1000, 1, 8, 8), np.uint8), labels=labels)
    task = "{name: tensors, file: digits.npz, validation_fraction: 0, test_fraction: 0.5}"
    plan.write_text(PLAN.replace("{name: mnist}", task))
    code = (
        "import sys; from raydistill.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'torch', 'ray', 'mlflow'}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "run", str(plan), "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = ended.stdout.splitlines()
    assert lines[-1] == "[]"
    rows = [line.split() for line in lines]
    counted = [row for row in rows if len(row) == 4 and all(word.isdecimal() for word in row)]
    assert [row[0] for row in counted] == [str(label) for label in range(20)]
    assert int(counted[0][1]) + int(counted[0][3]) == 5
    most = next(row for row in rows if row[:1] == ["most:"])
    assert (most[1], int(most[2]) + int(most[4])) == ("24", 75)
    assert next(row[1] for row in rows if row[:1] == ["fewest:"]) == "0"
    assert next(row[2:] for row in rows if row[:2] == ["all", "25"]) == ["500", "0", "500"]
    assert any("of the training samples, `0`" in line for line in lines)


def test_only_leaves_out_what_the_named_stage_does_not_read(plan: Path) -> None:
    result = distill("run", plan, "--dry-run", "--only", "teacher.1", "--force", "teacher.1")
    assert "1 stage: 1 to run, 0 cached" in result.stdout
    assert "forced" in result.stdout


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("failed", 1), ("interrupted", 130)])
def test_the_exit_code_says_how_the_run_ended(
    status: str, code: int, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path("runs").absolute()
    folder = BuiltRun(root).write(status, seconds=1.0)
    monkeypatch.setattr(api, "run", lambda *arguments, **options: open_run(folder, root))
    result = distill("run", plan)
    assert result.exit_code == code
    assert f"{status} in 1.0 s\n" in result.stdout  # there is no report, so none is named
    report = (folder / "report.html").relative_to(Path.cwd())
    report.touch()
    assert f"{status} in 1.0 s; report: {report}" in distill("run", plan).stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StageError("the disk is full"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_of_ours_is_a_line_and_an_interrupt_is_130(
    error: BaseException, code: int, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_plan(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(raydistill.run_plan, "run_plan", run_plan)
    result = distill("run", plan)
    assert result.exit_code == code
    assert "Traceback" not in result.stderr


def test_the_version_is_told() -> None:
    result = distill("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("distill, version ")


@pytest.mark.parametrize("option", ["--runs", "--tracking-uri", "--address"])
def test_an_option_that_is_empty_is_no_default(plan: Path, option: str) -> None:
    result = distill("run", plan, option, "", "--dry-run")
    assert result.exit_code == 2
    assert result.output.startswith(f"error: {option} is empty; is a variable of the shell unset?")
    assert list(plan.parent.iterdir()) == [plan]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_before_anything_runs_says_a_word(
    plan: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(load, "load_plan", lambda *plan: signal.raise_signal(number))
    result = distill("run", plan)
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_what_nohup_has_ignored_stays_ignored(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang_up(*arguments: object) -> None:
        signal.raise_signal(signal.SIGHUP)
        raise PlanError("still here")

    monkeypatch.setattr(load, "load_plan", hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert "still here" in distill("run", plan).output
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_page_of_commands_names_all_of_them() -> None:
    page = (Path(__file__).parents[1] / "docs/commands.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {word.strip(" `") for row in rows for word in row.split(",")} == set(main.commands)

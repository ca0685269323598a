"""`distill run --local` from the command line to the exit code, with stages that only count."""

import importlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from raydistill import report, run_plan
from raydistill.cli import main
from raydistill.cli.then import without_then
from raydistill.errors import ClusterLost, StageStopped
from raydistill.execution import run_stage
from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.overlap import OverlappedBackend
from raydistill.execution.request import Outcome, StageRequest
from raydistill.execution.survey import PlanSurvey, Remark
from raydistill.plan.order import order_stages
from raydistill.runs.context import StageContext
from raydistill.runs.placement import Placement, here
from raydistill.runs.plan_run import NodeState, note_on_workers, plan_text
from raydistill.runs.run_files import ResultsFile
from raydistill.terminal import Progress, console, gathered, results_table, warning_lines

CHAIN: dict[str, dict[str, Any]] = {"teacher": {}, "student": {"reads": ["teacher"]}}
NOWHERE = {"tracking_uri": "nowhere", "experiment_id": "1", "run_id": "2"}


class NoTracking:
    """Stands in for the mirror to MLflow."""

    started = 0

    def __init__(self, folder: Path, root: Path, uri: str | None) -> None:
        self.is_finished = False

    def has_sent(self, previous: Path) -> bool:
        return (previous / "report.html").exists()

    def adopt(self, previous: Path) -> None:
        assert self.has_sent(previous)

    def start(self) -> None:
        NoTracking.started += 1

    def check(self) -> None: ...
    def hurry(self) -> None: ...

    def finish(self, seconds: float, rest: str = "next time") -> None:
        self.is_finished = True

    def description(self) -> dict[str, Any]:
        assert self.is_finished
        return NOWHERE


class Bench:
    """A folder with one plan and one storage root."""

    def __init__(self, folder: Path, counting: ModuleType) -> None:
        self.counting, self.root, self.plan = counting, folder / "runs", folder / "plan.yaml"

    def run(self, stages: Mapping[str, Mapping[str, Any]], *options: str) -> Result:
        self.plan.write_text(plan_text(self.counting.plan_of(stages)))
        return CliRunner().invoke(
            main, ["run", str(self.plan), "--local", "--runs", str(self.root), *options]
        )

    def tell(self, name: str, word: str) -> Path:
        self.root.mkdir(exist_ok=True)
        path = self.root / f"{name}.{word}"
        path.touch()
        return path

    def results(self) -> dict[str, Any]:
        """Of the last run."""
        newest = max(self.root.glob("plans/p/*/results.json"), key=lambda path: path.stat().st_mtime_ns)
        values: dict[str, Any] = json.loads(newest.read_text())
        return values

    def statuses(self) -> dict[str, str]:
        return {name: stage["status"] for name, stage in self.results()["stages"].items()}

    @property
    def calls(self) -> list[str]:
        calls: list[str] = self.counting.calls(self.root)
        return calls


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The run ids of reports that were made, not copied."""
    made: list[str] = []

    def write_report(folder: Path, root: Path) -> Path:
        made.append(folder.name)
        (folder / "report.html").write_text(folder.name)
        return folder / "report.html"

    monkeypatch.setattr(report, "write_report", write_report)
    return made


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: list[str]) -> Bench:
    monkeypatch.syspath_prepend(Path(__file__).parent / "execution")
    counting = importlib.import_module("counting_stages")
    for owner, name, value in counting.replacements():
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr(NoTracking, "started", 0)
    monkeypatch.setattr(run_plan, "Mirror", NoTracking)
    return Bench(tmp_path, counting)


def one_line(result: Result) -> str:
    """The error, which must be all that there is to read of it."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "Traceback" not in result.output
    (line,) = errors
    return line


def test_a_plan_runs_to_the_end_and_again_without_starting_anything(bench: Bench, reports: list[str]) -> None:
    first = bench.run(CHAIN)
    assert first.exit_code == 0, first.output
    results = bench.results()
    assert results["status"] == "done"
    assert results["mlflow"] == NOWHERE
    assert results["storage"] == str(bench.root)
    assert results["stages"]["student"]["metrics"] == {"test/accuracy": 0.6, "continued": 0.0}
    assert results["stages"]["student"]["parameters"] == 7
    again = bench.run(CHAIN)
    assert again.exit_code == 0
    assert bench.statuses() == {"teacher": "cached", "student": "cached"}
    assert bench.calls == ["teacher", "student"]
    assert reports == [results["run_id"]]
    copied = bench.root / "plans" / "p" / bench.results()["run_id"] / "report.html"
    assert copied.read_text() == results["run_id"]
    assert NoTracking.started == 1
    assert bench.run(CHAIN, "--force", "student").exit_code == 0
    assert bench.calls == ["teacher", "student", "student"]


def test_a_run_without_tracking_never_opens_the_store_and_its_plan_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(run_plan, "Mirror")
    for options in (("--no-tracking",), ("--set", "tracking=none")):
        result = bench.run(CHAIN, *options)
        assert result.exit_code == 0, result.output
        assert bench.results()["mlflow"] == {}
        written = bench.root / "plans" / "p" / bench.results()["run_id"] / "plan.yaml"
        assert yaml.safe_load(written.read_text())["tracking"] == "none"
    assert bench.calls == ["teacher", "student"]


@pytest.mark.parametrize("options", [("--no-tracking",), ("--set", "tracking=none")])
def test_a_store_that_is_named_for_a_run_without_tracking_is_a_mistake(
    bench: Bench, options: tuple[str, ...]
) -> None:
    result = bench.run(CHAIN, *options, "--tracking-uri", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert "leave" in one_line(result)
    assert not bench.calls


def test_a_run_ends_with_where_the_student_is_and_how_to_use_it(bench: Bench) -> None:
    result = bench.run(CHAIN)
    folder = bench.root / bench.results()["stages"]["student"]["folder"]
    assert result.stdout.splitlines()[-3:] == [
        f"`student` is in {folder}",
        f"  distill predict {folder} PICTURE... --runs {bench.root}",
        f"  distill evaluate {folder} --split test --runs {bench.root}",
    ]


def test_results_as_json_are_all_of_stdout_and_say_what_the_files_say(bench: Bench) -> None:
    bench.tell("teacher", "prints")
    result = bench.run(CHAIN, "--json")
    told = json.loads(result.stdout)
    assert "a line of the user's own" in result.stderr
    assert (told["status"], told["run"]) == ("done", f"p/{bench.results()['run_id']}")
    assert {name: stage["status"] for name, stage in told["stages"].items()} == bench.statuses()
    again = json.loads(bench.run(CHAIN, "--json", "--dry-run").stdout)
    assert [(stage["name"], stage["state"]) for stage in again["stages"]] == [
        ("teacher", "cached"),
        ("student", "cached"),
    ]


def test_with_json_a_failure_is_still_the_exit_code_and_a_wrong_plan_leaves_stdout_empty(
    bench: Bench,
) -> None:
    bench.tell("student", "fails")
    failed = bench.run(CHAIN, "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["stages"]["student"]["error"]
    wrong = bench.run(CHAIN, "--json", "--only", "nobody")
    assert (wrong.exit_code, wrong.stdout) == (2, "")


def test_a_run_says_how_long_what_was_cached_took_when_it_ran(bench: Bench) -> None:
    first = bench.run(CHAIN)
    assert "what was cached" not in first.stdout
    for path, seconds in zip(sorted(bench.root.glob("stages/*/record.json")), (4000.0, 200.0), strict=True):
        held = {"seconds": seconds, "reserved": {"cpus": 9.0, "gpus": 0.5}}
        path.write_text(json.dumps(json.loads(path.read_text()) | held))
    again = bench.run(CHAIN).stdout
    assert "what was cached took 1 h 10 min 00 s when it ran: 10 h of CPU and 0.58 h of GPU" in again
    assert "what ran took" not in again
    told = json.loads(bench.run(CHAIN, "--json").stdout)
    assert told["saved_seconds"] == 4200.0
    assert told["saved_hours"] == pytest.approx({"cpus": 10.5, "gpus": 2100 / 3600})
    assert told["hours"] == {"cpus": 0.0, "gpus": 0.0}


def test_hours_are_what_a_stage_held_times_how_long(bench: Bench) -> None:
    told = json.loads(bench.run(CHAIN, "--json", "--set", "stages.teacher.resources={cpus: 3.0}").stdout)
    stages = told["stages"]
    assert stages["teacher"]["hours"]["cpus"] == pytest.approx(3 * stages["teacher"]["seconds"] / 3600)
    assert told["hours"]["cpus"] == pytest.approx(sum(stage["hours"]["cpus"] for stage in stages.values()))
    assert told["hours"]["gpus"] == 0


TELLING = 'printf "%s|%s|%s|%s" "$RAYDISTILL_STATUS" "$RAYDISTILL_EXIT_CODE" "$RAYDISTILL_FOLDER" "$RAYDISTILL_ERROR"'


def test_a_command_at_the_end_is_told_how_it_ended(bench: Bench, tmp_path: Path) -> None:
    told = tmp_path / "told"
    then = f"--then={TELLING} > {told}"
    assert bench.run(CHAIN, then).exit_code == 0
    [folder] = bench.root.glob("plans/p/*")
    assert told.read_text() == f"done|0|{folder}|"

    bench.tell("student", "fails")
    assert bench.run(CHAIN, then, "--force", "student").exit_code == 1
    assert told.read_text().startswith("failed|1|/")
    assert told.read_text().endswith("|stage `student`: student has a fault [/of] its own")

    assert bench.run(CHAIN, then, "--only", "nobody").exit_code == 2
    assert told.read_text().startswith("refused|2||--only nobody: ")

    told.unlink()
    assert bench.run(CHAIN, then, "--dry-run").exit_code == 0
    assert not told.exists(), "nothing was run that could end"


def test_a_command_at_the_end_that_fails_is_a_line_and_not_the_exit_code(bench: Bench) -> None:
    result = bench.run(CHAIN, "--then", "exit 3", "--json")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1].startswith("--then: the command ended with exit code 3")
    assert json.loads(result.stdout)["status"] == "done"


def test_what_is_kept_of_a_command_line_is_without_the_command_at_the_end() -> None:
    words = ["run", "p.yaml", "--then", "curl https://secret", "--local", "--then=curl https://secret"]
    assert without_then(words) == ["run", "p.yaml", "--local"]


def test_a_student_that_failed_is_not_shown_around(bench: Bench) -> None:
    bench.tell("student", "fails")
    assert "distill predict" not in bench.run(CHAIN).stdout


def test_elsewhere_than_on_a_terminal_a_line_says_how_far_a_stage_is(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = order_stages(bench.counting.plan_of({"student": {"epochs": 4}}))
    folder = bench.root / graph.nodes["student"].folder
    folder.mkdir(parents=True)
    progress = Progress({"student": NodeState()}, graph, bench.root)
    progress.update("student", NodeState("running", placement=Placement("running", (here(),))))
    now = time.time() + 1
    for epoch in (1, 2):
        with (folder / "metrics.jsonl").open("a") as stream:
            line = {"step": 10 * epoch, "time": now + 1000 * epoch, "epoch": epoch, "train/loss": 1 / epoch}
            stream.write(f"{json.dumps(line)}\n")
    progress.tell()
    progress.tell()
    told = [line.partition(" s  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == ["student: running", "student: epoch 2 of 4, loss 0.5, 67 min left"]


def test_a_stage_that_does_not_get_going_is_told_of_and_another_node_is_named(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {name: {"epochs": 4} for name in ("a", "b", "c")}
    graph = order_stages(bench.counting.plan_of(stages))
    progress = Progress({name: NodeState() for name in stages}, graph, bench.root)
    progress.update("a", NodeState("running", attempts=1))
    progress.update("b", NodeState("waiting", has_no_room=True))
    progress.update("c", NodeState("waiting", has_no_room=True))
    progress.tell()
    far = Placement("running", ("gpu-7",))
    progress.update("a", NodeState("running", attempts=1, placement=far))
    progress.update("a", NodeState("running", attempts=1, placement=Placement("node lost", far.nodes)))
    progress.update("a", NodeState("running", attempts=2, placement=Placement("running", ("gpu-8", "gpu-9"))))
    told = [line.partition(" s  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == [
        "a: starting",
        "b, c: waiting for room",
        "a: running on gpu-7",
        "a: node lost on gpu-7",
        "a: running, attempt 2 on gpu-8, gpu-9",
    ]


def test_the_table_says_how_many_workers_made_a_result(bench: Bench) -> None:
    stages = {"one": {}, "two": {"resources": {"workers": 2}}}
    assert bench.run(stages).exit_code == 0
    entries = bench.results()["stages"]
    assert [entries[name]["workers"] for name in stages] == [1, 1]
    assert entries["two"]["note"] == "made by 1 worker, not 2: the same but for rounding"
    assert "note" not in entries["one"]
    assert note_on_workers(2, 2) == "2 workers"


def test_what_a_students_process_does_next_comes_after_its_record_and_may_fail(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[tuple[str, str, bool]] = []

    def export(stage: str, to: str) -> None:
        exported.append((Path(stage).name, Path(to).name, (Path(stage) / "record.json").exists()))
        raise ValueError("it cannot be traced")

    def load(address: str) -> Any:
        return export if address == "raydistill.tracking.logged_model:export_noted" else bench.counting.count

    monkeypatch.setattr(run_stage, "load_object", load)
    assert bench.run(CHAIN).exit_code == 0
    folder = Path(bench.results()["stages"]["student"]["folder"]).name
    assert exported == [(folder, "student", True)]
    assert bench.run(CHAIN, "--no-tracking", "--force", "student").exit_code == 0
    assert len(exported) == 1


def test_the_driver_prepares_once_while_the_first_stages_start() -> None:
    done: list[str] = []

    class Plain(LocalBackend):
        def placements(self) -> dict[str, Any]:
            return {}

        def try_start(self, request: StageRequest) -> bool:
            done.append(f"{request.name} {request.afterwards}")
            return True

        def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
            done.append("wait")
            return []

    backend = OverlappedBackend(Plain(), {"stages/b": ("package:call", "x")}, lambda: done.append("prepare"))
    for name in ("a", "b"):
        backend.try_start(StageRequest(name, "train", "f", f"stages/{name}", "/r", {}, {}, {}, {}, "attempt"))
    backend.wait(0)
    backend.wait(0)
    assert done == ["a ()", "b ('package:call', 'x')", "prepare", "wait", "wait"]


def test_a_failed_stage_is_exit_code_1_and_a_table_with_its_error(bench: Bench, reports: list[str]) -> None:
    bench.tell("teacher", "fails")
    result = bench.run(CHAIN | {"other": {}})
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert "teacher has a fault [/of] its own" in result.stdout
    assert bench.results()["status"] == "failed"
    assert bench.statuses() == {"teacher": "failed", "student": "skipped", "other": "done"}
    assert bench.results()["stages"]["teacher"]["error"] == "teacher has a fault [/of] its own"
    assert len(reports) == 1


def test_an_interrupt_stops_the_stage_and_the_next_run_continues_it(bench: Bench) -> None:
    before = signal.getsignal(signal.SIGINT)  # in a shell's background it is ignored
    hand = bench.tell("teacher", "interrupts")
    result = bench.run(CHAIN)
    assert result.exit_code == 130
    assert bench.results()["status"] == "interrupted"
    assert bench.statuses() == {"teacher": "stopped", "student": "stopped"}
    hand.unlink()
    assert bench.run(CHAIN).exit_code == 0
    assert bench.results()["stages"]["teacher"]["metrics"]["continued"] == 1.0
    assert signal.getsignal(signal.SIGINT) is before


def test_a_ray_cluster_that_is_lost_ends_a_run_like_an_interrupt_but_as_a_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost(LocalBackend):
        def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
            raise ClusterLost("the head is gone; the same command goes on")

    with monkeypatch.context() as patch:
        patch.setattr(run_plan, "build_backend", lambda options, stop: Lost(stop))
        result = bench.run(CHAIN)
    assert result.exit_code == 1
    assert one_line(result) == "error: the head is gone; the same command goes on"
    assert bench.results()["status"] == "interrupted"
    assert bench.statuses() == {"teacher": "stopped", "student": "stopped"}
    assert bench.run(CHAIN).exit_code == 0, "its leases are free"


def test_a_second_interrupt_ends_a_stage_that_does_not_listen(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(config: Any, context: StageContext) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        assert context.should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(run_stage, "load_object", lambda path: deaf)
    assert bench.run(CHAIN).exit_code == 130
    assert bench.results()["status"] == "interrupted"
    assert bench.statuses() == {"teacher": "stopped", "student": "stopped"}


def test_a_terminal_that_closes_stops_a_run_as_an_interrupt_does(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listening(config: Any, context: StageContext) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGHUP)
        assert context.should_stop()
        raise StageStopped("checkpoint written")

    monkeypatch.setattr(run_stage, "load_object", lambda path: listening)
    result = bench.run(CHAIN)
    assert result.exit_code == 130
    assert bench.results()["status"] == "interrupted"
    assert "report:" not in result.output


def test_a_report_that_cannot_be_drawn_is_one_line_and_not_the_exit_code(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(folder: Path, root: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_report", fail)
    result = bench.run(CHAIN)
    assert result.exit_code == 0
    assert "report:" not in result.output
    [line] = [record.getMessage() for record in caplog.records if "report" in record.getMessage()]
    assert "No space left on device" in line
    assert "\n" not in line


def test_a_report_that_cannot_be_copied_is_one_line_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert bench.run(CHAIN).exit_code == 0

    def fail(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(run_plan, "copy_report", fail)
    assert bench.run(CHAIN).exit_code == 0
    assert "Operation not permitted" in caplog.text


def test_a_report_is_drawn_again_only_when_what_it_shows_changed(bench: Bench, reports: list[str]) -> None:
    def drawn_by(stages: Mapping[str, Mapping[str, Any]], *options: str) -> bool:
        before = len(reports)
        assert bench.run(stages, *options).exit_code == 0
        page = bench.root / "plans" / "p" / bench.results()["run_id"] / "report.html"
        assert page.read_text() in reports
        return len(reports) > before

    assert drawn_by(CHAIN)
    assert drawn_by(CHAIN, "--only", "teacher")
    assert not drawn_by(CHAIN)  # it was drawn by the run before the last one
    assert not drawn_by(CHAIN, "--only", "teacher")
    assert drawn_by(CHAIN, "--force", "teacher", "--only", "teacher")
    assert drawn_by(CHAIN)  # it shows the teacher, too
    assert drawn_by(CHAIN, "--set", "tracking.experiment=another")  # and the plan
    bench.tell("student", "fails")
    assert bench.run(CHAIN, "--force", "student").exit_code == 1
    (bench.root / "student.fails").unlink()
    assert drawn_by(CHAIN)
    assert not drawn_by(CHAIN)
    for damaged in bench.root.glob("plans/p/*/graph.json"):
        damaged.write_text("[" * 100_000)
    assert drawn_by(CHAIN)


def test_results_say_what_runs_while_it_runs(bench: Bench) -> None:
    brake = bench.tell("student", "waits")
    seen: list[dict[str, Any]] = []

    def look() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not seen:
            time.sleep(0.02)
            if "student" in bench.calls and bench.statuses()["student"] == "running":
                seen.append(bench.results())
        brake.unlink()

    spectator = threading.Thread(target=look)
    spectator.start()
    assert bench.run(CHAIN).exit_code == 0
    spectator.join()
    assert seen[0]["status"] == "running"
    assert seen[0]["stages"]["teacher"]["status"] == "done"


def test_only_and_force_choose_what_runs(bench: Bench) -> None:
    bench.run(CHAIN, "--only", "teacher")
    assert list(bench.statuses()) == ["teacher"]
    bench.run(CHAIN, "--force", "teacher")
    assert bench.calls == ["teacher", "teacher", "student"]


def test_an_unknown_stage_is_exit_code_2_and_leaves_nothing(bench: Bench) -> None:
    result = bench.run(CHAIN, "--force", "teachr")
    assert result.exit_code == 2
    assert "did you mean `teacher`?" in one_line(result)
    assert not bench.root.exists()


def test_a_root_that_cannot_be_made_is_one_line_and_exit_code_1(bench: Bench) -> None:
    bench.root.write_text("a file is in the way")
    result = bench.run(CHAIN)
    assert result.exit_code == 1
    assert str(bench.root) in one_line(result)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_root_is_one_line_and_exit_code_1(bench: Bench) -> None:
    bench.root.mkdir(mode=0o500)
    result = bench.run(CHAIN)
    assert result.exit_code == 1
    assert "Permission denied" in one_line(result)


def full(descriptor: int) -> None:
    """What `fsync` says on a full disk."""
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_from_the_start_is_one_line_and_exit_code_1(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = bench.run(CHAIN)
    assert result.exit_code == 1
    assert "No space left on device" in one_line(result)
    assert bench.calls == []
    assert bench.run(CHAIN).exit_code == 0


def test_a_disk_that_fills_up_while_stages_run_is_one_line_and_loses_nothing_that_was_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def fill(config: Any, context: StageContext) -> dict[str, float]:
            if context.name == "student":
                patch.setattr(os, "fsync", full)
            metrics: dict[str, float] = bench.counting.count(config, context)
            return metrics

        patch.setattr(run_stage, "load_object", lambda path: fill)
        result = bench.run(CHAIN)
    assert result.exit_code == 1
    assert "No space left on device" in one_line(result)
    assert bench.run(CHAIN).exit_code == 0
    assert bench.statuses() == {"teacher": "cached", "student": "done"}
    assert not list(bench.root.rglob(".*.tmp"))


def test_the_table_shows_brackets_as_they_are() -> None:
    stage = {"stage": "train", "status": "failed", "seconds": 1.0, "error": "sizes [3, 4] and [/bold] differ"}
    out = console()
    with out.capture() as captured:
        out.print(results_table(ResultsFile.model_validate({"stages": {"teacher": stage}})))
    assert "sizes [3, 4] and [/bold] differ" in captured.get()


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["a", "b.0", "b.1", "b.2", "c"], ["a", "b.0–2", "c"]),
        (["b.0", "b.1", "b.3", "c.4"], ["b.0", "b.1", "b.3", "c.4"]),
        (["b.9", "b.10", "b.11", "x.12", "b.12"], ["b.9–11", "x.12", "b.12"]),
        (["b.targets", "b.0.targets", "b"], ["b.targets", "b.0.targets", "b"]),
        ([], []),
    ],
)
def test_many_replicas_in_a_row_are_written_as_one(names: list[str], written: list[str]) -> None:
    assert gathered(names) == written


def test_what_replicas_warn_of_alike_is_a_line() -> None:
    def entry(*warnings: str) -> dict[str, Any]:
        return {"stage": "train", "status": "done", "warnings": warnings}

    results = ResultsFile.model_validate(
        {
            "stages": {
                "small.0": entry("never predicted: `a`, `b` and 4 more, with 1,216 samples"),
                "small.1": entry("never predicted: `c` and 12 more, with 24 samples", "is at chance"),
                "small.2": entry("never predicted: `a`, with 24 samples"),
                "small.10": entry("never predicted: `a` and 4 more, with 24.5 samples"),
                "small.3": entry("3 of 5"),
                "small.4": entry("`a` of `b`"),
                "large.0": entry("never predicted: `a`, `b` and 4 more, with 1,216 samples"),
                "small.0.targets": entry("is at chance"),
                "ensemble": entry("is at chance"),
            }
        }
    )
    assert warning_lines(results) == [
        "[yellow]warning[/]: small.0: never predicted: `a`, `b` and 4 more, with 1,216 samples; likewise small.1,"
        " small.2, small.10",
        "[yellow]warning[/]: small.1: is at chance",
        "[yellow]warning[/]: small.3: 3 of 5",
        "[yellow]warning[/]: small.4: `a` of `b`",
        "[yellow]warning[/]: large.0: never predicted: `a`, `b` and 4 more, with 1,216 samples",
        "[yellow]warning[/]: small.0.targets: is at chance",
        "[yellow]warning[/]: ensemble: is at chance",
    ]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says besides its usual course."""
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_a_stage_warns_of_is_told_before_others_learn_from_it_and_at_the_end(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.tell("teacher", "warns")
    first = bench.run(CHAIN)
    assert warned(caplog) == ["teacher: teacher is [/of] no use"]
    assert bench.results()["stages"]["teacher"]["warnings"] == ["teacher is [/of] no use"]
    assert "warnings" not in bench.results()["stages"]["student"]
    again = bench.run(CHAIN)
    assert bench.calls == ["teacher", "student"]
    for result in (first, again):
        assert result.stdout.count("warning: teacher: teacher is [/of] no use\n") == 1


def found(monkeypatch: pytest.MonkeyPatch, *remarks: Remark) -> None:
    survey = PlanSurvey({"train": (3, 4)}, remarks)
    monkeypatch.setattr(run_plan, "survey_plan", lambda *arguments: survey)


def test_what_a_survey_has_against_a_plan_is_a_line_each_and_nothing_starts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, reports: list[str]
) -> None:
    found(
        monkeypatch,
        Remark("error", "no samples [/of] use"),
        Remark("error", "it has 1000 outputs", ("student",)),
        Remark("warning", "it is large", ("student",)),
    )
    result = bench.run(CHAIN)
    assert result.exit_code == 2
    assert [line for line in result.stderr.splitlines() if line.startswith("error:")] == [
        "error: data: no samples [/of] use",
        "error: `student`: it has 1000 outputs",
    ]
    assert (bench.calls, reports) == ([], [])
    stages = bench.results()["stages"]
    assert {name: entry["error"] for name, entry in stages.items()} == {
        "teacher": "no samples [/of] use",
        "student": "it has 1000 outputs",
    }


def test_stages_that_a_survey_has_nothing_against_are_skipped_with_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, Remark("error", "it has 1000 outputs", ("student",)))
    assert bench.run(CHAIN | {"alone": {}}).exit_code == 2
    assert bench.statuses() == {"teacher": "skipped", "student": "failed", "alone": "skipped"}


def test_what_a_survey_warns_of_is_printed_and_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, Remark("warning", "few [/of] them"), Remark("note", "fewer still"))
    result = bench.run(CHAIN)
    assert result.exit_code == 0
    assert result.stdout.count("warning: data: few [/of] them\n") == 1
    assert "fewer still" not in result.stdout
    assert [remark["text"] for remark in bench.results()["survey"]] == ["few [/of] them", "fewer still"]
    (file,) = bench.root.glob("plans/p/*/survey.json")
    assert json.loads(file.read_text())["counts"] == {"train": [3, 4]}


def test_nothing_is_looked_at_when_nothing_will_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run(CHAIN)
    found(monkeypatch, Remark("error", "nobody may see this"))
    assert bench.run(CHAIN).exit_code == 0
    assert bench.run(CHAIN, "--force", "student").exit_code == 2
    assert bench.run(CHAIN, "--dry-run").exit_code == 0


def test_what_nobody_reads_is_warned_of_at_the_end_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.tell("student", "warns")
    result = bench.run(CHAIN)
    assert warned(caplog) == []
    assert result.stdout.count("warning: student: student is [/of] no use\n") == 1
    (folder,) = bench.root.glob("stages/distill-*")
    assert "warning: student is [/of] no use" in (folder / "log.txt").read_text()

"""`distill list`, `show`, `compare` and `clean` on the command line."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from built_runs import BuiltRun, BuiltSearch, fingerprint_of
from click.testing import CliRunner, Result

from raydistill.cli import main
from raydistill.plan.order import order_stages
from raydistill.runs.plan_run import plan_text
from raydistill.runs.record import Record

SPACE = {"student.method.temperature": {"loguniform": [1, 20]}}


def invoke(root: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(main, [*arguments, "--runs", str(root)])
    assert "Traceback" not in result.output
    return result


def values(root: Path, *arguments: str) -> Any:
    result = invoke(root, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def write_plan(run: BuiltRun, **stages: dict[str, Any]) -> None:
    (run.folder / "plan.yaml").write_text(yaml.safe_dump({"name": run.plan, "stages": stages}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two runs of one plan that share a teacher, and a search."""
    root = tmp_path / "runs"
    for run_id, student, epochs, accuracy in (
        ("20260101-120000-aaaa", "first", 10, 0.9),
        ("20260102-120000-bbbb", "second", 20, 0.95),
    ):
        run = BuiltRun(root, plan="p", run_id=run_id)
        run.stage("teacher", metrics={"test/accuracy": 0.99}, is_recorded=student == "first")
        reads = {"teachers": [{"input": fingerprint_of("teacher")}]}
        run.stage(
            student,
            "distill",
            role="student",
            reads=["teacher"],
            parameters=500,
            metrics={"test/accuracy": accuracy},
            config={"epochs": epochs, **reads},
            warnings=["it is [small]"],
        )
        run.nodes[1] = run.nodes[1].model_copy(update={"name": "student", "stage": "student"})
        run.states["student"] = run.states[student]
        run.write()
        write_plan(run, teacher={"stage": "train"}, student={"stage": "distill", "epochs": epochs})
    search = BuiltSearch(root, SPACE, plan="p")
    search.trial({"student.method.temperature": 4.0}, 0.93, stages={"student": f"stages/{folder('first')}"})
    return root


def folder(name: str) -> str:
    return f"{'train' if name == 'teacher' else 'distill'}-{fingerprint_of(name)}"


def test_plans_runs_searches_and_stages_are_listed_with_their_size_and_age_and_readers(root: Path) -> None:
    (plan,) = values(root, "list")
    assert (plan["plan"], plan["runs"], plan["searches"], plan["stages"]) == ("p", 2, 1, 3)
    assert (plan["last run"], plan["status"]) == ("20260102-120000-bbbb", "done")
    files = [path for path in (root / "stages").rglob("*") if path.is_file()]
    assert plan["size"] == sum(path.stat().st_size for path in files)
    assert 0 <= plan["age"] < 600
    assert [row["run"] for row in values(root, "list", "runs")] == [
        "p/20260102-120000-bbbb",
        "p/20260101-120000-aaaa",
    ]
    (search,) = values(root, "list", "searches")
    assert (search["search"], search["trials"], search["best"]) == ("p-0123456789ab", 1, None)
    stages = {row["stage"]: row for row in values(root, "list", "stages")}
    assert {name: (row["readers"], row["part of"]) for name, row in stages.items()} == {
        folder("teacher"): (4, ["p"]),
        folder("first"): (2, ["p", "p-0123456789ab"]),
        folder("second"): (1, ["p"]),
    }
    for what in ("plans", "runs", "searches", "stages"):
        lines = invoke(root, "list", what).stdout.splitlines()
        assert len(lines) >= 2
        assert all(line == line.rstrip() and "\x1b" not in line for line in lines)


def test_an_empty_root_and_none_are_told_apart(tmp_path: Path) -> None:
    assert "there are no plans" in invoke(tmp_path, "list").stdout
    assert values(tmp_path, "list", "stages") == []
    missing = invoke(tmp_path / "nowhere", "list")
    assert missing.exit_code == 1
    assert (
        missing.stderr == f"error: there is no storage root `{tmp_path / 'nowhere'}`; name it with `--runs`\n"
    )
    assert "nothing to delete" in invoke(tmp_path, "clean").stdout


def test_damaged_runs_are_listed_with_what_is_wrong_with_them(root: Path) -> None:
    (root / "plans" / "p" / "20260101-120000-aaaa" / "results.json").write_text("[")
    (root / "searches" / "p-0123456789ab" / "search.json").write_text("[]")
    (root / "stages" / folder("first") / "record.json").write_text("{}")
    damaged = values(root, "list", "runs")[1]
    assert damaged["status"] == "damaged"
    assert "results.json` is damaged" in damaged["note"]
    assert values(root, "list", "searches")[0]["status"] == "damaged"
    assert {row["state"] for row in values(root, "list", "stages")} == {"done", "damaged"}
    shown = invoke(root, "show", "p-0123456789ab")
    assert (shown.exit_code, len(shown.stderr.splitlines())) == (1, 1)
    assert invoke(root, "show", "20260101-120000-aaaa").exit_code == 1
    assert "record.json` is damaged" in invoke(root, "show", fingerprint_of("first")).stdout


@pytest.mark.parametrize("name", ["{folder}", "{fingerprint}", "{fingerprint:.6}", "p/student", "{path}"])
def test_a_stage_is_shown_by_whatever_name(root: Path, name: str) -> None:
    fingerprint, own = fingerprint_of("second"), folder("second")
    written = name.format(folder=own, fingerprint=fingerprint, path=root / "stages" / own)
    shown = values(root, "show", written)
    assert (shown["stage"], shown["kind"], shown["state"]) == (own, "distill", "done")
    assert shown["options"] == {"epochs": "20", "teachers": f'["{folder("teacher")}"]'} or shown[
        "options"
    ] == {
        "epochs": "20",
        "teachers.0": folder("teacher"),
    }
    assert (shown["metrics"], shown["parameters"]) == ({"test/accuracy": 0.95}, 500)
    assert shown["made from"] == [folder("teacher")]
    assert shown["part of"] == ["p/20260102-120000-bbbb: student"]
    assert "record.json" in shown["files"]
    text = invoke(root, "show", written).stdout
    assert all(word in text for word in (own, "0.95", folder("teacher"), "it is [small]"))


def test_who_reads_a_stage_is_shown(root: Path) -> None:
    teacher = values(root, "show", folder("teacher"))
    assert set(teacher["readers"]) == {folder("first"), folder("second")}
    assert len(teacher["part of"]) == 2
    assert values(root, "show", folder("first"))["searches"] == ["p-0123456789ab"]


@pytest.mark.parametrize(
    "name", ["p", "20260102-120000-bbbb", "20260102", "p/20260102-120000-bbbb", "{path}"]
)
def test_a_run_is_shown_by_whatever_name(root: Path, name: str) -> None:
    path = root / "plans" / "p" / "20260102-120000-bbbb"
    shown = values(root, "show", name.format(path=path))
    assert (shown["run"], shown["status"]) == ("p/20260102-120000-bbbb", "done")
    assert shown["stages"]["student"]["metrics"] == {"test/accuracy": 0.95}
    text = invoke(root, "show", name.format(path=path)).stdout
    assert "95.00 %" in text
    assert "it is [small]" in text


def test_a_search_is_shown_with_its_best_trials(root: Path) -> None:
    assert values(root, "show", "p-0123456789ab")["trials"][0]["metric"] == 0.93
    text = invoke(root, "show", "p-0123456789ab").stdout
    assert "temperature" in text
    assert "0.93" in text


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("20260101-120000-aaab", "did you mean `20260101-120000-aaaa`"),
        ("2026", "may be `20260101-120000-aaaa`, `20260102-120000-bbbb`; write more of it"),
        ("what-ever/else", "; `distill list` shows what there is"),
    ],
)
def test_a_name_that_is_nothing_or_two_things_is_a_mistake(root: Path, name: str, told: str) -> None:
    result = invoke(root, "show", name)
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_two_runs_are_compared_in_options_and_results(root: Path) -> None:
    contrast = values(root, "compare", "20260101", "20260102")
    assert contrast["options"] == [{"option": "stages.student.epochs", "left": "10", "right": "20"}]
    (result,) = contrast["results"]
    assert (result["stage"], result["metric"]) == ("student", "test/accuracy")
    assert (result["left"], result["right"]) == (0.9, 0.95)
    text = invoke(root, "compare", "20260101", "20260102").stdout
    assert "stages.student.epochs" in text
    assert "+0.05" in text
    assert "differ in nothing" in invoke(root, "compare", "p", "p").stdout


def test_runs_of_two_plans_are_compared_by_the_names_of_their_stages(root: Path) -> None:
    other = BuiltRun(root, plan="q", run_id="20260103-1")
    for index, accuracy in enumerate((0.5, 0.7)):
        other.stage(f"student.{index}", role="student", metrics={"test/accuracy": accuracy})
    other.write("failed", versions={"torch": "3.0"})
    contrast = values(root, "compare", "p", "q")
    assert "only p/20260102-120000-bbbb has `teacher`" in contrast["others"]
    assert "torch 2.15.0 → 3.0" in contrast["others"]
    student = next(entry for entry in contrast["results"] if entry["stage"] == "student" and entry["right"])
    assert (student["right"], student["left_deviation"]) == (pytest.approx(0.6), None)
    assert student["right_deviation"] == pytest.approx(0.02**0.5)  # -0.1² + 0.1², over n - 1
    assert not [entry for entry in contrast["results"] if entry["stage"] == "student.0"]


def test_what_no_option_says_is_named_too(root: Path) -> None:
    places = [root / "stages" / folder(name) / "config.json" for name in ("first", "second")]
    for place, digest in zip(places, ("a" * 64, "b" * 64), strict=True):
        identity = json.loads(place.read_text())
        identity["task"]["content"] = digest
        identity["config"]["source"] = {"modules": {"mine.nets": digest}}
        place.write_text(json.dumps(identity))
    others = values(root, "compare", "20260101", "20260102")["others"]
    assert "`student`: module `mine.nets` changed" in others
    assert any("data" in line for line in others)


def test_two_stages_are_compared_and_a_run_with_a_stage_is_not(root: Path) -> None:
    contrast = values(root, "compare", folder("first"), folder("second"))
    assert contrast["options"] == [{"option": "epochs", "left": "10", "right": "20"}]
    assert contrast["results"][0]["right"] == 0.95
    mixed = invoke(root, "compare", folder("first"), "p")
    assert mixed.exit_code == 2
    assert "cannot be compared" in mixed.stderr


def test_clean_touches_nothing_until_it_is_told_to(root: Path) -> None:
    (root / "searches" / "p-0123456789ab" / "trials").rename(root / "elsewhere")
    before = sorted(path for path in root.rglob("*"))
    dry = invoke(root, "clean", "--keep-runs", "1")
    assert dry.exit_code == 0
    assert folder("first") in dry.stdout
    assert "1 to delete" in dry.stdout
    assert "`--yes` deletes" in dry.stdout
    assert sorted(path for path in root.rglob("*")) == before
    assert "1 deleted" in invoke(root, "clean", "--keep-runs", "1", "--yes").stdout
    assert sorted(path.name for path in (root / "stages").iterdir()) == sorted(
        map(folder, ("second", "teacher"))
    )
    assert values(root, "list", "runs")[1]["gone"] == 1
    assert values(root, "show", "20260101")["stages"]["student"]["metrics"] == {"test/accuracy": 0.9}


def test_a_stage_that_cannot_be_deleted_is_named_and_the_others_go(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "searches" / "p-0123456789ab" / "trials").rename(root / "elsewhere")
    for name in ("lonely", "free"):
        BuiltRun(root).stage(name, errors=1)
    cleaning = importlib.import_module("raydistill.runs.cleaning")
    real = cleaning.shutil.rmtree

    def refuse(path: Path) -> None:
        if fingerprint_of("lonely") in path.name:
            raise PermissionError(13, "Permission denied")
        real(path)

    monkeypatch.setattr(cleaning.shutil, "rmtree", refuse)
    result = invoke(root, "clean", "--keep-runs", "2", "--yes")
    assert result.exit_code == 1
    assert "Permission denied" in result.stderr
    assert "1 deleted" in result.stdout
    assert not (root / "stages" / f"train-{fingerprint_of('free')}").exists()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stages that count how often they run, in place of those that train."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "execution")
    stages = importlib.import_module("counting_stages")
    for owner, name, value in stages.replacements():
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr(importlib.import_module("raydistill.run_plan"), "write_report_of", lambda run: None)
    return stages


def test_a_plan_that_is_run_again_makes_again_what_is_gone_and_nothing_else(
    tmp_path: Path, counting: Any
) -> None:
    root, file = tmp_path / "runs", tmp_path / "plan.yaml"
    chain: dict[str, Any] = {"teacher": {}, "student": {"reads": ["teacher"]}}

    def run(**options: Any) -> None:
        plan = counting.plan_of({**chain, "student": {**chain["student"], **options}})
        file.write_text(plan_text(plan))
        assert invoke(root, "run", str(file), "--local", "--no-tracking").exit_code == 0

    run()
    run(epochs=2)
    assert counting.calls(root) == ["teacher", "student", "student"]
    assert "1 deleted" in invoke(root, "clean", "--keep-runs", "1", "--yes").stdout
    run()
    assert counting.calls(root) == ["teacher", "student", "student", "student"]
    run(epochs=2)
    assert counting.calls(root) == ["teacher", "student", "student", "student"]
    graph = order_stages(counting.plan_of(chain))
    record = json.loads((root / graph.nodes["student"].folder / "record.json").read_text())
    assert Record.model_validate(record).status == "done"


def test_a_run_that_goes_on_while_others_clean_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: Any
) -> None:
    root, file = tmp_path / "runs", tmp_path / "plan.yaml"
    chain: dict[str, Any] = {"teacher": {}, "student": {"reads": ["teacher"]}}
    file.write_text(plan_text(counting.plan_of(chain)))
    real, cleaned = counting.count, list[str]()

    def count_and_clean(config: Any, context: Any) -> Any:
        metrics = real(config, context)
        cleaned.append(invoke(root, "clean", "--keep-runs", "1", "--yes").stdout)
        return metrics

    monkeypatch.setattr(counting, "count", count_and_clean)
    monkeypatch.setattr(
        importlib.import_module("raydistill.execution.run_stage"), "load_object", lambda _: count_and_clean
    )
    assert invoke(root, "run", str(file), "--local", "--no-tracking").exit_code == 0
    assert [text.splitlines()[-1] for text in cleaned] == ["0 deleted, 0 B"] * 2
    assert counting.calls(root) == ["teacher", "student"]


def test_these_commands_load_neither_torch_nor_ray_nor_mlflow(root: Path) -> None:
    code = (
        "import sys; from raydistill.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'torch', 'ray', 'mlflow', 'matplotlib', 'numpy'}))"
    )
    for command in (["list", "stages"], ["show", "p"], ["compare", "p", "20260101"], ["clean"]):
        arguments = [*command, "--runs", str(root)]
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        assert ended.stdout.splitlines()[-1] == "[]"

"""What `--dry-run` says about every node: cached, or new and why. Nothing is trained: results are written by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raydistill.execution.preview import look_ahead
from raydistill.plan.load import check_plan, read_source
from raydistill.plan.order import Graph, order_stages
from raydistill.runs.files import write_json
from raydistill.runs.folder import StageFolder
from raydistill.runs.plan_run import graph_values
from raydistill.runs.record import Record

PLAN = """\
name: probe
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: mlp, widths: [30]}, epochs: 2}
  student: {stage: distill, student: {name: mlp, widths: [20]}, teachers: [teacher], epochs: 2}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def had_run(root: Path, write_plan: Callable[[str | bytes], Path]) -> Callable[..., Graph]:
    """Leave what a run of the plan leaves: its graph, and a record for every node that is not among `unfinished`."""

    def leave(
        *overrides: str, only: str | None = None, run_id: str = "20261121-040000-aaaa", unfinished: tuple = ()
    ) -> Graph:
        source = read_source(write_plan(PLAN), overrides)
        plan = check_plan(source)
        graph = order_stages(plan)
        graph = graph if only is None else graph.needed_for([only])
        run = root / "plans" / plan.name / run_id
        run.mkdir(parents=True)
        write_json(run / "graph.json", graph_values(plan, graph, run_id))
        write_json(run / "results.json", {})
        for node in graph.nodes.values():
            folder = StageFolder(root / node.folder)
            folder.create(node.identity)
            if node.name not in unfinished:
                folder.write_record(record_of(node.kind, node.fingerprint))
        return graph

    return leave


def record_of(kind: str, fingerprint: str, **fields: object) -> Record:
    values = {"status": "done", "seconds": 1.0, "finished": 0.0} | fields
    return Record.model_validate({"kind": kind, "fingerprint": fingerprint, **values})


def reasons(graph: Graph, root: Path, *forced: str) -> dict[str, str]:
    """What is new and why; cached nodes are left out."""
    prospects = look_ahead(graph, root, "probe", forced)
    assert [prospect.node.name for prospect in prospects] == list(graph.nodes)
    return {prospect.node.name: prospect.reason for prospect in prospects if not prospect.is_cached}


def test_in_an_empty_root_everything_is_new(root: Path, graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(PLAN)
    assert reasons(graph, root) == dict.fromkeys(graph.nodes, "never run")
    assert not root.exists()


def test_what_has_a_record_is_cached(root: Path, had_run: Callable[..., Graph]) -> None:
    assert reasons(had_run(), root) == {}


def test_the_changed_field_is_named_and_below_it_the_changed_stage(
    root: Path, had_run: Callable[..., Graph], graph_of: Callable[..., Graph]
) -> None:
    had_run()
    assert reasons(graph_of(PLAN, "stages.teacher.epochs=3"), root) == {
        "teacher": "epochs: 2 → 3",
        "teacher.targets": "teacher: `teacher` changed",
        "student": "targets: `teacher.targets` changed",
    }


def test_a_change_below_leaves_what_is_above_cached(
    root: Path, had_run: Callable[..., Graph], graph_of: Callable[..., Graph]
) -> None:
    had_run()
    changed = graph_of(PLAN, "stages.student.method={method: hinton, temperature: 2}")
    assert reasons(changed, root) == {"student": "method.temperature: 4.0 → 2.0"}


def test_a_changed_task_is_named(
    root: Path, had_run: Callable[..., Graph], graph_of: Callable[..., Graph]
) -> None:
    had_run()
    assert reasons(graph_of(PLAN, "task.split_seed=7"), root)["teacher"] == "task.split_seed: 0 → 7"


def test_of_many_changes_three_are_named(
    root: Path, had_run: Callable[..., Graph], graph_of: Callable[..., Graph]
) -> None:
    had_run()
    overrides = [f"stages.teacher.{field}" for field in ("epochs=3", "seed=4", "batch_size=5", "max_norm=6")]
    reason = reasons(graph_of(PLAN, *overrides), root)["teacher"]
    assert reason.count(" → ") == 3
    assert reason.endswith(" and 1 more")


def test_a_stage_that_the_last_run_left_out_is_compared_with_the_run_before(
    root: Path, had_run: Callable[..., Graph], graph_of: Callable[..., Graph]
) -> None:
    had_run()
    had_run("stages.teacher.seed=1", only="teacher", run_id="20261121-050000-bbbb")
    found = reasons(graph_of(PLAN, "stages.student.epochs=5"), root)
    assert found == {"student": "epochs: 2 → 5"}


def test_a_failed_stage_runs_again_and_its_error_is_told(root: Path, had_run: Callable[..., Graph]) -> None:
    graph = had_run()
    student = graph.nodes["student"]
    failed = record_of(student.kind, student.fingerprint, status="failed", error="loss is NaN at step 7")
    StageFolder(root / student.folder).write_record(failed)
    assert reasons(graph, root) == {"student": "failed before: loss is NaN at step 7"}


def test_a_stage_with_a_checkpoint_continues(root: Path, had_run: Callable[..., Graph]) -> None:
    graph = had_run(unfinished=("student",))
    assert reasons(graph, root) == {"student": "begun, not finished"}
    (root / graph.nodes["student"].folder / "checkpoint").mkdir()
    assert reasons(graph, root) == {"student": "continues from its checkpoint"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "train"}'])
def test_a_damaged_record_is_no_result(content: str, root: Path, had_run: Callable[..., Graph]) -> None:
    graph = had_run()
    (root / graph.nodes["teacher"].folder / "record.json").write_text(content)
    assert "record.json` is damaged" in reasons(graph, root)["teacher"]


def test_the_record_of_another_stage_is_no_result(root: Path, had_run: Callable[..., Graph]) -> None:
    graph = had_run()
    teacher, student = graph.nodes["teacher"], graph.nodes["student"]
    StageFolder(root / teacher.folder).write_record(record_of(student.kind, student.fingerprint))
    assert "not of this folder" in reasons(graph, root)["teacher"]


def test_a_forced_stage_is_new(root: Path, had_run: Callable[..., Graph]) -> None:
    assert reasons(had_run(), root, "student") == {"student": "forced"}


@pytest.mark.parametrize("content", ["", "{}", '{"nodes": [{}]}', '{"nodes": 3}'])
def test_a_damaged_graph_of_an_earlier_run_is_as_no_run(
    content: str, root: Path, had_run: Callable[..., Graph], graph_of: Callable[..., Graph]
) -> None:
    had_run()
    (root / "plans/probe/20261121-040000-aaaa/graph.json").write_text(content)
    assert reasons(graph_of(PLAN, "stages.student.seed=1"), root) == {"student": "never run"}

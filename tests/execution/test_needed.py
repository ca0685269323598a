"""What somebody deleted is made again only if something that must run reads it."""

import importlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.preview import look_ahead
from raydistill.execution.scheduler import run_stages

CHAIN: Mapping[str, Any] = {
    "teacher": {},
    "middle": {"reads": ["teacher"]},
    "student": {"reads": ["middle"]},
    "other": {"reads": ["teacher"]},
}
NEW, KEPT, LEFT = "done", "cached", "not needed"


class Bench:
    """One storage root with all stages of a plan, of which some are deleted."""

    def __init__(self, root: Path, counting: Any) -> None:
        self.root, self.counting = root, counting
        root.mkdir()
        self.run()

    def delete(self, *names: str) -> None:
        for name in names:
            shutil.rmtree(self.root / self.counting.graph_of(CHAIN)[1].nodes[name].folder)

    def run(self, *forced: str, only: tuple[str, ...] = ()) -> list[str]:
        """How each stage ended, after the dry run said the same."""
        plan, graph = self.counting.graph_of(CHAIN)
        graph = graph.needed_for(only) if only else graph
        prospects = look_ahead(graph, self.root, "p", forced)
        states = run_stages(
            graph, LocalBackend(), task=plan.task, root=self.root, forced=frozenset(forced)
        ).values()
        told = [{"new": NEW}.get(prospect.state, prospect.state) for prospect in prospects]
        assert told == [state.status for state in states]
        return told


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    counting = importlib.import_module("counting_stages")
    for owner, name, value in counting.replacements():
        monkeypatch.setattr(owner, name, value)
    return Bench(tmp_path / "runs", counting)


@pytest.mark.parametrize(
    ("deleted", "outcomes"),
    [
        (["teacher"], [LEFT, KEPT, KEPT, KEPT]),
        (["middle"], [KEPT, LEFT, KEPT, KEPT]),
        (["teacher", "middle"], [LEFT, LEFT, KEPT, KEPT]),
        (["student"], [KEPT, KEPT, NEW, KEPT]),
        (["teacher", "student"], [LEFT, KEPT, NEW, KEPT]),
        (["middle", "student"], [KEPT, NEW, NEW, KEPT]),
        (["teacher", "other"], [NEW, KEPT, KEPT, NEW]),
        (["teacher", "middle", "student", "other"], [NEW, NEW, NEW, NEW]),
    ],
)
def test_only_what_something_that_must_run_reads_is_made_again(
    bench: Bench, deleted: list[str], outcomes: list[str]
) -> None:
    bench.delete(*deleted)
    assert bench.run() == outcomes


def test_what_is_asked_for_by_name_is_made_again(bench: Bench) -> None:
    bench.delete("teacher", "middle")
    assert bench.run(only=("middle", "student")) == [NEW, NEW, KEPT]


def test_what_is_forced_needs_its_inputs(bench: Bench) -> None:
    bench.delete("teacher", "middle")
    assert bench.run("student") == [NEW, NEW, NEW, KEPT]


def test_unfinished_work_is_finished(bench: Bench) -> None:
    folder = bench.root / bench.counting.graph_of(CHAIN)[1].nodes["teacher"].folder
    (folder / "record.json").unlink()
    assert bench.run() == [NEW, KEPT, KEPT, KEPT]


def test_an_input_that_turns_out_damaged_has_its_own_inputs_made_again(bench: Bench) -> None:
    graph = bench.counting.graph_of(CHAIN)[1]
    bench.delete("teacher", "student")
    (bench.root / graph.nodes["middle"].folder / "output.txt").write_text("damaged")
    states = run_stages(graph, LocalBackend(), task=bench.counting.graph_of(CHAIN)[0].task, root=bench.root)
    assert [state.status for state in states.values()] == [NEW, NEW, NEW, KEPT]

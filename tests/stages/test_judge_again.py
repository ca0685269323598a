"""Another test split: what is finished is judged on it as if it had always been there, and nothing is trained."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from raydistill.execution.local_backend import LocalBackend
from raydistill.execution.preview import look_ahead
from raydistill.execution.scheduler import run_stages
from raydistill.stages import judge_again

WEIGHTS = "model.safetensors"
UNJUDGED = {"teacher.targets": "cached", "clusters": "cached"}


@pytest.fixture
def plan(teacher: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    """A teacher, a student of its stored targets, a specialist, an ensemble, and a model whose prior is put right."""
    model = {"model": {"name": "mlp", "widths": [6]}}
    special = {"stage": "train_specialists", "generalist": "teacher", "clusters": "clusters", "epochs": 1}
    return {
        "teacher": teacher | {"epochs": 2},
        "student": student | {"teachers": ["teacher"]},
        "half": teacher | model | {"epochs": 1, "precision": "bfloat16"},
        "both": {"stage": "evaluate", "models": ["teacher", "half"]},
        "clusters": {"stage": "confusion_clusters", "given": [[0, 1]]},
        "special": special,
        "shifted": {"stage": "adjust_class_bias", "model": "half", "classes": [0]},
    }


@pytest.fixture
def run(stages: Any) -> Callable[..., dict[str, str]]:
    """Run a plan without Ray; returns how each stage ended."""

    def run(plan: dict[str, Any], root: str = "runs") -> dict[str, str]:
        stages.root = stages.root.with_name(root)
        graph = stages.write(plan)
        states = run_stages(graph, LocalBackend(), task=stages.plan.task, root=stages.root)
        return {name: state.status for name, state in states.items()}

    return run


@pytest.fixture
def change(stages: Any) -> Callable[[str], None]:
    """Change the inputs of one row of a split."""
    values = dict(np.load(stages.file))
    values["split"] = np.repeat(["train", "validation", "test"], (100, 20, 30))
    np.savez(stages.file, **values)

    def change(split: str) -> None:
        row = values["split"].tolist().index(split)
        values["inputs"][row] = 1 - values["inputs"][row]
        np.savez(stages.file, **values)

    return change


def log_of(stages: Any) -> str:
    text: str = (stages.folder("teacher").path / "log.txt").read_text()
    return text


def outcomes(stages: Any, plan: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in stages.graph.nodes if name.partition(".")[0] in plan]
    return {name: (stages.record(name).metrics, stages.record(name).payload) for name in names}


def test_another_test_split_is_judged_as_if_it_had_always_been_there(
    stages: Any, plan: dict[str, Any], run: Callable[..., dict[str, str]], change: Callable[[str], None]
) -> None:
    assert set(run(plan).values()) == {"done"}
    before, seconds = outcomes(stages, plan), stages.record("student").seconds
    files = {name: (stages.folder(name).path / WEIGHTS).stat() for name in ("student", "special.0")}
    change("test")
    assert run(plan) == dict.fromkeys(stages.graph.nodes, "done") | UNJUDGED
    after = outcomes(stages, plan)
    assert {name for name in after if after[name] == before[name]} == set(UNJUDGED)
    for name, status in files.items():
        now = (stages.folder(name).path / WEIGHTS).stat()
        assert (now.st_ino, now.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert stages.record("student").seconds > seconds
    assert set(run(plan).values()) == {"cached"}
    run(plan, "elsewhere")
    assert outcomes(stages, plan) == after


@pytest.mark.parametrize("split", ["train", "validation"])
def test_what_is_learned_from_makes_everything_new(
    stages: Any,
    plan: dict[str, Any],
    run: Callable[..., dict[str, str]],
    change: Callable[[str], None],
    split: str,
) -> None:
    before = {name: node.fingerprint for name, node in stages.write(plan).nodes.items()}
    change(split)
    assert not set(before.values()) & {node.fingerprint for node in stages.write(plan).nodes.values()}


def test_the_dry_run_says_what_is_judged_again(
    stages: Any, plan: dict[str, Any], run: Callable[..., dict[str, str]], change: Callable[[str], None]
) -> None:
    run(plan)
    change("test")
    found = {p.node.name: (p.state, p.reason) for p in look_ahead(stages.write(plan), stages.root, "p")}
    judged = ("judge", "judged again: the test split changed")
    assert found == dict.fromkeys(stages.graph.nodes, judged) | dict.fromkeys(UNJUDGED, ("cached", ""))


def test_a_test_split_that_cannot_be_read_costs_no_result(
    stages: Any, plan: dict[str, Any], run: Callable[..., dict[str, str]], change: Callable[[str], None]
) -> None:
    one = {"teacher": plan["teacher"]}
    run(one)
    before, good = outcomes(stages, one), dict(np.load(stages.file))
    broken = good["inputs"].copy()
    broken[-1] = np.nan
    np.savez(stages.file, **good | {"inputs": broken})
    assert run(one) == {"teacher": "failed"}
    np.savez(stages.file, **good)
    assert run(one) == {"teacher": "cached"}
    assert outcomes(stages, one) == before


@pytest.mark.parametrize("damage", ["predictions-test.safetensors", WEIGHTS])
def test_a_process_that_dies_while_it_judges_leaves_a_model_to_judge(
    stages: Any,
    plan: dict[str, Any],
    run: Callable[..., dict[str, str]],
    change: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    one = {"teacher": plan["teacher"]}
    run(one)
    change("test")

    def die(context: Any, *rest: Any) -> None:
        (context.folder.path / damage).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(judge_again, "judge_splits", die)
        with pytest.raises(KeyboardInterrupt):
            run(one)
    assert run(one) == {"teacher": "done"}
    assert log_of(stages).count("judged again") == (
        0 if damage == WEIGHTS else 2
    )  # a damaged model is made anew
    after = outcomes(stages, one)
    run(one, "elsewhere")
    assert outcomes(stages, one) == after


def test_a_search_does_not_ask_for_another_judgement(
    stages: Any, plan: dict[str, Any], run: Callable[..., dict[str, str]], change: Callable[[str], None]
) -> None:
    one = {"teacher": plan["teacher"]}
    run(one)
    change("test")
    graph = stages.write(one)
    states = run_stages(graph, LocalBackend(), task=stages.plan.task, root=stages.root, sees_test=False)
    assert states["teacher"].status == "cached"


def test_members_that_were_not_kept_are_not_judged_again(
    stages: Any, run: Callable[..., dict[str, str]], change: Callable[[str], None]
) -> None:
    peers = {
        "stage": "train_peers",
        "peers": [{"name": "mlp", "widths": [8]}, {"name": "mlp", "widths": [6]}],
    }
    run({"peers": peers | {"epochs": 1}})
    before = stages.record("peers").metrics
    change("test")
    assert run({"peers": peers | {"epochs": 1}}) == {"peers": "done"}
    after = stages.record("peers").metrics
    assert {name for name in before if name not in after} >= {"test/ensemble_accuracy"}
    assert {name: value for name, value in after.items() if not name.startswith("test/")} == {
        name: value for name, value in before.items() if not name.startswith("test/")
    }


def test_an_oracle_learns_from_the_test_split(
    stages: Any, plan: dict[str, Any], run: Callable[..., dict[str, str]], change: Callable[[str], None]
) -> None:
    oracle = plan | {"shifted": plan["shifted"] | {"by": "test_oracle"}}
    before = stages.write(oracle).nodes
    change("test")
    after = stages.write(oracle).nodes
    changed = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    assert changed == {"shifted"}

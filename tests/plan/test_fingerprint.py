"""What makes two stages the same: against a recorded value, and against the list of what may not matter."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.stages import TrainSpecialistsConfig
from raydistill.kinds.targets import PredictTargetsConfig
from raydistill.kinds.train import TrainConfig
from raydistill.plan.fingerprint import differences, digest, fingerprint, stage_identity
from raydistill.plan.order import Graph

PLAN = """\
name: probe
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: mlp, widths: [30]}, epochs: 2, seed: 5}
  student: {stage: distill, student: {name: mlp, widths: [20]}, teachers: [teacher], epochs: 2}
"""

GraphOf = Callable[..., Graph]


def prints(graph: Graph) -> dict[str, str]:
    return {name: node.fingerprint for name, node in graph.nodes.items()}


def test_a_fingerprint_is_the_start_of_the_digest_of_sorted_compact_json() -> None:
    text = b'{"a":[1,2.5,null],"b":{"c":"d","e":true}}'
    identity = {"b": {"e": True, "c": "d"}, "a": [1, 2.5, None]}
    assert digest(identity) == hashlib.sha256(text).hexdigest()
    assert fingerprint(identity) == hashlib.sha256(text).hexdigest()[:12]


def test_a_stage_keeps_the_fingerprint_it_had() -> None:
    # When this value changes, whatever users have trained is trained again: only ever on purpose.
    config = TrainConfig.model_validate({"stage": "train", "model": {"name": "mlp"}, "epochs": 3})
    assert fingerprint(stage_identity(config, {"name": "digits"}, {})) == "cdd4af112dff"


@pytest.mark.parametrize(
    ("method", "revision"),
    [
        ({"method": "hinton"}, None),
        ({"method": "hinton", "temperature": 100}, None),
        ({"method": "hinton", "temperature": 1000}, 2),
        ({"method": "fsp"}, 2),
        ({"method": "fsp", "student_pairs": [["stage1", "stage2"]]}, None),
        ({"method": "triplet_logits"}, 2),
        ({"method": "triplet_logits", "negative": "hard"}, None),
        ({"method": "relational"}, 2),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_a_method_whose_code_makes_another_result_says_so_where_the_result_can_differ(
    method: dict[str, object], revision: int | None, several: bool
) -> None:
    chosen = {"methods": [{"method": "labels"}, method]} if several else {"method": method}
    config = DistillConfig.model_validate(
        {"stage": "distill", "student": {"name": "cnn"}, "teachers": ["a"], "mode": "live", "epochs": 1}
        | chosen
    )
    values = stage_identity(config, {}, {"a": "f"})["config"]
    found = values["methods"] if several else [values["method"]]
    assert found[-1].get("revision") == revision
    assert "revision" not in found[0] or not several
    assert "revision" not in values


@pytest.mark.parametrize("written", [{}, {"standardize": False}, {"standardize": True}])
def test_an_option_that_came_later_is_part_of_an_identity_where_it_is_in_use(
    written: dict[str, bool],
) -> None:
    config = DistillConfig.model_validate(
        {"stage": "distill", "student": {"name": "cnn"}, "teachers": ["a"], "epochs": 1}
        | {"method": {"method": "hinton", **written}}
    )
    values = stage_identity(config, {}, {"a": "f"})["config"]["method"]
    assert values.get("standardize") == (True if written.get("standardize") else None)


def test_specialists_of_half_and_half_keep_their_results() -> None:
    half = {"stage": "train_specialists", "generalist": "a", "clusters": "b", "epochs": 1}
    of = TrainSpecialistsConfig.model_validate
    inputs = {"a": "f", "b": "g"}
    assert "revision" not in stage_identity(of(half), {}, inputs)["config"]
    other = of(half | {"special_fraction": 0.9})
    assert stage_identity(other, {}, inputs)["config"]["revision"] == 2


@pytest.mark.parametrize(
    "override",
    [
        "stages.teacher.resources={cpus: 2, gpus: 0.5, memory: 2GiB, workers: 2, retries: 0}",
        "stages.teacher.resources={accelerator: H100, custom: {a: 1}}",
        "stages.student.resources={cpus: 3}",
        "stages.teacher.capture=on",
        "stages.student.capture=off",
        "name=other",
        "tracking.experiment=elsewhere",
        "stages.extra={stage: train, model: {name: cnn}, epochs: 9}",
        "stages.teacher.model.dropout=0",
        "stages.student.method.method=hinton",
    ],
)
def test_what_does_not_decide_the_result_does_not_change_a_fingerprint(
    override: str, graph_of: GraphOf
) -> None:
    before, after = prints(graph_of(PLAN)), prints(graph_of(PLAN, override))
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("stages.teacher.seed=6", {"teacher", "teacher.targets", "student"}),
        ("stages.teacher.epochs=3", {"teacher", "teacher.targets", "student"}),
        ("stages.teacher.model.widths=[31]", {"teacher", "teacher.targets", "student"}),
        ("task.split_seed=1", {"teacher", "teacher.targets", "student"}),
        ("task.validation_fraction=0.2", {"teacher", "teacher.targets", "student"}),
        ("stages.student.transfer.fraction=0.5", {"teacher.targets", "student"}),
        ("stages.student.seed=1", {"student"}),
        ("stages.student.method={method: hinton, temperature: 2}", {"student"}),
        ("stages.student.student.widths=[21]", {"student"}),
    ],
)
def test_what_decides_the_result_changes_the_stage_and_whatever_reads_it(
    override: str, changed: set[str], graph_of: GraphOf
) -> None:
    before, after = prints(graph_of(PLAN)), prints(graph_of(PLAN, override))
    assert {name for name in before if after[name] != before[name]} == changed


def test_a_raised_version_changes_the_stage_and_whatever_reads_it(
    graph_of: GraphOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prints(graph_of(PLAN))
    monkeypatch.setattr(PredictTargetsConfig, "version", PredictTargetsConfig.version + 1)
    after = prints(graph_of(PLAN))
    assert {name for name in before if after[name] != before[name]} == {"teacher.targets", "student"}


def test_the_first_replica_is_the_stage_without_replicas(graph_of: GraphOf) -> None:
    alone, five, two = (
        graph_of(PLAN),
        graph_of(PLAN, "stages.teacher.replicas=5"),
        graph_of(PLAN, "stages.teacher.replicas=2"),
    )
    assert five.nodes["teacher.0"].fingerprint == alone.nodes["teacher"].fingerprint
    assert five.nodes["teacher.1"].fingerprint == two.nodes["teacher.1"].fingerprint
    assert len({five.nodes[f"teacher.{index}"].fingerprint for index in range(5)}) == 5


def write_arrays(folder: Path, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    folder.mkdir()
    file = folder / "data.npz"
    np.savez(file, inputs=draw.normal(size=(8, 3)).astype(np.float32), labels=np.arange(8) % 2)
    return file


def test_the_content_of_the_data_counts_and_its_folder_does_not(tmp_path: Path, graph_of: GraphOf) -> None:
    def print_of(file: Path) -> str:
        text = PLAN.replace("{name: mnist}", f"{{name: tensors, file: {file}}}")
        return graph_of(text).nodes["teacher"].fingerprint

    first = write_arrays(tmp_path / "a", seed=0)
    assert print_of(first) == print_of(write_arrays(tmp_path / "b", seed=0))
    assert print_of(first) != print_of(write_arrays(tmp_path / "c", seed=1))


def test_the_source_of_a_users_model_counts(
    tmp_path: Path, graph_of: GraphOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = PLAN.replace("{name: mlp, widths: [30]}", "{name: 'net_of_mine:build', size: 3}")
    module = tmp_path / "net_of_mine.py"
    module.write_text("def build(num_classes, size): ...\n")
    before = prints(graph_of(text))
    assert prints(graph_of(text)) == before
    module.write_text("def build(num_classes, size): return 1\n")
    assert prints(graph_of(text))["teacher"] != before["teacher"]


@pytest.mark.parametrize(
    ("old", "new", "texts"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"config": {"epochs": 10}}, {"config": {"epochs": 12}}, ["config.epochs: 10 → 12"]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 2, "c": 3}}, ["a.b: 1 → 2", "a.c: 2 → 3"]),
        ({}, {"a": "x"}, ['a: null → "x"']),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a.1: 2 → 3"]),
        ({"a": [1, 2]}, {"a": [1]}, ["a: [1, 2] → [1]"]),
        ({"a": [{"input": "0f"}]}, {"a": [{"input": "1e"}]}, ['a.0: "0f" → "1e"']),
        ({"a": [{"input": "0f"}]}, {"a": [{}, {}]}, ["a: 1 entry → 2 entries"]),
        ({"a": {"name": "sgd"}}, {"a": 3}, ['a: {"name": "sgd"} → 3']),
        ({"a": "x" * 99}, {"a": 1}, ['a: "' + "x" * 36 + "... → 1"]),
        (
            {"source": {"modules": {"a.b": "0f"}}},
            {"source": {"modules": {"a.b": "1e"}}},
            ["module `a.b` changed"],
        ),
        (
            {"source": {"modules": {"a.b": "0f"}}},
            {"source": {"modules": {"c": "0f"}}},
            ["module `a.b` is gone", "module `c` is new"],
        ),
        (
            {"source": {"files": {"t.json": "0f"}}},
            {"source": {"files": {"t.json": "1e"}}},
            ["file `t.json` changed"],
        ),
        ({"weights": "0" * 64}, {"weights": "1" * 64}, ["weights: the file changed"]),
        ({"task": {"content": "0f"}}, {"task": {"content": "1e"}}, ["the data that is learned from changed"]),
    ],
)
def test_differences_are_told_field_by_field(old: object, new: object, texts: list[str]) -> None:
    assert list(differences(old, new)) == texts

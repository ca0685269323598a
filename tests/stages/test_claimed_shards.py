"""Predictions by several processes: the same bytes from any number, also when some, or all, are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from raydistill.plan.schema import build_task
from raydistill.runs.claims import claimed
from raydistill.runs.lease import Leases
from raydistill.stages.predict_targets import CLAIMS

PATIENCE = 120.0
VIEWS = {"augment": [{"name": "shift", "pixels": 1}, {"name": "flip"}], "views": 5, "view_seed": 8}


def predicting(teacher: dict[str, Any], workers: int, **changes: Any) -> dict[str, Any]:
    resources = {"workers": workers}
    targets = {"stage": "predict_targets", "teacher": "teacher", "batch_size": 5, "resources": resources}
    return {"teacher": teacher | {"epochs": 1}, "targets": targets | changes}


class Workers:
    """Processes that run one stage together."""

    def __init__(
        self, server: "subprocess.Popen[str]", stages: Any, folder: Path, name: str = "targets"
    ) -> None:
        self.server, self.folder = server, folder
        folder.mkdir(exist_ok=True)
        self.request = folder / "request.json"
        self.request.write_text(json.dumps(stages.request(name).to_dict()))
        self.place = stages.folder(name).path
        self.pids: dict[int, int] = {}

    def begin(self, *ranks: int) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        for rank in ranks:
            self.outcome(rank).unlink(missing_ok=True)
            self.server.stdin.write(json.dumps({"rank": rank, "request": str(self.request)}) + "\n")
            self.server.stdin.flush()
            self.pids[rank] = int(self.server.stdout.readline())

    def brake(self, seconds: float) -> None:
        (self.folder / "brake").write_text(str(seconds))

    def release(self) -> None:
        (self.folder / "brake").unlink(missing_ok=True)

    def kill(self, rank: int) -> None:
        """SIGKILL: nothing is tidied up."""
        os.kill(pid := self.pids.pop(rank), signal.SIGKILL)
        wait_until(lambda: not psutil.pid_exists(pid))

    def end(self) -> set[str]:
        """How all of them ended."""
        wait_until(lambda: not any(map(psutil.pid_exists, self.pids.values())))
        return {json.loads(self.outcome(rank).read_text())[0] for rank in self.pids}

    def outcome(self, rank: int) -> Path:
        return self.folder / f"outcome-{rank}.json"

    def shards(self) -> dict[str, int]:
        """The finished ones, and when each was written."""
        return {path.name: path.stat().st_mtime_ns for path in self.place.glob("logits-*.json")}


def wait_until(claim: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def whole(stages: Any, teacher: dict[str, Any]) -> dict[str, str]:
    """Checksums of the files that one undisturbed worker writes."""
    record = stages.elsewhere("undisturbed").run(predicting(teacher, 1, **VIEWS)).record("targets")
    payload: dict[str, str] = record.payload
    assert len(payload) > 20
    return payload


@pytest.fixture(scope="module")
def server() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, Path(__file__).with_name("claiming_worker.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.communicate()


@pytest.fixture
def begun(
    server: "subprocess.Popen[str]", stages: Any, teacher: dict[str, Any], tmp_path: Path
) -> Iterator[Callable[..., Workers]]:
    """Workers of a stage whose teacher is trained."""
    all_workers: list[Workers] = []

    def build(workers: int, **changes: Any) -> Workers:
        stages.write(predicting(teacher, workers, **VIEWS | changes))
        if stages.folder("teacher").record() is None:
            assert stages.attempt("teacher").status == "done"
        all_workers.append(Workers(server, stages, tmp_path / "workers"))
        return all_workers[-1]

    yield build
    for workers in all_workers:
        for pid in workers.pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_workers_writes_the_same_bytes(
    stages: Any, whole: dict[str, str], begun: Callable[..., Workers], count: int
) -> None:
    workers = begun(count)
    workers.brake(0.002)
    workers.begin(*range(count))
    assert workers.end() == {"done"}
    assert stages.record("targets").payload == whole
    assert not (workers.place / CLAIMS).exists()
    check_that_a_late_worker_changes_nothing(workers)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_of_a_killed_worker_one_shard_is_made_again_by_whoever_is_left(
    stages: Any, whole: dict[str, str], begun: Callable[..., Workers], victim: int
) -> None:
    workers = begun(2)
    workers.brake(0.05)
    workers.begin(0, 1)
    wait_until(lambda: len(workers.shards()) >= 3)
    workers.kill(victim)
    finished = workers.shards()
    workers.release()
    if victim == 0:
        workers.begin(0)  # the main one is replaced: it alone can finish the stage
    assert workers.end() == {"done"}
    record = stages.record("targets")
    assert record.payload == whole
    for name, written in finished.items():
        shard = (workers.place / name).with_suffix(".arrow")
        assert shard.stat().st_mtime_ns <= written, "finished shards are not made again"


def test_after_all_were_killed_a_new_attempt_makes_what_is_missing(
    stages: Any, whole: dict[str, str], begun: Callable[..., Workers]
) -> None:
    workers = begun(2)
    workers.brake(0.05)
    workers.begin(0, 1)
    wait_until(lambda: len(workers.shards()) >= 3)
    workers.kill(0)
    workers.kill(1)
    finished = workers.shards()
    assert stages.folder("targets").record() is None
    again = begun(3)
    again.release()
    again.begin(0, 1, 2)
    assert again.end() == {"done"}
    assert stages.record("targets").payload == whole
    for name, written in finished.items():
        assert (again.place / name).with_suffix(".arrow").stat().st_mtime_ns <= written


@pytest.mark.slow
def test_a_worker_that_comes_late_takes_part(
    stages: Any, whole: dict[str, str], begun: Callable[..., Workers]
) -> None:
    workers = begun(2)
    workers.brake(0.05)
    workers.begin(0)
    wait_until(lambda: len(workers.shards()) >= 2)
    workers.begin(1)
    wait_until(lambda: holders(workers.place / CLAIMS) == 2)
    workers.release()
    assert workers.end() == {"done"}
    assert stages.record("targets").payload == whole


def holders(claims: Path) -> int:
    """How many processes hold a claim now."""
    texts = [path.read_text() for path in claims.glob("*/lease-*.json")]
    return len({json.loads(text)["pid"] for text in texts if text.strip() and "pid" in text})


@pytest.mark.slow
def test_a_shard_that_is_damaged_before_the_end_is_made_again(
    stages: Any, whole: dict[str, str], begun: Callable[..., Workers]
) -> None:
    workers = begun(2)
    workers.brake(0.05)
    workers.begin(1)
    wait_until(lambda: len(workers.shards()) >= 2)
    (workers.place / "logits-00000.arrow").write_bytes(b"half a shard")
    workers.release()
    workers.begin(0)
    assert workers.end() == {"done"}
    assert stages.record("targets").payload == whole


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"top_k": 2}, {"outputs": ["logits", "embedding"]}])
def test_other_forms_are_divided_too(
    stages: Any, teacher: dict[str, Any], begun: Callable[..., Workers], changes: dict[str, Any]
) -> None:
    plan = predicting(teacher, 1, **VIEWS, **changes)
    whole = stages.elsewhere("undisturbed").run(plan).record("targets").payload
    workers = begun(2, **changes)
    workers.brake(0.002)
    workers.begin(0, 1)
    assert workers.end() == {"done"}
    assert stages.record("targets").payload == whole


def test_workers_and_other_resources_are_no_part_of_a_fingerprint(
    stages: Any, teacher: dict[str, Any]
) -> None:
    graphs = [stages.write(predicting(teacher, workers)) for workers in (1, 2, 16)]
    assert len({graph.nodes["targets"].fingerprint for graph in graphs}) == 1


def test_whoever_lost_a_claim_knows_it_and_what_others_hold_is_left_to_them(tmp_path: Path) -> None:
    done: set[int] = set()
    others = Leases()
    assert others.acquire(tmp_path / "00001")
    mine = claimed(tmp_path, 3, done.__contains__)
    first = next(mine)
    assert (first.index, first.is_ours()) == (0, True)
    (tmp_path / "00000/lease-2.json").write_text("another worker found ours dead")
    assert not first.is_ours()
    done.add(0)
    assert next(mine).index == 2, "1 belongs to another"
    done |= {1, 2}
    assert list(mine) == []
    others.close()


def judging(teacher: dict[str, Any], workers: int) -> dict[str, Any]:
    judged = {"stage": "evaluate", "models": ["teacher", "other"], "split": "validation", "batch_size": 1}
    other = teacher | {"seed": 1}
    return {"teacher": teacher, "other": other, "judged": judged | {"resources": {"workers": workers}}}


@pytest.mark.parametrize("victim", [None, 0])
def test_any_number_of_workers_judges_alike(
    server: "subprocess.Popen[str]", stages: Any, teacher: dict[str, Any], tmp_path: Path, victim: int | None
) -> None:
    teacher = teacher | {"epochs": 1}
    alone = stages.elsewhere("undisturbed").run(judging(teacher, 1)).record("judged")
    stages.write(judging(teacher, 2))
    for name in ("teacher", "other"):
        assert stages.attempt(name).status == "done"
    workers = Workers(server, stages, tmp_path / "workers", "judged")
    workers.brake(0.1 if victim is not None else 0.002)
    workers.begin(0, 1)
    if victim is not None:
        wait_until(lambda: list(workers.place.glob("answers-*/*.safetensors")))
        workers.kill(victim)
        workers.release()
        workers.begin(victim)
    assert workers.end() == {"done"}
    together = stages.record("judged")
    assert together.metrics == alone.metrics
    assert together.payload == alone.payload
    assert not list(workers.place.glob("answers-*/*.safetensors"))
    check_that_a_late_worker_changes_nothing(workers)


def check_that_a_late_worker_changes_nothing(workers: Workers) -> None:
    """One that starts when the main one has published already."""

    def contents() -> dict[str, bytes]:
        files = [path for path in workers.place.rglob("*") if path.is_file()]
        kept = [path for path in files if not path.name.startswith(("lease", "log", "place"))]
        return {str(path): path.read_bytes() for path in kept}

    before = contents()
    workers.pids.clear()
    workers.begin(1)
    assert workers.end() == {"done"}
    assert contents() == before


def test_two_workers_record_the_statistics_of_one(
    server: "subprocess.Popen[str]", stages: Any, teacher: dict[str, Any], tmp_path: Path
) -> None:
    def recording(workers: int) -> dict[str, Any]:
        statistics = {"stage": "record_statistics", "teacher": "teacher", "batch_size": 7}
        resources = {"resources": {"workers": workers}}
        return {"teacher": teacher | {"epochs": 1}, "statistics": statistics | resources}

    alone = stages.elsewhere("undisturbed").run(recording(1)).record("statistics")
    stages.write(recording(2))
    assert stages.attempt("teacher").status == "done"
    workers = Workers(server, stages, tmp_path / "workers", "statistics")
    workers.brake(0.1)
    workers.begin(0, 1)
    assert workers.end() == {"done"}
    together = stages.record("statistics")
    assert (together.payload, together.metrics) == (alone.payload, alone.metrics)
    check_that_a_late_worker_changes_nothing(workers)


@pytest.mark.parametrize("victim", [None, 0])
def test_two_workers_find_the_clusters_of_one(
    server: "subprocess.Popen[str]", stages: Any, teacher: dict[str, Any], tmp_path: Path, victim: int | None
) -> None:
    def grouping(workers: int) -> dict[str, Any]:
        clusters = {"stage": "confusion_clusters", "generalist": "teacher", "clusters": 1, "batch_size": 3}
        return {"teacher": teacher | {"epochs": 1}, "groups": clusters | {"resources": {"workers": workers}}}

    stages.task["validation_fraction"] = 0.5
    alone = stages.elsewhere("undisturbed").run(grouping(1))
    stages.write(grouping(2))
    assert stages.attempt("teacher").status == "done"
    workers = Workers(server, stages, tmp_path / "workers", "groups")
    workers.brake(0.1 if victim is not None else 0.002)
    workers.begin(0, 1)
    if victim is not None:
        wait_until(lambda: list(workers.place.glob("moments-*/sums.npy")))
        workers.kill(victim)
        workers.release()
        workers.begin(victim)
    assert workers.end() == {"done"}
    together = stages.record("groups")
    assert together.payload == alone.record("groups").payload
    assert together.metrics == alone.record("groups").metrics
    assert not list(workers.place.glob("moments-*"))
    check_that_a_late_worker_changes_nothing(workers)
    validation = build_task(alone.request("groups").task).load().validation
    probabilities = alone.model("teacher").logits(validation.inputs).double().softmax(dim=1).numpy()
    expected = np.corrcoef(probabilities.T)
    np.fill_diagonal(expected, 0)
    similarity = load_file(workers.place / "similarity.safetensors")["similarity"]
    np.testing.assert_allclose(similarity, expected, atol=1e-5)

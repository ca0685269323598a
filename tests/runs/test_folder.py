import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from raydistill.errors import StageError, StoreError
from raydistill.runs.context import StageContext, claim_attempt
from raydistill.runs.files import read_json, write_json
from raydistill.runs.folder import STAMPS, StageFolder
from raydistill.runs.lease import Leases
from raydistill.runs.record import Record
from raydistill.tasks.mnist import Mnist

IDENTITY = {"kind": "train", "config": {"epochs": 1}}


def record_of(payload: dict[str, str], **values: Any) -> Record:
    fixed = {"kind": "train", "fingerprint": "abc", "status": "done", "seconds": 1.0, "finished": 2.0}
    return Record.model_validate(fixed | {"payload": payload} | values)


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    """A finished stage with one payload file."""
    folder = StageFolder(tmp_path / "stages" / "train-abc")
    folder.create(IDENTITY)
    (folder.path / "weights").write_bytes(b"0123456789")
    folder.write_record(record_of({"weights": hashlib.sha256(b"0123456789").hexdigest()}))
    return folder


@pytest.fixture
def context(folder: StageFolder, tmp_path: Path) -> StageContext:
    claim_attempt(folder, "first")
    return StageContext("stage", folder, tmp_path, Mnist(), attempt="first")


def test_a_finished_stage_is_whole(folder: StageFolder) -> None:
    assert folder.damage() is None
    assert folder.payload("weights").read_bytes() == b"0123456789"


@pytest.mark.parametrize("content", [b"012345678", b"1123456789", b"", None])
def test_a_damaged_payload_is_named_and_not_handed_out(folder: StageFolder, content: bytes | None) -> None:
    path = folder.path / "weights"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert f"`{path}`" in str(folder.damage())
    with pytest.raises(StoreError, match="weights"):
        folder.payload("weights")


def rewrite(path: Path, content: bytes, *, later: int) -> None:
    """Other bytes, and a time of change that many nanoseconds later."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + later))


def test_files_of_the_size_and_time_that_they_had_are_not_read_again(folder: StageFolder) -> None:
    rewrite(folder.path / "weights", b"X123456789", later=0)
    assert folder.damage_since(folder.done_record()) is None
    assert "weights" in str(folder.damage())


@pytest.mark.parametrize(("content", "later"), [(b"X123456789", 1), (b"X123456789", -1), (b"0", 0)])
def test_a_change_of_size_or_time_has_the_sum_compared(
    folder: StageFolder, content: bytes, later: int
) -> None:
    rewrite(folder.path / "weights", content, later=later)
    for _ in range(2):
        assert "weights" in str(folder.damage_since(folder.done_record()))


def test_a_copy_with_other_times_is_read_once(folder: StageFolder) -> None:
    rewrite(folder.path / "weights", b"0123456789", later=5)
    assert folder.damage_since(folder.done_record()) is None
    rewrite(folder.path / "weights", b"X123456789", later=0)
    assert folder.damage_since(folder.done_record()) is None  # it was not read


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b'{"weights": 3}'])
def test_without_what_is_kept_of_times_files_are_read(folder: StageFolder, content: bytes | None) -> None:
    (folder.path / STAMPS).unlink()
    if content is not None:
        (folder.path / STAMPS).write_bytes(content)
    (folder.path / "weights").write_bytes(b"X123456789")
    assert "weights" in str(folder.damage_since(folder.done_record()))


def test_a_file_that_is_gone_is_damage(folder: StageFolder) -> None:
    (folder.path / "weights").unlink()
    (folder.path / STAMPS).write_text("{}")
    assert "is missing" in str(folder.damage_since(folder.done_record()))


def test_a_file_that_the_record_does_not_know_is_not_handed_out(folder: StageFolder) -> None:
    (folder.path / "other").touch()
    with pytest.raises(StoreError, match="lists no `other`"):
        folder.payload("other")


@pytest.mark.parametrize(
    "change",
    [{"status": "perhaps"}, {"surprise": 1}, {"payload": [1]}, {"seconds": "long"}, {"kind": None}],
)
def test_a_record_of_another_form_is_damaged(folder: StageFolder, change: dict[str, Any]) -> None:
    path = folder.path / "record.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(StoreError, match=r"record.json` is damaged"):
        folder.record()


@pytest.mark.parametrize("change", [{"kind": "distill"}, {"fingerprint": "abd"}])
def test_the_record_of_another_folder_is_refused(folder: StageFolder, change: dict[str, Any]) -> None:
    folder.write_record(record_of({}, **change))
    with pytest.raises(StoreError, match="not of this folder"):
        folder.record()


def test_a_failed_stage_has_no_result(folder: StageFolder) -> None:
    folder.write_record(record_of({}, status="failed"))
    assert "holds no finished result" in str(folder.damage())
    with pytest.raises(StoreError, match="no finished result"):
        folder.done_record()


def test_a_damaged_config_is_rewritten_and_a_foreign_one_refused(folder: StageFolder) -> None:
    config = folder.path / "config.json"
    config.write_text('{"kind": "tr')
    folder.create(IDENTITY)
    assert read_json(config) == IDENTITY
    with pytest.raises(StoreError, match="belongs to another stage"):
        folder.create({"kind": "distill"})
    assert read_json(config) == IDENTITY


def test_forgetting_keeps_nothing_but_the_lease(folder: StageFolder) -> None:
    leases = Leases()
    leases.acquire(folder.path)
    (folder.path / "checkpoint").mkdir()
    (folder.path / "checkpoint" / "step-1.safetensors").touch()
    folder.forget()
    assert leases.is_ours(folder.path)
    assert [path.name for path in folder.path.iterdir()] == ["lease-1.json"]
    leases.close()


def test_unfinished_work_keeps_its_checkpoint_but_no_record_and_no_torn_files(folder: StageFolder) -> None:
    (folder.path / "checkpoint").mkdir()
    for name in ("checkpoint/checkpoint.json", "checkpoint/.step-2.safetensors.0a.tmp", ".weights.1b.tmp"):
        (folder.path / name).touch()
    folder.unfinish()
    left = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}
    assert left == {"config.json", "weights", "checkpoint/checkpoint.json"}


def test_a_superseded_attempt_writes_no_metrics(context: StageContext) -> None:
    context.report(1, {"train/loss": 2.0})
    claim_attempt(context.folder, "second")
    with pytest.raises(StageError, match="another driver took over"):
        context.flush()
    assert not (context.folder.path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("size", "left"), [(0, ""), (8, '{"a":1}\n'), (16, '{"a":1}\n{"b":2}\n'), (99, '{"a":1}\n{"b":2}\n')]
)
def test_metrics_are_cut_back_to_whole_lines_that_the_checkpoint_knew(
    context: StageContext, size: int, left: str
) -> None:
    path = context.folder.path / "metrics.jsonl"
    path.write_text('{"a":1}\n{"b":2}\n{"c":')
    context.rewind_metrics(size)
    assert path.read_text() == left


def test_metrics_on_a_full_disk_are_one_line(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    context.report(1, {"train/loss": 2.0})
    context.attempt = ""
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StoreError, match=r"metrics.jsonl`: No space left on device"):
        context.flush()

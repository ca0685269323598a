"""An object store as a storage root needs it: one alone creates or swaps, and what goes wrong is one line."""

import fcntl
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import obstore
import pytest
from obstore.exceptions import GenericError

from raydistill.errors import DistillError, PlanError, StoreError
from raydistill.runs import bucket as bucket_module
from raydistill.runs import bucket_lease, lease
from raydistill.runs.bucket import DELETE_WAITS, Bucket
from raydistill.runs.lease import Leases, is_held
from raydistill.runs.mirror import ORIGIN, mirror_at, mirror_of, open_storage, release_readers


@pytest.fixture
def bucket(storage_url: str) -> Bucket:
    return Bucket(storage_url)


def test_an_object_is_created_once_and_swapped_only_for_its_last_state(bucket: Bucket) -> None:
    assert bucket.read("a/lease") is None
    first = bucket.create("a/lease", b"one")
    assert first is not None
    assert bucket.create("a/lease", b"two") is None
    second = bucket.swap("a/lease", b"two", first)
    assert second is not None
    assert bucket.swap("a/lease", b"three", first) is None
    held = bucket.read("a/lease")
    assert held is not None
    assert (held.content, held.tag) == (b"two", second)


def test_a_write_whose_answer_was_lost_is_known_again(bucket: Bucket) -> None:
    first = bucket.create("lease", b"mine")
    assert bucket.create("lease", b"mine") == first  # the retry of one and the same request


def test_of_many_that_create_one_is_the_first(bucket: Bucket) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        if bucket.create("lease", str(number).encode()) is not None:
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = bucket.read("lease")
    assert held is not None
    assert [held.content.decode()] == [str(number) for number in won]


def test_files_travel_whole_and_in_pieces(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "PIECE", 1 << 16)
    content = os.urandom(7_000_001)  # more than one part of an upload
    (tmp_path / "there").write_bytes(content)
    bucket.write("large", tmp_path / "there")
    assert bucket.download("large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert not bucket.download("nothing", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_listing_names_what_is_below(bucket: Bucket) -> None:
    for key in ("stages/a/record.json", "stages/b/record.json", "stages/b/checkpoint/x", "plans/p"):
        bucket.write(key, key.encode())
    assert set(bucket.listing("stages/b/")) == {"stages/b/record.json", "stages/b/checkpoint/x"}
    assert {key: entry.size for key, entry in bucket.listing("plans/").items()} == {"plans/p": 7}
    assert sorted(bucket.folders("stages/")) == ["a", "b"]
    bucket.delete(["plans/p", "plans/gone"])
    assert bucket.listing("plans/") == {}


def wrong_key(url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return Bucket(url.replace("bucket-", "no-such-"))


def no_server(url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(bucket_module, "PATIENT", {"max_retries": 1, "retry_timeout": timedelta(seconds=1)})
    return Bucket(url)


@pytest.mark.parametrize(
    ("broken", "words"), [(wrong_key, "bucket does not exist"), (no_server, "error sending request")]
)
@pytest.mark.parametrize("action", ["read", "write", "create", "list", "download"])
def test_what_goes_wrong_is_one_line_with_the_address(
    broken: object, words: str, action: str, storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = broken(storage_url, monkeypatch)  # type: ignore[operator]
    actions = {
        "read": lambda: bucket.read("key"),
        "write": lambda: bucket.write("key", b""),
        "create": lambda: bucket.create("key", b""),
        "list": lambda: bucket.listing("key"),
        "download": lambda: bucket.download("key", tmp_path / "key"),
    }
    with pytest.raises(StoreError) as error:
        actions[action]()
    assert "\n" not in error.value.message
    assert f"`{bucket.url}/key`" in error.value.message
    assert words in error.value.message


def test_a_deletion_is_repeated_until_there_is_an_answer(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write("key", b"content")
    elsewhere, here = no_server(bucket.url, monkeypatch), obstore.delete
    stores, waits = iter([elsewhere._store, elsewhere._store, bucket._store]), list[float]()
    monkeypatch.setattr(obstore, "delete", lambda store, key: here(next(stores), key))
    monkeypatch.setattr(bucket_module, "time", SimpleNamespace(sleep=waits.append))
    bucket.delete(["key"])
    assert bucket.read("key") is None
    assert waits == list(DELETE_WAITS[:2])


def test_a_deletion_that_is_refused_is_an_error_at_once(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: object, key: str) -> None:
        words = "DeleteObjects request failed for key key: Access Denied (code: AccessDenied)"
        raise GenericError(f"Generic S3 error: {words}")

    monkeypatch.setattr(obstore, "delete", refuse)
    monkeypatch.setattr(bucket_module, "time", SimpleNamespace(sleep=lambda seconds: pytest.fail("it waits")))
    with pytest.raises(StoreError, match=r"cannot delete .*Access Denied"):
        bucket.delete(["key"])


def test_a_deletion_is_given_up_in_the_end(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, waits = no_server(storage_url, monkeypatch), list[float]()
    monkeypatch.setattr(bucket_module, "time", SimpleNamespace(sleep=waits.append))
    with pytest.raises(StoreError, match="error sending request"):
        bucket.delete(["key"])
    assert waits == list(DELETE_WAITS)


@pytest.mark.parametrize("url", ["ftp://a/b", "s3://", "s3:///prefix", "://x"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(PlanError, match="no storage root"):
        Bucket(url)


def test_without_the_library_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(DistillError, match=r"pip install 'raydistill\[storage\]'"):
        Bucket("s3://bucket/prefix")


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert open_storage(tmp_path / "runs") == tmp_path / "runs"
    assert mirror_at(tmp_path / "runs") is None


def test_a_received_folder_connects_to_nothing(storage_url: str, tmp_path: Path) -> None:
    root = open_storage(storage_url)
    assert mirror_at(root) is not None
    received = tmp_path / "received" / "runs"
    received.mkdir(parents=True)
    (received.parent / ORIGIN).write_bytes((root.parent / ORIGIN).read_bytes())
    assert mirror_at(received) is None


def test_who_looks_keeps_nobody_from_saying_that_he_writes(stage: Path) -> None:
    mirror = mirror_of(stage)
    assert mirror is not None
    with mirror.busy(stage):
        assert mirror.is_busy(stage)
    lock = mirror.root.parent / "locks" / stage.relative_to(mirror.root) / "busy"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a look has it, for a moment
        threading.Timer(0.1, lambda: fcntl.flock(held, fcntl.LOCK_UN)).start()
        with mirror.busy(stage):
            assert mirror.is_busy(stage)
    assert not mirror.is_busy(stage)


def test_what_is_read_is_not_free_and_what_is_free_is_not_read_meanwhile(stage: Path) -> None:
    mirror = mirror_of(stage)
    assert mirror is not None
    began = threading.Event()

    def read() -> None:
        mirror.read_from(stage)
        began.set()

    with mirror.unread(stage) as is_unread:
        assert is_unread
        reader = threading.Thread(target=read)
        reader.start()
        assert not began.wait(0.2)
    assert began.wait(10)
    reader.join()
    with mirror.unread(stage) as is_unread:
        assert not is_unread
    release_readers()
    with mirror.unread(stage) as is_unread:
        assert is_unread


@pytest.fixture
def stage(storage_url: str) -> Path:
    return open_storage(storage_url) / "stages" / "train-0123456789ab"


def test_one_driver_owns_a_stage_and_gives_it_up(stage: Path) -> None:
    one, other = Leases(), Leases()
    assert one.acquire(stage)
    assert is_held(stage)
    assert not other.acquire(stage)
    assert one.is_ours(stage)
    one.release(stage)
    assert not is_held(stage)
    assert other.acquire(stage)
    other.close()
    one.close()


def test_a_driver_that_died_on_this_machine_loses_it_at_once(stage: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from raydistill.runs.lease import Leases;"
        "assert Leases().acquire(Path(sys.argv[1])); import os; os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(stage)], check=False).returncode == 9
    leases = Leases()
    assert leases.acquire(stage)
    leases.close()


def test_a_driver_elsewhere_that_stands_still_loses_it_and_learns_so(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_lease, "BEAT_SECONDS", 1e9)
    dead = Leases()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(lease, "_machine", lambda: "another machine")
        assert dead.acquire(stage)
    monkeypatch.setattr(lease, "BUCKET_PATIENCE", 0.2)
    heir = Leases()
    assert not heir.acquire(stage)  # it may be alive: its count was never seen before
    for _ in range(100):
        if heir.acquire(stage):
            break
        threading.Event().wait(0.05)
    assert heir.is_ours(stage)
    monkeypatch.setattr(bucket_lease, "SURE_SECONDS", 0.0)
    assert not dead.is_ours(stage)
    dead.close()
    assert heir.is_ours(stage)  # whoever lost it cannot release it
    heir.close()


def test_a_driver_elsewhere_that_beats_keeps_it(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(bucket_lease, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "BUCKET_PATIENCE", 3.0)
    alive = Leases()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(lease, "_machine", lambda: "another machine")
        assert alive.acquire(stage)
    other = Leases()
    for _ in range(8):
        assert not other.acquire(stage)
        threading.Event().wait(0.6)
    assert alive.is_ours(stage)
    alive.close()
    other.close()

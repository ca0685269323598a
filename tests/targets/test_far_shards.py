"""Targets behind a URL: of a store a machine fetches the shards that it reads, and no other."""

from pathlib import Path

import pytest
import torch

from raydistill.errors import StoreError
from raydistill.runs.bucket import Bucket
from raydistill.runs.folder import StageFolder
from raydistill.runs.mirror import open_storage
from raydistill.runs.record import Record
from raydistill.targets.reader import Targets, open_targets
from raydistill.targets.store import MANIFEST, Description, TargetWriter

ROWS, SHARD, CLASSES, VIEWS = 400, 50, 100, 2


class Traffic:
    """What comes from the bucket: files as a whole, and bytes of parts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[str] = []
        self.parts: dict[str, int] = {}
        download, read_range = Bucket.download, Bucket.read_range

        def downloaded(bucket: Bucket, key: str, path: Path) -> bool:
            self.files.append(Path(key).name)
            return download(bucket, key, path)

        def read(bucket: Bucket, key: str, start: int, end: int) -> bytes:
            content = read_range(bucket, key, start, end)
            self.parts[Path(key).name] = self.parts.get(Path(key).name, 0) + len(content)
            return content

        monkeypatch.setattr(Bucket, "download", downloaded)
        monkeypatch.setattr(Bucket, "read_range", read)

    @property
    def shards(self) -> set[str]:
        return {name for name in self.files if name.endswith(".arrow")}


class Published:
    """A store that another machine made; `logits` (views, rows, classes) are what was written."""

    def __init__(self, url: str, classes: int = CLASSES) -> None:
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randperm(10_000, generator=draw)[:ROWS]
        self.logits = torch.randn(VIEWS, ROWS, classes, generator=draw)
        self.root = open_storage(url)
        self.folder = StageFolder(self.root / "stages/predict_targets-0123456789ab")
        self.folder.create({})
        description = Description(
            task="t", split="train", num_classes=classes, rows=ROWS, views=VIEWS, teachers=("a",)
        )
        writer = TargetWriter(self.folder.path, description, rows_per_shard=SHARD)
        for view in range(VIEWS):
            writer.append(self.ids, self.logits[view])
        manifest = writer.close()
        names = [MANIFEST, *manifest.files]
        self.folder.write_record(_record(self.folder, names))

    def open(self) -> Targets:
        return open_targets(self.folder.path, root=self.root, expect=None)


def _record(folder: StageFolder, names: list[str]) -> Record:
    return Record(
        kind="predict_targets",
        fingerprint="0123456789ab",
        status="done",
        seconds=1.0,
        finished=0.0,
        payload=folder.checksums(names),
    )


def elsewhere(store: Published, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Targets:
    """The same store, opened on a machine that has nothing of it."""
    monkeypatch.setenv("RAYDISTILL_CACHE", str(tmp_path / "another"))
    root = open_storage(url)
    return open_targets(root / "stages" / store.folder.path.name, root=root, expect=None)


def test_of_a_store_only_the_shards_that_are_read_come_here(
    storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Published(storage_url)
    traffic = Traffic(monkeypatch)
    targets = elsewhere(store, storage_url, tmp_path, monkeypatch)
    assert torch.equal(targets.ids, store.ids)
    assert traffic.shards == set()
    rows = torch.tensor([3, 49, 160])  # of shards 0 and 3
    read = targets.read(rows, 0).logits[:, 0]
    torch.testing.assert_close(read.softmax(1), store.logits[0, rows].softmax(1), rtol=0, atol=1e-4)
    assert traffic.shards == {"logits-00000.arrow", "logits-00003.arrow"}
    targets.read(torch.tensor([10, 199]), 0)
    assert len(traffic.files) == len(set(traffic.files)), "what is here is not fetched twice"
    assert len(traffic.shards) == 2
    targets.read(torch.tensor([3]), 1)  # the other view lies behind the first
    assert traffic.shards == {f"logits-{index:05d}.arrow" for index in (0, 3, 8)}
    assert sorted(traffic.parts) == [f"logits-{index:05d}.arrow" for index in range(ROWS // SHARD)]
    assert max(traffic.parts.values()) <= 4096 + 8 * SHARD


def test_what_is_read_in_pieces_is_what_is_read_as_a_whole(
    storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Published(storage_url)
    whole = store.open()
    far = elsewhere(store, storage_url, tmp_path, monkeypatch)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    for view in range(VIEWS):
        for rows in order.split(37):
            assert torch.equal(far.read(rows, view).logits, whole.read(rows, view).logits)
    assert torch.equal(far.rows_of(store.ids.flip(0)), torch.arange(ROWS).flip(0))


def test_narrow_rows_come_as_a_whole(
    storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Published(storage_url, classes=10)
    traffic = Traffic(monkeypatch)
    targets = elsewhere(store, storage_url, tmp_path, monkeypatch)
    assert len(traffic.shards) == ROWS * VIEWS // SHARD
    assert traffic.parts == {}
    assert torch.equal(
        targets.read(torch.arange(ROWS), 1).logits, store.open().read(torch.arange(ROWS), 1).logits
    )


def test_a_shard_that_was_damaged_is_named_when_it_comes_and_no_other_read_fails(
    storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Published(storage_url)
    file = store.folder.path / "logits-00002.arrow"
    content = bytearray(file.read_bytes())
    content[-2000] ^= 1  # in the values
    Bucket(storage_url).write(f"stages/{store.folder.path.name}/{file.name}", bytes(content))
    targets = elsewhere(store, storage_url, tmp_path, monkeypatch)
    targets.read(torch.arange(SHARD), 0)
    with pytest.raises(StoreError, match=r"logits-00002\.arrow` is missing or damaged: run the plan again"):
        targets.read(torch.tensor([2 * SHARD]), 0)


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", b"x" * 5000])
def test_what_is_no_shard_is_named_before_anything_is_read(
    storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    store = Published(storage_url)
    Bucket(storage_url).write(f"stages/{store.folder.path.name}/logits-00001.arrow", content)
    with pytest.raises(StoreError, match="logits-00001"):
        elsewhere(store, storage_url, tmp_path, monkeypatch)

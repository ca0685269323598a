"""`many_class` against shards written here with pyarrow, and shards against the same samples in memory."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydistill.tasks import shards as shard_files
from raydistill.tasks.many_class import ManyClass
from raydistill.tasks.shards import check_shard, write_json, write_shard_manifest, write_shards
from raydistill.tasks.shards_split import ShardsSplit
from raydistill.tasks.task import Arrays
from raydistill.tasks.tensors import Tensors

RANDOM = np.random.default_rng(0)
SHAPE = (1, 4, 5)
NAMES = ["one", "two", "三"]


def random_pixels(count: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8)


def random_samples(count: int, start: int) -> Arrays:
    return Arrays(random_pixels(count), np.arange(count) % 3, RANDOM.permutation(count) + start)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def as_column(pixels: np.ndarray, kind: str) -> pa.Array:
    flat = pixels.reshape(len(pixels), -1)
    if kind == "bytes":
        return pa.array([row.tobytes() for row in flat], pa.binary(flat.shape[1]))
    if kind == "lists":
        return pa.array(flat.tolist(), pa.list_(pa.uint8()))
    return pa.array(flat.tolist(), pa.list_(pa.uint8(), flat.shape[1]))


def write_table(file: Path, shape: Any = SHAPE, **columns: Any) -> None:
    table = pa.table(columns).replace_schema_metadata({"shape": json.dumps(shape)})
    pq.write_table(table, file, row_group_size=7)


def write_folder(folder: Path, train: Arrays, test: Arrays, kind: str = "bytes") -> None:
    """Training samples in two shards, test samples in one."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "classes.json", NAMES)
    half = len(train.ids) // 2
    for name, part, place in (
        ("train-00000", train, slice(half)),
        ("train-00001", train, slice(half, None)),
        ("test-00000", test, slice(None)),
    ):
        write_table(
            folder / f"{name}.parquet",
            pixels=as_column(part.inputs[place], kind),
            label=part.labels[place],
            id=part.ids[place],
        )


def write_encoded(folder: Path, pictures: list[bytes | None], test: list[bytes]) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / "classes.json", NAMES)
    for name, part, start in (("train", pictures, 0), ("test", test, 100)):
        ids = np.arange(start, start + len(part))
        table = {"image": pa.array(part, pa.binary()), "label": ids % 3, "id": ids}
        pq.write_table(pa.table(table), folder / f"{name}-00000.parquet")


def all_pixels(split: Any) -> np.ndarray:
    return next(split.batches([torch.arange(len(split))], None)).numpy()


def test_training_samples_may_have_no_label(tmp_path: Path) -> None:
    train, test = random_samples(50, 0), random_samples(20, 1000)
    train.labels[10:30] = -1
    write_folder(tmp_path, train, test)
    task = ManyClass(folder=tmp_path)
    data = task.load()
    assert task.unlabelled == 20
    assert sorted(data.train.ids[data.train.labels == -1].tolist()) == sorted(train.ids[10:30].tolist())
    assert sum(map(sum, task.survey().counts.values())) == 50


@pytest.mark.parametrize("kind", ["bytes", "lists", "fixed lists"])
def test_shards_are_the_same_samples_as_one_file_in_memory(tmp_path: Path, kind: str) -> None:
    train, test = random_samples(50, 0), random_samples(20, 1000)
    write_folder(tmp_path / "shards", train, test, kind)
    everything = {
        key: np.concatenate([getattr(part, key) for part in (train, test)])
        for key in ("inputs", "labels", "ids")
    }
    np.savez(tmp_path / "data.npz", **everything, split=np.repeat([0, 2], [50, 20]))
    ours, theirs = ManyClass(folder=tmp_path / "shards").load(), Tensors(file=tmp_path / "data.npz").load()
    assert torch.equal(ours.normalisation.mean, theirs.normalisation.mean)
    assert torch.equal(ours.normalisation.std, theirs.normalisation.std)
    assert ours.class_names == ("one", "two", "三")
    for split in ("train", "validation", "test"):
        left, right = getattr(ours, split), getattr(theirs, split)
        assert torch.equal(left.ids, right.ids)
        assert torch.equal(left.labels, right.labels)
        np.testing.assert_array_equal(all_pixels(left), all_pixels(right))


def test_batches_come_in_any_order_and_a_selection_keeps_its_samples(tmp_path: Path) -> None:
    train = random_samples(50, 0)
    write_folder(tmp_path, train, random_samples(5, 1000))
    split = ManyClass(folder=tmp_path, validation_fraction=0).load().train
    places = [torch.tensor([49, 3, 3]), torch.tensor([0])]
    batches = list(split.batches(places, None))
    np.testing.assert_array_equal(batches[0].numpy(), train.inputs[[49, 3, 3]] / np.float32(255))
    part = split.select(torch.tensor([30, 7, 20])).select(torch.tensor([2, 0]))
    assert part.ids.tolist() == train.ids[[20, 30]].tolist()
    np.testing.assert_array_equal(all_pixels(part), train.inputs[[20, 30]] / np.float32(255))


def test_a_validation_split_of_the_data_is_kept(tmp_path: Path) -> None:
    write_folder(tmp_path, random_samples(20, 0), random_samples(5, 1000))
    held_out = random_samples(6, 2000)
    write_shards(tmp_path, "validation", [held_out])
    data = ManyClass(folder=tmp_path).load()
    assert (len(data.train), len(data.validation)) == (20, 6)
    np.testing.assert_array_equal(all_pixels(data.validation), held_out.inputs / np.float32(255))


def test_pixels_stay_on_disk(tmp_path: Path) -> None:
    write_folder(tmp_path, random_samples(50, 0), random_samples(5, 1000))
    split = ManyClass(folder=tmp_path).load().train
    assert isinstance(split, ShardsSplit)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the list of memory maps is Linux'")
    address = split.pixels.data_ptr()
    ranges = [line.split() for line in maps.read_text().splitlines() if line.endswith(".npy")]
    assert any(
        int(low, 16) <= address < int(high, 16) for low, high in (line[0].split("-") for line in ranges)
    )


def test_grey_and_coloured_pictures_are_decoded(tmp_path: Path) -> None:
    grey, coloured = random_pixels(6, (4, 5)), random_pixels(6, (4, 5, 3))
    write_encoded(tmp_path / "grey", [png(p) for p in grey], [png(grey[0])])
    write_encoded(tmp_path / "coloured", [png(p) for p in coloured], [png(coloured[0])])
    first, second = (
        ManyClass(folder=tmp_path / name, validation_fraction=0) for name in ("grey", "coloured")
    )
    assert (first.input_shape, second.input_shape) == ((1, 4, 5), (3, 4, 5))
    np.testing.assert_array_equal(all_pixels(first.load().train)[:, 0], grey / np.float32(255))
    np.testing.assert_array_equal(
        all_pixels(second.load().train), coloured.transpose(0, 3, 1, 2) / np.float32(255)
    )
    scaled = ManyClass(folder=tmp_path / "coloured", image_size=7, channels=1)
    assert all_pixels(scaled.load().train).shape[1:] == scaled.input_shape == (1, 7, 7)


def broken_pictures() -> list[bytes | None]:
    pictures: list[bytes | None] = [png(p) for p in random_pixels(8, (40, 40))]
    pictures[2], pictures[4], pictures[6] = b"no picture", pictures[4][:-900], None  # type: ignore[index]
    return [*pictures, png(random_pixels(1, (9, 9))[0])]


def test_a_picture_that_cannot_be_decoded_is_named_with_its_shard(tmp_path: Path) -> None:
    write_encoded(tmp_path, broken_pictures(), [png(random_pixels(1, (40, 40))[0])])
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"sample 2 of `.*train-00000.parquet` is not a readable picture.*skip"
        ):
            ManyClass(folder=tmp_path).load()


def test_with_skip_such_samples_are_left_out_and_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = broken_pictures()
    write_encoded(tmp_path, pictures, [png(random_pixels(1, (40, 40))[0])])
    task = ManyClass(folder=tmp_path, on_error="skip", validation_fraction=0)
    with caplog.at_level(logging.INFO, logger="raydistill"):
        data = task.load()
    assert data.train.ids.tolist() == [0, 1, 3, 5, 7]
    assert caplog.text.count("left out") == 1
    assert "4 of 9 samples of `train`" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]  # the survey warns
    expected = [np.asarray(Image.open(io.BytesIO(pictures[i] or b""))) for i in (0, 1, 3, 5, 7)]
    np.testing.assert_array_equal(all_pixels(data.train)[:, 0], np.stack(expected) / np.float32(255))
    assert task.load().train.ids.tolist() == [0, 1, 3, 5, 7]
    with pytest.raises(ValueError, match="sample 2 of"):
        ManyClass(folder=tmp_path).load()


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, random_samples(50, 0), random_samples(5, 1000))
    file = tmp_path / "train-00001.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"train-00001\.parquet"):
        ManyClass(folder=tmp_path).load()


def test_a_flipped_bit_in_a_shard_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    write_folder(tmp_path, random_samples(50, 0), random_samples(5, 1000))
    write_shard_manifest(tmp_path)
    file = tmp_path / "train-00001.parquet"
    content = bytearray(file.read_bytes())
    content[10] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-00001\.parquet` is damaged"):
        ManyClass(folder=tmp_path).load()


def test_shards_that_are_not_those_of_the_manifest_are_refused_at_once(tmp_path: Path) -> None:
    write_folder(tmp_path, random_samples(50, 0), random_samples(5, 1000))
    write_shard_manifest(tmp_path)
    write_shards(tmp_path, "test", [random_samples(7, 1000)])
    with pytest.raises(ValueError, match=r"test-00000\.parquet` has .* bytes"):
        ManyClass(folder=tmp_path).test_content()


def tampered(train: Arrays, change: str) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "pixels": as_column(train.inputs, "bytes"),
        "label": train.labels,
        "id": train.ids,
    }
    if change == "large label":
        columns["label"] = np.where(train.ids == train.ids[4], 3, train.labels)
    elif change == "equal ids":
        columns["id"] = np.where(train.ids == train.ids[4], train.ids[5], train.ids)
    elif change == "wide ids":
        columns["id"] = train.ids / 2
    elif change == "empty cell":
        columns["pixels"] = pa.array([None, *columns["pixels"].to_pylist()[1:]], pa.binary(20))
    elif change == "too short":
        columns["pixels"] = as_column(train.inputs[:, :, :3], "lists")
    else:
        del columns[change]
    return columns


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("label", "train-00000.parquet` has no `label`"),
        ("id", "train-00000.parquet` has no `id`"),
        ("pixels", "has neither `pixels` nor `image`"),
        ("large label", "has the label 3; 3 classes allow 0 to 2"),
        ("equal ids", "belongs to more than one sample"),
        ("wide ids", "`id` of .* should be one integer per row"),
        ("empty cell", "sample .* has no `pixels`"),
        ("too short", "20 bytes or uint8 per picture are expected"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, change: str, message: str) -> None:
    train = random_samples(50, 0)
    write_folder(tmp_path, train, random_samples(5, 1000))
    (tmp_path / "train-00001.parquet").unlink()
    write_table(tmp_path / "train-00000.parquet", **tampered(train, change))
    with pytest.raises(ValueError, match=message):
        ManyClass(folder=tmp_path).load()


@pytest.mark.parametrize("shape", [None, [4, 5], "large", [1, 0, 5]])
def test_arrays_without_a_usable_shape_are_refused(tmp_path: Path, shape: Any) -> None:
    train = random_samples(9, 0)
    write_folder(tmp_path, train, random_samples(5, 1000))
    write_table(tmp_path / "train-00000.parquet", shape, **tampered(train, "label"))
    with pytest.raises(ValueError, match="should have `shape`"):
        _ = ManyClass(folder=tmp_path).input_shape


def test_missing_data_names_the_folder_and_the_generator(tmp_path: Path) -> None:
    task = ManyClass(folder=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"python -m raydistill.tasks\.make\.glyphs --out .*nowhere"):
        task.identity()
    write_folder(tmp_path, random_samples(9, 0), random_samples(5, 1000))
    (tmp_path / "classes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"classes\.json"):
        ManyClass(folder=tmp_path).load()


@pytest.mark.parametrize("content", ["{}", "[1, 2]", '["a", "a"]', "["])
def test_class_names_that_are_no_list_of_different_names_are_refused(tmp_path: Path, content: str) -> None:
    write_folder(tmp_path, random_samples(9, 0), random_samples(5, 1000))
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=r"classes\.json"):
        ManyClass(folder=tmp_path).identity()


@pytest.mark.parametrize("with_manifest", [True, False])
def test_identity_is_content_and_options_not_the_place_nor_the_cache(
    tmp_path: Path, with_manifest: bool
) -> None:
    train, test, other = random_samples(30, 0), random_samples(9, 1000), random_samples(9, 1000)
    for name, part in (("a", test), ("b", test), ("c", other)):
        write_folder(tmp_path / name, train, part)
        if with_manifest:
            write_shard_manifest(tmp_path / name)
    a, b, c = (ManyClass(folder=tmp_path / name).identity() for name in "abc")
    assert a == b == c
    tests = [ManyClass(folder=tmp_path / name).test_content() for name in "abc"]
    assert tests[0] == tests[1] != tests[2]
    assert a == ManyClass(folder=tmp_path / "a", cache=tmp_path / "cache", workers=0).identity()
    assert a != ManyClass(folder=tmp_path / "a", on_error="skip").identity()


def test_a_description_answers_without_torch_and_without_touching_the_pixels(tmp_path: Path) -> None:
    write_encoded(tmp_path, broken_pictures(), [png(random_pixels(1, (40, 40))[0])])
    code = f"""
import sys
from pathlib import Path
from raydistill.tasks.many_class import ManyClass
task = ManyClass(folder=Path({str(tmp_path)!r}))
print(task.identity()["name"], task.num_classes, task.input_shape, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "many_class 3 (1, 40, 40) False"
    assert not (tmp_path / ".pixels").exists()


def test_pixels_are_laid_out_once_and_again_when_a_shard_changes(tmp_path: Path) -> None:
    task = ManyClass(folder=tmp_path, cache=tmp_path / "cache", validation_fraction=0)
    write_folder(tmp_path, random_samples(20, 0), random_samples(5, 1000))
    task.load()
    before = {path.name: path.stat().st_mtime_ns for path in task.cache.iterdir()}  # type: ignore[union-attr]
    task.load()
    assert before == {path.name: path.stat().st_mtime_ns for path in task.cache.iterdir()}  # type: ignore[union-attr]
    assert sorted(Path(name).suffix for name in before) == [".json", ".json", ".npy", ".npy"]
    train = random_samples(24, 0)
    write_folder(tmp_path, train, random_samples(5, 1000))
    np.testing.assert_array_equal(all_pixels(task.load().train), train.inputs / np.float32(255))


def test_a_failed_layout_leaves_nothing_behind(tmp_path: Path) -> None:
    write_encoded(tmp_path, broken_pictures(), [png(random_pixels(1, (40, 40))[0])])
    with pytest.raises(ValueError, match="is not a readable picture"):
        ManyClass(folder=tmp_path).load()
    assert list((tmp_path / ".pixels").iterdir()) == []


def test_a_cache_that_cannot_be_written_says_which_option_helps(tmp_path: Path) -> None:
    write_folder(tmp_path, random_samples(9, 0), random_samples(5, 1000))
    (tmp_path / ".pixels").write_text("in the way")
    with pytest.raises(ValueError, match="name another folder with `cache`"):
        ManyClass(folder=tmp_path).load()
    assert len(ManyClass(folder=tmp_path, cache=tmp_path / "other").load().test) == 5


def test_a_truncated_cache_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, random_samples(20, 0), random_samples(5, 1000))
    task = ManyClass(folder=tmp_path)
    task.load()
    file = next((tmp_path / ".pixels").glob("train-*.npy"))
    os.truncate(file, file.stat().st_size - 7)
    with pytest.raises(ValueError, match=r"train-.*\.npy` is damaged.*delete it"):
        task.load()


def test_shards_hold_so_many_rows_in_the_order_they_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "ROWS_PER_SHARD", 8)
    whole = random_samples(21, 0)
    pieces = [slice(0, 3), slice(3, 20), slice(20, 21)]
    write_shards(tmp_path, "train", [Arrays(whole.inputs[p], whole.labels[p], whole.ids[p]) for p in pieces])
    tables = [pq.read_table(file) for file in sorted(tmp_path.iterdir())]
    assert [len(table) for table in tables] == [8, 8, 5]
    assert [i for table in tables for i in table.column("id").to_pylist()] == whole.ids.tolist()
    joined = b"".join(cell for table in tables for cell in table.column("pixels").to_pylist())
    assert joined == whole.inputs.tobytes()
    check_shard(tmp_path, tmp_path / "train-00000.parquet")

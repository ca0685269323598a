"""Pictures in Parquet shards: columns, names of classes, keys, and one line for what is wrong."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydistill.tasks import parquet_pictures
from raydistill.tasks.image_parquet import ImageParquet
from raydistill.tasks.pictures import PictureError
from raydistill.tasks.survey import survey_task
from raydistill.tasks.task import Cut
from tests.builders.packed_pictures import (
    CLASSES,
    OPTIONS,
    as_parquet,
    class_label,
    png,
    some_pictures,
    write_parquet,
)


@pytest.fixture(autouse=True)
def _memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of files is remembered in a place of this test's own."""
    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path_factory.mktemp("memory")))


def parquet_task(folder: Path, *samples: tuple[str | None, Any, bytes | None], **about: Any) -> ImageParquet:
    """A task whose training shard has these rows, and whose test shard has one sample of the first class."""
    write_parquet(folder / "train-0.parquet", samples or [(None, 0, png()), (None, 1, png())], **about)
    first = "ant" if about.get("type") == pa.string() else 0
    write_parquet(folder / "test-0.parquet", [(None, first, png())], **about)
    return ImageParquet(folder=folder, **OPTIONS, validation_fraction=0)


def test_names_are_those_of_the_schema_and_empty_labels_are_none(tmp_path: Path) -> None:
    task = parquet_task(tmp_path, (None, 2, png()), (None, None, png()), (None, -1, png()))
    assert task.class_names == CLASSES
    assert task.read()["train"].labels.tolist() == [2, -1, -1]
    assert task.unlabelled == 2
    assert not (tmp_path / ".pictures").exists()  # only who looks at pictures lays them out


def test_labels_that_are_texts_name_the_classes(tmp_path: Path) -> None:
    rows = [(None, "wasp", png()), (None, "ant", png()), (None, None, png())]
    task = parquet_task(tmp_path, *rows, type=pa.string(), metadata={})
    assert task.class_names == ("ant", "wasp")
    assert task.read()["train"].labels.tolist() == [1, 0, -1]
    named = task.model_copy(update={"classes": ("wasp", "ant")})
    assert named.read()["train"].labels.tolist() == [0, 1, -1]
    coded = pa.table({"image": [png()], "label": pa.array(["ant"]).dictionary_encode()})
    pq.write_table(coded, tmp_path / "train-1.parquet")
    assert task.read()["train"].labels.tolist() == [1, 0, -1, 0]


def test_columns_of_other_names_are_found_by_what_the_metadata_say_or_named(tmp_path: Path) -> None:
    features = {
        "img": {"_type": "Image"},
        "fine": {"_type": "ClassLabel", "names": ["a", "b"]},
        "x": {"_type": "Value"},
    }
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.table(
        {"x": [1, 2], "img": [{"bytes": png(), "path": None}] * 2, "fine": [1, 0], "coarse": [0, 0]}
    )
    for split in ("train", "test"):
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / f"{split}.parquet")
    task = ImageParquet(folder=tmp_path, **OPTIONS, validation_fraction=0)
    assert task.class_names == ("a", "b")
    assert task.load().train.labels.tolist() == [1, 0]
    coarse = task.model_copy(update={"label": "coarse", "classes": 1, "image": "img"})
    assert coarse.load().train.labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    "groups", [[row // 4 for row in range(40)], [f"patient {row // 4}" for row in range(40)]]
)
def test_groups_stay_together_when_the_test_split_is_cut(tmp_path: Path, groups: list[Any]) -> None:
    table = pa.table({"image": [png()] * 40, "label": ["ant", "bee"] * 20, "who": groups})
    pq.write_table(table, tmp_path / "all.parquet")
    parts = ImageParquet(folder=tmp_path, **OPTIONS, group="who", cut=Cut(by="group")).read()
    test, train = ({row // 4 for row in parts[split].inputs.tolist()} for split in ("test", "train"))
    assert test
    assert not test & train
    pq.write_table(table.set_column(2, "who", pa.array([None, *groups[1:]])), tmp_path / "all.parquet")
    with pytest.raises(ValueError, match=r"`row 0` of .*all.parquet` has no group; see the option `group`"):
        ImageParquet(folder=tmp_path, **OPTIONS, group="who").read()
    with pytest.raises(ValueError, match=r"has no column `whom`; name one of .*`who` in the option `group`"):
        ImageParquet(folder=tmp_path, **OPTIONS, group="whom").read()


def test_another_column_of_pictures_is_laid_out_by_itself(tmp_path: Path) -> None:
    one, other = png(0), png(1)
    for split in ("train", "test"):
        pq.write_table(
            pa.table({"image": [one], "beside": [other], "label": ["a"]}), tmp_path / f"{split}.parquet"
        )
    task = ImageParquet(folder=tmp_path, **OPTIONS)
    beside = task.model_copy(update={"image": "beside"})
    found = [which.store().read(0, 3).image.tobytes() for which in (task, beside)]
    assert found == [Image.open(io.BytesIO(content)).tobytes() for content in (one, other)]


def test_ids_follow_paths_where_each_picture_has_its_own(tmp_path: Path) -> None:
    rows = [("a.png", 0, png()), ("b.png", 1, png()), ("c.png", 1, png())]
    task = parquet_task(tmp_path, *rows)
    ids = task.read()["train"].ids.tolist()
    write_parquet(tmp_path / "train-0.parquet", [rows[2], rows[0]])
    assert task.read()["train"].ids.tolist() == [ids[2], ids[0]]
    assert task.store().name(0) == "train-0.parquet/c.png"
    write_parquet(tmp_path / "train-0.parquet", [("a.png", 0, png()), ("a.png", 1, png())])
    assert task.store().name(1) == "train-0.parquet/row 1"
    assert len(set(task.read()["train"].ids.tolist())) == 2


@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()])
def test_pictures_are_read_from_plain_columns_of_bytes_too(tmp_path: Path, binary: Any) -> None:
    pictures = [png(row) for row in range(9)]
    for split in ("train", "test"):
        table = pa.table({"image": pa.array(pictures, binary), "label": [0, 1, 2] * 3})
        pq.write_table(
            table.replace_schema_metadata(class_label()), tmp_path / f"{split}.parquet", row_group_size=2
        )
    task = ImageParquet(folder=tmp_path, image_size=11, resize=11, workers=0, validation_fraction=0)
    (found,) = task.load().train.batches([torch.tensor([8, 0, 5])], None)
    expected = [
        np.asarray(Image.open(io.BytesIO(pictures[row])))[:, 1:12].transpose(2, 0, 1) for row in (8, 0, 5)
    ]
    assert torch.equal((found * 255).round().byte(), torch.from_numpy(np.stack(expected)))


def test_pictures_are_laid_out_once_for_equal_shards_and_again_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = as_parquet(tmp_path / "data", some_pictures()).model_copy(update={"cache": tmp_path / "cache"})
    split = task.load().train
    expected = torch.cat(list(split.batches([torch.arange(24)], None)))
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert sorted({file.suffix for file in made}) == [".bytes", ".npy"]
    assert len(made) == 2 * 6
    assert torch.equal(torch.cat(list(task.load().train.batches([torch.arange(24)], None))), expected)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == made
    victim = next(file for file in made if file.suffix == ".bytes")
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"pictures-.*bytes` is damaged: .* delete it, it is made again"):
        task.load()


def test_a_folder_that_cannot_be_written_asks_for_another(tmp_path: Path) -> None:
    task = parquet_task(tmp_path)
    (tmp_path / ".pictures").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot be laid out: .*; name another folder with `cache`"):
        task.load()


def test_a_picture_without_bytes_or_with_broken_ones_is_named_or_left_out(tmp_path: Path) -> None:
    rows = [("a.png", 0, png()), ("b.png", 1, None), ("c.png", 1, png()[:50])]
    task = parquet_task(tmp_path, *rows)
    (error,) = (finding.text for finding in task.survey().findings if finding.level == "error")
    assert "cannot be read: 2 (`train-0.parquet/b.png`, `train-0.parquet/c.png`)" in error
    assert f"`b.png` of `{tmp_path / 'train-0.parquet'}` is not a readable picture: it is empty" in error
    with pytest.raises(PictureError, match=r"`b.png` of .*train-0.parquet` is not a readable picture"):
        list(task.load().train.batches([torch.arange(3)], None))
    assert task.model_copy(update={"on_error": "skip"}).load().train.labels.tolist() == [0]


def broken(folder: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), folder / "train-0.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"picture": [b"x"], "label": [0]},
            "has no column `image`; name one of `picture`, `label` in the option `ima",
        ),
        (
            {"image": [b"x"], "kind": [0]},
            "has no column `label`; name one of `image`, `kind` in the option `label`",
        ),
        ({"image": ["x"], "label": [0]}, "column `image` of .* holds string, no encoded pictures"),
        ({"image": [[1, 2]], "label": [0]}, r"column `image` of .* holds list<.*, no encoded pictures"),
        (
            {"image": [b"x"], "label": [0.5]},
            "column `label` of .* holds double, no labels: integers or texts",
        ),
        (
            {"image": [b"x"], "label": [1]},
            "nothing in .*train-0.parquet` names the classes; .* option `classes`",
        ),
    ],
)
def test_columns_that_do_not_fit_are_one_line(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    task = parquet_task(tmp_path, metadata={})
    broken(tmp_path, **columns)
    (finding,) = survey_task(task).findings
    with pytest.raises(ValueError, match=message):
        raise ValueError(finding.text)
    assert finding.level == "error"
    assert "\n" not in finding.text


def test_a_label_beyond_the_classes_is_named_by_shard_and_key(tmp_path: Path) -> None:
    task = parquet_task(tmp_path, ("a.png", 0, png()), ("b.png", 3, png()))
    with pytest.raises(
        ValueError, match=r"`b.png` of .*train-0.parquet` has the label `3`, which is none of the 3"
    ):
        task.read()


def test_shards_that_name_other_classes_are_refused(tmp_path: Path) -> None:
    task = parquet_task(tmp_path)
    write_parquet(
        tmp_path / "test-0.parquet", [(None, 0, png())], metadata=class_label(names=("bee", "ant", "wasp"))
    )
    with pytest.raises(
        ValueError, match=r"test-0.parquet` names other classes than the first training shard"
    ):
        task.read()
    write_parquet(tmp_path / "train-0.parquet", [(None, 0, png())], metadata=class_label(names=("a", "a")))
    with pytest.raises(ValueError, match=r"train-0.parquet` names a class twice"):
        task.read()


@pytest.mark.parametrize("part", [0, 0.3, 0.9])
def test_a_truncated_shard_is_one_line(tmp_path: Path, part: float) -> None:
    task = parquet_task(tmp_path)
    whole = (tmp_path / "train-0.parquet").read_bytes()
    (tmp_path / "train-0.parquet").write_bytes(whole[: int(part * len(whole))])
    (finding,) = survey_task(task).findings
    assert finding.level == "error"
    assert f"shard `{tmp_path / 'train-0.parquet'}` is damaged or cannot be read" in finding.text


def test_a_shard_with_damaged_pages_is_one_line(tmp_path: Path) -> None:
    task = parquet_task(tmp_path, *((f"{row}.png", 0, png()) for row in range(9)))
    whole = bytearray((tmp_path / "train-0.parquet").read_bytes())
    whole[4:60] = b"\xff" * 56
    (tmp_path / "train-0.parquet").write_bytes(whole)
    (finding,) = survey_task(task).findings
    assert finding.level == "error"
    assert "train-0.parquet" in finding.text
    assert not list((tmp_path / ".pictures").glob(".*"))


def test_a_pointer_of_git_lfs_is_told(tmp_path: Path) -> None:
    task = parquet_task(tmp_path)
    (tmp_path / "train-0.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"train-0.parquet` is a Git LFS pointer.*`git lfs pull`"):
        task.read()


def test_a_large_shard_is_laid_out_a_few_pictures_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_pictures, "ROWS_AT_ONCE", 2)
    rows = [(f"{row}.png", row % 3, png(row)) for row in range(11)]
    task = parquet_task(tmp_path, *rows)
    store = task.store()
    assert [store.read(row, 3).image.tobytes() for row in range(11)] == [
        Image.open(io.BytesIO(content)).tobytes() for _, _, content in rows
    ]


def test_the_published_layout_of_imagenet_asks_for_the_split_that_has_labels(tmp_path: Path) -> None:
    for split, label in (("train", 1), ("validation", 0), ("test", -1)):
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", [(None, label, png())])
    with pytest.raises(ValueError, match=r"1 of 1 samples of `test` have no label.* option `test`"):
        ImageParquet(folder=tmp_path, **OPTIONS).read()
    task = ImageParquet(folder=tmp_path, **OPTIONS, test="data/validation-*.parquet")
    assert {split: part.labels.tolist() for split, part in task.read().items()} == {"train": [1], "test": [0]}
    texts = [finding.text for finding in task.survey().findings]
    assert any("shards of no split: 1 (`data/test-00000-of-00001.parquet`)" in text for text in texts)


def test_pictures_that_are_paths_alone_are_said_to_be(tmp_path: Path) -> None:
    task = parquet_task(tmp_path, ("a.png", 0, None), ("b.png", 1, None))
    with pytest.raises(
        ValueError, match=r"has the paths of pictures in column `image`, and not their bytes; write them in"
    ):
        task.load()

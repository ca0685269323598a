"""What in a folder is a picture and a class, what a survey says of the rest, and pictures that cannot be read."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydistill.tasks import picture_store, picture_survey
from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.many_class import ManyClass
from raydistill.tasks.picture_store import FolderPictures
from raydistill.tasks.picture_survey import look_at
from raydistill.tasks.pictures import PictureError
from raydistill.tasks.task import Task

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks are remembered in a place of this test's own."""
    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path_factory.mktemp("memory")))


def picture(ending: str = "png") -> bytes:
    image = Image.fromarray(RANDOM.integers(0, 256, (9, 12, 3), np.uint8))
    image.save(stream := io.BytesIO(), Image.registered_extensions()[f".{ending}"])
    return stream.getvalue()


def write(folder: Path, *files: str, content: bytes | None = None) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        ending = Path(file).suffix.lower()[1:]
        (folder / file).write_bytes(content if content is not None else picture(ending))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with three pictures each in `train/`, one in `val/`."""
    for name in ("ant", "bee"):
        write(tmp_path, *(f"train/{name}/{number}.png" for number in range(3)), f"val/{name}/0.png")
    return tmp_path


def task(folder: Path, **options: Any) -> ImageFolder:
    options = {"image_size": 8, "resize": 8, "workers": 0, "validation_fraction": 0, **options}
    return ImageFolder(folder=folder, **options)


def said(task: Task, level: str) -> list[str]:
    return [finding.text for finding in task.survey().findings if finding.level == level]


JUNK = (
    "train/ant/._0.png", "train/.ipynb_checkpoints/0.png", "train/@eaDir/0.png", "train/__MACOSX/ant/0.png",
    "train/ant/@eaDir/0.png", "train/ant/Thumbs.db", "train/ant/.DS_Store", "val/__MACOSX/0.png",
)  # fmt: skip


def test_what_systems_leave_behind_is_neither_class_nor_sample_and_changes_nothing(folder: Path) -> None:
    identity, ids = task(folder).identity(), task(folder).load().train.ids
    write(folder, *JUNK, content=b"\0\5\x16\7")
    (folder / "train" / "empty").mkdir()
    assert task(folder).class_names == ("ant", "bee")
    assert task(folder).identity() == identity
    assert torch.equal(task(folder).load().train.ids, ids)


def test_a_survey_counts_what_is_left_out_by_reason(folder: Path) -> None:
    write(folder, *JUNK, "train/ant/notes.txt", "train/bee/photo", "train/stray.png", content=b"")
    (folder / "train" / "empty").mkdir()
    assert said(task(folder), "warning") == [
        "`train/`: left out `.txt` files: 1 (`ant/notes.txt`)",
        "`train/`: left out files without an ending: 1 (`bee/photo`)",
        "`train/`: left out folders without a picture: 1 (`empty`)",
        "`train/`: left out pictures outside of a class's folder: 1 (`stray.png`)",
    ]
    notes = said(task(folder), "note")
    assert (
        "`train/`: left out hidden files and folders: 3 (`.ipynb_checkpoints`, `ant/.DS_Store`, `ant/._0.png`)"
        in notes
    )
    assert any(
        "traces of operating systems: 4 (`@eaDir`, `__MACOSX`, `ant/@eaDir`, …)" in note for note in notes
    )


def test_a_clean_folder_deserves_no_word(folder: Path) -> None:
    survey = task(folder).survey()
    assert survey.findings == ()
    assert survey.counts == {"train": (3, 3), "validation": (0, 0), "test": (1, 1)}


def test_every_usual_ending_is_taken_whatever_its_case(folder: Path) -> None:
    write(folder, *(f"train/ant/a.{ending}" for ending in ("jfif", "GIF", "JPG", "tiff", "webp", "pgm")))
    assert len(task(folder).load().train) == 6 + 6


def test_deeper_folders_belong_to_their_class_and_are_told(folder: Path) -> None:
    write(folder, "train/ant/monday/red/0.png")
    (folder / "train/ant/again").symlink_to(folder / "train/ant")  # a circle is walked once
    parts = task(folder).read()
    assert parts["train"].inputs[list(parts["train"].inputs).index("train/ant/monday/red/0.png")]
    assert parts["train"].labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert said(task(folder), "note") == [
        "`train/`: pictures in deeper folders: 1 (`ant/monday/red/0.png`, …)"
    ]


def test_a_class_that_only_the_test_split_has_is_an_error(folder: Path) -> None:
    write(folder, "val/wasp/0.png")
    with pytest.raises(ValueError, match="classes that `train/` has not: wasp"):
        task(folder).survey()


def test_a_broken_picture_is_an_error_of_the_survey(folder: Path) -> None:
    write(folder, "train/ant/9.png", "val/bee/9.png", content=b"no picture")
    errors = said(task(folder), "error")
    assert len(errors) == 2
    assert errors[0].startswith("`train`: pictures that cannot be read: 1 (`train/ant/9.png`); ")
    assert "`val`: pictures that cannot be read: 1 (`val/bee/9.png`)" in errors[1]
    assert "its content has no known format" in errors[1]
    assert errors[1].endswith("`on_error: skip`")


def test_with_skip_broken_pictures_are_left_out_everywhere(folder: Path) -> None:
    before = task(folder, on_error="skip").load()
    write(folder, "train/ant/00.png", "val/bee/9.png", content=picture()[:60])
    skipping = task(folder, on_error="skip")
    after = skipping.load()
    for split in ("train", "test"):
        assert torch.equal(getattr(after, split).ids, getattr(before, split).ids)
    assert skipping.survey().counts == {"train": (3, 3), "validation": (0, 0), "test": (1, 1)}
    assert said(skipping, "error") == []
    assert "`val`: left out pictures that cannot be read: 1 (`val/bee/9.png`)" in said(skipping, "warning")[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_a_worker_is_the_line_about_the_picture(folder: Path, workers: int) -> None:
    write(folder, "val/bee/0.png", content=b"")
    test = task(folder, workers=workers).load().test
    with pytest.raises(PictureError) as caught:
        list(test.batches([torch.arange(2)], None))
    assert caught.value.message == f"`{folder / 'val/bee/0.png'}` is not a readable picture: it is empty"


def test_a_picture_is_decoded_once_and_again_when_its_file_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_survey, "YOUNG_SECONDS", -1)
    task(folder).survey()
    decoded: list[Path] = []
    read = picture_store.read_picture
    monkeypatch.setattr(picture_store, "read_picture", lambda file, n: decoded.append(file) or read(file, n))
    task(folder).survey()
    assert decoded == []
    times = (folder / "val/ant/0.png").stat()
    write(folder, "val/ant/0.png", content=b"x" * times.st_size)
    os.utime(folder / "val/ant/0.png", ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert len(said(task(folder), "error")) == 1
    assert decoded == [folder / "val/ant/0.png"]


def test_the_stamp_of_a_file_just_written_is_not_trusted(folder: Path) -> None:
    write(folder, "val/bee/0.png", content=b"no picture")
    assert len(said(task(folder), "error")) == 1
    (memory,) = (Path(os.environ["RAYDISTILL_DATA"]) / ".looks").iterdir()
    assert json.loads(memory.read_text())["seen"] == {}


def test_a_damaged_memory_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_survey, "YOUNG_SECONDS", -1)
    first = look_at(FolderPictures(folder), ["val/ant/0.png"], 1)
    (memory,) = (Path(os.environ["RAYDISTILL_DATA"]) / ".looks").iterdir()
    for content in ("", "[]", '{"reader": "pictures-2", "seen": {"a": 1}}'):
        memory.write_text(content)
        assert look_at(FolderPictures(folder), ["val/ant/0.png"], 1) == first


def test_of_very_many_pictures_a_sample_is_looked_at_and_it_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_survey, "MOST", 4)
    assert said(task(folder), "note") == ["`train`: 4 of 6 pictures were looked at, chosen by hash"]
    write(folder, *(f"train/bee/{number}.png" for number in range(3)), content=b"no picture")
    assert len(task(folder, on_error="skip").load().train) == 3  # all are looked at where they are left out


def test_equal_blank_and_shared_pictures_are_told(folder: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(stream := io.BytesIO(), "PNG")
    for part, count in (("train", 3), ("val", 1)):
        names = [f"{part}/{name}/{n}.png" for name in ("ant", "bee") for n in range(count)]
        write(folder, *names, content=stream.getvalue())
    assert said(task(folder), "error") == [
        "`train`: all 6 pictures are equal, pixel for pixel: nothing can be learned from them"
    ]
    told = said(task(folder), "warning")
    assert "`train`: 6 of 6 pictures have one colour all over" in told
    assert any("`train` has too" in line and "2 (`val/ant/0.png`, `val/bee/0.png`)" in line for line in told)


def test_what_pictures_were_turned_from_is_told_once_per_split(folder: Path) -> None:
    write(folder, "train/ant/a.gif", "train/bee/b.gif")
    assert said(task(folder), "note") == ["`train`: of 8 pictures 2 palette"]


def test_another_reader_is_another_identity(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = task(folder).content()
    monkeypatch.setattr("raydistill.tasks.pictures.READER", "pictures-3")
    assert task(folder).content() != content


# --- shards ----------------------------------------------------------------------------------------------------------


def write_shards(folder: Path, train: list[bytes]) -> ManyClass:
    """As `datasets` writes them: structs, names in the schema, no ids."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}
    for split, part in (("train", train), ("test", [picture(), picture()])):
        images = pa.array([{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(part)], kind)
        table = pa.table({"image": images, "label": [i % 2 for i in range(len(part))]})
        about = json.dumps({"info": {"features": features}})
        pq.write_table(
            table.replace_schema_metadata({"huggingface": about}), folder / f"{split}-00000-of-00001.parquet"
        )
    return ManyClass(folder=folder, validation_fraction=0)


def test_shards_of_the_library_datasets_are_read_as_they_are(tmp_path: Path) -> None:
    pictures = [picture() for _ in range(4)]
    shards = write_shards(tmp_path, pictures)
    data = shards.load()
    assert (data.class_names, shards.input_shape) == (("ant", "bee"), (3, 9, 12))
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert len({*data.train.ids.tolist(), *data.test.ids.tolist()}) == 6
    (batch,) = data.train.batches([torch.arange(4)], None)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in pictures])
    np.testing.assert_array_equal(batch.numpy(), expected.transpose(0, 3, 1, 2) / np.float32(255))


def test_ids_of_rows_stay_when_a_validation_split_is_added(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [picture()] * 2)
    before = shards.load().test.ids
    content = (tmp_path / "test-00000-of-00001.parquet").read_bytes()
    (tmp_path / "validation-00000-of-00001.parquet").write_bytes(content)
    assert torch.equal(shards.load().test.ids, before)


@pytest.mark.parametrize("most", [10, 2])
def test_broken_pictures_in_shards_are_found_by_the_survey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(picture_survey, "MOST", most)
    shards = write_shards(tmp_path, [picture("gif"), b"no picture", picture("gif"), picture("gif")])
    (error,) = said(shards, "error")
    assert error.startswith("`train`: pictures that cannot be read: 1; row 1 of ")
    assert error.endswith("`on_error: skip`")
    skipping = shards.model_copy(update={"on_error": "skip"})
    assert len(skipping.load().train) == 3
    assert ("`train`: 2 of 4 pictures were looked at" in " ".join(said(skipping, "note"))) == (most == 2)
    assert any(
        f"of {min(most, 4) - 1} pictures {min(most, 4) - 1} palette" in note for note in said(shards, "note")
    )


def test_equal_pictures_in_shards_are_told(tmp_path: Path) -> None:
    (error,) = said(write_shards(tmp_path, [picture()] * 3), "error")
    assert error.startswith("`train`: all 3 pictures are equal, pixel for pixel")


def test_the_reader_is_part_of_what_names_decoded_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(tmp_path, [picture()] * 2)
    shards.load()
    content, laid_out = shards.content(), set((tmp_path / ".pixels").iterdir())
    monkeypatch.setattr("raydistill.tasks.pixel_cache.READER", "pictures-3")
    monkeypatch.setattr("raydistill.tasks.pictures.READER", "pictures-3")
    shards.load()
    assert shards.content() != content
    assert len(set((tmp_path / ".pixels").iterdir()) - laid_out) == 4


@pytest.mark.parametrize(("image_size", "resize"), [(224, 256), (112, 128), (32, 37), (8, 9), (1, 1)])
def test_as_much_of_a_picture_is_seen_at_every_size_of_the_input(
    folder: Path, image_size: int, resize: int
) -> None:
    usual = ImageFolder(folder=folder, image_size=image_size)
    assert usual.resize == resize
    assert usual.identity() == ImageFolder(folder=folder, image_size=image_size, resize=resize).identity()


def test_a_centre_that_is_a_small_part_of_the_picture_is_warned_of_with_the_usual_size(folder: Path) -> None:
    (said_of_it,) = said(task(folder, image_size=32, resize=256), "warning")
    assert said_of_it == (
        "validation and test see the middle 1.6% of a square picture: `image_size` 32 is cut out after the shorter side"
        " was scaled to `resize` 256; leave `resize` out, which is 37 then"
    )
    assert said(task(folder, image_size=32, resize=64), "warning") == []
    assert said(ImageFolder(folder=folder, image_size=32, workers=0, validation_fraction=0), "warning") == []

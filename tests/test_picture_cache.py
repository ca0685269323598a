"""`cache: {shorter_side: 256}`: the pixels of scaled pictures, decoded once, whoever reads them or is killed."""

import io
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raydistill.tasks import packed_pictures, picture_store
from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.image_parquet import ImageParquet
from raydistill.tasks.packed_task import PackedTask
from raydistill.tasks.picture_task import PictureCache, PictureTask
from raydistill.tasks.pictures import PictureError
from raydistill.tasks.splits import View
from tests.builders.packed_pictures import FORMATS, some_pictures

SIDE = 12
CACHE = PictureCache(shorter_side=SIDE)


@pytest.fixture(autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packed files lie."""
    place = tmp_path_factory.mktemp("memory")
    monkeypatch.setenv("RAYDISTILL_DATA", str(place))
    return place / "packed"


def picture(seed: int, width: int = 30, height: int = 20) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes = [(30, 20), (17, 40), (12, 12), (9, 30), (25, 13)]
    for number, size in enumerate(sizes):
        for part, name in (("train", "ant"), ("train", "bee"), ("val", "ant"), ("val", "bee")):
            file = tmp_path / "data" / part / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(len(part) * 100 + len(name) * 10 + ord(name[0]) + number, *size))
    return tmp_path / "data"


def task(folder: Path, **options: Any) -> ImageFolder:
    options = {"image_size": 8, "resize": 10, "workers": 0, "validation_fraction": 0.2, **options}
    return ImageFolder(folder=folder, **{"cache": CACHE, **options})


def pixels(task: PictureTask, split: str = "test", view: View | None = None) -> np.ndarray:
    found = getattr(task.load(), split)
    (batch,) = found.batches([torch.arange(len(found))], view)
    return np.rint(batch.numpy() * 255).astype(np.uint8)


def scaled(content: bytes) -> Image.Image:
    """By hand: the shorter side at most `SIDE`."""
    image = Image.open(io.BytesIO(content))
    shorter = min(image.size)
    if shorter <= SIDE:
        return image
    return image.resize(
        tuple(round(side * SIDE / shorter) for side in image.size),  # type: ignore[arg-type]
        Image.Resampling.BILINEAR,
    )


def test_what_is_seen_is_the_middle_of_the_scaled_picture(folder: Path) -> None:
    expected = []
    for file in sorted((folder / "val").rglob("*.png")):
        image = scaled(file.read_bytes())
        side = min(image.size) * 0.8
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        seen = image.resize((8, 8), Image.Resampling.BILINEAR, box=box)
        expected.append(np.asarray(seen).transpose(2, 0, 1))
    np.testing.assert_array_equal(pixels(task(folder)), np.stack(expected))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_evaluation_and_prediction_see_the_same_with_and_without_the_file(
    folder: Path, root: Path, workers: int
) -> None:
    cached = task(folder, workers=workers)
    (one, *_) = pixels(cached)
    predicted = cached.picture_input(folder / "val/ant/0.png", (3, 8, 8))
    np.testing.assert_array_equal(one, predicted)
    views = pixels(cached, "train", View(3, 1))
    (file,) = root.glob("*.pixels")
    places = [place for split in ("train", "test") for place in cached.read()[split].inputs.tolist()]
    assert len(places) == 20
    # Without the file: pictures are read, scaled and cut each time.
    from raydistill.tasks.folder_split import build_folder_data

    data = build_folder_data(cached, cached.store(), cached.read())
    (direct,) = data.train.batches([torch.arange(len(data.train))], View(3, 1))
    np.testing.assert_array_equal(np.rint(direct.numpy() * 255).astype(np.uint8), views)
    assert file.stat().st_size == 20 * 24 + sum(
        3 * scaled((folder / place).read_bytes()).width * scaled((folder / place).read_bytes()).height
        for place in places
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_are_packed_as_folders_are(tmp_path: Path, kind: str) -> None:
    plain = FORMATS[kind](tmp_path / "shards", some_pictures())
    assert isinstance(plain, PackedTask)
    cached = plain.model_copy(update={"cache": PictureCache(shorter_side=100)})  # which nothing is scaled to
    for split, view in (("train", View(1, 1)), ("validation", None), ("test", None)):
        np.testing.assert_array_equal(pixels(cached, split, view), pixels(plain, split, view))


def decoded_by(task: PictureTask, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many pictures are decoded while a task is loaded and its test is read."""
    seen: list[Any] = []
    read = picture_store.read_part
    with monkeypatch.context() as patched:
        patched.setattr(picture_store, "read_part", lambda *given, **more: seen.append(given) or read(*given))
        pixels(task)
    return len(seen)


def test_pictures_are_decoded_once_whoever_asks_and_however_they_are_cut(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoded_by(task(folder), monkeypatch) == 20
    assert decoded_by(task(folder), monkeypatch) == 0
    assert decoded_by(task(folder, split_seed=5, validation_fraction=0.4, image_size=6), monkeypatch) == 0
    folder.rename(folder.parent / "moved")
    assert decoded_by(task(folder.parent / "moved"), monkeypatch) == 0
    assert len(list(root.glob("*.pixels"))) == 1


@pytest.mark.parametrize("change", ["content", "side", "reader"])
def test_other_pixels_are_another_file(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before = pixels(task(folder))
    options: dict[str, Any] = {}
    if change == "content":
        (folder / "val/ant/0.png").write_bytes(picture(99))
    elif change == "side":
        options = {"cache": PictureCache(shorter_side=9)}
    else:
        monkeypatch.setattr("raydistill.tasks.pictures.READER", "another")
    after = pixels(task(folder, **options))
    assert len(list(root.glob("*.pixels"))) == 2
    assert np.array_equal(before, after) == (change == "reader")


def test_the_side_is_part_of_the_identity_and_the_folder_is_not(folder: Path, tmp_path: Path) -> None:
    plain, cached = task(folder, cache=None), task(folder)
    elsewhere = task(folder, cache=PictureCache(shorter_side=SIDE, folder=tmp_path / "elsewhere"))
    assert cached.identity() == {**plain.identity(), "shorter_side": SIDE}
    assert elsewhere.identity() == cached.identity()
    pixels(elsewhere)
    assert len(list((tmp_path / "elsewhere").glob("*.pixels"))) == 1
    parquet = ImageParquet(folder=folder, cache=tmp_path)
    assert parquet.packing is None


def test_a_bad_picture_ends_it_in_one_line_or_is_left_out(folder: Path, root: Path) -> None:
    (folder / "train/ant/0.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"train/ant/0.png. is not a readable picture: "):
        task(folder).load()
    assert not list(root.glob("*.pixels"))
    data = task(folder, on_error="skip", validation_fraction=0).load()
    (batch,) = data.train.batches([torch.arange(len(data.train))], None)
    assert len(batch) == 9


def test_a_damaged_file_is_named_and_one_cut_short_is_made_again(folder: Path, root: Path) -> None:
    expected = pixels(task(folder))
    (file,) = root.glob("*.pixels")
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(PictureError, match=rf"^`{file}` is damaged: delete it, it is made again$"):
        pixels(task(folder))
    for size in (0, 30, len(content) - 1):
        file.write_bytes(content[:size])
        np.testing.assert_array_equal(pixels(task(folder)), expected)
        assert file.read_bytes() == content


def test_what_would_not_fit_is_told_in_one_line_before_the_disk_is_full(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(packed_pictures, "AT_ONCE", 3)
    monkeypatch.setattr(packed_pictures.shutil, "disk_usage", lambda _: usage(9999, 0, 5000))
    with pytest.raises(ValueError, match="pictures cannot be packed into") as caught:
        task(folder).load()
    assert "20 pictures take about 0.0 GB, and 0.0 are free; free some room" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in root.iterdir() if path.suffix not in (".lock", ".used")]


def test_a_folder_that_cannot_be_made_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"name another `folder` in `cache`, or leave `cache` out$"):
        task(folder, cache=PictureCache(shorter_side=SIDE, folder=tmp_path / "file" / "below")).load()


SLOW = """
import sys, time
from pathlib import Path
from raydistill.tasks import packed_pictures, picture_store
from raydistill.tasks.image_folder import ImageFolder

packed_pictures.AT_ONCE = 4
read = picture_store.read_part
def slowly(*given):
    time.sleep(float(sys.argv[2]))
    print(Path(given[0]).name, flush=True)
    return read(*given)
picture_store.read_part = slowly
options = {"image_size": 8, "resize": 10, "workers": 0, "validation_fraction": 0.2}
ImageFolder(folder=Path(sys.argv[1]), cache={"shorter_side": 12}, **options).load()
print("loaded", flush=True)
"""


def loading(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)


def test_who_waits_goes_on_where_one_that_is_killed_stopped(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loading(folder, 0.2)
    assert first.stdout is not None
    for _ in range(9):
        first.stdout.readline()  # the third group of four has begun
    second = loading(folder, 0)
    time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    lines = second.communicate(timeout=120)[0].split()
    assert second.returncode == 0
    assert lines[-1] == "loaded"
    assert 1 <= len(lines) - 1 <= 20 - 8
    with monkeypatch.context():
        assert decoded_by(task(folder), monkeypatch) == 0
    (file,) = root.glob("*.pixels")
    content = file.read_bytes()
    file.unlink()
    pixels(task(folder))
    assert file.read_bytes() == content
    assert not list(root.glob("*.partial"))


def test_two_that_begin_together_decode_each_picture_once(folder: Path) -> None:
    both = [loading(folder, 0.02) for _ in range(2)]
    lines = [one.communicate(timeout=120)[0].split() for one in both]
    assert [line[-1] for line in lines] == ["loaded", "loaded"]
    assert sum(len(line) - 1 for line in lines) == 20

"""Large JPEGs at a reduced size: nearly the pixels of the whole, the same ones everywhere, and another identity."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

from raydistill.tasks import reduced
from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.image_manifest import ImageManifest
from raydistill.tasks.image_parquet import ImageParquet
from raydistill.tasks.pictures import PictureError, Wanted, read_part
from raydistill.tasks.pool import Pool
from raydistill.tasks.reduced import LARGE, reduction
from raydistill.tasks.splits import View
from raydistill.tasks.task import Task
from raydistill.tasks.webdataset import WebDataset
from tests.builders.packed_pictures import write_tar

WIDTH, HEIGHT = 900, 700


@pytest.fixture(autouse=True)
def _memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path_factory.mktemp("memory")))


def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Colours that go over into one another, a dark disk that is not in the middle, and a camera's noise."""
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 255 / width, y * 255 / height, 128 + 100 * np.sin((x + 2 * y) / 40)], axis=-1)
    values[(x - width / 4) ** 2 + (y - height / 3) ** 2 < (height / 5) ** 2] = 20
    noise = np.random.default_rng(0).normal(0, 6, values.shape)
    return Image.fromarray((values + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    options = {"quality": 98, **options} if kind == "JPEG" else options
    image.save(stream := io.BytesIO(), kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def large() -> bytes:
    content = encoded(scene())
    assert len(content) >= LARGE
    return content


@pytest.fixture(scope="module")
def small() -> bytes:
    """As many pixels in fewer bytes."""
    content = encoded(scene(), quality=60)
    assert len(content) < LARGE
    return content


def scaled_to(side: int) -> Wanted:
    return lambda width, height: ((0, 0, width, height), side, side)


def whole(content: bytes, side: int) -> np.ndarray:
    """By the whole picture."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.int64)


def part(content: bytes, wanted: Wanted) -> np.ndarray:
    return np.asarray(read_part(content, 3, wanted), dtype=np.int64)


@pytest.mark.parametrize(
    ("side", "factor"), [(40, 8), (43, 8), (44, 4), (87, 4), (88, 2), (175, 2), (176, 1), (300, 1)]
)
def test_twice_as_many_pixels_are_decoded_as_are_wanted(side: int, factor: int) -> None:
    """700 / 8 = 87.5, half of which is 43.75."""
    assert reduction((0, 0, WIDTH, HEIGHT), side, side) == factor
    assert reduction((0, 0, HEIGHT, WIDTH), side, side) == factor


@pytest.mark.parametrize("side", [40, 80, 160])
def test_a_reduced_picture_is_the_whole_one_within_a_grey_level(large: bytes, side: int) -> None:
    difference = part(large, scaled_to(side)) - whole(large, side)
    assert 0 < np.abs(difference).mean() < 1
    assert abs(difference.mean()) < 0.25


def test_what_needs_the_whole_has_the_pixels_of_the_whole(large: bytes) -> None:
    np.testing.assert_array_equal(part(large, scaled_to(200)), whole(large, 200))


@pytest.mark.parametrize("side", [40, 80, 200])
def test_files_of_few_bytes_and_of_other_formats_keep_their_pixels(small: bytes, side: int) -> None:
    np.testing.assert_array_equal(part(small, scaled_to(side)), whole(small, side))
    png = encoded(scene(), "PNG")
    assert len(png) > LARGE
    np.testing.assert_array_equal(part(png, scaled_to(side)), whole(png, side))


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_the_part_is_of_the_upright_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(scene(), exif=exif)

    def corner(width: int, height: int) -> tuple[Any, int, int]:
        assert (width, height) == ((HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT))
        return (width * 0.1, 0, width * 0.6, height * 0.5), 60, 40

    turned = Image.open(io.BytesIO(content))
    upright = ImageOps.exif_transpose(turned)
    box, height, width = corner(*upright.size)
    expected = upright.resize((width, height), Image.Resampling.BILINEAR, box=box)
    found = part(content, corner)
    assert found.shape == (60, 40, 3)
    assert np.abs(found - np.asarray(expected, dtype=np.int64)).mean() < 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_ink_are_reduced_too(mode: str) -> None:
    content = encoded(scene(1800, 1400).convert(mode))
    assert len(content) >= LARGE
    difference = part(content, scaled_to(80)) - whole(content, 80)
    assert 0 < np.abs(difference).mean() < 1


def test_a_torn_large_picture_is_named(large: bytes) -> None:
    with pytest.raises(PictureError, match=r"^`it` is not a readable picture: "):
        read_part(large[: LARGE + 5000], 3, scaled_to(40), name="`it`")


def folder_of(folder: Path, train: bytes, test: bytes) -> ImageFolder:
    for place, content in (("train", train), ("val", test)):
        for name in ("ant", "bee"):
            (folder / place / name).mkdir(parents=True, exist_ok=True)
            (folder / place / name / "0.jpg").write_bytes(content)
    return ImageFolder(folder=folder, image_size=64, resize=72, validation_fraction=0, workers=0)


def manifest_of(folder: Path, train: bytes, test: bytes) -> ImageManifest:
    folder_of(folder, train, test)
    rows = [f"{part}/{name}/0.jpg,{name},{part}" for part in ("train", "val") for name in ("ant", "bee")]
    (folder / "table.csv").write_text("\n".join(["path,label,split", *rows]).replace(",val", ",test"))
    return ImageManifest(name="image_manifest", file=folder / "table.csv", image_size=64, resize=72)


def tars_of(folder: Path, train: bytes, test: bytes) -> WebDataset:
    folder.mkdir(exist_ok=True)
    for split, content in (("train", train), ("test", test)):
        members = [("a.png", b"x" * LARGE), ("b.cls", b"1"), ("b.jpg", content)]
        write_tar(folder / f"{split}.tar", [members[0], ("a.cls", b"0"), *members[1:]])
    return WebDataset(folder=folder, classes=2, image_size=64, resize=72)


def parquet_of(folder: Path, train: bytes, test: bytes) -> ImageParquet:
    folder.mkdir(exist_ok=True)
    for split, content in (("train", train), ("test", test)):
        table = pa.table({"image": [b"x" * LARGE, content], "label": [0, 1]})
        pq.write_table(table, folder / f"{split}.parquet")
    return ImageParquet(folder=folder, classes=2, image_size=64, resize=72)


KINDS = {"folder": folder_of, "manifest": manifest_of, "tars": tars_of, "parquet": parquet_of}


def names_of(task: Task) -> tuple[str, str]:
    return task.content(), task.test_content()


@pytest.mark.parametrize("kind", KINDS)
def test_identity_says_how_pictures_are_read_only_where_one_may_be_reduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, small: bytes, large: bytes
) -> None:
    make = KINDS[kind]
    tasks = [
        make(tmp_path / name, *contents)
        for name, contents in {
            "none": (small, small),
            "train": (large, small),
            "test": (small, large),
        }.items()
    ]
    now = [names_of(task) for task in tasks]
    monkeypatch.setattr(reduced, "REDUCED", "another decoder")
    later = [names_of(task) for task in tasks]
    changed = [(a[0] != b[0], a[1] != b[1]) for a, b in zip(now, later, strict=True)]
    assert changed == [(False, False), (True, False), (False, True)]


def test_a_pool_says_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bytes, large: bytes
) -> None:
    pools = []
    for name, content in (("small", small), ("large", large)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(content)
        pools.append(Pool(folder=tmp_path / name, file=None, inputs="inputs"))
    now = [pool.content() for pool in pools]
    monkeypatch.setattr("raydistill.tasks.pool.REDUCED", "another decoder")
    assert [a != b.content() for a, b in zip(now, pools, strict=True)] == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_and_prediction_see_the_same_pixels(tmp_path: Path, kind: str, large: bytes) -> None:
    task = KINDS[kind](tmp_path / "data", large, large).model_copy(update={"workers": 0})
    (tmp_path / "one.jpg").write_bytes(large)
    predicted = task.picture_input(tmp_path / "one.jpg", (3, 64, 64))
    split = task.load().test
    (last,) = split.batches([torch.tensor([1])], None)
    np.testing.assert_array_equal(np.rint(last[0].numpy() * 255).astype(np.uint8), predicted)


def test_a_training_view_is_the_crop_of_the_whole_within_a_grey_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bytes
) -> None:
    split = folder_of(tmp_path, large, large).load().train
    (found,) = split.batches([torch.arange(2)], View(1, 5))
    (again,) = split.batches([torch.arange(2)], View(1, 5))
    assert torch.equal(found, again)
    monkeypatch.setattr(reduced, "FACTORS", ())
    (exact,) = split.batches([torch.arange(2)], View(1, 5))
    assert 0 < (found - exact).abs().mean() * 255 < 1

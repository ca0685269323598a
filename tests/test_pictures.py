"""One table of odd files × every reader: the pixels are worked out by hand, each reader must give them."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.many_class import ManyClass
from raydistill.tasks.picture_files import PICTURE_ENDINGS
from raydistill.tasks.pictures import FORMATS, PictureError, read_picture
from raydistill.tasks.splits import View
from raydistill.tasks.task import Task
from raydistill.tasks.tensors import Tensors

SIZE = 4
RAMP = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE) * np.uint8(17)  # 0, 17, …, 255
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1)


def plain() -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), (90, 90, 90))


def saved(image: Image.Image, ending: str = "png", **options: object) -> bytes:
    image.save(stream := io.BytesIO(), Image.registered_extensions()[f".{ending}"], **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size: int, depth: int, colour: int, *parts: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(parts) + chunk(b"IEND", b"")


def grey16_with_a_transparent_value() -> bytes:
    """16-bit grey in which 255 · 257, the last pixel, is said to be transparent: white shines through, it stays."""
    rows = (RAMP.astype(">u2") * 257).astype(">u2")
    packed = b"".join(b"\0" + row.tobytes() for row in rows)
    key = chunk(b"tRNS", struct.pack(">H", 0))  # black becomes transparent
    return png(SIZE, 16, 0, key, chunk(b"IDAT", zlib.compress(packed)))


def with_alpha(grey: int) -> Image.Image:
    """A drawing that is in the alpha channel alone."""
    return Image.merge("LA", (Image.new("L", (SIZE, SIZE), grey), Image.fromarray(RAMP)))


def of_palette(**options: object) -> bytes:
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(SIZE, SIZE), "P")
    image.putpalette([level for index in range(16) for level in (17 * index, 0, 255 - 17 * index)])
    return saved(image, **options)


def palette_pixels() -> np.ndarray:
    return np.stack([RAMP, np.zeros_like(RAMP), 255 - RAMP], axis=-1)


def turned_by(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return saved(Image.fromarray(COLOURS), exif=exif)


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, axis=-1)


def moving(image: Image.Image, ending: str) -> bytes:
    return saved(image, ending, save_all=True, append_images=[plain()])


HALF = np.where(RAMP < 128, 0, 255).astype(np.uint8)

ODD: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "grey.png": (lambda: saved(Image.fromarray(RAMP)), grey(RAMP)),
    "bits16.png": (lambda: saved(Image.fromarray(RAMP.astype(np.uint16) * 257)), grey(RAMP)),
    "bits16.tif": (lambda: saved(Image.fromarray(RAMP.astype(np.uint16) * 257), "tif"), grey(RAMP)),
    "bits16.pgm": (lambda: b"P5 4 4 65535\n" + (RAMP.astype(">u2") * 257).astype(">u2").tobytes(), grey(RAMP)),
    "to1020.pgm": (lambda: b"P5 4 4 1020\n" + (RAMP.astype(">u2") * 4).astype(">u2").tobytes(), grey(RAMP)),
    "key16.png": (grey16_with_a_transparent_value, grey(np.where(RAMP == 0, np.uint8(255), RAMP))),
    "unit.tif": (lambda: saved(Image.fromarray(RAMP.astype(np.float32) / 255), "tif"), grey(RAMP)),
    "whole.tif": (lambda: saved(Image.fromarray(RAMP.astype(np.float32)), "tif"), grey(RAMP)),
    "int32.tif": (lambda: saved(Image.fromarray(RAMP.astype(np.int32)), "tif"), grey(RAMP)),
    "bit.png": (lambda: saved(Image.fromarray(HALF).convert("1")), grey(HALF)),
    "black_alpha.png": (lambda: saved(with_alpha(0)), grey(255 - RAMP)),
    "white_alpha.png": (lambda: saved(with_alpha(255)), grey(RAMP)),
    "alpha.webp": (lambda: saved(with_alpha(0).convert("RGBA"), "webp", lossless=True, exact=True), grey(255 - RAMP)),
    "palette.png": (of_palette, palette_pixels()),
    "palette.gif": (lambda: saved(Image.fromarray(RAMP), "gif"), grey(RAMP)),
    "hole.png": (
        lambda: of_palette(transparency=15),
        np.where((RAMP == 255)[..., None], np.uint8(255), palette_pixels()),
    ),
    "ink.tif": (
        lambda: saved(Image.merge("CMYK", [*Image.fromarray(COLOURS).split(), Image.new("L", (4, 4))]), "tif"),
        255 - COLOURS,
    ),
    "moving.gif": (lambda: moving(Image.fromarray(RAMP), "gif"), grey(RAMP)),
    "moving.png": (lambda: moving(Image.fromarray(COLOURS), "png"), COLOURS),
    "pages.tiff": (lambda: moving(Image.fromarray(COLOURS), "tiff"), COLOURS),
    "turned2.png": (lambda: turned_by(2), COLOURS[:, ::-1]),
    "turned3.png": (lambda: turned_by(3), COLOURS[::-1, ::-1]),
    "turned4.png": (lambda: turned_by(4), COLOURS[::-1]),
    "turned5.png": (lambda: turned_by(5), COLOURS.transpose(1, 0, 2)),
    "turned6.png": (lambda: turned_by(6), np.rot90(COLOURS, -1)),
    "turned7.png": (lambda: turned_by(7), COLOURS[::-1, ::-1].transpose(1, 0, 2)),
    "turned8.png": (lambda: turned_by(8), np.rot90(COLOURS)),
    "turned6.tif": (
        lambda: saved(Image.fromarray(COLOURS), "tif", tiffinfo={274: 6}),
        np.rot90(COLOURS, -1),
    ),
}  # fmt: skip


def noise(size: int) -> bytes:
    return np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8).tobytes()


def torn() -> bytes:
    packed = zlib.compress(b"".join(b"\0" + noise(16)[48 * row : 48 * row + 48] for row in range(16)))
    return png(16, 8, 2, chunk(b"IDAT", packed[:100]), chunk(b"ID\x01T", packed[100:]))


def floats(*values: float) -> bytes:
    return saved(Image.fromarray(np.resize(np.array(values, np.float32), (SIZE, SIZE))), "tif")


BAD: dict[str, Callable[[], bytes]] = {
    "empty.png": lambda: b"",
    "text.jpg": lambda: b"no picture",
    "huge.png": lambda: png(30000, 8, 2, chunk(b"IDAT", zlib.compress(b""))),
    "letter.ppm": lambda: b"P6\n1x 16\n255\n" + bytes(768),
    "torn.png": torn,
    "cut.png": lambda: saved(Image.frombytes("RGB", (40, 40), noise(40)))[:900],
    "cut.jpg": lambda: saved(Image.frombytes("RGB", (40, 40), noise(40)), "jpg")[:900],
    "cut.tif": lambda: saved(Image.frombytes("RGB", (40, 40), noise(40)), "tif")[:900],
    "cut.gif": lambda: saved(Image.frombytes("RGB", (40, 40), noise(40)), "gif")[:900],
    "nan.tif": lambda: floats(0, float("nan")),
    "bright.tif": lambda: floats(0, 3.7),
    "negative.tif": lambda: floats(-0.1, 1),
    "counts.tif": lambda: saved(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "tif"),
    "document.png": lambda: saved(plain(), "eps"),
}


def folder_with(tmp_path: Path, name: str, content: bytes) -> ImageFolder:
    """`name` is the only picture of the class `odd` in training, and of the test split."""
    for part in ("train", "val"):
        for kind, file, bytes_ in (("plain", "plain.png", saved(plain())), ("odd", name, content)):
            (tmp_path / part / kind).mkdir(parents=True, exist_ok=True)
            (tmp_path / part / kind / file).write_bytes(bytes_)
    return ImageFolder(
        folder=tmp_path, image_size=SIZE, resize=SIZE, smallest_area=1, workers=0, validation_fraction=0
    )


def batch_of(split: object, view: View | None) -> np.ndarray:
    (batch,) = split.batches([torch.tensor([0])], view)  # type: ignore[attr-defined]
    return np.rint(batch[0].numpy() * 255).astype(np.uint8).transpose(1, 2, 0)


def by_evaluation(tmp_path: Path, name: str, content: bytes) -> np.ndarray:
    return batch_of(folder_with(tmp_path, name, content).load().test, None)


def by_training(tmp_path: Path, name: str, content: bytes) -> np.ndarray:
    """A random crop that may not be smaller than the whole picture."""
    return batch_of(folder_with(tmp_path, name, content).load().train, View(0, 0))


def shards(tmp_path: Path, column: pa.Array, **columns: object) -> ManyClass:
    (tmp_path / "classes.json").write_text('["odd"]')
    for number, split in enumerate(("train", "test")):
        table = pa.table({"image": column, "label": [0], "id": [number], **columns})
        pq.write_table(table, tmp_path / f"{split}-00000.parquet")
    return ManyClass(folder=tmp_path, channels=3, image_size=SIZE, validation_fraction=0)


def by_shards(tmp_path: Path, name: str, content: bytes) -> np.ndarray:
    return batch_of(shards(tmp_path, pa.array([content], pa.binary())).load().test, None)


def by_structs(tmp_path: Path, name: str, content: bytes) -> np.ndarray:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return batch_of(shards(tmp_path, pa.array([{"bytes": content, "path": name}], kind)).load().test, None)


def predicted_by(task: Task) -> Callable[[Path, str, bytes], np.ndarray]:
    def read(tmp_path: Path, name: str, content: bytes) -> np.ndarray:
        (tmp_path / name).write_bytes(content)
        return task.picture_input(tmp_path / name, (3, SIZE, SIZE)).transpose(1, 2, 0)

    return read


NOWHERE = Path("/nowhere")
READERS: dict[str, Callable[[Path, str, bytes], np.ndarray]] = {
    "training": by_training,
    "evaluation": by_evaluation,
    "shards": by_shards,
    "structs in shards": by_structs,
    "prediction, folders": predicted_by(ImageFolder(folder=NOWHERE, image_size=SIZE, resize=SIZE)),
    "prediction, shards": predicted_by(ManyClass(folder=NOWHERE)),
    "prediction, scaled shards": predicted_by(ManyClass(folder=NOWHERE, image_size=SIZE)),
    "prediction, arrays": predicted_by(Tensors(file=NOWHERE)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ODD)
def test_every_reader_gives_the_pixels_of_an_odd_file(tmp_path: Path, name: str, reader: str) -> None:
    make, expected = ODD[name]
    np.testing.assert_array_equal(READERS[reader](tmp_path, name, make()), expected)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", BAD)
def test_every_reader_names_a_bad_file_in_one_line(tmp_path: Path, name: str, reader: str) -> None:
    with pytest.raises(PictureError, match="is not a readable picture: ") as caught:
        READERS[reader](tmp_path, name, BAD[name]())
    assert caught.value.message.isprintable()
    assert (
        "sample 0 of" if "shards" in reader and "prediction" not in reader else name
    ) in caught.value.message


def test_a_picture_of_another_size_is_refused_where_all_must_have_one(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(plain()))
    with pytest.raises(PictureError, match=r"a.png. is 4 x 4, not 5 x 5"):
        ManyClass(folder=NOWHERE).picture_input(tmp_path / "a.png", (3, 5, 5))


def test_fringes_around_a_white_drawing_do_not_hide_it() -> None:
    """Resizing leaves dark, nearly transparent pixels at the edge."""
    alpha = np.array([[255, 20], [0, 0]], np.uint8)
    light = np.array([[255, 0], [0, 0]], np.uint8)
    picture = read_picture(saved(Image.merge("LA", (Image.fromarray(light), Image.fromarray(alpha)))), 1)
    assert np.asarray(picture.image).tolist() == [[255, 0], [0, 0]]


def test_what_a_picture_was_turned_from_is_told() -> None:
    told = {name: read_picture(make(), 3).turned for name, (make, _) in ODD.items()}
    assert told["grey.png"] == told["turned6.tif"] == ()
    assert told["moving.gif"] == ("several frames, the first taken", "palette")
    assert told["black_alpha.png"] == ("alpha, composed on white",)
    assert told["white_alpha.png"] == ("alpha, composed on black",)
    assert told["turned3.png"] == ("orientation by EXIF, applied",)
    assert told["bits16.png"] == ("more than 8 bits of grey, scaled",)
    dark = read_picture(saved(Image.fromarray(np.full((4, 4), 4095, np.uint16))))
    assert "nearly black" in dark.turned[1]


def test_torn_notes_do_not_spoil_a_whole_picture() -> None:
    content = saved(Image.fromarray(COLOURS), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff torn")
    np.testing.assert_array_equal(np.asarray(read_picture(content, 3).image), COLOURS)


def test_a_name_that_a_terminal_would_obey_is_shown_escaped(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m.png").write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"a\\x1b\[31m.png"):
        read_picture(tmp_path / "a\x1b[31m.png")


def test_the_endings_are_those_of_the_formats() -> None:
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    assert known == PICTURE_ENDINGS
    assert set(FORMATS) <= set(Image.OPEN)

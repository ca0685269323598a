"""`predict` on files of pictures: what evaluation sees, whatever the task, and what a user sees of bad files."""

import csv
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from predicted import assert_predictions_are_those_stored, trained
from scipy.io import savemat

from raydistill.cli import main
from raydistill.inference.predict import predict_files

RANDOM = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: np.ndarray) -> bytes:
    """A PNG of (C, H, W)."""
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(image).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def written(folder: Path, pictures: np.ndarray) -> list[Path]:
    """A file per picture (C, H, W), in their order."""
    files = [folder / f"picture-{number:04}.png" for number in range(len(pictures))]
    for file, pixels in zip(files, pictures, strict=True):
        file.write_bytes(encoded(pixels))
    return files


def idx(folder: Path, name: str) -> dict[str, Any]:
    for prefix, count in (("train", 30), ("t10k", 12)):
        images, labels = noise(count, 28, 28), np.arange(count, dtype=np.uint8) % 10
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape)
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + values.tobytes())
    return {"name": name, "folder": str(folder)}


def cifar(folder: Path, label_bytes: int, names: dict[str, int], name: str) -> dict[str, Any]:
    for file, count in names.items():
        labels = np.tile(np.arange(count, dtype=np.uint8)[:, None] % 10, label_bytes)
        (folder / f"{file}.bin").write_bytes(np.hstack([labels, noise(count, 3072)]).tobytes())
    return {"name": name, "folder": str(folder)}


def cifar10(folder: Path) -> dict[str, Any]:
    batches = {f"data_batch_{number}": 6 for number in range(1, 6)}
    return cifar(folder, 1, {**batches, "test_batch": 12}, "cifar10")


def svhn(folder: Path) -> dict[str, Any]:
    for part, count in (("train", 30), ("test", 12)):
        labels = np.arange(count)[:, None] % 10 + 1
        savemat(folder / f"{part}_32x32.mat", {"X": noise(32, 32, 3, count), "y": labels})
    return {"name": "svhn", "folder": str(folder)}


def arrays(folder: Path) -> dict[str, Any]:
    where = np.repeat(["train", "test"], [30, 12])
    np.savez(folder / "a.npz", inputs=noise(42, 3, 9, 7), labels=np.arange(42) % 3, split=where)
    return {"name": "tensors", "file": str(folder / "a.npz")}


def shards(folder: Path, **options: Any) -> dict[str, Any]:
    (folder / "classes.json").write_text('["a", "b"]')
    for part, first, count in (("train", 0, 30), ("test", 100, 12)):
        images = [encoded(noise(3, 10, 14)) for _ in range(count)]
        table = {"image": images, "label": np.arange(count) % 2, "id": np.arange(first, first + count)}
        pq.write_table(pa.table(table), folder / f"{part}-0.parquet")
    return {"name": "many_class", "folder": str(folder), **options}


# Tasks whose test pictures are in memory: they are written to files, and must come back as they were.
IN_MEMORY: dict[str, Callable[[Path], dict[str, Any]]] = {
    "mnist": lambda folder: {"name": "mnist"},
    "mnist from files": lambda folder: idx(folder, "mnist"),
    "fashion_mnist": lambda folder: idx(folder, "fashion_mnist"),
    "cifar10": cifar10,
    "cifar100": lambda folder: cifar(folder, 2, {"train": 30, "test": 12}, "cifar100"),
    "svhn": svhn,
    "tensors": arrays,
    "many_class": shards,
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_predictions_of_files_are_those_stored_for_the_test_split(tmp_path: Path, name: str) -> None:
    from raydistill.plan.schema import build_task

    task = IN_MEMORY[name](tmp_path)
    model = trained(task, tmp_path / "runs")
    test = build_task(task).load().test
    (pixels,) = test.batches([torch.arange(len(test))], None)
    files = written(tmp_path, np.rint(pixels.numpy() * 255).astype(np.uint8))
    assert_predictions_are_those_stored(model, files)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in a folder per class, wide ones and high ones, grey ones and a turned one."""
    root = tmp_path_factory.mktemp("data")
    exif = Image.Exif()
    exif[274] = 6
    for part, count in (("train", 12), ("val", 6)):
        for name in ("ant", "bee"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                shape = ((20, 33, 3), (31, 18, 3), (24, 40))[number % 3]
                Image.fromarray(noise(*shape)).save(root / part / name / f"{number:02}.png", exif=exif)
    return root


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = {"name": "image_folder", "folder": str(folder), "image_size": 16, "resize": 20, "workers": 0}
    return trained(task, tmp_path_factory.mktemp("runs"))


def test_predictions_of_a_folder_are_those_stored_for_it(model: Path, folder: Path) -> None:
    assert_predictions_are_those_stored(model, sorted((folder / "val").rglob("*.png")))
    assert_predictions_are_those_stored(model, [folder / "val"])


def test_predictions_of_scaled_shards_are_those_stored(tmp_path: Path) -> None:
    model = trained(shards(tmp_path, image_size=9), tmp_path / "runs")
    images = pq.read_table(tmp_path / "test-0.parquet")["image"].to_pylist()
    files = [tmp_path / f"{number:02}.png" for number in range(len(images))]
    for file, content in zip(files, images, strict=True):
        file.write_bytes(content)
    assert_predictions_are_those_stored(model, files)


def test_an_exported_model_predicts_where_its_data_are_not(model: Path, folder: Path, tmp_path: Path) -> None:
    CliRunner().invoke(main, ["export", str(model), str(tmp_path / "student")], catch_exceptions=False)
    description = (tmp_path / "student" / "model.json").read_text().replace(str(folder), "/nowhere")
    (tmp_path / "student" / "model.json").write_text(description)
    files = [folder / "val/ant/00.png"]
    assert list(predict_files(tmp_path / "student", files)) == list(predict_files(model, files))


def test_pictures_are_no_inputs_of_a_model_of_numbers(tmp_path: Path) -> None:
    numbers = RANDOM.random((30, 3, 8, 8), np.float32)
    np.savez(tmp_path / "a.npz", inputs=numbers, labels=np.arange(30) % 2)
    model = trained({"name": "tensors", "file": str(tmp_path / "a.npz")}, tmp_path / "runs")
    (prediction,) = predict_files(model, written(tmp_path, noise(1, 3, 8, 8)))
    assert "its inputs are float32, not pictures" in str(prediction.error)


def invoke(*words: object) -> Any:
    return CliRunner().invoke(main, ["predict", *map(str, words)])


def test_one_bad_file_does_not_lose_the_rows_of_others(model: Path, tmp_path: Path) -> None:
    files = written(tmp_path, noise(3, 3, 20, 20))
    files[1].write_bytes(b"no picture")
    table = tmp_path / "labels.csv"
    result = invoke(model, tmp_path, tmp_path / "gone.png", "--top", 1, "--output", table)
    assert result.exit_code == 1
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["source"] for row in rows] == [*map(str, files), str(tmp_path / "gone.png")]
    assert [row["rank"] for row in rows] == ["1", "", "1", ""]
    assert "is not a readable picture: its content has no known format" in rows[1]["error"]
    assert result.stderr.splitlines()[-1] == "error: inputs that could not be labelled: 2"


def test_without_a_table_errors_are_apart_from_results(model: Path, tmp_path: Path) -> None:
    written(tmp_path, noise(2, 3, 20, 20))
    (tmp_path / "a\x1b[31m.png").write_bytes(b"no picture")
    result = invoke(model, tmp_path)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert "\x1b" not in result.output
    assert "a\\x1b[31m.png` is not a readable picture" in result.stderr


def test_a_folder_is_searched_for_pictures_and_arrays(model: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    written(tmp_path / "deep", noise(2, 3, 20, 20))
    np.save(tmp_path / "b.npy", noise(3, 3, 16, 16))
    (tmp_path / "._picture.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "notes.txt").write_text("")
    sources = [prediction.source for prediction in predict_files(model, [tmp_path])]
    assert [Path(source).name for source in sources] == [
        "b.npy[0]", "b.npy[1]", "b.npy[2]", "picture-0000.png", "picture-0001.png",
    ]  # fmt: skip


def test_an_empty_folder_is_an_error_of_its_own(model: Path, tmp_path: Path) -> None:
    (prediction,) = predict_files(model, [tmp_path])
    assert prediction.error == f"`{tmp_path}` holds no picture, no .npy, no .tar and no .parquet"


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for output in (tmp_path / "nowhere" / "labels.csv", tmp_path):
        result = invoke("no-model", "no-picture.png", "--output", output)
        assert result.exit_code == 2
        assert str(tmp_path) in result.stderr
        assert "no-model" not in result.stderr


def test_a_broken_picture_ends_an_evaluation_in_one_line(model: Path, folder: Path, tmp_path: Path) -> None:
    victim = folder / "val/bee/00.png"
    content = victim.read_bytes()
    victim.write_bytes(content[:80])
    try:
        result = CliRunner().invoke(main, ["evaluate", str(model), "--split", "test"])
    finally:
        victim.write_bytes(content)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: `{victim}` is not a readable picture: ")

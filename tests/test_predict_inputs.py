"""`predict` on whatever inputs lie in: tars, tables, arrays, folders and patterns of names."""

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from packed_pictures import (
    FORMATS,
    OPTIONS,
    Pictures,
    as_folders,
    png,
    some_pictures,
    write_parquet,
    write_tar,
)
from PIL import Image
from predicted import assert_predictions_are_those_stored, trained

from raydistill.cli import main
from raydistill.inference.form import Form
from raydistill.inference.output import write_predictions
from raydistill.inference.predict import predict_batches, predict_files, read_inputs
from raydistill.plan.schema import build_task
from raydistill.tasks.pictures import read_picture

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of files is in a place of this test's own."""
    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path_factory.mktemp("memory")))


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    image.save(stream := io.BytesIO(), form, **options)
    return stream.getvalue()


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def odd_pictures() -> dict[str, bytes]:
    """One of each kind that a reader could take for something else."""
    colours = Image.fromarray(noise(12, 10, 3))
    turned = Image.Exif()
    turned[274] = 6
    return {
        "turned by EXIF": saved(colours, "JPEG", exif=turned),
        "palette": saved(colours.convert("P", palette=Image.Palette.ADAPTIVE)),
        "alpha": saved(Image.fromarray(noise(9, 13, 4))),
        "16 bits": saved(Image.fromarray(RANDOM.integers(0, 2**16, (11, 9), dtype=np.uint16))),
        "CMYK": saved(colours.convert("CMYK"), "JPEG"),
        "grey": saved(Image.fromarray(noise(8, 14))),
        "one bit": saved(Image.fromarray(noise(10, 10)).convert("1")),
        "frames": saved(colours.convert("P"), "GIF", save_all=True, append_images=[colours.convert("P")]),
    }


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """Plain ones to learn from; those of the test are odd."""
    return {**some_pictures(), "test": [(row % 3, one) for row, one in enumerate(odd_pictures().values())]}


def test_the_odd_pictures_are_odd() -> None:
    turned = [read_picture(content).turned for content in odd_pictures().values()]
    assert sum(map(bool, turned)) == len(turned) - 1  # grey comes as it is


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_of_odd_pictures_are_seen_as_in_evaluation(
    kind: str, pictures: Pictures, tmp_path: Path
) -> None:
    task = FORMATS[kind](tmp_path / "data", pictures)
    model = trained(task.model_dump(mode="json"), tmp_path / "runs")
    shards = task.files()["test"]
    assert len(shards) == 2
    assert_predictions_are_those_stored(model, shards)
    assert_predictions_are_those_stored(model, [f"{tmp_path}/data/**/test-*{task.ending}"])


def test_folders_of_odd_pictures_are_seen_as_in_evaluation(pictures: Pictures, tmp_path: Path) -> None:
    task = as_folders(tmp_path / "data", pictures)
    model = trained(task.model_dump(mode="json"), tmp_path / "runs")
    for inputs in ("data/test", "data/test/*/*.png", "data/test/{ant,bee,wasp}", "data/test/**/*.*"):
        assert_predictions_are_those_stored(model, [tmp_path / inputs])


def test_listed_odd_pictures_are_seen_as_in_evaluation(pictures: Pictures, tmp_path: Path) -> None:
    as_folders(tmp_path / "data", pictures)
    files = sorted((tmp_path / "data").rglob("*.png"))
    rows = [(file.relative_to(tmp_path / "data"), file.parent.name, file.parts[-3]) for file in files]
    write_csv(tmp_path / "data/all.csv", ["path", "label", "split"], rows)
    task = {"name": "image_manifest", "file": str(tmp_path / "data/all.csv"), **OPTIONS}
    model = trained(task, tmp_path / "runs")
    tests = [(path, name) for path, name, split in rows if split == "test"]
    write_csv(tmp_path / "data/test.csv", ["path", "remark"], tests)
    assert_predictions_are_those_stored(model, [tmp_path / "data/test.csv"])
    write_csv(tmp_path / "elsewhere.csv", ["remark", "file"], [(name, path) for path, name in tests])
    assert_predictions_are_those_stored(
        model, [tmp_path / "elsewhere.csv"], columns=["file"], folder=tmp_path / "data"
    )


def test_odd_pictures_scaled_for_very_many_classes_are_seen_as_in_evaluation(
    pictures: Pictures, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        labels, contents = zip(*pictures[split], strict=True)
        write_parquet(
            tmp_path / f"{split}-0.parquet",
            [(None, label, one) for label, one in zip(labels, contents, strict=True)],
        )
    (tmp_path / "classes.json").write_text('["ant", "bee", "wasp"]')
    task = {"name": "many_class", "folder": str(tmp_path), "image_size": 9, "channels": 3}
    assert_predictions_are_those_stored(trained(task, tmp_path / "runs"), [tmp_path / "test-0.parquet"])


def test_shards_of_pixels_are_seen_as_in_evaluation(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["a", "b"]')
    for split, first, count in (("train", 0, 30), ("test", 100, 12)):
        pixels = noise(count, 3 * 6 * 5)
        table = {"pixels": list(pixels), "label": np.arange(count) % 2, "id": np.arange(first, first + count)}
        shard = pa.table(table).replace_schema_metadata({"shape": "[3, 6, 5]"})
        pq.write_table(shard, tmp_path / f"{split}-0.parquet")
    model = trained({"name": "many_class", "folder": str(tmp_path)}, tmp_path / "runs")
    assert_predictions_are_those_stored(model, [tmp_path / "test-0.parquet"])


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A model of five numbers in `runs`, and the inputs (12, 5) of its test split."""
    folder = tmp_path_factory.mktemp("vectors")
    inputs = RANDOM.normal(size=(42, 5)).astype(np.float32)
    where = np.repeat(["train", "test"], [30, 12])
    np.savez(folder / "a.npz", inputs=inputs, labels=np.arange(42) % 3, split=where)
    model = {"name": "mlp", "widths": [8]}
    return trained({"name": "tensors", "file": str(folder / "a.npz")}, folder / "runs", model), inputs[30:]


def write_csv(file: Path, header: list[str] | None, rows: Any, separator: str = ",") -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream, delimiter=separator).writerows([*([] if header is None else [header]), *rows])


def test_columns_of_numbers_are_seen_as_in_evaluation(
    vectors: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    model, inputs = vectors
    names = ["a", "b", "c", "d", "e"]
    rows = inputs.tolist()
    write_csv(tmp_path / "plain.csv", names, rows)
    write_csv(tmp_path / "bare.csv", None, rows)
    write_csv(tmp_path / "more.csv", ["name", *names, "label"], [["x", *row, 7] for row in rows], ";")
    pq.write_table(
        pa.table({"label": [1] * 12, **dict(zip(names, inputs.T, strict=True))}), tmp_path / "a.parquet"
    )
    pq.write_table(pa.table({"label": [1] * 12, "inputs": list(inputs)}), tmp_path / "lists.parquet")
    np.savez(tmp_path / "a.npz", inputs=inputs, labels=np.zeros(12))
    np.save(tmp_path / "a.npy", inputs)
    for name in ("plain.csv", "bare.csv", "more.csv", "a.parquet", "lists.parquet", "a.npz", "a.npy"):
        assert_predictions_are_those_stored(model, [tmp_path / name])


def test_columns_that_are_named_are_taken_in_their_order(
    vectors: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    model, inputs = vectors
    write_csv(
        tmp_path / "a.csv",
        ["e", "d", "c", "b", "a", "f"],
        np.hstack([inputs[:, ::-1], inputs[:, :1]]).tolist(),
    )
    assert_predictions_are_those_stored(model, [tmp_path / "a.csv"], columns=["a", "b", "c", "d", "e"])
    (refused,) = predict_files(model, [tmp_path / "a.csv"])
    assert "6 columns of numbers (`e`, `d`, `c`, `b`, `a`, `f`), and the model takes 5" in str(refused.error)
    assert "--column" in str(refused.error)
    (refused,) = predict_files(model, [tmp_path / "a.csv"], columns=["a", "b", "c", "d", "z"])
    assert "has no column `z`" in str(refused.error)


def test_a_cell_that_is_no_number_costs_its_row_alone(
    vectors: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    model, inputs = vectors
    rows = inputs[:5].tolist()
    rows[1][2], rows[3][0], rows[4][4] = "many", "", "nan"
    write_csv(tmp_path / "a.csv", ["a", "b", "c", "d", "e"], rows)
    found = list(predict_files(model, [tmp_path / "a.csv"]))
    assert [row.error is None for row in found] == [True, False, True, False, False]
    assert "row 1 of" in str(found[1].error)
    assert "`many` is no number" in str(found[1].error)
    assert "a cell is empty" in str(found[3].error)
    assert f"`{tmp_path}/a.csv[4]` is not finite" in str(found[4].error)
    alone = list(predict_files(model, [tmp_path / "a.csv"]))
    assert [row.ranked for row in alone] == [row.ranked for row in found]
    np.save(tmp_path / "a.npy", inputs[[0, 2]])
    assert [row.ranked for row in predict_files(model, [tmp_path / "a.npy"])] == [
        found[0].ranked,
        found[2].ranked,
    ]


def test_tokens_in_a_table_stay_integers(tmp_path: Path) -> None:
    inputs = RANDOM.integers(0, 20, (42, 4))
    where = np.repeat(["train", "test"], [30, 12])
    np.savez(tmp_path / "a.npz", inputs=inputs, labels=np.arange(42) % 2, split=where)
    write_csv(tmp_path / "a.csv", ["a", "b", "c", "d"], [*inputs[30:32].tolist(), [1, 2.5, 3, 4]])

    task = build_task({"name": "tensors", "file": str(tmp_path / "a.npz")})
    form = Form(task, (4,), torch.int64, takes_pictures=False)
    (batch,) = read_inputs([tmp_path / "a.csv"], form)
    assert (batch.raw.dtype, batch.raw.tolist()) == (torch.int64, inputs[30:32].tolist())
    assert list(batch.errors) == [2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of pictures, whatever they lie in."""
    folder = tmp_path_factory.mktemp("pictures")
    task = as_folders(folder / "data", some_pictures())
    return trained(task.model_dump(mode="json"), folder / "runs")


def test_a_tar_needs_no_labels_and_loses_nothing_to_a_broken_picture(model: Path, tmp_path: Path) -> None:
    members = [
        ("b/1.x.png", png()),
        ("b/1.txt", b"no"),
        ("a/2.png", b"broken"),
        ("._3.png", b"trace"),
        ("1.PNG", png()),
    ]
    write_tar(tmp_path / "a.tar", members)
    found = list(predict_files(model, [tmp_path / "a.tar"]))
    assert [row.source for row in found] == [
        f"{tmp_path}/a.tar/{name}" for name in ("b/1.x.png", "a/2.png", "1.PNG")
    ]
    assert [row.error is None for row in found] == [True, False, True]
    assert f"`a/2.png` of `{tmp_path}/a.tar` is not a readable picture" in str(found[1].error)


def test_a_torn_tar_gives_what_it_has_and_says_so(model: Path, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", [(f"{number}.png", png()) for number in range(3)])
    with tarfile.open(whole) as opened:
        cut = opened.getmembers()[2].offset_data + 100
    (tmp_path / "torn.tar").write_bytes(whole.read_bytes()[:cut])
    found = list(predict_files(model, [tmp_path / "torn.tar"]))
    assert [row.error is None for row in found][:2] == [True, True]
    assert "truncated" in str(found[-1].error)


def test_a_packed_tar_is_refused_with_the_way_out(model: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    (refused,) = predict_files(model, [tmp_path / "a.tar.gz"])
    assert "compressed with gzip" in str(refused.error)


def test_parquet_names_the_row_of_a_broken_or_absent_picture(model: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [("x", 0, png()), ("y", 1, None), ("z", 2, b"broken")])
    found = list(predict_files(model, [tmp_path / "a.parquet"]))
    assert [row.source for row in found] == [f"{tmp_path}/a.parquet[{row}]" for row in range(3)]
    assert "a.parquet[1]` is not a readable picture: it is empty" in str(found[1].error)
    assert "its content has no known format" in str(found[2].error)


def test_a_listed_picture_that_is_gone_or_elsewhere_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(png())
    write_csv(tmp_path / "in/a.csv", ["path"], [["gone.png"], ["a.png"], ["../b.png"]])
    found = list(predict_files(model, [tmp_path / "in/a.csv"]))
    assert [row.source for row in found] == ["gone.png", "a.png", "../b.png"]
    assert [row.error is None for row in found] == [False, True, False]
    assert "gone.png` is not a readable picture: No such file" in str(found[0].error)
    assert "line 4: `../b.png` is no path below a folder" in str(found[2].error)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "file\na.png\n", "has no column `path`, it has `file`; name the one with paths"),
        ("b.csv", 'path\n"a.png\n', "line 2: unexpected end of data; is a quotation mark not closed?"),
        ("c.csv", "path,x\na.png\n", "line 2: 1 cells below 2 columns"),
        ("d.parquet", "no", "is damaged or cannot be read"),
        ("e.tar", "no", "truncated"),
        ("f.npz", "no", "damaged or no .npz"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_an_error_of_one_line(
    model: Path, tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    (refused,) = predict_files(model, [tmp_path / name])
    assert words in str(refused.error)
    assert name in str(refused.error)
    assert "\n" not in str(refused.error)


def test_patterns_match_as_in_a_shell(model: Path, tmp_path: Path) -> None:
    for name in ("a/1.png", "a/b/2.png", ".c/3.png", "a/.4.png", "a/5.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "[odd].png").write_bytes(png())

    def names(*patterns: str) -> list[str]:
        found = predict_files(model, [tmp_path / pattern for pattern in patterns])
        return [str(Path(row.source).relative_to(tmp_path)) for row in found if row.error is None]

    assert names("**/*.png") == ["[odd].png", "a/1.png", "a/b/2.png"]
    assert names("*") == ["[odd].png", "a/1.png", "a/b/2.png"]
    assert names("[odd].png") == ["[odd].png"]
    (refused,) = predict_files(model, [tmp_path / "*.jpg"])
    assert f"no file matches `{tmp_path}/*.jpg`" in str(refused.error)


def test_a_folder_of_shards_is_searched_for_them(model: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "deep/b.tar", [("1.png", png())])
    write_parquet(tmp_path / "a.parquet", [("x", 0, png())])
    sources = [Path(row.source).name for row in predict_files(model, [tmp_path])]
    assert sources == ["a.parquet[0]", "1.png"]


def invoke(*words: object) -> Any:
    return CliRunner().invoke(main, ["predict", *map(str, words)])


def test_every_format_of_output_says_the_same(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "c", "d"):
        (tmp_path / f"in/{name}.png").write_bytes(png())
    (tmp_path / "in/b.png").write_bytes(b"broken")
    expected = list(predict_files(model, [tmp_path / "in"], top=2))
    for ending in ("csv", "parquet", "jsonl"):
        result = invoke(model, tmp_path / "in", "--top", 2, "--output", tmp_path / f"out.{ending}")
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1] == "error: inputs that could not be labelled: 1"
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == [row.source for row in expected]
    assert lines[1]["error"] == expected[1].error
    assert [(one["label"], one["probability"]) for one in lines[0]["predictions"]] == list(expected[0].ranked)
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["label"], row["probability"]) for row in rows[:2]] == list(expected[0].ranked)
    assert [row["rank"] for row in rows] == [1, 2, None, 1, 2, 1, 2]
    assert rows[2]["error"] == expected[1].error
    with (tmp_path / "out.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [row["source"] for row in table] == [row["source"] for row in rows]
    assert [row["label"] for row in table] == [row["label"] or "" for row in rows]


def test_inputs_that_cannot_be_read_are_left_out_and_counted_where_that_is_wanted(
    model: Path, tmp_path: Path
) -> None:
    for name, content in (("a", png()), ("b", b"broken"), ("c", png())):
        (tmp_path / f"{name}.png").write_bytes(content)
    result = invoke(model, tmp_path / "*.png", "--on-error", "skip", "--output", tmp_path / "out.jsonl")
    assert result.exit_code == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: left out 1 of 3 inputs, which cannot be read; the first: `")
    assert "b.png" in warning
    sources = [json.loads(line)["source"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sources == [str(tmp_path / "a.png"), str(tmp_path / "c.png")]


def test_skipping_everything_is_a_failure(model: Path, tmp_path: Path) -> None:
    result = invoke(model, tmp_path / "gone.png", "--on-error", "skip")
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"error: no input could be labelled; the first: `{tmp_path}/gone.png` does not exist\n"
    )


def test_an_output_of_unknown_format_is_refused_before_the_work(tmp_path: Path) -> None:
    result = invoke("no-model", "no-picture.png", "--output", tmp_path / "out.xlsx")
    assert result.exit_code == 2
    assert ".csv, .parquet, .jsonl" in result.stderr


def test_an_output_has_its_name_only_when_it_is_whole(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())

    def broken_off() -> Iterator[Any]:
        yield from predict_batches(model, [tmp_path / "a.png"])
        raise KeyboardInterrupt

    (tmp_path / "out.csv").write_text("older")
    with pytest.raises(KeyboardInterrupt):
        write_predictions(tmp_path / "out.csv", broken_off())
    assert (tmp_path / "out.csv").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "out.csv"]


def test_no_more_is_read_ahead_than_a_few_batches(model: Path, tmp_path: Path) -> None:
    """Memory does not grow with the number of inputs: an endless stream has first answers."""
    (tmp_path / "a.png").write_bytes(png())
    taken = []

    def endless() -> Iterator[Path]:
        while True:
            taken.append(1)
            yield tmp_path / "a.png"

    predictions = predict_files(model, endless())
    for _ in range(1200):
        next(predictions)
    assert len(taken) < 1200 + 2 * 500

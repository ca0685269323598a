"""Utterances in Parquet files as spliced, normalised frames."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raydistill.tasks.speech_frames import SpeechFrames
from raydistill.tasks.splits import Split, TaskData
from raydistill.tasks.utterances import FRAME_BITS, utterance_key

RANDOM = np.random.default_rng(0)
WIDTH = 3
Utterance = dict[str, Any]


def utterance(name: int | str, frames: int, speaker: str | None = None, classes: int = 5) -> Utterance:
    features = RANDOM.normal(size=(frames, WIDTH)).astype(np.float32)
    return {
        "id": name,
        "speaker": speaker,
        "features": features.tolist(),
        "labels": RANDOM.integers(0, classes, frames).tolist(),
    }


def write(folder: Path, **parts: list[Utterance]) -> Path:
    """One file per part; a column that is None in every row is left out."""
    folder.mkdir(exist_ok=True)
    for part, utterances in parts.items():
        names = [name for name in utterances[0] if any(each[name] is not None for each in utterances)]
        columns = {name: [each[name] for each in utterances] for name in names}
        pq.write_table(pa.table(columns), folder / f"{part}.parquet")
    return folder


def task(folder: Path, **options: Any) -> SpeechFrames:
    return SpeechFrames(
        folder=folder,
        **{"coefficients": WIDTH, "frames_before": 4, "frames_after": 2, "classes": 5, **options},
    )


def small(folder: Path, **options: Any) -> TaskData:
    """Six utterances for training, one of them shorter than the context, and one for the test."""
    lengths = (9, 3, 1, 12, 7, 20)
    train = [utterance(number, length) for number, length in enumerate(lengths)]
    return task(write(folder, train=train, test=[utterance("t", 8)]), **options).load()


def all_inputs(split: Split) -> torch.Tensor:
    return torch.cat(list(split.batches(torch.arange(len(split)).split(7), None)))


def by_id(split: Split) -> dict[int, list[float]]:
    return dict(zip(split.ids.tolist(), all_inputs(split).flatten(1).tolist(), strict=True))


# --- splicing --------------------------------------------------------------------------------------------------------


def test_a_spliced_input_is_what_a_slow_loop_puts_together(tmp_path: Path) -> None:
    train = [utterance(number, length) for number, length in enumerate((9, 3, 1, 12))]
    data = task(write(tmp_path, train=train, test=[utterance("t", 8)]), validation_fraction=0).load()
    expected = []
    for each in train:
        features = np.array(each["features"])
        std = features.std(axis=0) if len(features) > 1 else np.ones(WIDTH)
        features = (features - features.mean(axis=0)) / std
        for centre in range(len(features)):
            rows = [min(max(centre + offset, 0), len(features) - 1) for offset in range(-4, 3)]
            expected.append([features[row] for row in rows])
    np.testing.assert_allclose(all_inputs(data.train).numpy(), np.array(expected), atol=1e-5)


def test_the_paper_tells_the_21st_of_26_frames(tmp_path: Path) -> None:
    write(tmp_path, train=[utterance(0, 60), utterance(1, 5)], test=[utterance("t", 40)])
    paper = SpeechFrames(folder=tmp_path, coefficients=WIDTH, classes=5, validation_fraction=0)
    split = paper.load().train
    alone = task(tmp_path, frames_before=0, frames_after=0, validation_fraction=0).load().train
    assert paper.input_shape == (26, WIDTH)
    assert torch.equal(all_inputs(split)[:, 20], all_inputs(alone)[:, 0])
    assert torch.equal(all_inputs(split)[30], all_inputs(alone)[10:36, 0])


def test_selected_frames_keep_their_neighbours_and_any_batch_gives_the_same(tmp_path: Path) -> None:
    split = small(tmp_path).train
    chosen = torch.tensor([5, 0, 17, 5])
    part = split.select(chosen)
    assert torch.equal(all_inputs(part), all_inputs(split)[chosen])
    assert torch.equal(part.ids, split.ids[chosen])
    assert torch.equal(part.labels, split.labels[chosen])
    one_by_one = torch.cat(list(split.batches(torch.arange(len(split)).split(1), None)))
    assert torch.equal(one_by_one, all_inputs(split))


def test_batches_may_be_written_to(tmp_path: Path) -> None:
    split = small(tmp_path).train
    before = all_inputs(split)
    next(split.batches([torch.arange(5)], None)).zero_()
    assert torch.equal(all_inputs(split), before)


# --- splits and ids --------------------------------------------------------------------------------------------------


def test_whole_utterances_are_set_aside_for_validation(tmp_path: Path) -> None:
    train = [utterance(number, 5 + number % 3) for number in range(50)]
    data = task(write(tmp_path, train=train, test=[utterance("t", 8)]), validation_fraction=0.2).load()
    apart = [set((split.ids >> FRAME_BITS).tolist()) for split in (data.train, data.validation)]
    assert not apart[0] & apart[1]
    assert (len(apart[0]), len(apart[1])) == (40, 10)
    assert len(data.train) + len(data.validation) == sum(len(each["labels"]) for each in train)


def test_a_validation_file_is_the_validation_split(tmp_path: Path) -> None:
    folder = write(tmp_path, train=[utterance(0, 9)], validation=[utterance(1, 5)], test=[utterance(2, 4)])
    data = task(folder).load()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [9, 5, 4]


def test_an_id_names_utterance_and_frame_whatever_else_is_in_the_files(tmp_path: Path) -> None:
    first, second = utterance("a/1.wav", 9), utterance("b", 6)
    test = [utterance("t", 3)]
    alone = task(write(tmp_path / "alone", train=[first], test=test), validation_fraction=0).load().train
    both = write(tmp_path / "both", **{"train-0": [second], "train-1": [first], "test": test})
    together = by_id(task(both, validation_fraction=0).load().train)
    assert alone.ids.tolist() == [(utterance_key("a/1.wav") << FRAME_BITS) + place for place in range(9)]
    assert len(together) == 15
    assert by_id(alone).items() <= together.items()


def test_the_identity_is_content_and_context_not_place(tmp_path: Path) -> None:
    here = write(tmp_path / "here", train=[utterance(0, 9)], test=[utterance(1, 4)])
    identity = task(here).identity()
    here.rename(tmp_path / "there")
    assert task(tmp_path / "there").identity() == identity
    assert task(tmp_path / "there", frames_before=3).identity() != identity
    judged_on = task(tmp_path / "there").test_content()
    write(tmp_path / "there", test=[utterance(1, 4)])
    assert task(tmp_path / "there").identity() == identity
    assert task(tmp_path / "there").test_content() != judged_on
    write(tmp_path / "there", train=[utterance(0, 8)])
    assert task(tmp_path / "there").identity() != identity


# --- normalisation ---------------------------------------------------------------------------------------------------


def test_each_speaker_has_mean_zero_and_variance_one(tmp_path: Path) -> None:
    train = [utterance(number, 30, speaker="ab"[number % 2]) for number in range(6)]
    for each in train[::2]:
        each["features"] = (np.array(each["features"]) * 50 + 1000).tolist()
    data = task(write(tmp_path, train=train, test=[utterance("t", 8, "c")]), validation_fraction=0).load()
    frames = all_inputs(data.train)[:, 4].reshape(3, 2, 30, WIDTH).double()
    for speaker in range(2):
        values = frames[:, speaker].reshape(-1, WIDTH)
        torch.testing.assert_close(values.mean(dim=0), torch.zeros(WIDTH).double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            values.std(dim=0, correction=0), torch.ones(WIDTH).double(), atol=1e-5, rtol=0
        )
    assert frames[0, 0].mean(dim=0).abs().max() > 1e-3, "a single utterance keeps what sets it apart"


def test_a_speakers_volume_and_microphone_change_nothing(tmp_path: Path) -> None:
    train = [utterance(number, 12, speaker="ab"[number % 2]) for number in range(4)]
    test = [utterance("t", 8, "c")]
    plain = task(write(tmp_path / "plain", train=train, test=test)).load()
    for each in train[1::2]:
        each["features"] = (np.array(each["features"]) * [2, 8, 0.5] + [1, -3, 0]).tolist()
    louder = task(write(tmp_path / "louder", train=train, test=test)).load()
    torch.testing.assert_close(all_inputs(louder.train), all_inputs(plain.train), atol=1e-4, rtol=0)


def test_what_is_set_aside_does_not_change_the_normalisation(tmp_path: Path) -> None:
    train = [utterance(number, 6, speaker="a") for number in range(10)]
    folder = write(tmp_path, train=train, test=[utterance("t", 8, "b")])
    whole = by_id(task(folder, validation_fraction=0).load().train)
    assert by_id(task(folder, validation_fraction=0.5).load().train).items() <= whole.items()


def test_a_constant_coefficient_becomes_zero(tmp_path: Path) -> None:
    train = [utterance(0, 9), utterance(1, 4)]
    for each in train:
        each["features"] = [[0.1, *row[1:]] for row in each["features"]]
    data = task(write(tmp_path, train=train, test=[utterance("t", 8)]), validation_fraction=0).load()
    assert all_inputs(data.train)[..., 0].abs().max() < 1e-5


# --- classes ---------------------------------------------------------------------------------------------------------


def test_classes_come_from_their_names_or_from_the_largest_label(tmp_path: Path) -> None:
    train, test = utterance(0, 9), utterance(1, 4)
    train["labels"][3], test["labels"] = 2, [7, 0, 0, 0]
    folder = write(tmp_path, train=[train], test=[test])
    assert task(folder, classes=None).num_classes == 8
    assert task(folder, classes=12).class_names[-1] == "11"
    before = task(folder, classes=None).identity()
    names = [f"AH.{number}" for number in range(9)]
    (folder / "classes.json").write_text(json.dumps(names))
    assert task(folder, classes=None).class_names == tuple(names)
    assert task(folder, classes=None).identity() != before
    with pytest.raises(ValueError, match=r"`classes` is 12, but .* names 9"):
        _ = task(folder, classes=12).num_classes


@pytest.mark.parametrize("content", ["{}", "[1, 2]", "[]", "[", '["a", "a"]'])
def test_a_list_of_classes_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path, train=[utterance(0, 9)], test=[utterance(1, 4)])
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=r"classes\.json"):
        _ = task(tmp_path, classes=None).num_classes


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": [[0.0, 1.0]] * 4}, r"frame 0 of utterance `bad` of .*train.* has 2 features, not 3"),
        ({"features": [[0.0, 1.0, 2.0]] * 3 + [[0.0]]}, "frame 3 of utterance `bad`.*has 1 features"),
        ({"features": [[0.0, float("nan"), 1.0]] * 4}, "frame 0 of utterance `bad`.*not a finite number"),
        (
            {"features": [[0.0, 1.0, 2.0]] * 3 + [[0.0, None, 1.0]]},
            "frame 3 of utterance `bad`.*not a finite",
        ),
        ({"features": [[0.0, 1.0, 2.0]] * 3 + [None]}, "frame 3 of utterance `bad`.*has 0 features"),
        ({"labels": [0, 1, 5, 0]}, "frame 2 of utterance `bad`.*label 5; 5 classes allow 0 to 4"),
        ({"labels": [0, -1, 0, 0]}, "frame 1 of utterance `bad`.*label -1"),
        ({"labels": [0, None, 0, 0]}, "frame 1 of utterance `bad`.*label -1"),
        ({"labels": [0, 1]}, "utterance `bad` of .*train.* has 4 frames and 2 labels"),
        ({"labels": [], "features": []}, "utterance `bad` of .* has 0 frames"),
        ({"labels": None}, "utterance `bad` of .* has an empty cell"),
        ({"id": None}, "row 1 of .*train.* has the id None"),
        ({"id": "good"}, "utterance `good` occurs twice"),
        ({"id": "t"}, "utterance `t` occurs twice, or in more than one split"),
    ],
)
def test_an_utterance_that_is_not_valid_is_named(tmp_path: Path, change: Utterance, message: str) -> None:
    train = [utterance("good", 6), {**utterance("bad", 4), **change}]
    write(tmp_path, train=train, test=[utterance("t", 4)])
    with pytest.raises(ValueError, match=message):
        task(tmp_path).load()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"features": [[[0.0] * 3]], "labels": [[0]]}, "has no column `id`; it has features, labels"),
        (
            {"features": [[0.0]], "labels": [[0]], "id": [1]},
            "`features` of .* should be lists of lists of floats",
        ),
        (
            {"features": [[[0.0] * 3]], "labels": [[0.5]], "id": [1]},
            "`labels` of .* should be lists of integers",
        ),
        (
            {"features": [[[0.0] * 3]], "labels": [[0]], "id": [1.5]},
            "has the id 1.5, not an integer or a text",
        ),
    ],
)
def test_columns_of_another_kind_are_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    write(tmp_path, test=[utterance("t", 4)])
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        task(tmp_path).load()


def test_a_file_without_utterances_or_that_is_no_table_is_named(tmp_path: Path) -> None:
    write(tmp_path, train=[utterance(0, 5)], test=[utterance("t", 4)])
    rows = pq.read_table(tmp_path / "train.parquet")
    pq.write_table(rows.slice(0, 0), tmp_path / "train-2.parquet")
    with pytest.raises(ValueError, match=r"train-2\.parquet. has no utterances"):
        task(tmp_path).load()
    (tmp_path / "train-2.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"train-2\.parquet. is damaged"):
        task(tmp_path).load()


def test_fixed_size_features_are_read_as_lists_are(tmp_path: Path) -> None:
    train, test = [utterance(0, 9), utterance(1, 6)], [utterance("t", 4)]
    write(tmp_path / "lists", train=train, test=test)
    write(tmp_path / "fixed", train=train, test=test)
    table = pq.read_table(tmp_path / "fixed" / "train.parquet")
    fixed = table.column("features").cast(pa.list_(pa.list_(pa.float32(), WIDTH)))
    place = table.column_names.index("features")
    pq.write_table(table.set_column(place, "features", fixed), tmp_path / "fixed" / "train.parquet")
    lists, again = (task(tmp_path / name).load().train for name in ("lists", "fixed"))
    assert by_id(lists) == by_id(again)


def test_missing_files_are_named_with_the_way_to_make_them(tmp_path: Path) -> None:
    write(tmp_path, train=[utterance(0, 9)])
    with pytest.raises(FileNotFoundError, match=r"`test\*\.parquet`.*tasks\.make\.speech_align"):
        task(tmp_path).load()
    with pytest.raises(FileNotFoundError, match="speech_align"):
        _ = task(tmp_path, classes=None).num_classes

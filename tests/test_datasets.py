"""Tasks made of torch's Datasets: the same samples in memory and streamed, and one line for what cannot be used."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from raydistill.tasks import dataset_items, dataset_split
from raydistill.tasks.datasets import Datasets
from raydistill.tasks.survey import survey_task
from raydistill.tasks.tensors import Tensors

Pair = tuple[Any, Any]


class Given(Datasets):
    """Whatever a test gives."""

    name: str = "given"
    given: ClassVar[Mapping[str, Any]] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("a", "b", "c")

    def datasets(self) -> Mapping[str, Any]:
        return self.given


class Padded(Given):
    def collate(self, inputs: Sequence[Any]) -> Any:
        padded = np.zeros((len(inputs), 5), dtype=np.int64)
        for row, words in enumerate(inputs):
            padded[row, : len(words)] = words
        return padded


def given(train: Any, test: Any = None, kind: type[Given] = Given, **options: Any) -> Given:
    dataset_items._opened.cache_clear()
    dataset_items._first_input.cache_clear()
    kind.given = {"train": train, "test": train if test is None else test}
    return kind(**options)


def pairs(count: int = 40, **more: Any) -> list[Pair]:
    draw = np.random.default_rng(0)
    return [(draw.uniform(size=(2, 3)).astype(np.float32), row % 3) for row in range(count)]


def all_inputs(split: Any, size: int = 7) -> torch.Tensor:
    return torch.cat(list(split.batches(torch.arange(len(split)).split(size), None)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_has_the_samples_that_memory_has(workers: int) -> None:
    items, test = pairs(), pairs(9)
    whole = given(items, test).load()
    stream = given(items, test, stream=True, workers=workers).load()
    for name in ("train", "validation", "test"):
        here, there = getattr(whole, name), getattr(stream, name)
        assert here.ids.tolist() == there.ids.tolist()
        assert here.labels.tolist() == there.labels.tolist()
        assert torch.equal(all_inputs(here), all_inputs(there))
        chosen = torch.tensor([3, 0])
        assert torch.equal(all_inputs(here.select(chosen)), all_inputs(there.select(chosen)))
    assert torch.equal(whole.normalisation.mean, stream.normalisation.mean)


def test_it_is_what_a_file_of_the_same_arrays_is(tmp_path: Any) -> None:
    items = pairs()
    inputs, labels = np.stack([value for value, _ in items]), np.array([label for _, label in items])
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=labels, split=np.array(["train"] * 40))
    ours = given(TensorDataset(torch.from_numpy(inputs), torch.from_numpy(labels)), pairs(9)).load()
    split = np.array(["train"] * 40 + ["test"])
    np.savez(
        tmp_path / "data.npz",
        inputs=np.concatenate([inputs, inputs[:1]]),
        labels=np.append(labels, 0),
        split=split,
    )
    theirs = Tensors(file=tmp_path / "data.npz").load()
    assert ours.train.ids.tolist() == theirs.train.ids.tolist()
    assert torch.equal(all_inputs(ours.train), all_inputs(theirs.train))
    assert torch.equal(ours.normalisation.std, theirs.normalisation.std)


def test_pictures_of_pil_are_bytes_with_the_channels_first() -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(256, size=(12, 5, 4, 3), dtype=np.uint8)
    task = given([(Image.fromarray(each), row % 3) for row, each in enumerate(pixels)])
    assert (task.input_shape, task.input_dtype) == ((3, 5, 4), "float32")
    train = task.load().train
    assert train.inputs.dtype == torch.uint8
    position = train.ids.tolist()[0]
    assert np.array_equal(train.inputs[0].numpy(), pixels[position].transpose(2, 0, 1))
    grey = given([(Image.fromarray(each[..., 0]), row % 3) for row, each in enumerate(pixels)])
    assert grey.input_shape == (1, 5, 4)


def test_a_picture_file_is_taken_where_items_are_pictures(tmp_path: Any) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(5, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    task = given([(Image.fromarray(pixels), 0)])
    assert np.array_equal(task.picture_input(tmp_path / "one.png", (3, 5, 4)), pixels.transpose(2, 0, 1))
    floats = given([(pixels.transpose(2, 0, 1) / 255, 0)])
    with pytest.raises(ValueError, match="its inputs are float64, not pictures"):
        floats.picture_input(tmp_path / "one.png", (3, 5, 4))


def test_tokens_stay_integers_and_are_padded() -> None:
    items = [([1 + row % 7] * (1 + row % 5), row % 3) for row in range(30)]
    for stream in (False, True):
        task = given(items, kind=Padded, stream=stream, workers=0)
        assert (task.input_shape, task.input_dtype) == ((5,), "int64")
        data = task.load()
        inputs = all_inputs(data.train)
        assert inputs.dtype == torch.int64
        assert torch.equal(data.normalisation(inputs), inputs)
        row = int(data.train.ids[2])
        assert inputs[2].tolist() == items[row][0] + [0] * (5 - len(items[row][0]))


def test_ids_are_positions_or_the_user_s() -> None:
    class Named(Given):
        def sample_id(self, split: str, position: int) -> int:
            return 1000 * (split == "test") + 7 * position

    task = given(pairs(10), pairs(4), kind=Named, validation_fraction=0)
    assert task.load().train.ids.tolist() == list(range(0, 70, 7))
    plain = given(pairs(10), pairs(4)).load()
    assert len(set(plain.train.ids.tolist()) | set(plain.test.ids.tolist())) == len(plain.train) + 4


def test_a_stream_with_known_labels_reads_no_item_but_the_first() -> None:
    asked = []

    class Watched(Dataset[Pair]):
        def __len__(self) -> int:
            return 30

        def __getitem__(self, row: int) -> Pair:
            asked.append(row)
            return torch.tensor([row, 1]), row % 3

    class Known(Given):
        def labels(self, split: str) -> Sequence[int]:
            return [row % 3 for row in range(30)]

    data = given(Watched(), kind=Known, stream=True, workers=0).load()
    assert set(asked) == {0}
    assert data.train.labels.tolist() == [row % 3 for row in data.train.ids.tolist()]


def test_samples_without_labels_are_those_that_the_task_speaks_of() -> None:
    class Half(Given):
        @property
        def unlabelled(self) -> int:
            return 10

    items = [(value, label if row < 30 else None) for row, (value, label) in enumerate(pairs())]
    data = given(items, pairs(6), kind=Half).load()
    assert (data.train.labels == -1).sum() == 10
    with pytest.raises(ValueError, match=r"item 30 of `train` has no label.*`unlabelled`"):
        given(items, pairs(6)).load()


class Endless(IterableDataset[Pair]):
    def __iter__(self) -> Any:
        return iter(pairs())


class Without(Dataset[Pair]):
    def __getitem__(self, row: int) -> Pair:
        return pairs()[row]


class Failing(Dataset[Pair]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, row: int) -> Pair:
        if row == 3:
            raise KeyError("three")
        return pairs()[row]


class Drawing(Dataset[Pair]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, row: int) -> Pair:
        return torch.rand(3), 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        (Endless(), "`train` is a Endless, whose items have no positions; give a map-style Dataset"),
        (Without(), "`train` has no length: TypeError.*`__len__`"),
        (Subset(Failing(), [0, 3]), "item 1 of `train` cannot be read: KeyError: 'three'"),
        (Drawing(), "item 0 of `train` is another one every time.*`augment`"),
        ([], "`train` is empty"),
        ([(np.zeros(3), 0), (np.zeros(3), 5)], "item 1 of `train` has the label 5; 3 classes allow"),
        ([(np.zeros(3), "a")], "item 0 of `train` has the label 'a'"),
        ([(np.zeros(3), 0.5)], "item 0 of `train` has the label 0.5"),
        ([np.zeros(3)], "item 0 of `train` is a ndarray, not a pair"),
        ([("some words", 0)], "they are texts, not numbers; a text is given as the numbers of its tokens"),
        ([(np.zeros(3), 0), (np.zeros(4), 1)], r"shapes \(3,\) and \(4,\); give the task a `collate`"),
        ([(1.0, 0)], r"collated to \(1,\), not \(B, ...\)"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(dataset: Any, problem: str, stream: bool) -> None:
    if stream and "shapes" in problem:
        pytest.skip("a stream meets it where it is read")
    task = given(dataset, pairs(4), stream=stream, workers=0)
    findings = survey_task(task).findings
    with pytest.raises(ValueError, match=problem) as caught:
        _ = task.input_shape, task.load()
    assert "\n" not in str(caught.value)
    assert any(finding.level == "error" for finding in findings) or stream


def test_a_batch_of_another_length_is_said_where_it_is_read() -> None:
    items = [(np.zeros(3 if row < 25 else 4, dtype=np.int64), row % 3) for row in range(30)]
    for workers in (0, 1):
        data = given(items, stream=True, workers=workers).load()
        with pytest.raises(ValueError, match=r"shapes|collated to") as caught:
            all_inputs(data.train)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("returned", [{}, {"train": pairs()}, [pairs(), pairs()], {"training": 1}])
def test_other_things_than_a_mapping_of_splits_are_refused(returned: Any) -> None:
    class Other(Given):
        def datasets(self) -> Any:
            return returned

    with pytest.raises(ValueError, match="it should be a mapping of `train` and `test`"):
        given(pairs(), kind=Other).load()


def test_what_no_identity_sees_is_said_unless_the_samples_are_named() -> None:
    class Named(Given):
        version: str = "1"

        def digest(self) -> str:
            return self.version

    assert given(pairs()).unseen_data is not None
    named = given(pairs(), kind=Named)
    assert named.unseen_data is None
    assert named.identity() != given(pairs(), kind=Named, version="2").identity()


# --- the processes that read a stream --------------------------------------------------------------------------------

READY: list[bool] = []


class Whereabouts(Dataset[Pair]):
    """Items that say which process read them, and whose child that is."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, row: int) -> Pair:
        return np.array([os.getpid(), os.getppid(), row]), row % 3


class Unsendable(Whereabouts):
    def __init__(self) -> None:
        self.lock = threading.Lock()


class NeedsItsModule(Whereabouts):
    """What the module learned before is not known in a process of its own."""

    def __getitem__(self, row: int) -> Pair:
        if not READY:
            raise RuntimeError("nobody made this module ready")
        return super().__getitem__(row)


@pytest.fixture
def found_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above, by processes that are sent objects of them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


@pytest.mark.usefixtures("found_by_others")
def test_processes_that_read_a_stream_stay_and_are_no_copies_of_this_one() -> None:
    data = given(Whereabouts(), stream=True, workers=2).load()
    first, second, other = all_inputs(data.train, 3), all_inputs(data.train, 3), all_inputs(data.test, 3)
    assert first[:, 2].tolist() == second[:, 2].tolist() == data.train.ids.tolist()
    assert set(first[:, 0].tolist()) == set(second[:, 0].tolist()) >= set(other[:, 0].tolist())
    assert len(set(first[:, 0].tolist())) == 2
    assert os.getpid() not in {*first[:, 0].tolist(), *first[:, 1].tolist()}


@pytest.mark.usefixtures("found_by_others")
@pytest.mark.parametrize(
    ("dataset", "most", "reason"),
    [
        (Unsendable, 256 << 20, "cannot be sent to another process (TypeError: cannot pickle"),
        (Whereabouts, 10, "takes more than 0 MiB"),
        (NeedsItsModule, 256 << 20, "reads otherwise in a process of its own: task `given`: item"),
    ],
)
def test_what_cannot_be_sent_is_read_by_copies_of_this_process_and_the_log_says_why(
    dataset: type[Whereabouts],
    most: int,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(dataset_split, "MOST_SENT", most)
    monkeypatch.setitem(globals(), "READY", [True])
    caplog.set_level("INFO", logger="raydistill")
    data = given(dataset(), stream=True, workers=1).load()
    for _ in range(2):
        read = all_inputs(data.train, 3)
        assert read[:, 2].tolist() == data.train.ids.tolist()
        assert set(read[:, 1].tolist()) == {os.getpid()}
    said = [record.getMessage() for record in caplog.records if "are forked" in record.getMessage()]
    assert len(said) == 1
    assert reason in said[0]

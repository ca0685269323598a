"""Arrays in .npy files that are read where they lie: the same samples as in memory, and one line for what is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from raydistill.tasks import mapped_split, npy
from raydistill.tasks.npy import Npy
from raydistill.tasks.pool import Pool
from raydistill.tasks.splits import Split
from raydistill.tasks.survey import survey_task
from raydistill.tasks.tensors import Tensors

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of files is remembered in a place of this test's own."""
    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path_factory.mktemp("memory")))


def images(count: int = 50, dtype: Any = np.uint8) -> NDArray[Any]:
    return RANDOM.integers(0, 256, (count, 3, 6, 7)).astype(dtype)


def save(folder: Path, **arrays: Any) -> dict[str, Path]:
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", np.asarray(values))
    return {name: folder / f"{name}.npy" for name in arrays}


def task(folder: Path, inputs: NDArray[Any], **arrays: Any) -> Npy:
    """A task of two classes, unless `labels` are others."""
    options = {name: arrays.pop(name) for name in ("layout", "classes") if name in arrays}
    labels = arrays.pop("labels") if "labels" in arrays else np.arange(len(inputs)) % 2
    return Npy(**save(folder, inputs=inputs, labels=labels, **arrays), **options)


def in_memory(folder: Path, inputs: NDArray[Any], **arrays: Any) -> Tensors:
    np.savez(folder / "all.npz", inputs=inputs, labels=np.arange(len(inputs)) % 2, **arrays)
    return Tensors(file=folder / "all.npz")


def whole(split: Split) -> torch.Tensor:
    return torch.cat(list(split.batches(torch.arange(len(split)).split(7), None)))


KINDS: dict[str, NDArray[Any]] = {
    "pictures": images(),
    "half precision": RANDOM.standard_normal((50, 2, 5)).astype(np.float16),
    "double precision": RANDOM.standard_normal((50, 9)),
    "another byte order": RANDOM.standard_normal((50, 9)).astype(">f4"),
    "tokens": RANDOM.integers(0, 9999, (50, 12)),
    "small tokens": RANDOM.integers(0, 9999, (50, 12)).astype(np.uint16),
    "columns first": np.asfortranarray(RANDOM.standard_normal((50, 4, 3))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_samples_and_normalisation_are_those_of_the_same_arrays_in_memory(tmp_path: Path, kind: str) -> None:
    ours, theirs = task(tmp_path, KINDS[kind]), in_memory(tmp_path, KINDS[kind])
    assert (ours.input_shape, ours.input_dtype) == (theirs.input_shape, theirs.input_dtype)
    one, other = ours.load(), theirs.load()
    for name in ("train", "validation", "test"):
        mine, yours = getattr(one, name), getattr(other, name)
        assert mine.ids.tolist() == yours.ids.tolist()
        assert mine.labels.tolist() == yours.labels.tolist()
        assert torch.equal(whole(mine), whole(yours))
        assert whole(mine).dtype == whole(yours).dtype
    assert torch.equal(one.normalisation.mean, other.normalisation.mean)
    assert torch.equal(one.normalisation.std, other.normalisation.std)
    assert survey_task(ours).counts == survey_task(theirs).counts


def test_channels_last_and_grey_pictures_are_turned(tmp_path: Path) -> None:
    pictures = images()
    with pytest.raises(ValueError, match=r"look like height, width, channels.*`layout: channels_last`"):
        _ = task(tmp_path, pictures.transpose(0, 2, 3, 1)).input_shape
    turned = task(tmp_path, pictures.transpose(0, 2, 3, 1), layout="channels_last")
    train = turned.load().train
    assert turned.input_shape == (3, 6, 7)
    (found,) = train.batches([torch.arange(len(train))], None)
    assert torch.equal(found, torch.from_numpy(pictures[train.ids.numpy()]).float() / 255)
    assert found.is_contiguous()
    grey = task(tmp_path, pictures[:, 0])
    assert grey.input_shape == (1, 6, 7)
    assert torch.equal(
        whole(grey.load().test), torch.from_numpy(pictures[grey.load().test.ids.numpy(), :1]) / 255
    )


def test_test_samples_may_have_files_of_their_own(tmp_path: Path) -> None:
    test = images(10)
    found = task(tmp_path, images(), test_inputs=test, test_labels=np.arange(10) % 2)
    data = found.load()
    assert (len(data.train), len(data.validation), len(data.test)) == (45, 5, 10)
    assert torch.equal(whole(data.test), torch.from_numpy(test).float() / 255)
    learned, judged = found.content(), found.test_content()
    save(tmp_path, test_labels=np.ones(10, dtype=int))
    assert found.content() == learned
    assert found.test_content() != judged
    alone = found.model_copy(update={"test_labels": None})
    assert "`test_inputs` and `test_labels` go together" in str(alone.missing_files())


def test_a_file_says_which_rows_are_of_which_split(tmp_path: Path) -> None:
    split = np.array(["train", "val", "test", "train", "test"] * 10)
    found = task(tmp_path, images(), split=split, ids=np.arange(50)[::-1])
    data = found.load()
    assert data.test.ids.tolist() == (49 - np.flatnonzero(split == "test")).tolist()
    assert len(data.validation) == 10
    changed = np.load(tmp_path / "inputs.npy")
    changed[2] = 0  # a test sample
    learned, judged = found.content(), found.test_content()
    save(tmp_path, inputs=changed)
    assert (found.content(), found.test_content() != judged) == (learned, True)
    save(tmp_path, split=np.where(split == "val", "dev", split))
    with pytest.raises(ValueError, match=r"split `dev` in .*split.npy` is unknown"):
        found.read()


def test_labels_may_be_missing_in_training_rows(tmp_path: Path) -> None:
    labels = np.where(np.arange(50) < 20, np.nan, np.arange(50) % 2)
    found = task(tmp_path, images(), labels=labels[:, None])
    assert found.unlabelled == 20 == int((found.load().train.labels == -1).sum())
    assert found.num_classes == 2


def test_the_identity_is_the_content(tmp_path: Path) -> None:
    pictures = images()
    found = task(tmp_path, pictures)
    (tmp_path / "moved").mkdir()
    assert task(tmp_path / "moved", pictures).identity() == found.identity()
    assert task(tmp_path / "moved", pictures, labels=np.ones(50, dtype=int)).identity() != found.identity()


def test_statistics_of_large_arrays_are_those_of_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = task(tmp_path, images())
    exact = found.load().normalisation
    monkeypatch.setattr(mapped_split, "STATISTICS_BYTES", 20 * 3 * 6 * 7)
    monkeypatch.setattr(npy, "SURVEYED_BYTES", 20 * 3 * 6 * 7)
    part = found.load().normalisation
    assert not torch.equal(part.mean, exact.mean)
    assert torch.allclose(part.mean, exact.mean, atol=0.05)
    assert survey_task(found).findings == ()


def test_nothing_is_loaded_whole(tmp_path: Path) -> None:
    """64 GiB that take no space on the disk: an array with a hole in it."""
    header = tmp_path / "inputs.npy"
    shape = (1 << 16, 1 << 20)
    with header.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        stream.truncate(stream.tell() + shape[0] * shape[1])
    labels = save(tmp_path, labels=np.arange(shape[0]) % 2)["labels"]
    found = Npy(inputs=header, labels=labels, validation_fraction=0)
    split = mapped_split.MappedSplit(
        found,
        found.stored()["train"],
        np.arange(shape[0]),
        torch.zeros(shape[0]).long(),
        torch.arange(shape[0]),
    )
    (batch,) = split.batches([torch.tensor([5, 65_000])], None)
    assert batch.shape == (2, 1 << 20)


def test_a_pool_is_a_npy_too(tmp_path: Path) -> None:
    found = task(tmp_path, images())
    np.save(tmp_path / "pool.npy", images(9))
    pool = Pool(None, tmp_path / "pool.npy", "inputs")
    joined = pool.add_to(found.load().train, found)
    assert len(joined) == len(found.load().train) + 9 == len(found.load().train) + len(pool)
    assert torch.equal(whole(joined)[-9:], torch.from_numpy(np.load(tmp_path / "pool.npy")) / 255)
    assert not any(finding.level == "error" for finding in survey_task(found, [pool]).findings)
    in_file = in_memory(tmp_path, images())
    assert torch.equal(whole(pool.add_to(in_file.load().train, in_file))[-9:], whole(joined)[-9:])
    np.save(tmp_path / "pool.npy", images(9)[:, :1])
    with pytest.raises(ValueError, match=r"inputs are \(1, 6, 7\), expected \(3, 6, 7\)"):
        pool.add_to(found.load().train, found)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "objects": ({"inputs": np.array([{}] * 50, dtype=object)}, "inputs.npy` holds Python objects.* save numbers"),
    "texts": ({"inputs": np.array(["a"] * 50)}, "inputs.npy` holds <U1, not numbers"),
    "fewer labels": ({"labels": np.arange(49) % 2}, "one row per sample is needed in each file; .*` 50, .*` 49"),
    "one-hot labels": ({"labels": np.eye(50, dtype=int)}, r"labels.npy` should be one integer per row, not int64"),
    "labels from 1": ({"labels": 1 + np.arange(50) % 2, "classes": 2}, "go from 1 to 2, and 2 classes have"),
    "a label too many": ({"labels": np.arange(50) % 3, "classes": 2}, "has the label 2; 2 classes allow 0 to 1"),
    "not finite": (
        {"inputs": np.where(np.arange(50) == 7, np.nan, 1.0)[:, None]}, "row 7 of .*inputs.npy` is not finite"
    ),
    "ids twice": ({"ids": np.zeros(50, dtype=int)}, "the id 0 belongs to more than one sample"),
    "no rows": ({"inputs": np.array(1)}, "inputs.npy` holds a single number, no rows"),
    "another test shape": (
        {"test_inputs": np.zeros((3, 4), np.uint8), "test_labels": np.zeros(3, int)},
        r"test_inputs.npy` holds uint8 \(4,\) per row, and .*inputs.npy` uint8 \(3, 6, 7\)",
    ),
    "two test splits": (
        {"test_inputs": images(3), "test_labels": np.zeros(3, int), "split": np.arange(50) % 3},
        "marks rows as test, and `test_inputs` are others",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_one_line(tmp_path: Path, case: str) -> None:
    arrays, message = BROKEN[case]
    found = task(tmp_path, **{"inputs": images(), "labels": np.arange(50) % 2, **arrays})
    (finding,) = (one for one in survey_task(found).findings if one.level == "error")
    with pytest.raises(ValueError, match=message):
        raise ValueError(finding.text)
    assert "\n" not in finding.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "inputs.npy` is truncated or no .npy"),
        (b"\x93NUMPY\x01\x00", "inputs.npy` is truncated or no .npy"),
        (b"\x93NUMPY\x01\x00\x02\x00{\n", "inputs.npy` is truncated or no .npy"),
        (b"PK\x03\x04", "inputs.npy` is truncated or no .npy"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*`git lfs pull`"),
    ],
)
def test_files_that_are_none_are_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    found = task(tmp_path, images())
    (tmp_path / "inputs.npy").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        found.read()


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    found = task(tmp_path, images())
    (tmp_path / "inputs.npy").write_bytes((tmp_path / "inputs.npy").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"inputs.npy` is truncated or no .npy"):
        found.read()


def test_missing_files_name_the_option(tmp_path: Path) -> None:
    found = task(tmp_path, images())
    (tmp_path / "labels.npy").unlink()
    assert "another in the option `labels`" in str(found.missing_files())
    assert "{name: npy, inputs" in str(Tensors(file=tmp_path / "inputs.npy").missing_files())

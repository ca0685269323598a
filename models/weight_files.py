"""Files of weights before anything is loaded from them: are they there, are they files of weights, what goes with them.

Loads no torch: plans are checked with this alone.
"""

import hashlib
import json
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

# What stands at the beginning of files that are often given for weights.
_NOT_WEIGHTS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"),
    (b"<!doctype html", "is a web page, as a download that went wrong leaves it; fetch the file again"),
    (b"<html", "is a web page, as a download that went wrong leaves it; fetch the file again"),
    (b"\x89hdf", "is a HDF5 file, as Keras writes it; save the model as a state dict of torch"),
)
REGISTRIES = ("models:/", "runs:/", "mlflow-artifacts:/")  # addresses of MLflow
CONTRACT = (
    "extra/contract.json"  # in a program of `torch.export`: what `distill export` wrote of inputs and outputs
)


def is_registered(weights: str | None) -> bool:
    """Whether these weights lie in MLflow."""
    return weights is not None and weights.startswith(REGISTRIES)


def normalises_inside(contract: str | bytes | None) -> bool:
    """Whether a file says of itself, as those of `distill export` do, that the normalisation is inside of it."""
    try:
        return json.loads(contract or "null")["inputs"]["normalisation"]["inside"] is True
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def why_no_weights(path: Path) -> str | None:
    """What is wrong with a file of weights at first sight, with the way out; None when nothing is."""
    if is_registered(str(path)):
        return (
            f"`{path}` is a model in MLflow: fetch it, `mlflow artifacts download -u {path} -d fetched`, and name the"
            " file in it: `model.safetensors` of our students, `data/model.pt2` with `model: exported`"
        )
    if path.is_dir():
        return f"`{path}` is a folder; name the file in it, such as `{path / 'model.safetensors'}`"
    if not path.is_file():
        return f"the file `{path}` does not exist"
    with path.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    if not start:
        return f"`{path}` is empty; write or fetch it again"
    for beginning, problem in _NOT_WEIGHTS:
        if start.startswith(beginning):
            return f"`{path}` {problem}"
    try:
        absent = [companion for companion in companions(path) if not companion.is_file()]
    except (ValueError, OSError) as error:
        return str(error)
    return f"`{path}` needs `{absent[0]}`, which does not exist; put it there" if absent else None


def companions(path: Path) -> tuple[Path, ...]:
    """The files that hold the tensors of `path` where it only says where they are: an index, or an ONNX model.

    `ValueError` for one that cannot be read, or that leads out of its folder.
    """
    names: list[str] = []
    if is_index(path):
        names = sorted(set(read_index(path).values()))
    elif path.suffix == ".onnx":
        names = _external_data(path)
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise ValueError(f"`{path}` names `{name}`, which does not lie in its folder")
    return tuple(path.parent / name for name in names)


def is_index(path: Path) -> bool:
    """Whether this is the index of weights that lie in several files."""
    return path.name.endswith(".index.json")


def read_index(path: Path) -> dict[str, str]:
    """Tensor → name of the file that holds it, from an index as Hugging Face's libraries write it."""
    try:
        places = json.loads(path.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        places = None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"`{path}` is no index of weights: it has no `weight_map` from tensors to files")
    return places


def weights_digest(path: Path, digest_file: Callable[[Path], str]) -> str:
    """The content of a file of weights, with the files that it needs: 64 hexadecimal digits."""
    digests = [digest_file(file) for file in (path, *companions(path))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


# Where tensors stand in an ONNX model, by the numbers of its fields (onnx.proto): of a model the graph, of that the
# initial values and the nodes, of these the attributes, and of those tensors and graphs again.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _ENTRY = range(7)
_INSIDE = {
    _MODEL: {7: _GRAPH},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {13: _ENTRY},
}
_DEEPEST = 40  # graphs within graphs


def _external_data(path: Path) -> list[str]:
    """Names of the files in which tensors of an ONNX model lie; `ValueError` for what is none."""
    if not path.stat().st_size:
        return []
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return sorted(set(_locations(data, 0, len(data), _MODEL, 0)))
        except (ValueError, IndexError):
            raise ValueError(f"`{path}` is no ONNX model, or is truncated; write or fetch it again") from None


def _locations(data: mmap.mmap, start: int, end: int, message: int, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    for number, first, last in _fields(data, start, end):
        inner = _INSIDE[message].get(number)
        if inner == _ENTRY:
            entry = {key: data[begin:stop] for key, begin, stop in _fields(data, first, last)}
            if entry.get(1) == b"location":
                yield entry[2].decode()
        elif inner is not None:
            yield from _locations(data, first, last, inner, depth + 1)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of every field of a protobuf message that has a length."""
    place = start
    while place < end:
        key, place = _number(data, place)
        kind = key & 7
        if kind == 2:
            length, place = _number(data, place)
            if place + length > end:
                raise ValueError("a field ends behind its message")
            yield key >> 3, place, place + length
            place += length
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        elif kind == 0:
            _, place = _number(data, place)
        else:
            raise ValueError("no protobuf")
    if place != end:
        raise ValueError("a field ends behind its message")


def _number(data: mmap.mmap, place: int) -> tuple[int, int]:
    """A number in seven bits a byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("no number")

"""Files of weights before anything is loaded from them: are they there, are they files of weights, what goes with them.

Loads no torch: plans are checked with this alone.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath

# What stands at the beginning of files that are often given for weights.
_NOT_WEIGHTS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`"),
    (b"<!doctype html", "is a web page, as a download that went wrong leaves it; fetch the file again"),
    (b"<html", "is a web page, as a download that went wrong leaves it; fetch the file again"),
    (b"\x89hdf", "is a HDF5 file, as Keras writes it; save the model as a state dict of torch"),
)


def why_no_weights(path: Path) -> str | None:
    """What is wrong with a file of weights at first sight, with the way out; None when nothing is."""
    if path.is_dir():
        return f"`{path}` is a folder; name the file in it, such as `{path / 'model.safetensors'}`"
    if not path.is_file():
        return f"the file `{path}` does not exist"
    with path.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    if not start:
        return f"`{path}` is empty; write or fetch it again"
    if path.suffix == ".onnx":
        return f"`{path}` is an ONNX model, not weights; let a function of your own run it: `model: my_nets:build`"
    for beginning, problem in _NOT_WEIGHTS:
        if start.startswith(beginning):
            return f"`{path}` {problem}"
    try:
        absent = [companion for companion in companions(path) if not companion.is_file()]
    except (ValueError, OSError) as error:
        return str(error)
    return f"`{path}` needs `{absent[0]}`, which does not exist; put it there" if absent else None


def companions(path: Path) -> tuple[Path, ...]:
    """The files that hold the tensors of `path` where it only says where they are: an index.

    `ValueError` for one that cannot be read, or that leads out of its folder.
    """
    names: list[str] = []
    if is_index(path):
        names = sorted(set(read_index(path).values()))
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

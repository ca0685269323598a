"""Weights from files as people have them, put into a model. Nothing in a file is executed.

A state dict may lie in the file as it is, or below a key beside whatever the training kept; its names may have the
prefixes that wrappers leave. Which of them is meant is decided by what fits the model.
"""

import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raydistill.models.weight_files import is_index, read_index, why_no_weights

NAMED = 10  # tensors that an error lists
DEPTH = 3  # of keys around a state dict
PREFIX = 4  # of dotted words
# What `torch.compile`, FSDP and activation checkpointing put into the names of the modules that they wrap.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
DATA = ("numpy", "pathlib", "datetime", "collections", "decimal", "uuid")  # modules of values beside weights
COUNTER = "num_batches_tracked"  # which files from before torch 0.4.1 lack; nothing depends on it


def load_weights(
    model: nn.Module, path: Path, ignore: Sequence[str] = (), head: Callable[[], Sequence[str]] = tuple
) -> tuple[str, ...]:
    """Put the weights of a file into a model; those that a pattern of `ignore` names stay as they are, and those of the
    `head` that have another shape in the file, for which it is asked then.

    Returns what there is to say about it. `FileNotFoundError` and `ValueError` name the file, what is wrong, and the
    way out; the model is unchanged then.
    """
    if not path.exists():
        raise FileNotFoundError(f"the file `{path}` does not exist")
    states = list(_states(_read(path)))
    if not states:
        raise ValueError(f"`{path}` holds no state dict: no mapping from names to tensors")
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    fits = [_fit(state, own) for state in states]
    best = max(fits, key=lambda fit: fit.rank)
    misfits = _misfits(path, best, own, ignore)
    drawn = set(misfits.shapes) & set(head()) if misfits.shapes and best.alike else set()
    _refuse(path, best, own, misfits.without(drawn))
    taken = {
        name: tensor
        for name, tensor in best.found.items()
        if not _matches(name, ignore) and name not in drawn
    }
    for name, tensor in taken.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ValueError(f"`{path}` is damaged: `{name}` holds NaN")
    model.load_state_dict({**model.state_dict(), **taken})
    return tuple(_remarks(path, best, fits, sorted(drawn)))


@dataclass(frozen=True)
class _State:
    """Named tensors of a file, and the keys that lead to them."""

    place: str
    tensors: Mapping[str, Tensor]

    @property
    def is_average(self) -> bool:
        """Whether these are running means of the weights, which some trainings keep beside them."""
        return "ema" in self.place.lower()


@dataclass(frozen=True)
class _Fit:
    """Which tensors of a state are which of the model's. `strangers`: those that are none of them."""

    state: _State
    found: Mapping[str, Tensor]
    strangers: tuple[str, ...]
    alike: int

    @property
    def rank(self) -> tuple[int, int, bool, int]:
        """How well it fits; of equal ones the plain weights, and the outermost."""
        return self.alike, len(self.found), not self.state.is_average, -self.state.place.count(".")


def _read(path: Path) -> Any:
    if problem := why_no_weights(path):
        raise ValueError(problem)
    try:
        if is_index(path):
            return _read_shards(path)
        if path.suffix == ".safetensors" or _is_safetensors(path):
            return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"`{path}` cannot be read as weights: {_first_line(error)}") from error
    _refuse_programs(path)
    return _read_pickled(path)


def _read_shards(path: Path) -> dict[str, Tensor]:
    places = read_index(path)
    found: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        found |= load_file(path.parent / name)
    if absent := [name for name in places if name not in found]:
        raise ValueError(f"`{path}` lists `{absent[0]}`, which is not in `{places[absent[0]]}`")
    return found


def _is_safetensors(path: Path) -> bool:
    """Whatever its name: 8 bytes that say how long the JSON is which follows."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _refuse_programs(path: Path) -> None:
    if path.suffix == ".onnx":
        raise ValueError(f"`{path}` is an ONNX model, not weights; take it as it is: `model: exported`")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names):
        raise ValueError(f"`{path}` is an exported program, not weights; take it as it is: `model: exported`")
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(
            f"`{path}` is a TorchScript program, which is code; save the state dict alone:"
            f' `torch.save(torch.jit.load("{path}").state_dict(), "weights.pth")`'
        )


class _Needed(Exception):  # noqa: N818 - never leaves this file
    """A pickle calls something that is no part of weights."""


class _Inert(type):
    """The class of stand-ins for what a pickle names: they can be made and filled, but called only for mere data."""

    def __call__(cls, *arguments: Any, **more: Any) -> Any:
        if cls.__module__.partition(".")[0] not in DATA:
            raise _Needed(f"{cls.__module__}.{cls.__qualname__}")
        made: Any = object.__new__(cls)  # type: ignore[arg-type]  # a class made at run time
        return made


def _stand_in(address: str) -> tuple[Any, str]:
    """Something under a class's name that holds its attributes and does nothing, as torch takes it."""
    module, _, name = address.rpartition(".")

    def make(cls: type, *arguments: Any) -> Any:
        return object.__new__(cls)

    space = {"__module__": module, "__new__": make, "__setstate__": lambda self, state: None}
    return _Inert(name, (), space), address


def _read_pickled(path: Path) -> Any:
    """What `torch.save` wrote. Objects beside the tensors, such as the arguments of a script, become stand-ins.

    What asks for a call of a function is refused: no weights do.
    """
    try:
        strangers = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of older versions, or none of torch's: whoever loads it says so
        strangers = []
    try:
        with torch.serialization.safe_globals([_stand_in(address) for address in strangers]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _Needed as error:
        raise ValueError(_asks_for_code(path, str(error))) from None
    except Exception as error:  # whatever the bytes of a foreign file lead to
        if (named := _global_in(str(error))) is not None:
            raise ValueError(_asks_for_code(path, named)) from None
        raise ValueError(
            f"`{path}` cannot be read as weights: {_first_line(error)}; is it whole, and of `torch.save`?"
        ) from error
    if isinstance(type(loaded), _Inert):
        raise ValueError(_asks_for_code(path, f"{type(loaded).__module__}.{type(loaded).__qualname__}"))
    return loaded


def _asks_for_code(path: Path, name: str) -> str:
    return (
        f"`{path}` cannot be read without running code: it asks for `{name}`; where you trust it, save the tensors"
        ' alone: `torch.save(model.state_dict(), "weights.pth")`'
    )


def _global_in(message: str) -> str | None:
    """The class or function that torch refused, from its message."""
    words = message.split("GLOBAL ", 1)
    return words[1].split()[0] if len(words) == 2 else None


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")
    return "it is no pickle" if text.startswith("Weights only load failed") else text


def _states(value: Any, place: tuple[str, ...] = ()) -> Iterator[_State]:
    """Every mapping from names to tensors in what a file holds; the outer one first."""
    if isinstance(value, Tensor) or not isinstance(value, Mapping):
        return
    tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
    if tensors:
        yield _State(".".join(place), tensors)
    if len(place) < DEPTH:
        for key, item in value.items():
            if isinstance(key, str):
                yield from _states(item, (*place, key))


def _fit(state: _State, own: Mapping[str, Tensor]) -> _Fit:
    plain = {_unwrapped(name): name for name in state.tensors}
    if any(wrapper in name for name in own for wrapper in WRAPPERS):
        plain = {name: name for name in state.tensors}
    removed, added = _prefix(plain, own), _prefix(own, plain)
    found: dict[str, Tensor] = {}
    used = set()
    for name in own:
        short = name.removeprefix(added) if name.startswith(added) else name
        known = next((key for key in (removed + name, name, short) if key in plain), None)
        if known is not None:
            found[name] = state.tensors[plain[known]]
            used.add(known)
    strangers = tuple(key.removeprefix(removed) for key in plain if key not in used)
    alike = sum(tensor.shape == own[name].shape for name, tensor in found.items())
    return _Fit(state, found, strangers, alike)


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _prefix(longer: Iterable[str], shorter: Mapping[str, Any]) -> str:
    """What stands before most of the `longer` names that are `shorter` ones without it; of several the shortest."""
    counts: dict[str, int] = {}
    for name in longer:
        words = name.split(".")
        for count in range(min(len(words), PREFIX + 1)):
            if ".".join(words[count:]) in shorter:
                prefix = "".join(f"{word}." for word in words[:count])
                counts[prefix] = counts.get(prefix, 0) + 1
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True)
class _Misfits:
    """What of a file and a model does not fit together, by name."""

    shapes: tuple[str, ...]
    missing: tuple[str, ...]
    strangers: tuple[str, ...]

    def without(self, names: Collection[str]) -> "_Misfits":
        """All but these shapes."""
        return replace(self, shapes=tuple(name for name in self.shapes if name not in names))

    def __bool__(self) -> bool:
        return bool(self.shapes or self.missing or self.strangers)


def _misfits(path: Path, fit: _Fit, own: Mapping[str, Tensor], ignore: Sequence[str]) -> _Misfits:
    """What does not fit and is not ignored; `ValueError` for a pattern that is about nothing."""
    for pattern in ignore:
        if not any(fnmatchcase(name, pattern) for name in (*own, *fit.strangers)):
            first = ", ".join(f"`{name}`" for name in list(own)[-2:])
            raise ValueError(
                f"`ignore: [{pattern}]` is about no tensor of the model or of `{path}`; the model's last are {first}"
            )
    shared = {own[name].data_ptr() for name in fit.found if own[name].numel()}
    missing = (
        name
        for name in own
        if name not in fit.found and not name.endswith(COUNTER) and own[name].data_ptr() not in shared
    )
    shapes = (name for name, tensor in fit.found.items() if _is_other(tensor, own[name]))
    return _Misfits(*(tuple(_not_ignored(names, ignore)) for names in (shapes, missing, fit.strangers)))


def _is_other(tensor: Tensor, own: Tensor) -> bool:
    is_number = tensor.is_floating_point() or not own.is_floating_point()  # quantised weights are none
    return tensor.shape != own.shape or tensor.is_quantized or not is_number


def _not_ignored(names: Iterable[str], ignore: Sequence[str]) -> Iterator[str]:
    return (name for name in names if not _matches(name, ignore))


def _refuse(path: Path, fit: _Fit, own: Mapping[str, Tensor], misfits: _Misfits) -> None:
    if not misfits:
        return
    if not fit.alike:
        theirs, ours = next(iter(fit.state.tensors)), next(iter(own), "none")
        raise ValueError(
            f"`{path}` holds the weights of another architecture: none of its {len(fit.state.tensors)} tensors"
            f" (`{theirs}`, …) has name and shape of one of the model's {len(own)} (`{ours}`, …)"
        )
    parts = {
        "of another shape": [_shapes(name, fit.found[name], own[name]) for name in misfits.shapes],
        "missing": [f"`{name}`" for name in misfits.missing],
        "unexpected": [f"`{name}`" for name in misfits.strangers],
    }
    room = NAMED // sum(bool(names) for names in parts.values())
    text = "; ".join(f"{what}: {_listed(names, room)}" for what, names in parts.items() if names)
    raise ValueError(f"`{path}` does not fit the model: {text}{_way_out(misfits, own)}")


def _shapes(name: str, tensor: Tensor, own: Tensor) -> str:
    if tensor.shape == own.shape:
        return f"`{name}` of {str(tensor.dtype).removeprefix('torch.')}, no weights"
    return f"`{name}` {tuple(tensor.shape)}, the model needs {tuple(own.shape)}"


def _listed(names: Sequence[str], room: int) -> str:
    more = f" and {len(names) - room:,} more" if len(names) > room else ""
    return ", ".join(names[:room]) + more


def _way_out(misfits: _Misfits, own: Mapping[str, Tensor]) -> str:
    """`ignore` for a head or two; for more of the model it would hide that this is another one."""
    drawn = (*misfits.shapes, *misfits.missing)
    parents = dict.fromkeys(f"{name.rpartition('.')[0]}.*" for name in (*drawn, *misfits.strangers))
    if len(drawn) > len(own) / 2 or len(parents) > 3:
        return "; is it of another architecture, or are options of the model other ones?"
    classes = "is the number of classes another one? " if misfits.shapes else ""
    return f"; {classes}`ignore: [{', '.join(parents)}]` leaves {'them as drawn' if drawn else 'them out'}"


def _remarks(path: Path, best: _Fit, fits: Sequence[_Fit], drawn: Sequence[str]) -> Iterator[str]:
    if drawn:
        patterns = ", ".join(dict.fromkeys(f"{name.rpartition('.')[0]}.*" for name in drawn))
        yield (
            f"`{path}` has a head for other classes: {_listed([f'`{name}`' for name in drawn], NAMED)} stay as drawn;"
            f" `ignore: [{patterns}]` says that this is meant"
        )
    others = [fit for fit in fits if fit is not best and fit.alike == best.alike]
    if others:
        names = ", ".join(f"`{fit.state.place or 'the file itself'}`" for fit in others)
        yield (
            f"`{path}` holds several state dicts that fit: taken is `{best.state.place or 'the file itself'}`,"
            f" not {names}; save the one that is meant in a file of its own"
        )

"""Reading utterances from Parquet files into one array of frames, checked and normalised per speaker."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from raydistill.tasks.utterances import LONGEST, Utterances, utterance_key


def largest_label(file: Path) -> int:
    """The largest label of a file, -1 when it has none."""
    values = _labels(file, _open(file, ["labels"]).column("labels").combine_chunks()).flatten()
    return max((value for value in values.to_numpy(zero_copy_only=False).tolist()), default=-1)


def read_utterances(files: Sequence[Path], coefficients: int, num_classes: int) -> Utterances:
    """All utterances of a split, normalised. `ValueError` names the file and the utterance that is not valid."""
    parts = [_read_file(file, coefficients, num_classes) for file in files]
    lengths = np.concatenate([part.lengths for part in parts])
    everything = Utterances(
        np.concatenate([part.frames for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([part.names for part in parts]),
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.speakers for part in parts]),
    )
    normalise_by_speaker(everything)
    return everything


def normalise_by_speaker(utterances: Utterances) -> None:
    """In place: mean 0 and variance 1 of every coefficient over the frames of each speaker; constant ones become 0."""
    names, speakers = np.unique(utterances.speakers, return_inverse=True)
    for speaker in range(len(names)):
        spans = [
            slice(*utterances.bounds[place : place + 2]) for place in np.flatnonzero(speakers == speaker)
        ]
        values = np.concatenate([utterances.frames[span] for span in spans]).astype(np.float64)
        mean, std = values.mean(axis=0), values.std(axis=0)
        # Rounding leaves about 1e-16 of the mean where the true deviation is zero.
        std[std <= 1e-12 * np.abs(mean)] = 1.0
        for span in spans:
            utterances.frames[span] = (utterances.frames[span] - mean) / std


def _read_file(file: Path, coefficients: int, num_classes: int) -> Utterances:
    table = _open(file, ["features", "labels", "id"])
    names = table.column("id").to_pylist()
    _check_names(file, names)
    features = table.column("features").combine_chunks()
    labels = _labels(file, table.column("labels").combine_chunks())
    lengths = _lengths(file, names, features, labels)
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Utterances(
        _frames(file, names, bounds, features.flatten(), coefficients),
        _checked_labels(file, names, bounds, labels.flatten(), num_classes),
        bounds,
        np.array([str(name) for name in names]),
        np.array([utterance_key(name) for name in names], dtype=np.int64),
        _speakers(table, names),
    )


def _open(file: Path, columns: list[str]) -> Any:
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        known = opened.schema_arrow.names
        missing = [column for column in columns if column not in known]
        if not missing:
            return opened.read(columns=[*columns, *(["speaker"] if "speaker" in known else [])])
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"`{file}` is damaged or no Parquet file: {error}") from error
    raise ValueError(f"`{file}` has no column `{missing[0]}`; it has {', '.join(known)}")


def _check_names(file: Path, names: list[Any]) -> None:
    if not names:
        raise ValueError(f"`{file}` has no utterances")
    for row, name in enumerate(names):
        if not isinstance(name, int | str):
            raise ValueError(
                f"the utterance in row {row} of `{file}` has the id {name!r}, not an integer or a text"
            )


def _labels(file: Path, labels: Any) -> Any:
    types = pyarrow.types
    if not _is_list(labels.type) or not types.is_integer(labels.type.value_type):
        raise ValueError(f"`labels` of `{file}` should be lists of integers, not {labels.type}")
    return labels


def _is_list(kind: Any) -> bool:
    types = pyarrow.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _lengths(file: Path, names: list[Any], features: Any, labels: Any) -> NDArray[np.int64]:
    """Frames of each utterance, where features and labels agree on them."""
    if not (
        _is_list(features.type)
        and _is_list(features.type.value_type)
        and pyarrow.types.is_floating(features.type.value_type.value_type)
    ):
        raise ValueError(f"`features` of `{file}` should be lists of lists of floats, not {features.type}")
    counts = features.value_lengths().to_pylist(), labels.value_lengths().to_pylist()
    for name, of_features, of_labels in zip(names, *counts, strict=True):
        if of_features is None or of_labels is None:
            raise ValueError(f"utterance `{name}` of `{file}` has an empty cell")
        if of_features != of_labels:
            raise ValueError(
                f"utterance `{name}` of `{file}` has {of_features} frames and {of_labels} labels"
            )
        if not 0 < of_features <= LONGEST:
            raise ValueError(
                f"utterance `{name}` of `{file}` has {of_features} frames; 1 to {LONGEST} are allowed"
            )
    return np.array(counts[0], dtype=np.int64)


def _frames(
    file: Path, names: list[Any], bounds: NDArray[np.int64], rows: Any, coefficients: int
) -> NDArray[np.float32]:
    widths: NDArray[np.int64] = rows.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    place = _first(widths != coefficients)
    if place is not None:
        raise ValueError(
            f"{_where(file, names, bounds, place)} has {widths[place]} features, not {coefficients}"
        )
    # Empty cells become NaN here, which is refused below. The copy may be written to.
    frames = np.array(rows.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    frames = frames.reshape(len(widths), coefficients)
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(frames).all(axis=1))
    place = _first(~finite)
    if place is not None:
        raise ValueError(f"{_where(file, names, bounds, place)} has a feature that is not a finite number")
    return frames


def _checked_labels(
    file: Path, names: list[Any], bounds: NDArray[np.int64], values: Any, num_classes: int
) -> NDArray[np.int64]:
    labels: NDArray[np.int64] = values.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    place = _first((labels < 0) | (labels >= num_classes))
    if place is not None:
        raise ValueError(
            f"{_where(file, names, bounds, place)} has the label {labels[place]}; "
            f"{num_classes} classes allow 0 to {num_classes - 1}"
        )
    return labels


def _first(wrong: NDArray[np.bool_]) -> int | None:
    return int(wrong.argmax()) if wrong.any() else None


def _where(file: Path, names: list[Any], bounds: NDArray[np.int64], place: int) -> str:
    row = int(np.searchsorted(bounds, place, side="right")) - 1
    return f"frame {place - bounds[row]} of utterance `{names[row]}` of `{file}`"


def _speakers(table: Any, names: list[Any]) -> NDArray[np.str_]:
    """Names of the speakers; where there is none, the utterance stands for itself."""
    known = table.column("speaker").to_pylist() if "speaker" in table.column_names else [None] * len(names)
    return np.array(
        [
            f"utterance {name}" if speaker is None else f"speaker {speaker}"
            for name, speaker in zip(names, known, strict=True)
        ]
    )

"""Models that a stage laid side by side: how alike their layers are, where their answers part, and where they look."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, permutations
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, RootModel, model_validator

from raydistill.errors import StoreError
from raydistill.report.attention import AttentionMap
from raydistill.report.examples import Picture, to_picture
from raydistill.report.predictions import read_in_role
from raydistill.runs.files import read_as
from raydistill.runs.stage_files import COMPARED_LAYERS
from raydistill.runs.view import RunView, StageView

COMPARISON, GRAD_CAM = "comparison.json", "grad_cam.safetensors"
ALL_PAIRS = 3  # of more models each is drawn beside the first alone

Floats = NDArray[np.floating]
Layers = tuple[str, str]  # a student's and its teacher's


class ComparedModel(BaseModel):
    """A model: its layers, its right answers, the layer at which Grad-CAM looked, or why there is none."""

    layers: tuple[str, ...]
    right: int
    seen_at: str | None = None
    unseen: str | None = None


class Agreement(BaseModel):
    """What two models' answers have in common. `by_class`: the samples of each class, and equal answers to them;
    `confusions`: (class, answer, answer, times); `parted`: ids of samples to which the answers differ."""

    first: int
    second: int
    same: int
    both_right: int
    only_first_right: int
    only_second_right: int
    same_error: int
    by_class: tuple[tuple[int, int], ...]
    confusions: tuple[tuple[int, int, int, int], ...]
    parted: tuple[int, ...]


class _Written(BaseModel):
    """What `comparison.json` holds."""

    split: str
    samples: int
    of: int
    batch: int
    class_names: tuple[str, ...]
    models: tuple[ComparedModel, ...]
    cka: tuple[tuple[float, ...], ...]
    mismatch: tuple[tuple[float, ...], ...]
    pairs: tuple[Agreement, ...]

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        layers = sum(len(model.layers) for model in self.models)
        for matrix in (self.cka, self.mismatch):
            if len(matrix) != layers or any(len(row) != layers for row in matrix):
                raise ValueError("the layers are not those of the matrices")
        for pair in self.pairs:
            if not 0 <= pair.first < pair.second < len(self.models):
                raise ValueError("a pair names a model that is not there")
        if self.samples < 1:
            raise ValueError("nothing was compared")
        return self


class _CompareLayers(RootModel[dict[str, tuple[Layers, ...]]]):
    """What `compared_layers.json` of a student holds, by method."""


class SeenPicture(NamedTuple):
    """A sample with each model's answer, and where it looked, from 0 to 1, (h, w); None of a model without maps."""

    sample: int
    label: int
    picture: Picture
    answers: tuple[int, ...]
    maps: tuple[Floats | None, ...]


class MethodMismatch(NamedTuple):
    """The mean semantic mismatch of the layers that a student's method compares; of SemCKD's, which compares all with
    all, weighted by the last epoch's attention."""

    student: StageView
    teacher: StageView
    method: str
    pairs: int
    mismatch: float


class ClassAgreement(NamedTuple):
    """The samples of a class, and the share of equal answers to them of each pair of models."""

    label: int
    samples: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class ModelComparison:
    """One comparison: what its file says, the models' stages in its order, the pictures of Grad-CAM, who of them hears
    whom, as places of (student, teacher), and which layers each one's methods compare."""

    stage: StageView
    models: tuple[StageView, ...]
    written: _Written
    pictures: tuple[SeenPicture, ...]
    taught: tuple[tuple[int, int], ...]
    compared: tuple[Mapping[str, Mapping[Layers, float]], ...]

    @property
    def drawn_pairs(self) -> list[Agreement]:
        """The pairs whose layers are drawn."""
        pairs = self.written.pairs
        return [pair for pair in pairs if len(self.models) <= ALL_PAIRS or pair.first == 0]

    def block(self, measure: str, pair: Agreement) -> Floats:
        """`cka` or `mismatch` of the first model's layers with the second one's."""
        ends = np.cumsum([len(model.layers) for model in self.written.models])
        starts = ends - [len(model.layers) for model in self.written.models]
        values = np.array(getattr(self.written, measure), dtype=np.float64)
        return values[starts[pair.first] : ends[pair.first], starts[pair.second] : ends[pair.second]]

    def name(self, label: int) -> str:
        """A class by its name."""
        names = self.written.class_names
        return names[label] if 0 <= label < len(names) else str(label)

    def of_methods(self, attention: Sequence[AttentionMap]) -> list[MethodMismatch]:
        """A row for each method of a compared student that compares some of its layers with some of a compared
        teacher's, where all of these were compared here too."""
        places = {
            (place, layer): row
            for row, (place, layer) in enumerate(
                (place, layer) for place, model in enumerate(self.written.models) for layer in model.layers
            )
        }
        found = []
        for own, other in self.taught:
            student = self.models[own]
            for word, weights in chain(_attended(student, attention), self.compared[own].items()):
                rows = [(places.get((own, one)), places.get((other, aim))) for one, aim in weights]
                if not rows or any(None in pair for pair in rows):
                    continue
                values = [self.written.mismatch[one][aim] for one, aim in rows]  # type: ignore[index]
                mean = float(np.average(values, weights=list(weights.values())))
                found.append(MethodMismatch(student, self.models[other], word, len(rows), mean))
        return found

    @property
    def by_class(self) -> list[ClassAgreement]:
        """The classes, those first on which the models part most."""
        pairs = self.written.pairs
        rows = [
            ClassAgreement(label, samples, tuple(pair.by_class[label][1] / samples for pair in pairs))
            for label, (samples, _) in enumerate(pairs[0].by_class)
            if samples and all(label < len(pair.by_class) for pair in pairs)
        ]
        return sorted(rows, key=lambda row: (sum(row.shares), row.label))


def read_model_comparisons(run: RunView) -> tuple[list[ModelComparison], list[str]]:
    """The finished comparisons of models, and why others cannot be read."""
    return read_in_role(run, "comparison", lambda stage: _read(run, stage))


def _read(run: RunView, stage: StageView) -> ModelComparison:
    path = stage.folder.payload(COMPARISON)
    written = read_as(_Written, path)
    if len(stage.reads) != len(written.models) or not written.pairs:
        raise StoreError(f"`{path}` is damaged: it is of other models than the stage reads")
    models = tuple(run.stages[name] for name in stage.reads)
    has_pictures = stage.record is not None and GRAD_CAM in stage.record.payload
    taught = tuple(
        (own, other)
        for (own, student), (other, teacher) in permutations(enumerate(models), 2)
        if _teaches(run, teacher, student)
    )
    pictures = _pictures(stage, len(models)) if has_pictures else ()
    return ModelComparison(stage, models, written, pictures, taught, tuple(map(_compared_layers, models)))


def _pictures(stage: StageView, models: int) -> tuple[SeenPicture, ...]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = stage.folder.payload(GRAD_CAM)
    try:
        tensors = load_file(path)
        columns = [tensors[f"answers_{place}"] for place in range(models)]
        maps = [tensors.get(f"maps_{place}") for place in range(models)]
        return tuple(
            SeenPicture(
                int(sample),
                int(tensors["labels"][row]),
                to_picture(tensors["pictures"][row]),
                tuple(int(column[row]) for column in columns),
                tuple(None if found is None else _to_one(found[row]) for found in maps),
            )
            for row, sample in enumerate(tensors["ids"])
        )
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise StoreError(f"`{path}` is damaged: {error}") from None


def _to_one(found: Floats) -> Floats:
    """With 1 at the largest place."""
    largest = float(found.max(initial=0))
    return found / largest if largest > 0 else found


def _attended(
    student: StageView, attention: Sequence[AttentionMap]
) -> Iterator[tuple[str, Mapping[Layers, float]]]:
    """All pairs of layers with the last epoch's attention, for a student that logged one."""
    for own in attention:
        if own.name == student.group:
            pairs = {
                (one, aim): float(own.last[row, column])
                for row, one in enumerate(own.student_layers)
                for column, aim in enumerate(own.teacher_layers)
            }
            if all(value >= 0 for value in pairs.values()) and sum(pairs.values()) > 0:  # not NaN
                yield "attention", pairs


def _teaches(run: RunView, teacher: StageView, student: StageView) -> bool:
    """Whether a student hears a model, in its loop or by the targets that are stored of it."""
    sources = [run.stages[name] for name in student.reads]
    return teacher in sources or any(
        teacher.name in source.reads for source in sources if source.makes == "targets"
    )


def _compared_layers(student: StageView) -> Mapping[str, Mapping[Layers, float]]:
    """By method the pairs of a student's and its teacher's layers, which count alike."""
    if student.record is None or COMPARED_LAYERS not in student.record.payload:
        return {}
    written = read_as(_CompareLayers, student.folder.payload(COMPARED_LAYERS))
    return {word: dict.fromkeys(pairs, 1.0) for word, pairs in written.root.items()}

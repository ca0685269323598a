"""What a folder of soft targets is, and how it is written.

`manifest.json` is written last: a folder without it is unfinished. A *dense* store holds logits (natural-log scale,
float16, relative to the row's largest: `targets/dense.py`), one row per sample and view. A *top_k* store holds of each
row the largest log-probabilities and the mass of the others. A *mixture* holds no rows: it names stores of the other
forms and their weights, because the mean of tempered probabilities depends on the temperature and can only be formed
when it is read.

A dense or top-k store may hold *features* of the teacher beside its logits, each a column of its own of float16; a
store of the form *features* holds nothing else.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor

from raydistill.errors import StageError, StoreError
from raydistill.kinds.stage_bases import Precision
from raydistill.runs.files import read_json, write_json
from raydistill.runs.folder import fetched_file
from raydistill.targets import dense
from raydistill.targets.shards import Layout, Shard, ShardWriter, digest_of
from raydistill.targets.top_k import TopK

MANIFEST = "manifest.json"
FROM_FILE = "file-"
"""Before the digest of a file that stands in a teacher's place."""
FORMS = ("dense", "top_k", "features", "mixture")
ROWS_PER_SHARD = 65536  # 13 MB of 100 classes, 131 MB of 1,000: what a writer holds, and what a kill loses
SHARDS = 64  # so many at least where batches allow: shards are what workers divide among them
LEAST_BATCHES = 4  # in a shard: each waits for the disk four times
SHARD_BYTES = 1 << 28  # what a writer holds at most where there are features: maps are wide
FLOAT16_LARGEST = 65504
WIDEST_ROW = 2**31 - 1  # which Arrow counts in 32 bits
NO_FEATURES: Mapping[str, Any] = MappingProxyType({})
VERSION: Literal[2] = 2  # of what a row holds


class Description(BaseModel):
    """What the rows of a store are about; two stores that agree here, teachers aside, can be combined."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: str
    """Digest of the task's identity."""
    split: str
    transfer: dict[str, Any] = {}
    """The transfer set: which samples of the split, in the stage's words."""
    num_classes: int = Field(ge=1)
    dtype: Literal["float16"] = "float16"
    rows: int = Field(ge=1)
    """Samples; every view has this many rows."""
    views: int = Field(default=0, ge=0)
    """0: the clean input. n: n augmented views, numbered from 0."""
    view_seed: int = 0
    augment: tuple[dict[str, Any], ...] = ()
    teachers: tuple[str, ...] = Field(min_length=1)
    """Fingerprints of the teachers that gave the logits."""
    rule: Literal["arithmetic", "geometric", "kl_fusion"] | None = None
    """How several teachers were combined; None for one teacher's own logits. `kl_fusion`: the logits are log q."""

    @property
    def views_stored(self) -> int:
        return max(self.views, 1)

    def layout(self, column: str = "logits", dtype: str = "float16", width: int | None = None) -> Layout:
        """How a column of this store lies in shards."""
        return Layout(
            column=column,
            dtype=dtype,
            width=width or self.num_classes,
            rows=self.rows,
            views=self.views_stored,
            # Everything that the rows depend on, and the column: the shards of one store never pass for those of
            # another.
            identity=digest_of([column, self.description().model_dump(mode="json")]),
        )

    def rows_layout(self, top_k: TopK | None) -> Layout:
        """How the logits, or what is kept of them, lie in shards."""
        if top_k is None:
            return self.layout(width=dense.width(self.num_classes))
        return self.layout(top_k.column, "uint16", top_k.width)

    def feature_layout(self, number: int, name: str, shape: tuple[int, ...]) -> Layout:
        """How the feature of this number and name, (*shape) for each row, lies in shards."""
        layout = self.layout(f"feature{number}", width=math.prod(shape))
        return replace(layout, identity=digest_of([layout.identity, name, shape]))

    def description(self) -> "Description":
        """This, without anything a subclass adds."""
        return Description.model_validate(self.model_dump(include=set(Description.model_fields)))


class StoredFeature(BaseModel):
    """A feature of the teacher: its name there, its shape for a sample, and where its numbers are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    shards: tuple[Shard, ...] = Field(min_length=1)

    @field_validator("shape")
    @classmethod
    def _fits_a_row(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(shape) > WIDEST_ROW:
            raise ValueError(f"a row has {WIDEST_ROW:,} numbers at most")
        return shape


class Manifest(Description):
    """A finished store: its description, and where its numbers are."""

    version: Literal[2] = VERSION
    form: Literal["dense", "top_k", "features", "mixture"]
    shards: tuple[Shard, ...] = ()
    """Dense: the logits. Top-k: what is kept of them."""
    top_k: TopK | None = None
    """Top-k: how its rows are to be read."""
    features: tuple[StoredFeature, ...] = ()
    """What is stored beside the logits, or in their place."""
    precision: Precision = "float32"
    """Of the teacher's forward pass. Where several were combined, members of a mixture each say their own."""
    members: tuple[str, ...] = ()
    """Mixture: dense or top-k stores, as paths below the storage root's `stages` folder."""
    weights: tuple[float, ...] = ()
    """Mixture: one weight per member, sum 1; or empty, and the weights of every sample are in `weight_shards`."""
    weight_shards: tuple[Shard, ...] = ()

    @model_validator(mode="after")
    def _has_what_its_form_needs(self) -> Self:
        if (self.form == "top_k") != (self.top_k is not None):
            raise ValueError("a top-k store, and no other, says how its rows are to be read")
        if self.top_k is not None and (misfit := self.top_k.misfit(self.num_classes)):
            raise ValueError(misfit)
        own = self.features if self.form == "features" else self.shards
        if self.form != "mixture" and (not own or self.members or self.weights or self.weight_shards):
            raise ValueError(f"a {self.form} store has shards of its own, neither members nor weights")
        if len({feature.name for feature in self.features}) < len(self.features):
            raise ValueError("a feature stands twice")
        if self.form == "features" and self.shards:
            raise ValueError("a store of features has no logits")
        if self.form == "mixture":
            if self.shards or self.features or not self.members or self.rule != "arithmetic":
                raise ValueError("a mixture has members and the rule `arithmetic`, no logits of its own")
            if bool(self.weights) == bool(self.weight_shards):
                raise ValueError("a mixture has fixed weights or weights per sample, not both")
            if self.weights and len(self.weights) != len(self.members):
                raise ValueError(f"{len(self.weights)} weights for {len(self.members)} members")
            if any(weight < 0 for weight in self.weights):
                raise ValueError("a weight is below zero")
        for member in self.members:
            if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member).parts:
                raise ValueError(f"member `{member}` leads out of the storage root")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the store but the manifest."""
        features = (shard for feature in self.features for shard in feature.shards)
        return tuple(shard.file for shard in (*self.shards, *self.weight_shards, *features))

    @property
    def weights_layout(self) -> Layout:
        """How the weights per sample lie in shards."""
        return self.layout("weights", "float32", len(self.members))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with a digest of itself: after this the store is finished."""
    content = manifest.model_dump(mode="json")
    # The digest guards against edits by hand: a changed weight or view would be read as if it were the teacher's.
    write_json(folder / MANIFEST, {**content, "digest": digest_of(content)})


def load_manifest(folder: Path) -> Manifest:
    """Read `manifest.json`; `StoreError` when it is missing, damaged, or of a form this version cannot read."""
    path = fetched_file(folder, MANIFEST)
    content = read_json(path)
    if not isinstance(content, dict):
        raise StoreError(f"`{path}` is damaged: it holds no manifest; write these targets again")
    # Form and version before the digest: a store of a later version is no damaged one, and the message differs.
    form = content.get("form")
    if form not in FORMS:
        raise StoreError(
            f"`{path}` has the form `{form}`; this version reads {', '.join(FORMS[:-1])} and {FORMS[-1]}"
        )
    if content.get("version") != VERSION:
        raise StoreError(
            f"`{path}` was written by another version, which stored other numbers; write these targets again"
        )
    digest = content.pop("digest", None)
    if digest != digest_of(content):
        raise StoreError(f"`{path}` is damaged: its digest does not fit; write these targets again")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "manifest"
        raise StoreError(
            f"`{path}` is wrong at `{place}`: {first['msg']}; write these targets again"
        ) from error


class TargetWriter:
    """Writes a dense store, or with `top_k` one that keeps so many classes of each row. Rows come in the transfer set's
    order, view after view. `features` are stored too, by their names and the shapes of one row; with `form="features"`
    they are all that is stored.

    Resumes: continue with the row at position `rows_done`, where sample `row` of view `view` has the position
    `view * rows + row`. Memory: one shard of each column, whatever the number of rows. With `shared` several processes
    write one store: each begins the shards that are its own with `seek`, and when all `is_written` one of them closes.
    Rows come in batches of `batch_size`, of which a shard then holds whole ones.
    """

    def __init__(
        self,
        folder: Path,
        description: Description,
        *,
        top_k: int | None = None,
        features: Mapping[str, tuple[int, ...]] = NO_FEATURES,
        form: Literal["features"] | None = None,
        rows_per_shard: int | None = None,
        batch_size: int | None = None,
        shared: bool = False,
        precision: Precision = "float32",
    ) -> None:
        self.folder, self.precision = folder, precision
        self.description = description
        self.shapes = dict(features)
        self.top_k = None if top_k is None else TopK(kept=top_k)
        if self.top_k is not None and (misfit := self.top_k.misfit(description.num_classes)):
            raise StageError(f"{misfit}; set another `top_k`, or leave it out")
        layouts = [] if form == "features" else [description.rows_layout(self.top_k)]
        has_logits = len(layouts)
        for number, (name, shape) in enumerate(features.items()):
            layouts.append(description.feature_layout(number, name, shape))
        size = rows_per_shard or _rows_per_shard(layouts, bool(features), batch_size)
        # Cut at the same rows, so that a killed writer's columns can be brought to the same length.
        self._columns = [
            ShardWriter(folder, layout, rows_per_shard=size, shared=shared) for layout in layouts
        ]
        self._logits, self._features = self._columns[:has_logits], self._columns[has_logits:]
        if shared:
            is_whole = all(map(self.is_written, range(self.num_shards)))
        else:
            done = self.rows_done
            for column in self._columns:
                column.rewind(done)
            is_whole = done == self._columns[0].layout.total
        # An old manifest over new shards would be a finished store of wrong numbers, were the writer killed.
        if not is_whole:
            (folder / MANIFEST).unlink(missing_ok=True)

    @property
    def num_shards(self) -> int:
        """How many shards each column has."""
        return self._columns[0].num_shards

    def is_written(self, shard: int) -> bool:
        """Whether somebody has written a shard of every column."""
        return all(column.receipt(shard) is not None for column in self._columns)

    def seek(self, shard: int) -> range:
        """Begin a shard; returns the positions of its rows."""
        for column in self._columns:
            column.seek(shard)
        return self._columns[0].rows_of(shard)

    def forget_damaged(self) -> bool:
        """Take back all shards whose bytes are not those that were written; returns whether there were any."""
        damaged = [
            index
            for index in range(self.num_shards)
            if not all(column.verify(index) for column in self._columns)
        ]
        if damaged:
            (self.folder / MANIFEST).unlink(missing_ok=True)
        for index in damaged:
            for column in self._columns:
                column.forget(index)
        return bool(damaged)

    @property
    def rows_done(self) -> int:
        """Rows taken so far, views counted one after the other."""
        return min(column.rows_done for column in self._columns)

    def append(self, ids: Tensor, logits: Tensor, features: Mapping[str, Tensor] = NO_FEATURES) -> None:
        """Take the next rows: `ids` (B,), `logits` (B, C) and `features` (B, ...), of any float type, on any device.

        Raises `StageError` when a number is not finite, or when what would be stored is too large for float16.
        """
        # All is looked at before anything is taken: every column has the same rows.
        packed = [self._packed_feature(name, ids, features[name]) for name in self.shapes]
        if self._logits:
            packed = [self._packed_logits(ids, logits), *packed]
        for column, stored in zip(self._columns, packed, strict=True):
            column.append(ids.cpu(), stored)

    def _packed_feature(self, name: str, ids: Tensor, values: Tensor) -> Tensor:
        """Rows (B, width) float16 on the CPU."""
        if values.shape != (len(ids), *self.shapes[name]):
            raise StageError(
                f"teacher {self._teachers} gave `{name}` of shape {tuple(values.shape)} for {len(ids)} samples, not"
                f" {(len(ids), *self.shapes[name])}"
            )
        values = values.detach().flatten(1)
        stored = values.half().cpu()
        is_sound = torch.isfinite(stored).all(dim=1)
        if not is_sound.all():
            row = int(is_sound.to(torch.int8).argmin())
            broken = values[row].cpu()[~torch.isfinite(stored[row])][0].item()
            fits = (
                f"it does not fit into float16 (±{FLOAT16_LARGEST})"
                if math.isfinite(broken)
                else "not finite"
            )
            raise StageError(
                f"teacher {self._teachers} gave a {broken:g} in `{name}` for sample {int(ids[row])} in view"
                f" {self._view_of(row)}: {fits}"
            )
        return stored

    def _packed_logits(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Rows as they are stored, on the CPU."""
        if logits.shape != (len(ids), self.description.num_classes):
            raise StageError(
                f"teacher {self._teachers} gave logits of shape {tuple(logits.shape)} for {len(ids)} samples"
                f" of {self.description.num_classes} classes"
            )
        ids, logits = ids.cpu(), logits.detach()
        # Packed where the logits are: 2 bytes a class travel from the device, not 4.
        if self.top_k is None:
            stored = dense.pack(logits).cpu()
            # Looked at as stored: a finite logit may be too large for float16.
            is_sound = torch.isfinite(stored).all(dim=1)
        else:
            kept = self.top_k.keep(logits)
            stored = self.top_k.pack(kept).cpu()
            # The least of them is the last; one that is no number makes the whole row none.
            fits = torch.isfinite(kept.log_probabilities[:, -1].half())
            is_sound = (fits & torch.isfinite(logits).all(dim=1)).cpu()
        if not is_sound.all():
            self._refuse(int(is_sound.to(torch.int8).argmin()), ids, logits)
        return stored

    def close(self) -> Manifest:
        """Write the manifest; all rows must be there."""
        manifest = Manifest(
            **self.description.description().model_dump(),
            form="features" if not self._logits else "dense" if self.top_k is None else "top_k",
            top_k=self.top_k,
            precision=self.precision,
            shards=self._logits[0].close() if self._logits else (),
            features=tuple(
                StoredFeature(name=name, shape=shape, shards=column.close())
                for (name, shape), column in zip(self.shapes.items(), self._features, strict=True)
            ),
        )
        write_manifest(self.folder, manifest)
        return manifest

    @property
    def _teachers(self) -> str:
        return ", ".join(f"`{teacher}`" for teacher in self.description.teachers)

    def _view_of(self, row: int) -> int:
        """The view that a row of those that are to be taken belongs to."""
        return (self.rows_done + row) // self.description.rows

    def _refuse(self, row: int, ids: Tensor, logits: Tensor) -> None:
        values, name = logits[row].cpu().double(), "logit"
        if self.top_k is not None and torch.isfinite(values).all():
            values, name = torch.log_softmax(values, dim=-1), "log-probability"
        broken, reason = _broken(values)
        raise StageError(
            f"teacher {self._teachers} gave the {name} {broken:g} for sample {int(ids[row])}"
            f" in view {self._view_of(row)}: {reason}"
        )


def _rows_per_shard(layouts: Sequence[Layout], has_features: bool, batch_size: int | None) -> int:
    """In how long pieces columns are cut. Whole batches, where their size is known: of a batch that two shards divide
    whoever makes either computes all of it. Then there are many shards, for many workers, of several batches each."""
    most = ROWS_PER_SHARD
    if has_features:
        most = max(1, min(most, SHARD_BYTES // sum(2 * layout.width for layout in layouts)))
    if batch_size is None or most < batch_size:
        return most
    batches = -(-layouts[0].total // batch_size)
    return batch_size * min(most // batch_size, max(LEAST_BATCHES, -(-batches // SHARDS)))


def _broken(values: Tensor) -> tuple[float, str]:
    """The number of a row (C,) float64 that cannot be stored, and why."""
    if not values.isfinite().all():
        return values[~values.isfinite()][0].item(), "not finite"
    largest = values.max().item()
    if not values.max().half().isfinite():
        return largest, f"it does not fit into float16 (±{FLOAT16_LARGEST})"
    # Each alone would fit: what is stored is the distance from the largest.
    beside = f"it does not fit into float16 (±{FLOAT16_LARGEST}) beside the row's largest, {largest:g}"
    return values.min().item(), beside

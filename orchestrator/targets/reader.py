"""Opening soft targets: everything is checked once, here; after that reading is a gather from mapped files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydistill.errors import StoreError
from raydistill.targets import dense
from raydistill.targets.mixing import TeacherTargets
from raydistill.targets.shards import ELEMENTS, ShardedRows
from raydistill.targets.store import NO_FEATURES, Description, Manifest, load_manifest
from raydistill.targets.top_k import TopK, TopKRows
from raydistill.tasks.devices import to_device

MOST_RESIDENT = 2**31  # bytes of targets that are kept on a device
AGREEMENT = ("task", "split", "transfer", "num_classes", "rows", "views", "view_seed", "augment")


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What the reader of targets is about to train on. `view_seed` and `augment` matter when there are views."""

    task: str
    split: str
    num_classes: int
    views: int = 0
    view_seed: int = 0
    augment: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Member:
    """The rows of one store: its logits, or with `top_k` the largest of them."""

    rows: ShardedRows
    top_k: TopK | None = None

    def fill(self, logits: Tensor, stored: Tensor, temperature: float) -> None:
        """Fill `logits` (B, C) float32 from rows as they are stored, on its device."""
        if self.top_k is None:
            dense.unpack_into(logits, stored)
        else:
            self.top_k.expand_into(logits, stored.view(torch.uint16), temperature)


@dataclass(frozen=True)
class FeatureRows:
    """The rows of one feature of the teacher, each (*shape)."""

    rows: ShardedRows
    shape: tuple[int, ...]


class Targets:
    """Soft targets, ready to be read: the logits of `num_teachers` teachers for every sample and view.

    Holds the sample ids (8 bytes a sample) and mapped pages, which all processes of a machine share. Whoever asks by
    rows that lie on a device, as a step that is captured does, is answered from a copy there.
    """

    def __init__(
        self,
        description: Description,
        members: Sequence[Member],
        weights: Tensor | ShardedRows,
        features: Mapping[str, FeatureRows] = NO_FEATURES,
    ) -> None:
        self.description = description
        column = members[0] if members else next(iter(features.values()))
        self.ids = torch.from_numpy(column.rows.ids_between(0, description.rows))
        self._features = features
        self._members = tuple(members)
        self._weights = weights
        self._resident: dict[int, Tensor] = {}

    @property
    def num_teachers(self) -> int:
        """Distributions per sample: the members of a mixture; 1 where teachers were already combined, 0 where the
        store has features alone."""
        return len(self._members)

    @property
    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """The features of the teacher that are stored, and their shapes for one sample."""
        return {name: feature.shape for name, feature in self._features.items()}

    @property
    def num_classes(self) -> int:
        return self.description.num_classes

    @property
    def views(self) -> int:
        """0: the clean input, read as view 0. n: views 0 … n - 1."""
        return self.description.views

    @property
    def top_k(self) -> TopK | None:
        """The form of a single top-k store."""
        return self._members[0].top_k if self.num_teachers == 1 else None

    def rows_of(self, ids: Tensor) -> Tensor:
        """Rows (N,) of the samples `ids` (N,); `StoreError` names a sample that is not here."""
        ids = ids.to("cpu", torch.int64)
        if torch.equal(ids, self.ids):
            return torch.arange(len(ids))
        sorted_ids, order = self._sorted
        places = torch.searchsorted(sorted_ids, ids).clamp(max=len(sorted_ids) - 1)
        is_missing = sorted_ids[places] != ids
        if is_missing.any():
            raise StoreError(
                f"the targets hold nothing for sample {int(ids[is_missing][0])} ({int(is_missing.sum())} of"
                f" {len(ids)} samples are missing); write targets for a transfer set that contains them"
            )
        return order[places]

    def read(
        self,
        rows: Tensor,
        view: int | Tensor = 0,
        *,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
        features: Sequence[str] = (),
    ) -> TeacherTargets:
        """Logits (B, M, C), weights (B, M) and these features of the samples at `rows` (B,), float32, on the device.

        Dense logits are good for every temperature. Those of top-k stores are made for the one that is asked for: there
        their softmax is the target, elsewhere it is not.
        """
        if isinstance(view, int) and not 0 <= view < self.description.views_stored:
            raise StoreError(f"the targets have no view {view}; they have {self.description.views_stored}")
        if temperature < 1 and any(member.top_k for member in self._members):
            raise StoreError(
                f"top-k targets know temperatures from 1 up, not {temperature:g}; raise it, or store dense targets"
            )
        positions, device = rows + view * self.description.rows, torch.device(device)
        logits = torch.empty(len(positions), self.num_teachers, self.num_classes, device=device)
        for index, member in enumerate(self._members):
            member.fill(logits[:, index], self._stored(member.rows, positions, device), temperature)
        if isinstance(self._weights, ShardedRows):
            weights = self._stored(self._weights, positions, device)
        else:
            weights = self._weights_on(device).expand(len(positions), -1)
        return TeacherTargets(logits, weights, self.features(features, rows, view, device))

    def features(
        self, names: Sequence[str], rows: Tensor, view: int | Tensor = 0, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Features of the teacher for the samples at `rows` (B,), each (B, ...) float32, on the device."""
        for name in names:
            if name not in self._features:
                known = ", ".join(f"`{known}`" for known in self._features) or "none"
                raise StoreError(f"the targets hold no `{name}`, but: {known}; name it in their `outputs`")
        positions, asked = rows + view * self.description.rows, {name: self._features[name] for name in names}
        return {
            name: self._stored(feature.rows, positions, torch.device(device)).float().view(-1, *feature.shape)
            for name, feature in asked.items()
        }

    def _stored(self, rows: ShardedRows, positions: Tensor, device: torch.device) -> Tensor:
        """Rows (B, width) on the device as they are stored; the words of uint16, which torch can do little with, as
        int16."""
        if positions.device.type != "cpu":
            return self._copy_of(rows, positions.device).index_select(0, positions)
        return to_device(_signed(torch.from_numpy(rows.gather(positions.numpy()))), device)

    def _copy_of(self, rows: ShardedRows, device: torch.device) -> Tensor:
        """All rows of a column, on the device from the first time on."""
        if (copy := self._resident.get(id(rows))) is None:
            size = rows.layout.total * rows.layout.width * ELEMENTS[rows.layout.dtype][1].itemsize
            if size > MOST_RESIDENT:
                raise StoreError(f"targets of {size / 2**30:.1f} GiB are not kept on the device")
            copy = _signed(torch.from_numpy(rows.gather(np.arange(rows.layout.total)))).to(device)
            self._resident[id(rows)] = copy
        return copy

    def _weights_on(self, device: torch.device) -> Tensor:
        """The weights (M,) of a mixture that has the same for all samples."""
        assert isinstance(self._weights, Tensor)
        if self._weights.device != device:
            self._weights = to_device(self._weights, device)
        return self._weights

    def kept(self, rows: Tensor, view: int = 0) -> TopKRows:
        """What a single top-k store keeps of the samples at `rows` (B,), on the CPU."""
        assert self.top_k is not None
        positions = rows.cpu().numpy() + view * self.description.rows
        return self.top_k.unpack(torch.from_numpy(self._members[0].rows.gather(positions)))

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        sorted_ids, order = self.ids.sort()
        is_repeated = sorted_ids[1:] == sorted_ids[:-1]
        if is_repeated.any():
            raise StoreError(f"the targets list sample {int(sorted_ids[1:][is_repeated][0])} more than once")
        return sorted_ids, order


def _signed(stored: Tensor) -> Tensor:
    return stored.view(torch.int16) if stored.dtype == torch.uint16 else stored


def open_targets(
    folder: Path, *, root: Path, expect: Expectation | None, verify_checksums: bool = True
) -> Targets:
    """Open a store of any form below the storage root `root`.

    Raises `StoreError` for whatever is damaged, foreign, outside of `root`, or not what `expect` asks for; the
    message says what differs and what to change. `expect=None` takes the store for what it says it is.
    """
    manifest = load_manifest(folder)
    if expect is not None:
        _check_expectation(folder, manifest, expect)
    if manifest.form != "mixture":
        features = {
            feature.name: FeatureRows(
                ShardedRows(
                    folder,
                    manifest.feature_layout(number, feature.name, feature.shape),
                    feature.shards,
                    verify_checksums=verify_checksums,
                ),
                feature.shape,
            )
            for number, feature in enumerate(manifest.features)
        }
        logits = [] if manifest.form == "features" else [_rows_of_store(folder, manifest, verify_checksums)]
        return Targets(manifest, logits, torch.ones(len(logits)), features)
    members = open_members(
        [root / "stages" / member for member in manifest.members],
        root=root,
        verify_checksums=verify_checksums,
    )
    _check_members(folder, manifest, members)
    stores = [member for _, member in members]
    if manifest.weights:
        return Targets(manifest, stores, torch.tensor(manifest.weights))
    weights = ShardedRows(
        folder, manifest.weights_layout, manifest.weight_shards, verify_checksums=verify_checksums
    )
    return Targets(manifest, stores, weights)


def open_members(
    folders: Sequence[Path], *, root: Path, verify_checksums: bool = True
) -> list[tuple[Manifest, Member]]:
    """Open dense or top-k stores that are about the same samples; `StoreError` says in what two of them differ."""
    opened = [_open_member(folder, root, verify_checksums) for folder in folders]
    for folder, (manifest, member) in zip(folders[1:], opened[1:], strict=True):
        for field, here, there in _differences(opened[0][0], manifest):
            raise StoreError(
                f"`{folders[0]}` and `{folder}` cannot be combined: their `{field}` differ, {here} and {there};"
                " predict both targets over the same samples"
            )
        if not np.array_equal(
            opened[0][1].rows.ids_between(0, manifest.rows), member.rows.ids_between(0, manifest.rows)
        ):
            raise StoreError(
                f"`{folders[0]}` and `{folder}` cannot be combined: their samples differ, or their order"
            )
    return opened


def path_in_stages(folder: Path, root: Path) -> str:
    """The name of a store below the root's `stages` folder; `StoreError` when it is elsewhere."""
    stages = (root / "stages").resolve()
    resolved = folder.resolve()
    if resolved == stages or not resolved.is_relative_to(stages):
        raise StoreError(
            f"`{folder}` is not in `{stages}`; targets may only name stores of their storage root"
        )
    return resolved.relative_to(stages).as_posix()


def _open_member(folder: Path, root: Path, verify_checksums: bool) -> tuple[Manifest, Member]:
    path_in_stages(folder, root)
    manifest = load_manifest(folder)
    if manifest.form == "mixture":
        raise StoreError(
            f"`{folder}` is a mixture and cannot be a member of another; name its members instead"
        )
    if manifest.form == "features":
        raise StoreError(f"`{folder}` holds features and no logits to combine; add `logits` to its `outputs`")
    return manifest, _rows_of_store(folder, manifest, verify_checksums)


def _rows_of_store(folder: Path, manifest: Manifest, verify_checksums: bool) -> Member:
    layout = manifest.rows_layout(manifest.top_k)
    rows = ShardedRows(folder, layout, manifest.shards, verify_checksums=verify_checksums)
    return Member(rows, manifest.top_k)


def _check_members(folder: Path, manifest: Manifest, members: list[tuple[Manifest, Member]]) -> None:
    for field, here, there in _differences(manifest, members[0][0]):
        raise StoreError(
            f"`{folder}` says `{field}` is {here}, its members say {there}; combine these targets again"
        )
    teachers = [teacher for member, _ in members for teacher in member.teachers]
    if list(manifest.teachers) != teachers:
        raise StoreError(
            f"`{folder}` was made from the teachers {', '.join(manifest.teachers)}, its members now hold"
            f" {', '.join(teachers)}; combine these targets again"
        )


def _differences(one: Description, other: Description) -> Iterator[tuple[str, Any, Any]]:
    for field in AGREEMENT:
        here, there = getattr(one, field), getattr(other, field)
        if here != there:
            yield field, here, there


def _check_expectation(folder: Path, manifest: Manifest, expect: Expectation) -> None:
    checks: list[tuple[str, Any, Any, str]] = [
        ("task", manifest.task, expect.task, "predict the targets on this task"),
        ("split", manifest.split, expect.split, "read the split they were predicted on"),
        (
            "num_classes",
            manifest.num_classes,
            expect.num_classes,
            "use teachers with as many classes as the task",
        ),
        ("views", manifest.views, expect.views, "set the same `views` in `predict_targets` and here"),
    ]
    if expect.views:
        checks += [
            ("view_seed", manifest.view_seed, expect.view_seed, "set the same `view_seed` in both stages"),
            (
                "augment",
                list(manifest.augment),
                list(expect.augment),
                "set the same `augment` in both stages",
            ),
        ]
    for field, here, wanted, way_out in checks:
        if here != wanted:
            raise StoreError(f"the targets in `{folder}` have `{field}` {here}, expected {wanted}; {way_out}")

"""Reading: the right rows, from mapped files, and never from a store that is damaged or about something else."""

import copy
import json
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from raydistill.errors import StoreError
from raydistill.targets.combine import EntropyWeights, combine
from raydistill.targets.reader import Expectation, open_targets
from raydistill.targets.shards import digest_of

WriteStore = Callable[..., Tensor]
VIEWS = {"views": 2, "view_seed": 7, "augment": ({"kind": "flip"},)}
EXPECTED = Expectation(task="digits", split="train", num_classes=5)
EXPECTED_VIEWS = replace(EXPECTED, views=2, view_seed=7, augment=[{"kind": "flip"}])


def change_manifest(folder: Path, **changes: object) -> None:
    """Change a manifest the way somebody would who also corrects its digest."""
    content = json.loads((folder / "manifest.json").read_text()) | changes
    content.pop("digest")
    (folder / "manifest.json").write_text(json.dumps(content | {"digest": digest_of(content)}))


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position // 8] ^= 1 << position % 8
    path.write_bytes(content)


def assert_refused(folder: Path, root: Path, message: str, expect: Expectation | None = EXPECTED) -> None:
    with pytest.raises(StoreError, match=message):
        open_targets(folder, root=root, expect=expect)


def test_any_rows_of_any_view_are_read_in_the_order_asked_for(
    root: Path, write_store: WriteStore, as_stored: Callable[[Tensor], Tensor]
) -> None:
    given = as_stored(write_store("a", **VIEWS))
    targets = open_targets(root / "stages/a", root=root, expect=EXPECTED_VIEWS)
    rows = torch.tensor([22, 0, 5, 6, 6, 17, 11, 12])
    for view in range(2):
        read = targets.read(rows, view)
        torch.testing.assert_close(read.logits, given[view][rows].unsqueeze(1), rtol=0, atol=2e-6)
        assert torch.equal(read.weights, torch.ones(8, 1))
    assert targets.read(rows[:0], 0).logits.shape == (0, 1, 5)


def test_rows_or_views_that_do_not_exist_are_refused(root: Path, write_store: WriteStore) -> None:
    write_store("a", **VIEWS)
    targets = open_targets(root / "stages/a", root=root, expect=None)
    with pytest.raises(IndexError):
        targets.read(torch.tensor([46]), 0)
    with pytest.raises(IndexError):
        targets.read(torch.tensor([-1]), 0)
    for view in (-1, 2):
        with pytest.raises(StoreError, match=f"no view {view}"):
            targets.read(torch.tensor([0]), view)


def test_rows_are_found_by_id_in_any_order(root: Path, ids: Tensor, write_store: WriteStore) -> None:
    shuffled = ids[torch.randperm(23, generator=torch.Generator().manual_seed(0))]
    write_store("a", sample_ids=shuffled)
    targets = open_targets(root / "stages/a", root=root, expect=EXPECTED)
    assert torch.equal(targets.ids, shuffled)
    assert targets.rows_of(shuffled).tolist() == list(range(23))
    place = {sample: row for row, sample in enumerate(shuffled.tolist())}
    wanted = torch.tensor([*ids[5:15].tolist(), int(ids[7])])
    assert targets.rows_of(wanted).tolist() == [place[sample] for sample in wanted.tolist()]


@pytest.mark.parametrize("missing", [4, -1, 10_000])
def test_a_sample_without_targets_is_named(
    missing: int, root: Path, ids: Tensor, write_store: WriteStore
) -> None:
    write_store("a")
    targets = open_targets(root / "stages/a", root=root, expect=EXPECTED)
    with pytest.raises(StoreError, match=rf"sample {missing} \(1 of 3"):
        targets.rows_of(torch.tensor([int(ids[0]), missing, int(ids[1])]))


def test_a_sample_listed_twice_is_named(root: Path, ids: Tensor, write_store: WriteStore) -> None:
    ids[5] = ids[2]
    write_store("a", sample_ids=ids)
    targets = open_targets(root / "stages/a", root=root, expect=EXPECTED)
    with pytest.raises(StoreError, match=f"sample {int(ids[2])} more than once"):
        targets.rows_of(ids[:3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "letters"}, "`task` digits, expected letters"),
        ({"split": "validation"}, "`split` train, expected validation"),
        ({"num_classes": 6}, "`num_classes` 5, expected 6"),
        ({"views": 0}, "`views` 2, expected 0; set the same `views`"),
        ({"views": 3}, "`views` 2, expected 3"),
        ({"view_seed": 8}, "`view_seed` 7, expected 8; set the same `view_seed`"),
        ({"augment": [{"kind": "crop"}]}, "`augment`"),
    ],
)
def test_a_store_of_something_else_says_what_differs(
    change: dict[str, object], message: str, root: Path, write_store: WriteStore
) -> None:
    write_store("a", **VIEWS)
    open_targets(root / "stages/a", root=root, expect=EXPECTED_VIEWS)
    assert_refused(root / "stages/a", root, message, replace(EXPECTED_VIEWS, **change))


def test_clean_targets_have_no_view_seed_to_differ_in(root: Path, write_store: WriteStore) -> None:
    write_store("a", view_seed=1)
    open_targets(root / "stages/a", root=root, expect=replace(EXPECTED, view_seed=2))


@pytest.mark.parametrize("file", ["manifest.json", "logits-00000.arrow", "logits-00003.arrow"])
def test_every_flipped_bit_is_noticed(file: str, root: Path, write_store: WriteStore) -> None:
    write_store("a")
    path = root / "stages/a" / file
    undamaged = path.read_bytes()
    for position in random.Random(0).sample(range(8 * len(undamaged)), 150):
        flip_bit(path, position)
        assert_refused(root / "stages/a", root, file)
        path.write_bytes(undamaged)
    open_targets(root / "stages/a", root=root, expect=EXPECTED)


@pytest.mark.parametrize("verify_checksums", [True, False])
@pytest.mark.parametrize("left", [0.0, 0.3, 0.99])
def test_a_truncated_shard_is_noticed_even_without_checksums(
    left: float, verify_checksums: bool, root: Path, write_store: WriteStore
) -> None:
    write_store("a")
    path = root / "stages/a/logits-00001.arrow"
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(StoreError, match=r"logits-00001\.arrow` is damaged"):
        open_targets(root / "stages/a", root=root, expect=None, verify_checksums=verify_checksums)


@pytest.mark.parametrize("file", ["manifest.json", "logits-00002.arrow"])
def test_a_missing_file_is_named(file: str, root: Path, write_store: WriteStore) -> None:
    write_store("a")
    (root / "stages/a" / file).unlink()
    assert_refused(root / "stages/a", root, f"{file}` is missing")


@pytest.mark.parametrize("verify_checksums", [True, False])
def test_a_shard_of_another_store_is_noticed_even_without_checksums(
    verify_checksums: bool, root: Path, write_store: WriteStore
) -> None:
    write_store("a")
    write_store("b", seed=1, teachers=("beef02",))
    shutil.copy(root / "stages/b/logits-00001.arrow", root / "stages/a/logits-00001.arrow")
    with pytest.raises(StoreError, match=r"logits-00001\.arrow"):
        open_targets(root / "stages/a", root=root, expect=EXPECTED, verify_checksums=verify_checksums)


def test_two_shards_that_changed_places_are_noticed_even_without_checksums(
    root: Path, write_store: WriteStore
) -> None:
    write_store("a")
    first, second = root / "stages/a/logits-00000.arrow", root / "stages/a/logits-00001.arrow"
    first_bytes = first.read_bytes()
    shutil.copy(second, first)
    second.write_bytes(first_bytes)
    with pytest.raises(StoreError, match="another place"):
        open_targets(root / "stages/a", root=root, expect=EXPECTED, verify_checksums=False)


def test_a_foreign_manifest_does_not_fit_the_shards(root: Path, write_store: WriteStore) -> None:
    write_store("a")
    write_store("b", split="validation")
    shutil.copy(root / "stages/b/manifest.json", root / "stages/a/manifest.json")
    assert_refused(root / "stages/a", root, r"logits-00000\.arrow", expect=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 24}, "23 rows of `logits`, but 24 samples"),
        ({"num_classes": 4}, "another store"),
        ({"teachers": ["beef02"]}, "another store"),
        ({"view_seed": 1}, "another store"),
    ],
)
def test_a_manifest_changed_by_hand_does_not_fit_the_shards(
    changes: dict[str, object], message: str, root: Path, write_store: WriteStore
) -> None:
    write_store("a")
    change_manifest(root / "stages/a", **changes)
    assert_refused(root / "stages/a", root, message, expect=None)


def test_a_shard_that_leads_out_of_its_folder_is_refused(root: Path, write_store: WriteStore) -> None:
    write_store("a")
    path = root / "stages/a/logits-00000.arrow"
    elsewhere = path.rename(root / "secret.arrow")
    path.symlink_to(elsewhere)
    assert_refused(root / "stages/a", root, "leads out of")


def mixture_of_two(root: Path, write_store: WriteStore, **options: object) -> Path:
    write_store("a", teachers=("cafe01",))
    write_store("b", seed=1, teachers=("beef02",))
    members = [root / "stages/a", root / "stages/b"]
    combine(root / "stages/mix", members, root=root, rows_per_shard=6, **options)  # type: ignore[arg-type]
    return root / "stages/mix"


@pytest.mark.parametrize("member", ["..", "../other", "/etc", "a/../../..", ".", ""])
def test_a_member_outside_of_the_storage_root_is_refused(
    member: str, root: Path, write_store: WriteStore
) -> None:
    mixture = mixture_of_two(root, write_store)
    change_manifest(mixture, members=["a", member])
    assert_refused(mixture, root, "leads out of|is not in")


def test_a_member_linked_from_outside_is_refused(root: Path, write_store: WriteStore) -> None:
    mixture = mixture_of_two(root, write_store)
    elsewhere = (root / "stages/b").rename(root / "b")
    (root / "stages/b").symlink_to(elsewhere)
    assert_refused(mixture, root, "is not in")


def test_a_member_that_was_replaced_is_noticed(root: Path, write_store: WriteStore) -> None:
    mixture = mixture_of_two(root, write_store)
    shutil.rmtree(root / "stages/b")
    write_store("b", seed=1, teachers=("other3",))
    assert_refused(mixture, root, "from the teachers cafe01, beef02, its members now hold cafe01, other3")
    shutil.rmtree(root / "stages/a")
    shutil.rmtree(root / "stages/b")
    write_store("a", split="validation")
    write_store("b", seed=1, split="validation", teachers=("beef02",))
    assert_refused(mixture, root, "`split` is train, its members say validation")


def test_every_file_a_mixture_reads_is_checked(root: Path, write_store: WriteStore) -> None:
    mixture = mixture_of_two(root, write_store, weights=EntropyWeights())
    open_targets(mixture, root=root, expect=EXPECTED)
    for path in (
        mixture / "manifest.json",
        mixture / "weights-00003.arrow",
        root / "stages/b/logits-00002.arrow",
    ):
        flip_bit(path, 8 * path.stat().st_size // 2)
        assert_refused(mixture, root, path.name)
        flip_bit(path, 8 * path.stat().st_size // 2)
    open_targets(mixture, root=root, expect=EXPECTED)


def test_reading_maps_the_files_and_copies_only_the_rows(root: Path, write_store: WriteStore) -> None:
    write_store("a")
    path = root / "stages/a/logits-00001.arrow"
    before = pa.total_allocated_bytes()
    targets = open_targets(root / "stages/a", root=root, expect=EXPECTED)
    assert pa.total_allocated_bytes() == before
    row = targets.read(torch.tensor([8])).logits
    place = path.read_bytes().index((row - row.max()).half().numpy().tobytes())
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(torch.arange(5).half().numpy().tobytes())
    # A changed page shows through: what is read comes from the file, not from a copy made when it was opened.
    changed = targets.read(torch.tensor([8])).logits.flatten()
    torch.testing.assert_close(changed.diff(), torch.ones(4))
    assert not torch.equal(row.flatten(), changed)


def test_open_targets_do_not_travel_between_processes(root: Path, write_store: WriteStore) -> None:
    write_store("a")
    targets = open_targets(root / "stages/a", root=root, expect=EXPECTED)
    for travel in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="open the store in each"):
            travel(targets)

"""Writing: nothing is lost, nothing is done twice, memory does not grow."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from raydistill.errors import StageError, StoreError
from raydistill.kinds.relation_methods import TripletLogitsConfig
from raydistill.methods.triplet_logits import TripletLogits
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.targets.reader import open_targets
from raydistill.targets.shards import digest_of
from raydistill.targets.store import Description, TargetWriter, load_manifest
from raydistill.training.data import Batch

Describe = Callable[..., Description]
Draw = Callable[..., Tensor]
WriteStore = Callable[..., Tensor]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_from(writer: TargetWriter, ids: Tensor, logits: Tensor, stop: int | None = None) -> None:
    """Append rows from where the writer is, in blocks of 5, up to position `stop`."""
    views, rows, classes = logits.shape
    positions = torch.arange(writer.rows_done, views * rows if stop is None else stop)
    for block in positions.split(5):
        writer.append(ids[block % rows], logits.reshape(-1, classes)[block])


def test_logits_come_back_within_half_a_float16_spacing_of_their_distance_from_the_largest(
    root: Path, write_store: WriteStore, as_stored: Callable[[Tensor], Tensor]
) -> None:
    given = write_store("a", views=2)
    targets = open_targets(root / "stages/a", root=root, expect=None)
    for view in range(2):
        read = targets.read(torch.arange(23), view).logits[:, 0]
        below = (given[view] - given[view].amax(dim=1, keepdim=True)).abs().numpy()
        half_spacing = np.spacing(below.astype(np.float16)).astype(np.float32) / 2
        assert ((read - given[view]).abs() <= torch.from_numpy(half_spacing) + 2e-6).all()
        torch.testing.assert_close(read, as_stored(given[view]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("level", [0.0, 200.0, -2000.0, 60_000.0])
def test_a_number_added_to_all_logits_costs_no_probability(
    level: float, root: Path, describe: Describe
) -> None:
    """Against softmaxes in float64: 0.4 % of p at most, of what was 9.6 % at 200 and 130 % at 2,000."""
    logits = 4 * torch.randn(23, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = (logits + level).float()  # at 60,000 the teacher's own float32 is coarse
    writer = TargetWriter(root / "stages/a", describe())
    writer.append(torch.arange(23), given)
    writer.close()
    read = open_targets(root / "stages/a", root=root, expect=None).read(torch.arange(23)).logits[:, 0]
    exact, found = given.double().softmax(dim=1), read.double().softmax(dim=1)
    assert ((found - exact).abs() <= 0.004 * exact).all()
    torch.testing.assert_close(read.amax(dim=1), given.amax(dim=1), rtol=2**-21, atol=1e-6)


def test_float16_is_as_exact_as_the_specification_promises(root: Path, describe: Describe) -> None:
    logits = torch.linspace(-16, 16, 23 * 5).reshape(23, 5)
    writer = TargetWriter(root / "stages/a", describe())
    writer.append(torch.arange(23), logits)
    writer.close()
    read = open_targets(root / "stages/a", root=root, expect=None).read(torch.arange(23)).logits[:, 0]
    error = (read - logits).abs()
    size = logits.abs()
    assert error[size >= 8].max() <= 2**-8
    assert error[(size >= 4) & (size < 8)].max() <= 2**-9
    assert error[(size >= 2) & (size < 4)].max() <= 2**-10


def test_a_loss_that_does_not_ignore_the_level_is_that_of_live_logits(root: Path, describe: Describe) -> None:
    """Distances of logits: the teacher's lie 200 above the student's, stored as they do live."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(23, 5, generator=draw) for _ in range(2))
    teacher = teacher + 200
    writer = TargetWriter(root / "stages/a", describe())
    writer.append(torch.arange(23), teacher)
    writer.close()
    stored = open_targets(root / "stages/a", root=root, expect=None).read(torch.arange(23))
    options = {"method": "triplet_logits", "negative": "hard", "margin": 5.0}
    method = TripletLogits(TripletLogitsConfig.model_validate(options))
    batch = Batch(student, torch.arange(23) % 5, torch.arange(23), torch.arange(23))
    live = TeacherTargets(teacher.unsqueeze(1), torch.ones(23, 1))
    found, expected = (method.losses(Output(student, {}), told, batch)["triplet"] for told in (stored, live))
    assert found.item() == pytest.approx(expected.item(), abs=2**-8)


@pytest.mark.parametrize("cut", [0, 1, 6, 7, 12, 18, 23, 24, 30, 40, 45, 46])
def test_a_store_cut_anywhere_resumes_to_the_same_bytes(
    cut: int, root: Path, ids: Tensor, describe: Describe, draw_logits: Draw
) -> None:
    description = describe(views=2)
    logits = draw_logits(description)
    undisturbed = TargetWriter(root / "whole", description, rows_per_shard=6)
    write_from(undisturbed, ids, logits)
    undisturbed.close()
    write_from(TargetWriter(root / "cut", description, rows_per_shard=6), ids, logits, stop=cut)
    assert not (root / "cut/manifest.json").exists()
    resumed = TargetWriter(root / "cut", description, rows_per_shard=6)
    assert resumed.rows_done == (46 if cut == 46 else cut // 6 * 6)
    write_from(resumed, ids, logits)
    resumed.close()
    assert contents(root / "cut") == contents(root / "whole")


def test_a_writer_trusts_no_shard_from_the_first_damaged_one_on(
    root: Path, ids: Tensor, write_store: WriteStore, describe: Describe
) -> None:
    logits = write_store("a")
    folder = root / "stages/a"
    undisturbed = contents(folder)
    (folder / "logits-00001.arrow").write_bytes(b"half a shard")
    (folder / ".logits-00002.arrow.12ab.tmp").write_bytes(b"left by a killed writer")
    writer = TargetWriter(folder, describe(), rows_per_shard=6)
    assert writer.rows_done == 6
    assert not (folder / "manifest.json").exists()
    write_from(writer, ids, logits)
    writer.close()
    assert contents(folder) == undisturbed


@pytest.mark.parametrize(
    "change", [{"task": "letters"}, {"teachers": ("beef",)}, {"transfer": {"fraction": 0.5}}]
)
def test_a_writer_does_not_continue_another_store(
    change: dict[str, object], root: Path, write_store: WriteStore, describe: Describe
) -> None:
    write_store("a")
    assert TargetWriter(root / "stages/a", describe(), rows_per_shard=6).rows_done == 23
    assert TargetWriter(root / "stages/a", describe(**change), rows_per_shard=6).rows_done == 0


def test_a_shard_with_a_damaged_receipt_is_written_again(
    root: Path, write_store: WriteStore, describe: Describe
) -> None:
    write_store("a")
    (root / "stages/a/logits-00002.json").write_text('{"identity": 3')
    assert TargetWriter(root / "stages/a", describe(), rows_per_shard=6).rows_done == 12


@pytest.mark.parametrize(
    ("value", "reason"),
    [(float("nan"), "nan"), (float("-inf"), "-inf"), (70000.0, "float16"), (-65550.0, "float16")],
)
def test_a_logit_that_cannot_be_stored_names_sample_view_and_teacher(
    value: float, reason: str, root: Path, ids: Tensor, describe: Describe, draw_logits: Draw
) -> None:
    description = describe(views=2)
    logits = draw_logits(description)
    logits[1, 9, 2] = value
    writer = TargetWriter(root / "stages/a", description, rows_per_shard=6)
    with pytest.raises(StageError, match=reason) as caught:
        write_from(writer, ids, logits)
    assert "`cafe01`" in caught.value.message
    assert f"sample {int(ids[9])} in view 1" in caught.value.message


def test_the_largest_float16_is_stored(root: Path, describe: Describe) -> None:
    writer = TargetWriter(root / "stages/a", describe(rows=1, num_classes=2))
    writer.append(torch.tensor([4]), torch.tensor([[65504.0, 0.0]], dtype=torch.float64))
    writer.close()
    read = open_targets(root / "stages/a", root=root, expect=None).read(torch.tensor([0])).logits
    assert read.tolist() == [[[65504.0, 0.0]]]


def test_targets_of_another_version_are_refused(root: Path, write_store: WriteStore) -> None:
    write_store("a")
    content = load_manifest(root / "stages/a").model_dump(mode="json")
    del content["version"]
    (root / "stages/a/manifest.json").write_text(json.dumps(content | {"digest": digest_of(content)}))
    with pytest.raises(StoreError, match=r"written by another version.*; write these targets again"):
        load_manifest(root / "stages/a")


def test_a_teacher_with_another_number_of_classes_is_refused(
    root: Path, ids: Tensor, describe: Describe
) -> None:
    writer = TargetWriter(root / "stages/a", describe())
    with pytest.raises(StageError, match=r"`cafe01`.*5 classes"):
        writer.append(ids[:4], torch.zeros(4, 6))


def test_missing_surplus_and_shuffled_rows_are_noticed(
    root: Path, ids: Tensor, describe: Describe, draw_logits: Draw
) -> None:
    description = describe(views=2)
    logits = draw_logits(description)
    writer = TargetWriter(root / "stages/a", description, rows_per_shard=6)
    writer.append(ids, logits[0])
    with pytest.raises(ValueError, match="23 of 46"):
        writer.close()
    with pytest.raises(ValueError, match="more than the announced 46"):
        writer.append(torch.arange(24), torch.zeros(24, 5))
    writer.append(ids.flip(0), logits[1])
    with pytest.raises(ValueError, match="view 1 lists other samples"):
        writer.close()


def test_the_manifest_says_what_was_written(root: Path, write_store: WriteStore) -> None:
    augment = [{"kind": "flip", "chance": 0.5}]
    write_store("a", views=2, view_seed=7, augment=augment, transfer={"fraction": 0.1})
    manifest = load_manifest(root / "stages/a")
    assert (manifest.form, manifest.dtype, manifest.rows, manifest.num_classes) == ("dense", "float16", 23, 5)
    assert (manifest.views, manifest.view_seed, list(manifest.augment)) == (2, 7, augment)
    assert manifest.transfer == {"fraction": 0.1}
    assert [shard.rows for shard in manifest.shards] == [6] * 7 + [4]


def test_the_files_are_arrow_and_json_and_nothing_else(root: Path, write_store: WriteStore) -> None:
    write_store("a")
    for path in (root / "stages/a").iterdir():
        if path.suffix == ".arrow":
            assert pa.ipc.open_file(path).num_record_batches == 1
        else:
            json.loads(path.read_text())


def test_an_unknown_form_is_refused_by_name(root: Path, write_store: WriteStore) -> None:
    write_store("a")
    path = root / "stages/a/manifest.json"
    path.write_text(path.read_text().replace('"dense"', '"top-k"'))
    with pytest.raises(StoreError, match="`top-k`; this version reads dense, top_k, features and mixture"):
        load_manifest(root / "stages/a")


@pytest.mark.parametrize(
    "change",
    [
        {"shards": ()},
        {"weights": (1.0,)},
        {"form": "mixture"},
        {"form": "mixture", "shards": (), "members": ("a",), "rule": "arithmetic"},
        {"form": "mixture", "shards": (), "members": ("a",), "rule": "arithmetic", "weights": (0.5, 0.5)},
        {
            "form": "mixture",
            "shards": (),
            "members": ("a", "b"),
            "rule": "arithmetic",
            "weights": (2.0, -1.0),
        },
        {"form": "mixture", "shards": (), "members": ("/etc",), "rule": "arithmetic", "weights": (1.0,)},
        {"form": "mixture", "shards": (), "members": ("../x",), "rule": "arithmetic", "weights": (1.0,)},
        {"shards": ({"file": "../x.arrow", "rows": 23, "sha256": ""},)},
        {"shards": ({"file": "/x.arrow", "rows": 23, "sha256": ""},)},
        {"surprise": 1},
        {"rows": 0},
        {"num_classes": 0},
        {"dtype": "bfloat16"},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    change: dict[str, object], root: Path, write_store: WriteStore
) -> None:
    write_store("a")
    content = load_manifest(root / "stages/a").model_dump(mode="json") | change
    (root / "stages/a/manifest.json").write_text(json.dumps(content | {"digest": digest_of(content)}))
    with pytest.raises(StoreError, match=r"manifest\.json` is wrong"):
        load_manifest(root / "stages/a")


def test_a_folder_that_cannot_be_written_is_named(root: Path, describe: Describe) -> None:
    root.mkdir()
    (root / "stages").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="stages"):
        TargetWriter(root / "stages/a", describe())

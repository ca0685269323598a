"""Pictures in shards: the same samples as in folders, whatever they are packed in, and one line for what is wrong."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydistill.tasks import tar_index
from raydistill.tasks.packed_task import PackedTask
from raydistill.tasks.pictures import PictureError
from raydistill.tasks.shard_names import expanded, shards_by_split
from raydistill.tasks.splits import Split, View
from raydistill.tasks.survey import survey_task
from raydistill.tasks.task import Cut, Task
from raydistill.tasks.webdataset import WebDataset
from tests.builders.packed_pictures import (
    CLASSES,
    FORMATS,
    OPTIONS,
    Pictures,
    as_folders,
    png,
    some_pictures,
    write_tar,
)


@pytest.fixture(autouse=True)
def _memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of files is remembered in a place of this test's own."""
    monkeypatch.setenv("RAYDISTILL_DATA", str(tmp_path_factory.mktemp("memory")))


@pytest.fixture(scope="module")
def everything() -> Pictures:
    return some_pictures()


@pytest.fixture(params=FORMATS)
def packed(request: pytest.FixtureRequest, tmp_path: Path, everything: Pictures) -> PackedTask:
    return FORMATS[request.param](tmp_path / "packed", everything)


def sorted_samples(split: Split, view: View | None = None) -> list[tuple[int, bytes]]:
    """Label and input of each sample, in an order that ids and places have no part in."""
    order = torch.arange(len(split)).split(4)
    inputs = torch.cat(list(split.batches(order, view)))
    pairs = zip(split.labels.tolist(), inputs, strict=True)
    return sorted((label, values.numpy().tobytes()) for label, values in pairs)


def test_the_same_pictures_are_the_same_samples_as_in_folders(
    tmp_path: Path, packed: PackedTask, everything: Pictures
) -> None:
    folder = as_folders(tmp_path / "folders", everything)
    ours, theirs = packed.load(), folder.load()
    assert ours.class_names == theirs.class_names == CLASSES
    assert (len(ours.train), len(ours.validation)) == (24, 6)
    for name in ("train", "validation", "test"):
        assert sorted_samples(getattr(ours, name)) == sorted_samples(getattr(theirs, name))
    assert torch.equal(ours.normalisation.mean, theirs.normalisation.mean)


def test_ids_are_a_sample_s_own(packed: PackedTask) -> None:
    data = packed.load()
    ids = torch.cat([data.train.ids, data.validation.ids, data.test.ids])
    assert len(ids.unique()) == len(ids) == 39
    assert (ids >= 0).all()
    assert torch.equal(packed.load().train.ids, data.train.ids)


def test_a_view_is_drawn_from_a_sample_s_id_wherever_the_batch_begins(packed: PackedTask) -> None:
    split = packed.load().train
    (whole,) = split.batches([torch.arange(24)], View(1, 2))
    parts = torch.cat(list(split.batches([torch.arange(17, 24), torch.arange(17)], View(1, 2))))
    assert torch.equal(whole, torch.cat([parts[7:], parts[:7]]))
    (other,) = split.batches([torch.arange(24)], View(1, 3))
    assert not torch.equal(whole, other)
    chosen = split.select(torch.tensor([20, 3]))
    (few,) = chosen.batches([torch.arange(2)], View(1, 2))
    assert torch.equal(few, whole[[20, 3]])


def test_processes_that_decode_give_the_same(packed: PackedTask) -> None:
    with_workers = packed.model_copy(update={"workers": 2})
    assert sorted_samples(with_workers.load().test) == sorted_samples(packed.load().test)


def test_identity_is_the_content_and_neither_the_place_nor_the_test_split(
    tmp_path: Path, packed: PackedTask, everything: Pictures
) -> None:
    identity, test = packed.identity(), packed.test_content()
    make = next(
        make for make in FORMATS.values() if isinstance(packed, type(make(tmp_path / "x", everything)))
    )
    moved = make(tmp_path / "elsewhere", everything)
    assert moved.identity() == identity
    changed = make(tmp_path / "third", {**everything, "test": [(0, png())]})
    assert changed.identity() == identity
    assert changed.test_content() != test
    relabelled = [(1, content) for _, content in everything["train"]]
    assert make(tmp_path / "fourth", {**everything, "train": relabelled}).identity() != identity


def test_a_survey_has_no_word_for_shards_that_are_as_they_should_be(packed: PackedTask) -> None:
    survey = survey_task(packed)
    assert survey.counts == {"train": (8, 8, 8), "validation": (2, 2, 2), "test": (3, 3, 3)}
    assert survey.findings == ()


# --- which files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            "train-0.tar test-0.tar val-0.tar",
            {"train": "train-0.tar", "validation": "val-0.tar", "test": "test-0.tar"},
        ),
        ("train-0.tar validation-0.tar", {"train": "train-0.tar", "test": "validation-0.tar"}),
        ("data/train/0.tar data/eval/0.tar", {"train": "data/train/0.tar", "test": "data/eval/0.tar"}),
        (
            "my_test/training_1.tar my_test/dev.tar",
            {"train": "my_test/training_1.tar", "test": "my_test/dev.tar"},
        ),
        ("0.tar 1.tar", {"train": "0.tar 1.tar"}),
        ("train-0.tar .hidden/test.tar", {"train": "train-0.tar"}),
        ("contest.tar retrained.tar", {"train": "contest.tar retrained.tar"}),
    ],
)
def test_splits_are_told_by_names(tmp_path: Path, names: str, expected: dict[str, str]) -> None:
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = shards_by_split(tmp_path, ".tar", {})
    assert {
        split: " ".join(p.relative_to(tmp_path).as_posix() for p in paths) for split, paths in found.items()
    } == (expected)


def test_options_name_shards_and_leave_the_others_to_their_names(tmp_path: Path) -> None:
    for name in ("train-00.tar", "train-01.tar", "train-02.tar", "val-0.tar", "test-0.tar"):
        (tmp_path / name).touch()
    found = shards_by_split(tmp_path, ".tar", {"train": "train-{00..01}.tar", "test": ("val-*.tar",)})
    assert {split: [path.name for path in paths] for split, paths in found.items()} == {
        "train": ["train-00.tar", "train-01.tar"],
        "test": ["val-0.tar"],
    }
    with pytest.raises(ValueError, match=r"there is no file `train-03.tar` in"):
        shards_by_split(tmp_path, ".tar", {"train": "train-{02..03}.tar"})
    with pytest.raises(ValueError, match=r"named for more than one split"):
        shards_by_split(tmp_path, ".tar", {"train": "*.tar", "test": "val-0.tar"})


def test_braces_are_written_out_as_a_shell_does() -> None:
    assert expanded("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expanded("{a,b}-{0..1}") == ["a-0", "a-1", "b-0", "b-1"]


def test_without_test_shards_a_part_of_the_labelled_samples_is_cut(tmp_path: Path) -> None:
    members = [(f"{row}.png", png()) for row in range(30)]
    labels = [(f"{row}.cls", b"01"[row % 2 : row % 2 + 1]) for row in range(20)]
    write_tar(tmp_path / "all.tar", sorted([*members, *labels]))
    task = WebDataset(folder=tmp_path, classes=2, validation_fraction=0.25, **OPTIONS)
    data = task.load()
    assert (len(data.train), len(data.validation), len(data.test)) == (10 + 12, 4, 4)
    assert task.unlabelled == 10 == (data.train.labels == -1).sum()
    assert task.test_content() == task.content()


# --- tars -------------------------------------------------------------------------------------------------------------


def tar_task(folder: Path, *members: tuple[str, bytes], **options: Any) -> WebDataset:
    """A task whose training shard has these members, and whose test shard has one sample of each class."""
    write_tar(folder / "train.tar", members)
    write_tar(folder / "test.tar", [("a.png", png()), ("a.cls", b"0"), ("b.png", png()), ("b.cls", b"1")])
    return WebDataset(
        folder=folder, **{"classes": ("ant", "bee"), "validation_fraction": 0, **OPTIONS, **options}
    )


def labels_of(task: Task) -> list[int]:
    return task.read()["train"].labels.tolist()


def test_labels_are_numbers_names_or_fields_of_json(tmp_path: Path) -> None:
    names = [("a.png", png()), ("a.cls", b" bee\n"), ("b.cls", b"ant"), ("b.jpg", png())]
    assert (
        labels_of(tar_task(tmp_path / "names", *names, test="train.tar", train="train.tar").model_copy())
        if 0
        else 1
    )
    task = tar_task(tmp_path, *names[:4])
    write_tar(tmp_path / "test.tar", [("x.png", png()), ("x.cls", b"bee")])
    assert labels_of(task) == [1, 0]
    numbers = [("a.png", png()), ("a.cls", b"1"), ("b.png", png()), ("b.cls", b"-1"), ("c.png", png())]
    assert labels_of(tar_task(tmp_path, *numbers)) == [1, -1, -1]
    fields = [("a.png", png()), ("a.json", b'{"label": 1}'), ("b.png", png()), ("b.json", b'{"label": null}')]
    assert labels_of(tar_task(tmp_path, *fields)) == [1, -1]
    deep = [("a.png", png()), ("a.json", json.dumps({"seen": {"as": 1}}).encode()), ("a.cls", b"0")]
    with pytest.raises(ValueError, match=r"of `test` have no label.*option `test`"):
        labels_of(tar_task(tmp_path, *deep, label="json.seen.as"))
    with pytest.raises(
        ValueError, match=r"no sample of .*train.tar`, or of those beside it, has a label; .* `label`"
    ):
        labels_of(tar_task(tmp_path, *deep, label="unseen"))
    member = [("a.png", png()), ("a.seen.json", b'{"as": 1}'), ("a.text", b"a word")]
    write_tar(tmp_path / "train.tar", member)
    write_tar(tmp_path / "test.tar", member)
    task = WebDataset(folder=tmp_path, classes=2, label="seen.json.as", **OPTIONS)
    assert labels_of(task) == [1]
    write_tar(tmp_path / "train.tar", deep)
    write_tar(tmp_path / "test.tar", [("x.png", png()), ("x.json", b'{"seen": {"as": 0}}')])
    task = WebDataset(folder=tmp_path, classes=2, label="json.seen.as", **OPTIONS)
    assert labels_of(task) == [1]


def test_groups_stay_together_when_the_test_split_is_cut(tmp_path: Path) -> None:
    rows = [{"label": row % 2, "who": {"is": f"patient {row // 4}"}} for row in range(40)]
    members = [
        member
        for row, about in enumerate(rows)
        for member in ((f"{row}.png", png()), (f"{row}.json", json.dumps(about).encode()))
    ]
    write_tar(tmp_path / "all.tar", members)
    options = {"classes": 2, "group": "json.who.is", "cut": Cut(by="group")}
    task = WebDataset(folder=tmp_path, **options, **OPTIONS)
    parts = task.read()
    test, train = ({row // 4 for row in parts[split].inputs.tolist()} for split in ("test", "train"))
    assert test
    assert not test & train
    with pytest.raises(ValueError, match=r"`0.png` of .*all.tar` has no group; see the option `group`"):
        task.model_copy(update={"group": "json.whom"}).read()
    with pytest.raises(ValueError, match=r"has no groups to set aside"):
        task.model_copy(update={"group": None}).read()


def test_one_picture_of_several_is_chosen(tmp_path: Path) -> None:
    sample = [("d/a.seen.png", png()), ("d/a.mask.png", b"no picture"), ("d/a.cls", b"0")]
    with pytest.raises(
        ValueError, match=r"sample `d/a` of .*several pictures \(`seen.png`, `mask.png`\).*`image`"
    ):
        tar_task(tmp_path, *sample).read()
    for file in ("train", "test"):
        write_tar(tmp_path / f"{file}.tar", sample)
    task = WebDataset(folder=tmp_path, classes=2, image="seen.png", validation_fraction=0, **OPTIONS)
    assert len(task.load().train) == 1
    assert not [finding for finding in task.survey().findings if finding.level == "error"]


def test_what_is_no_sample_is_left_out_and_told(tmp_path: Path) -> None:
    members = [
        ("./a.png", png()), ("./a.cls", b"0"), ("._a.png", b"x"), ("README", b"x"), ("b.cls", b"1"), ("c.txt", b""),
        ("long/" + "k" * 150 + ".png", png()), ("ü.png", png()),
    ]  # fmt: skip
    task = tar_task(tmp_path, *members)
    (tmp_path / "stray.tar").touch()
    assert labels_of(task) == [0, -1, -1]
    texts = [finding.text for finding in task.survey().findings if finding.level == "warning"]
    assert any(
        "left out samples without a picture: 2 (`train.tar/b`, `train.tar/c`)" in text for text in texts
    )
    assert any("left out shards of no split: 1 (`stray.tar`)" in text for text in texts)


BROKEN: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "a key twice": ([("a.png", png()), ("b.png", png()), ("a.cls", b"0")], "has the key `a` twice"),
    "a member twice": ([("a.png", png()), ("a.png", png())], "has `a.png` twice"),
    "an unknown label": (
        [("a.png", png()), ("a.cls", b"0"), ("b.png", png()), ("b.cls", b"7")],
        "`b.png` of .*train.tar` has the label `7`, which is none of the 2 classes; see the option `classes`",
    ),
    "an unknown name": (
        [("a.png", png()), ("a.cls", b"wolf")], "`a.png` of .*train.tar` has the label `wolf`, which is none of"
    ),
    "a label that is a list": (
        [("a.png", png()), ("a.json", b'{"label": [1]}')], r"`a.json` of .* \[1\] is neither a number nor"
    ),
    "json that is none": ([("a.png", png()), ("a.json", b"{")], "`a.json` of .* cannot be read"),
    "a label that is no text": ([("a.png", png()), ("a.cls", b"\xff\xfe")], "`a.cls` of .* cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_in_a_tar_is_one_line(tmp_path: Path, case: str) -> None:
    members, message = BROKEN[case]
    (finding,) = survey_task(tar_task(tmp_path, *members)).findings
    assert finding.level == "error"
    with pytest.raises(ValueError, match=message):
        raise ValueError(finding.text)
    assert "\n" not in finding.text


@pytest.mark.parametrize("size", [0, 100, 512, 700, 2048, 4096])
def test_a_truncated_tar_is_told_wherever_it_ends(tmp_path: Path, size: int) -> None:
    task = tar_task(tmp_path, *((f"{row}.png", png()) for row in range(9)))
    file = tmp_path / "train.tar"
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"train.tar` is truncated"):
        task.read()
    file.write_bytes(whole[:1024] + b"\xff" * 512 + whole[1536:])  # a header
    with pytest.raises(ValueError, match=r"train.tar` is truncated or"):
        task.read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer.*`git lfs pull`"),
        (b"\x1f\x8b\x08\0", "compressed with gzip.*unpack it"),
        (b"hello", "truncated or no tar"),
    ],
)
def test_files_that_are_no_tars_are_told(tmp_path: Path, content: bytes, message: str) -> None:
    task = tar_task(tmp_path, ("a.png", png()))
    (tmp_path / "train.tar").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        task.read()


def test_links_and_paths_that_leave_the_tar_are_nothing_but_names(tmp_path: Path) -> None:
    task = tar_task(tmp_path, ("../../a.png", png()), ("../../a.cls", b"1"))
    with tarfile.open(tmp_path / "train.tar", "a") as opened:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    assert labels_of(task) == [1]
    assert len(task.load().train) == 1


def test_numbers_without_names_ask_for_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing in .*train.tar` names the classes; .* option `classes`"):
        _ = tar_task(tmp_path, ("a.png", png()), ("a.cls", b"1"), classes=None).class_names


def test_an_index_is_made_once_and_again_when_a_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raydistill.tasks import digests, webdataset

    made: list[Path] = []
    monkeypatch.setattr(digests, "WORTH_BYTES", 0)
    monkeypatch.setattr(
        webdataset,
        "index_tar",
        lambda file, *options: made.append(file) or tar_index.index_tar(file, *options),
    )
    task = tar_task(tmp_path, ("a.png", png()), ("a.cls", b"1"))
    assert labels_of(task) == [1]
    webdataset._index.cache_clear()  # another process
    assert labels_of(task) == [1]
    assert len(made) == 2
    write_tar(tmp_path / "train.tar", [("a.png", png()), ("a.cls", b"0"), ("b.png", png())])
    assert labels_of(task) == [0, -1]
    assert len(made) == 3


def test_a_tar_with_wrong_bytes_is_read_or_told_in_one_line(tmp_path: Path) -> None:
    members = [("a.png", png()), ("a.json", b'{"label": 1}'), ("k" * 120 + ".png", png()), ("b.cls", b"1")]
    whole = write_tar(tmp_path / "a.tar", members).read_bytes()
    headers = [start for start in range(0, len(whole), 512) if whole[start + 257 : start + 262] == b"ustar"]
    draw = np.random.default_rng(0)
    told = read = 0
    for _ in range(300):
        content = bytearray(whole)
        content[draw.choice(headers) + draw.integers(512)] = draw.choice([0, 0x39, 0x80, 0xFF])
        (tmp_path / "a.tar").write_bytes(content)
        try:
            index = tar_index.index_tar(tmp_path / "a.tar", None, None, None)
        except ValueError as error:
            told += "a.tar" in str(error) and "\n" not in str(error)
        else:
            read += 1
            assert all(
                start + size <= len(whole)
                for start, size in zip(index["offsets"], index["sizes"], strict=True)
            )
    assert told + read == 300
    assert min(told, read) > 20


# --- pictures that cannot be read -------------------------------------------------------------------------------------


def test_a_broken_picture_is_named_by_shard_and_key_or_left_out(tmp_path: Path) -> None:
    members = [("a.png", png()), ("a.cls", b"0"), ("b.png", png()[:40]), ("b.cls", b"1"), ("c.png", png())]
    task = tar_task(tmp_path, *members)
    (error,) = (finding.text for finding in task.survey().findings if finding.level == "error")
    assert "pictures that cannot be read: 1 (`train.tar/b.png`)" in error
    assert f"`b.png` of `{tmp_path / 'train.tar'}` is not a readable picture" in error
    with pytest.raises(PictureError, match=r"`b.png` of .*train.tar` is not a readable picture"):
        list(task.load().train.batches([torch.arange(3)], None))
    skipping = task.model_copy(update={"on_error": "skip"})
    assert skipping.load().train.labels.tolist() == [0, -1]
    assert not [finding for finding in skipping.survey().findings if finding.level == "error"]


def test_a_shard_that_becomes_shorter_while_it_is_read_is_told(tmp_path: Path) -> None:
    task = tar_task(tmp_path, *((f"{row}.png", png()) for row in range(9)))
    split = task.load().train
    (tmp_path / "train.tar").write_bytes((tmp_path / "train.tar").read_bytes()[:600])
    with pytest.raises(
        PictureError, match=r"`1.png` of .*train.tar` cannot be read: the file has become shorter"
    ):
        list(split.batches([torch.arange(1, 9)], None))

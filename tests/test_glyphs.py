"""The generator of characters, with Latin letters in the fonts that matplotlib brings."""

import json
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from raydistill.tasks.make.glyph_fonts import (
    Face,
    Family,
    coverage,
    find_faces,
    find_families,
    probe_vectors,
    same_designs,
)
from raydistill.tasks.make.glyph_images import distort, draw, draw_variant, glyph_id
from raydistill.tasks.make.glyphs import Wanted, choose_classes, common_kanji, generate, main, split_families
from raydistill.tasks.many_class import ManyClass

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def wanted(train: int = 2, test: int = 1, validation: int = 1, *, seed: int = 0) -> Wanted:
    """Five classes; three variants for training, two otherwise."""
    families = {"train": train, "test": test, "validation": validation}
    return Wanted(5, families, {"train": 3, "test": 2, "validation": 2}, 16, seed)


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    return find_faces([FONTS])


def named(faces: list[Face], family: str, style: str) -> Face:
    return next(face for face in faces if (face.family, face.style) == (family, style))


def test_the_common_kanji_are_those_of_level_1() -> None:
    kanji = common_kanji()
    assert len(kanji) == len(set(kanji)) == 2965
    assert (kanji[0], kanji[93], kanji[94], kanji[-1]) == ("亜", "蔭", "院", "腕")
    assert all(0x4E00 <= ord(character) < 0xA000 for character in kanji)


def test_a_font_covers_what_its_table_of_characters_names(faces: list[Face]) -> None:
    table_of = pytest.importorskip("fontTools.ttLib", reason="the oracle reads tables of fonts").TTFont
    characters = [chr(code) for code in (*range(0x41, 0x5B), *range(0x391, 0x3A9), 0x4E9C, 0x20, 0x5D0)]
    for name in (("DejaVu Sans", "Book"), ("cmr10", "Regular")):
        face = next(face for face in faces if face.family == name[0])
        table = table_of(face.file).getBestCmap()
        # A space is in the table, and is nothing to learn.
        expected = [ord(character) in table and character != " " for character in characters]
        assert coverage(face, characters).tolist() == expected


def test_faces_are_of_one_design_when_name_or_shapes_are_shared(faces: list[Face]) -> None:
    sans, bold = named(faces, "DejaVu Sans", "Book"), named(faces, "DejaVu Sans", "Bold")
    renamed = Face(sans.file, 0, "Copy of something", "Regular")
    computer_modern = next(face for face in faces if face.family == "cmr10")
    groups = same_designs(
        [(face, probe_vectors(face, LETTERS)) for face in (computer_modern, bold, sans, renamed)]  # type: ignore[misc]
    )
    assert groups == [[computer_modern], [bold, sans, renamed]]


def test_fonts_that_have_the_characters_make_families(executor: Executor) -> None:
    names = {family.name for family in find_families([FONTS], LETTERS, executor)}
    assert {"DejaVu Sans", "DejaVu Serif", "cmr10"} <= names


def test_fonts_without_the_characters_or_with_one_sign_for_all_are_no_family(
    faces: list[Face], executor: Executor
) -> None:
    if "Last Resort High-Efficiency" not in {face.family for face in faces}:
        pytest.skip(f"matplotlib {matplotlib.__version__} has no font with one sign for all characters")
    assert find_families([FONTS], common_kanji()[:30], executor) == []


def family(name: str, drawn: list[bool]) -> Family:
    return Family(name, (Face(name, 0, name, ""),), np.array([drawn]))


def test_no_family_is_in_two_splits_and_the_seed_chooses() -> None:
    families = [family(str(number), [True]) for number in range(30)]
    seen = set()
    for seed in range(5):
        parts = split_families(families, wanted(15, 10, 3, seed=seed))
        assert [len(parts[split]) for split in ("train", "test", "validation")] == [15, 10, 3]
        assert len({f.name for part in parts.values() for f in part}) == 28
        seen.add(tuple(f.name for f in parts["test"]))
    assert len(seen) == 5
    assert set(split_families(families, wanted(15, 10, 0))) == {"train", "test"}
    with pytest.raises(ValueError, match=r"31 font families are asked for, and 30 have.*--train-families"):
        split_families(families, wanted(18, 12, 1))


def test_a_character_that_too_few_families_have_is_passed_over() -> None:
    # Half of each split must have it: none, train only, test only, half and half, all.
    train = [family("a", [False, True, False, True, True]), family("b", [False, True, False, False, True])]
    test = [family("c", [False, False, True, True, True]), family("d", [False, False, True, False, True])]
    assert choose_classes("abcde", [train, test], 2) == ([3, 4], [0, 1, 2])
    assert choose_classes("abcde", [train, test], 1) == ([3], [0, 1, 2])
    with pytest.raises(ValueError, match=r"3 classes are asked for, and 2 .* `--classes 2`"):
        choose_classes("abcde", [train, test], 3)


def test_the_generator_makes_a_task(tmp_path: Path, executor: Executor) -> None:
    about = generate(tmp_path / "letters", LETTERS, wanted(), [FONTS], executor)
    task = ManyClass(folder=tmp_path / "letters")
    data = task.load()
    assert task.input_shape == (1, 16, 16)
    assert task.class_names == tuple("ABCDE")
    assert np.bincount(data.train.labels).tolist() == [2 * 3] * 5
    assert np.bincount(data.test.labels).tolist() == [1 * 2] * 5
    assert np.bincount(data.validation.labels).tolist() == [1 * 2] * 5
    manifest = json.loads((tmp_path / "letters" / "manifest.json").read_text())
    assert manifest["families"] == about["families"]
    assert set(manifest["shards"]) == {f"{split}-00000.parquet" for split in manifest["families"]}
    expected = {
        glyph_id(family, character, variant): label
        for family in about["families"]["test"]
        for label, character in enumerate("ABCDE")
        for variant in range(2)
    }
    assert dict(zip(data.test.ids.tolist(), data.test.labels.tolist(), strict=True)) == expected


def test_the_same_seed_draws_the_same_and_another_one_does_not(tmp_path: Path, executor: Executor) -> None:
    identities = []
    for number, seed in enumerate((0, 0, 1)):
        generate(tmp_path / str(number), LETTERS, wanted(seed=seed), [FONTS], executor)
        identities.append(ManyClass(folder=tmp_path / str(number)).identity())
    assert identities[0] == identities[1] != identities[2]


def test_more_variants_leave_the_others_as_they_are(faces: list[Face]) -> None:
    sans = (named(faces, "DejaVu Sans", "Book"),)
    pictures = [
        draw_variant(sans, "R", size=32, seed=0, sample=glyph_id("DejaVu Sans", "R", i)) for i in (0, 1)
    ]
    again = draw_variant(sans, "R", size=32, seed=0, sample=glyph_id("DejaVu Sans", "R", 0))
    np.testing.assert_array_equal(pictures[0], again)
    assert (pictures[0] != pictures[1]).mean() > 0.1


class Steady:
    """Draws the middle of every range, and no noise."""

    def uniform(self, low: float, high: float, count: int | None = None) -> Any:
        middle = (low + high) / 2
        return middle if count is None else np.full(count, middle)

    def standard_normal(self, shape: tuple[int, int]) -> np.ndarray:
        return np.zeros(shape)


def test_the_middle_of_all_distortions_is_the_character_in_the_middle() -> None:
    picture = distort(Image.new("L", (20, 10), 255), 32, Steady())  # type: ignore[arg-type]
    weight = picture.astype(float)
    places = np.arange(32) + 0.5
    assert (weight.sum(axis=0) @ places) / weight.sum() == pytest.approx(16, abs=0.1)
    assert (weight.sum(axis=1) @ places) / weight.sum() == pytest.approx(16, abs=0.1)
    # The longer side takes (0.7 + 0.95) / 2 of 32 pixels, the shorter one half of that; ink is (0.55 + 1) / 2 strong.
    assert weight[16].sum() / (255 * 0.775) == pytest.approx(0.825 * 32, abs=1)
    assert weight[:, 16].sum() / (255 * 0.775) == pytest.approx(0.825 * 16, abs=1)


def test_every_distorted_character_keeps_its_ink(faces: list[Face]) -> None:
    from PIL import ImageFont

    ink = draw(ImageFont.truetype(named(faces, "DejaVu Sans", "Book").file, 64), "W")
    for seed in range(50):
        picture = distort(ink, 32, np.random.default_rng(seed))
        assert picture.max() > 100
        assert picture.astype(float).mean() > 15


def test_the_command_says_what_it_used_and_refuses_a_folder_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydistill.tasks.make.glyphs.ProcessPoolExecutor", InlineExecutor)
    arguments = [
        "--out",
        str(tmp_path / "a"),
        "--fonts",
        str(FONTS),
        "--characters",
        LETTERS,
        "--classes",
        "4",
    ]
    few = [
        "--train-families",
        "2",
        "--test-families",
        "1",
        "--variants",
        "1",
        "--validation-families",
        "0",
        "--size",
        "16",
    ]
    done = CliRunner().invoke(main, [*arguments, *few])
    assert done.exit_code == 0, done.output
    assert "train: 2 families" in done.output
    again = CliRunner().invoke(main, [*arguments, *few])
    assert again.exit_code == 2
    assert "is not empty" in again.output
    many = CliRunner().invoke(main, ["--out", str(tmp_path / "b"), *arguments[2:]])
    assert many.exit_code == 2
    assert "install more" in many.output
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


class InlineExecutor(Executor):
    """Works where it is called: processes would each load numpy anew."""

    def __init__(self, workers: int, mp_context: Any) -> None:
        pass

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*arguments, **options))
        return done

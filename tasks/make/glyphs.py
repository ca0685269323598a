"""Draw Chinese characters in the fonts of this machine, as a data set of very many classes for the task `many_class`.

    python -m raydistill.tasks.make.glyphs --out FOLDER --classes 200 [--workers 2]

Training, validation and test split by font family: no design is in two of them. What is drawn depends on the fonts,
their versions and the seed, not on the number of workers. `manifest.json` says which family went where. Without
validation families the task cuts validation from the training samples, whose families a model knows: after three epochs
a small CNN had 97 % there and 89 % on other families.

Fonts come from the system. Debian's packages with kanji, about 40 designs:

    apt install fonts-aoyagi-kouzan-t fonts-aoyagi-soseki fonts-arphic-ukai fonts-arphic-uming \\
      fonts-babelstone-han fonts-cns11643-kai fonts-cns11643-sung fonts-dejima-mincho \\
      fonts-dotgothic16 fonts-droid-fallback fonts-hanazono fonts-horai-umefont fonts-ipaexfont \\
      fonts-ipafont fonts-kiloji fonts-klee fonts-konatu fonts-kouzan-mouhitsu fonts-misaki \\
      fonts-mona fonts-morisawa-bizud-gothic fonts-morisawa-bizud-mincho fonts-motoya-l-cedar \\
      fonts-motoya-l-maruberi fonts-mplus fonts-noto-cjk fonts-oradano-mincho-gsrr fonts-rampart \\
      fonts-reggae fonts-rocknroll fonts-sawarabi-gothic fonts-sawarabi-mincho fonts-seto \\
      fonts-stick fonts-train fonts-wqy-microhei fonts-wqy-zenhei fonts-yozvox-yozfont \\
      fonts-yusei-magic
"""

import multiprocessing
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

from raydistill.tasks.hashing import fold_key
from raydistill.tasks.make.glyph_fonts import Face, Family, find_families
from raydistill.tasks.make.glyph_images import draw_variant, glyph_id
from raydistill.tasks.seeds import FAMILIES
from raydistill.tasks.shards import CLASSES, write_json, write_shard_manifest, write_shards
from raydistill.tasks.task import Arrays

LEAST_SHARE = 0.5
"""A character is a class when at least this part of the families of every split have it."""
SPLITS = ("train", "test", "validation")  # the order in which families are dealt out


@dataclass(frozen=True)
class Wanted:
    """What the data set shall be; families, and variants per family and character, by split."""

    classes: int
    families: Mapping[str, int]
    variants: Mapping[str, int]
    size: int
    seed: int


@dataclass(frozen=True)
class Glyphs:
    """One split of one class: the faces of each family that has the character."""

    label: int
    character: str
    faces: dict[str, tuple[Face, ...]]
    variants: int


def common_kanji() -> list[str]:
    """The 2,965 characters of JIS X 0208, level 1, in the order of the standard (by their reading)."""
    rows = range(16, 48)
    cells = [(row, cell) for row in rows for cell in range(1, 52 if row == rows[-1] else 95)]
    return [bytes((0xA0 + row, 0xA0 + cell)).decode("euc_jp") for row, cell in cells]


def generate(
    out: Path, characters: Sequence[str], wanted: Wanted, folders: Sequence[Path], executor: Executor
) -> dict[str, Any]:
    """Draw the first `wanted.classes` characters that enough families have; returns what the manifest says.

    `ValueError` when there are not enough families or characters, or when `out` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"`{out}` is not empty; delete it or name another folder")
    families = find_families(folders, characters, executor)
    parts = split_families(families, wanted)
    labels, absent = choose_classes(characters, parts.values(), wanted.classes)
    used = {family.name for part in parts.values() for family in part}
    about = {
        "made_by": "raydistill.tasks.make.glyphs",
        "seed": wanted.seed,
        "size": wanted.size,
        "variants": dict(wanted.variants),
        "families": {split: _described(part) for split, part in parts.items()},
        "families_not_used": sorted({family.name for family in families} - used),
        "characters_left_out": [characters[place] for place in absent],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / "data"
        folder.mkdir()
        write_json(folder / CLASSES, [characters[place] for place in labels])
        for split, part in parts.items():
            variants = wanted.variants[split]
            glyphs = [_glyphs(label, place, characters, part, variants) for label, place in enumerate(labels)]
            write_shards(folder, split, _draw_all(glyphs, wanted, executor))
        write_shard_manifest(folder, **about)
        folder.rename(out)
    return about


def split_families(families: Sequence[Family], wanted: Wanted) -> dict[str, list[Family]]:
    """The families of every split that has any, drawn by the seed. `ValueError` when there are too few."""
    count = sum(wanted.families.values())
    if len(families) < count:
        known = ", ".join(family.name for family in families) or "none"
        raise ValueError(
            f"{count} font families are asked for, and {len(families)} have the characters ({known}): install more "
            "fonts (`python -m raydistill.tasks.make.glyphs --help` names packages), or ask for fewer with "
            "`--train-families`, `--test-families` and `--validation-families`"
        )
    order = iter(np.random.default_rng(fold_key(wanted.seed, FAMILIES)).permutation(len(families)).tolist())
    dealt = {split: sorted(islice(order, wanted.families[split])) for split in SPLITS}
    return {split: [families[place] for place in places] for split, places in dealt.items() if places}


def choose_classes(
    characters: Sequence[str], parts: Iterable[Sequence[Family]], count: int
) -> tuple[list[int], list[int]]:
    """Places of the first `count` characters that enough families of every split have, and of those passed over."""
    shares = np.stack([np.mean([family.draws for family in part], axis=0) for part in parts])
    is_class = np.logical_and.reduce(shares >= LEAST_SHARE, axis=0)
    labels = np.flatnonzero(is_class)[:count].tolist()
    if len(labels) < count:
        raise ValueError(
            f"{count} classes are asked for, and {len(labels)} characters are in at least half of the families "
            f"of every split: ask for `--classes {len(labels)}`, or install more fonts"
        )
    return labels, np.flatnonzero(~is_class[: labels[-1]]).tolist()


def _described(families: Sequence[Family]) -> dict[str, list[str]]:
    return {family.name: [face.label for face in family.faces] for family in families}


def _glyphs(
    label: int, place: int, characters: Sequence[str], families: Sequence[Family], variants: int
) -> Glyphs:
    faces = {
        family.name: tuple(face for face, has in zip(family.faces, family.has[:, place], strict=True) if has)
        for family in families
        if family.draws[place]
    }
    return Glyphs(label, characters[place], faces, variants)


def _draw_all(glyphs: Sequence[Glyphs], wanted: Wanted, executor: Executor) -> Iterator[Arrays]:
    draw = partial(draw_glyphs, size=wanted.size, seed=wanted.seed)
    return executor.map(draw, glyphs, chunksize=8)


def draw_glyphs(glyphs: Glyphs, size: int, seed: int) -> Arrays:
    """Every variant in every family of one class: inputs (N, 1, size, size) uint8."""
    pictures, ids = [], []
    for family, faces in glyphs.faces.items():
        for variant in range(glyphs.variants):
            sample = glyph_id(family, glyphs.character, variant)
            pictures.append(draw_variant(faces, glyphs.character, size=size, seed=seed, sample=sample))
            ids.append(sample)
    return Arrays(np.stack(pictures)[:, None], np.full(len(ids), glyphs.label), np.array(ids, dtype=np.int64))


@click.command(
    help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    ")
)  # \b: click keeps these lines as they are
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option(
    "--classes", default=200, show_default=True, type=click.IntRange(2), help="Number of characters."
)
@click.option("--seed", default=0, show_default=True, help="Chooses families and distortions.")
@click.option("--size", default=32, show_default=True, type=click.IntRange(8), help="Pixels per side.")
@click.option("--train-families", default=18, show_default=True, type=click.IntRange(1))
@click.option("--test-families", default=12, show_default=True, type=click.IntRange(1))
@click.option("--validation-families", default=4, show_default=True, type=click.IntRange(0))
@click.option(
    "--variants", default=6, show_default=True, type=click.IntRange(1), help="Per family, for training."
)
@click.option(
    "--test-variants",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Per family, for the others.",
)
@click.option("--characters", help="Draw these instead of the kanji of JIS X 0208, level 1.")
@click.option(
    "--fonts", multiple=True, type=click.Path(path_type=Path), help="Look here, not in the system's folders."
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes that draw.")
def main(
    out: Path, classes: int, seed: int, size: int, train_families: int, test_families: int, validation_families: int,
    variants: int, test_variants: int, characters: str | None, fonts: tuple[Path, ...], workers: int,
) -> None:  # fmt: skip
    """Make the data set and say which fonts it used."""
    families = {"train": train_families, "test": test_families, "validation": validation_families}
    drawn = {"train": variants, "test": test_variants, "validation": test_variants}
    wanted = Wanted(classes, families, drawn, size, seed)
    known = list(dict.fromkeys(characters)) if characters is not None else common_kanji()
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        try:
            about = generate(out, known, wanted, fonts, executor)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    for split, names in about["families"].items():
        click.echo(f"{split}: {len(names)} families: {', '.join(names)}")
    click.echo(f"not used: {', '.join(about['families_not_used']) or 'none'}")
    click.echo(f"left out, in too few families: {''.join(about['characters_left_out']) or 'none'}")
    click.echo(f"written to {out}")


if __name__ == "__main__":
    main()

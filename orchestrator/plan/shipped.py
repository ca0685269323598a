"""The plans that come with raydistill, by their names: `mnist_quickstart`, `search/mnist_temperature`."""

import re
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
FOLDER = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()),
    _PACKAGE / "configs",
)
"""Inside the package where it is installed; in a checkout beside it."""


@cache
def shipped_plans() -> dict[str, Path]:
    """Name → file. A plan with a module of its own in `configs/` is none: it runs where that module is found."""
    files = [*sorted(FOLDER.glob("*.yaml")), *sorted(FOLDER.glob("search/*.yaml"))]
    return {
        file.relative_to(FOLDER).with_suffix("").as_posix(): file
        for file in files
        if not _needs_a_module(file)
    }


def _needs_a_module(file: Path) -> bool:
    """Whether a plan has code of its own in `configs/`: beside it, or named by it."""
    return file.with_suffix(".py").exists() or '"configs.' in file.read_text(encoding="utf-8")


def find_plan(written: Path | str) -> Path:
    """The file that is meant: `written` itself if it is there, or else the shipped plan of that name."""
    file = Path(written)
    return file if file.exists() else shipped_plans().get(file.as_posix(), file)


def headline(file: Path) -> str:
    """What a plan's header begins with: its first sentence, up to a colon."""
    header = re.match(r"(# .*\n)*", file.read_text(encoding="utf-8"))
    assert header is not None
    text = header[0].replace("# ", "").replace("\n", " ")
    return re.split(r": |(?<!et al)\. |(?<=\?) ", text, maxsplit=1)[0].strip()

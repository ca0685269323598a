"""The identity of a user's model: what its result depends on changes it, nothing else does. Nothing is imported."""

import ast
import importlib
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raydistill.plan.model import ModelConfig
from raydistill.plan.source_code import read_source
from raydistill.plan.sources import unseen_sources

FILES = {
    "nets/__init__.py": "from nets.parts import *\n",
    "nets/own.py": """
        from torch import nn
        from . import layers
        from .deep.inner import depth
        import nets.plain
        import tools
        def build(num_classes, start=None):
            from nets import late
            return nn.Linear(layers.WIDTH, num_classes)
        """,
    "nets/layers.py": "from nets.parts import first\nWIDTH = 16\n",
    "nets/parts/__init__.py": '__all__ = ["first"]\n',
    "nets/parts/first.py": "VALUE = 1\n",
    "nets/deep/inner.py": "from ..layers import WIDTH\ndepth = 3\n",
    "nets/plain.py": "import importlib\nother = importlib.import_module('nets.by_name')\n",
    "nets/by_name.py": "x = open('table.json').read()\n",
    "nets/late.py": "LATE = 2\n",
    "tools.py": "import helper\n",
    "helper.py": "def help():\n    return 1\n",
    "table.json": "[1, 2]\n",
}
"""Everything here decides what `nets.own:build` builds."""
OTHERS = {
    "nets/unread.py": "UNREAD = 1\n",
    "other.py": "import nets.own\n",
    "notes.json": "[]\n",
}
"""And nothing here does."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a package, two modules beside it and a table."""
    for name, text in {**FILES, **OTHERS}.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def identity(**options: Any) -> dict[str, Any]:
    return ModelConfig.model_validate({"name": "nets.own:build", **options}).identity()


def test_every_module_that_is_imported_counts_and_no_other(project: Path) -> None:
    source = read_source("nets.own")
    assert source is not None
    modules = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in FILES}
    assert set(source.modules) == modules - {"table.json"}
    assert set(source.files) == {"table.json"}
    assert not [name for name in sys.modules if name.partition(".")[0] in ("nets", "tools", "helper")]


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_what_is_read_is_another_identity(project: Path, name: str) -> None:
    before = identity()
    file = project / name
    text = file.read_text()
    file.write_text(
        text.replace("1", "7").replace("16", "17") if name.endswith("json") else text + "\nNEW = 1\n"
    )
    assert identity() != before
    file.write_text(text)
    assert identity() == before


@pytest.mark.parametrize("name", OTHERS)
def test_a_change_of_what_is_not_read_is_none(project: Path, name: str) -> None:
    before = identity()
    (project / name).write_text("CHANGED = 1\n")
    assert identity() == before


def test_the_place_does_not_count(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = identity()
    there = tmp_path_factory.mktemp("there") / "moved"
    project.rename(there)
    os.chdir(there)
    assert identity() == before


@pytest.mark.parametrize(
    "same",
    [
        "# a comment\nimport helper\n",
        '"""What tools are."""\nimport helper\n',
        "import helper  # why\n\n\n",
        "import helper;",
    ],
)
def test_comments_docstrings_and_layout_do_not_count(project: Path, same: str) -> None:
    before = identity()
    (project / "tools.py").write_text(same)
    assert identity() == before


CONSTANTS = st.one_of(
    st.integers(-5, 5),
    st.booleans(),
    st.none(),
    st.floats(-2, 2),
    st.text("ab", max_size=3),
    st.binary(max_size=2),
)
NAMES = st.sampled_from(["a", "b", "c"])
EXPRESSIONS = st.recursive(
    CONSTANTS.map(repr) | NAMES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "*", "-"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.tuples(NAMES, inner).map(lambda t: f"{t[0]}(x={t[1]})"),
    ),
    max_leaves=6,
)
STATEMENTS = st.tuples(NAMES, EXPRESSIONS).map(lambda t: f"{t[0]} = {t[1]}")
PROGRAMS = st.lists(STATEMENTS, min_size=1, max_size=4)


def laid_out(lines: list[str], comment: str) -> str:
    """The same program as somebody else would write it."""
    return f'"""{comment}"""\n\n' + f"\n\n# {comment}\n".join(f"{line}  # {comment}" for line in lines) + "\n"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(one=PROGRAMS, other=PROGRAMS, comment=st.text("xyz 1", max_size=8))
def test_two_sources_are_the_same_exactly_if_their_syntax_is(
    project: Path, one: list[str], other: list[str], comment: str
) -> None:
    def of(text: str) -> Any:
        (project / "helper.py").write_text(text)
        return identity()

    first = of("\n".join(one))
    assert of(laid_out(one, comment)) == first
    same = ast.dump(ast.parse("\n".join(one))) == ast.dump(ast.parse("\n".join(other)))
    assert (of("\n".join(other)) == first) == same


VALUES = st.recursive(
    st.one_of(
        st.integers(-3, 3), st.booleans(), st.text("ab", max_size=2), st.sampled_from(["w.bin", "sub/v.bin"])
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=5,
)


def files_in(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.endswith(".bin"):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from files_in(item)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(options=st.dictionaries(st.sampled_from(["p", "q"]), VALUES, max_size=2))
def test_a_file_counts_exactly_if_some_option_names_it(project: Path, options: dict[str, Any]) -> None:
    (project / "sub").mkdir(exist_ok=True)
    for name in ("w.bin", "sub/v.bin"):
        (project / name).write_bytes(b"1")
    before = identity(**options)
    for name in ("w.bin", "sub/v.bin"):
        (project / name).write_bytes(b"2")
        assert (identity(**options) != before) == (name in files_in(options))
        (project / name).write_bytes(b"1")


def test_what_lies_in_a_folder_that_an_option_names_does_not_count_and_that_is_said(project: Path) -> None:
    (project / "cache").mkdir()
    before = identity(place="./cache")
    (project / "cache/written by the model.bin").write_bytes(b"1")
    assert identity(place="./cache") == before
    model = ModelConfig.model_validate({"name": "nets.own:build", "place": "./cache", "word": "nets"})
    assert unseen_sources([model]) == ["the folder `./cache`, which an option names"]


def test_a_file_that_cannot_be_read_is_named(project: Path) -> None:
    (project / "w.pth.gz").write_bytes(b"no gzip")
    values = {"name": "nets.own:build", "start": ["w.pth.gz"]}
    assert "the file `w.pth.gz` cannot be read" in str(ModelConfig.model_validate(values).missing_source())


def test_a_weights_file_of_our_own_models_counts_by_its_content(project: Path) -> None:
    values = {"name": "torchvision", "architecture": "resnet18", "weights": "w.pth"}
    (project / "w.pth").write_bytes(b"1")
    before = ModelConfig.model_validate(values).identity()
    (project / "w.pth").rename(project / "v.pth")
    assert ModelConfig.model_validate(values | {"weights": "v.pth"}).identity() == before
    (project / "v.pth").write_bytes(b"2")
    assert ModelConfig.model_validate(values | {"weights": "v.pth"}).identity() != before


@pytest.mark.parametrize(
    ("code", "phrase"),
    [
        ("import yaml", "the installed package `yaml`"),
        ("import pluggy", f"the installed package `pluggy` {importlib.import_module('pluggy').__version__}"),
        (
            "import importlib\nimportlib.import_module(name)",
            "the computed import (`import_module`) in `helper`",
        ),
        ("exec(text)", "the code that `exec` runs in `helper`"),
        ("model.eval()", None),
        ("model = AutoModel.from_pretrained(name)", "what `from_pretrained` downloads in `helper`"),
        ("model = torch.hub.load(a, b)", "what `load` downloads in `helper`"),
        ("import torch, numpy, json, raydistill", None),
    ],
)
def test_what_cannot_be_seen_is_said(project: Path, code: str, phrase: str | None) -> None:
    (project / "helper.py").write_text(code)
    model = ModelConfig.model_validate({"name": "nets.own:build"})
    assert unseen_sources([model]) == ([] if phrase is None else [phrase])


def test_an_installed_package_that_a_plan_names_counts_as_a_whole(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project / "lib/site-packages/bought"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "net.py", "unread.py"):
        (folder / name).write_text("x = 1\n")
    monkeypatch.syspath_prepend(folder.parent)
    bought = ModelConfig.model_validate({"name": "bought.net:build"})
    before = bought.identity()
    (folder / "unread.py").write_text("x = 2\n")
    assert bought.identity() != before


@pytest.mark.parametrize("content", ["def broken(:\n", "x = 1\0"])
def test_a_module_that_is_no_python_counts_by_its_bytes(project: Path, content: str) -> None:
    (project / "helper.py").write_text(content)
    before = identity()
    (project / "helper.py").write_text(content + "# more\n")
    assert identity() != before


def test_modules_that_import_one_another_end(project: Path) -> None:
    (project / "helper.py").write_text("import tools, nets.own\n")
    assert identity() == identity()

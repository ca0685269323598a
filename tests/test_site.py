"""The site of the pages: what is written for it while it is built, and whether it can be built without a dead link."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import raydistill
from raydistill.explanation import topics

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / "configs/RESULTS.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d[\d,]*\.\d+ ± \d+\.\d+|\d[\d,]*\.\d+")


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / ".mkdocs")
    return __import__("reference")


def test_every_method_has_an_equation(reference: ModuleType) -> None:
    assert reference.seen().keys() == topics()["methods"].keys(), "see .mkdocs/methods.yaml"
    for name, row in reference.seen().items():
        assert row["equation"].count("{") == row["equation"].count("}"), name


def test_what_is_said_of_a_method_s_results_stands_in_the_section_that_is_named(
    reference: ModuleType,
) -> None:
    sections = dict(re.findall(r"^## (.*)\n((?:(?!^## ).*\n?)*)", RESULTS, flags=re.MULTILINE))
    found = [row for method in reference.seen().values() for row in method.get("seen", [])]
    assert len(found) > 10
    missing = [
        (row["section"], number)
        for row in found
        for number in NUMBER.findall(row["says"])
        if number not in sections[row["section"]]
    ]
    assert missing == []


def test_a_page_has_every_name_of_its_group_with_every_key(reference: ModuleType) -> None:
    for group, known in topics().items():
        sections = re.split(r"^## ", reference.page(group), flags=re.MULTILINE)[1:]
        assert [section.partition("\n")[0] for section in sections] == list(known)
        for section, topic in zip(sections, known.values(), strict=True):
            keys = re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)
            assert keys == list(topic.fields), section


def test_a_docstring_becomes_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / ".mkdocs")
    prose = __import__("prose")
    text = "One x_i * 2\nand `a_b`:\n  key: *\nThen `initial: <that\nstage>`.\n\nLast."
    assert prose.markdown(text) == (
        "One x\\_i \\* 2 and `a_b`:\n\n```yaml\nkey: *\n```\n\nThen `initial: <that stage>`.\n\nLast."
    )


class Page(HTMLParser):
    """What a page links to, and what on it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        found = dict(attrs)
        self.anchors |= {str(found[key]) for key in ("id", "name") if found.get(key)}
        self.links += [str(found[key]) for key in ("href", "src") if found.get(key)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    build = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-q",
        "-f",
        ROOT / ".mkdocs.yml",
        "-d",
        folder,
    ]
    built = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.slow
def test_no_link_of_the_site_is_dead(site: Path) -> None:
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
        if path.name != "404.html"
    }
    dead = []
    for path, page in pages.items():
        for link in page.links:
            target = urlsplit(link)
            if target.scheme or target.netloc:
                continue
            file = (path.parent / unquote(target.path)).resolve() if target.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (file in pages and unquote(target.fragment) not in pages[file].anchors):
                dead.append((path.relative_to(site).as_posix(), link))
    assert len(pages) > 25
    assert dead == []


@pytest.mark.slow
def test_the_site_has_the_api_and_all_equations(site: Path) -> None:
    api = Page((site / "reference/api/index.html").read_text(encoding="utf-8"))
    classes_and_functions = {name for name in raydistill.__all__ if callable(getattr(raydistill, name))}
    assert {name.lower() for name in classes_and_functions} <= api.anchors
    methods = (site / "reference/methods/index.html").read_text(encoding="utf-8")
    assert methods.count('<div class="arithmatex">') == len(topics()["methods"])

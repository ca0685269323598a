"""The pages: whatever they link to is there, files and headings; none is out of reach of the README."""

import re
from functools import cache
from pathlib import Path

import pytest

from raydistill.plan.load import validated
from raydistill.plan.schema import Plan
from raydistill.plan.short_forms import written_out
from raydistill.plan.written import parse_source

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", ".github/**/*.md", "configs/*.md")
    for path in ROOT.glob(pattern)
)
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`(?!\])", "", text)


@cache
def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    text = re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    found = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_there(page: str) -> None:
    assert broken(ROOT / page) == []


def test_a_link_to_nowhere_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One two\n[a](other.md) [b](#one-two) [c](#two) [d](https://x.y)\n```\n[e](no)\n# No\n```\n[f](#no)\n"
    )
    assert broken(page) == ["other.md", "#two", "#no"]


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        waiting += [
            (page.parent / link.partition("#")[0]).resolve()
            for link in LINK.findall(prose(page))
            if ":" not in link
        ]
    assert set((ROOT / "docs").glob("*.md")) <= reached


def plans(page: Path) -> list[str]:
    """The plans of a page, and the stages, in a plan of their own."""
    blocks = re.findall(
        r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    whole = [block for block in blocks if block.startswith("name:")]
    stages = [f"name: page\ntask: mnist\n{block}" for block in blocks if block.startswith("stages:")]
    return whole + stages


OWN_TESTS = "docs/bring_your_own.md"  # tests/own_kinds runs its plans, beside the packages that they name
EXAMPLES = [(page, text) for page in PAGES if page != OWN_TESTS for text in plans(ROOT / page)]


@pytest.mark.parametrize(("page", "text"), EXAMPLES, ids=[page for page, _ in EXAMPLES])
def test_a_plan_on_a_page_is_one(page: str, text: str) -> None:
    source = parse_source(text, page)
    source.values = written_out(source.values, Plan)
    assert validated(source).stages


def test_there_are_plans_on_pages() -> None:
    assert {"README.md", "docs/plans.md", "docs/teachers.md"} <= {page for page, _ in EXAMPLES}

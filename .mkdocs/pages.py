"""What the site has besides docs/: README and results, and a page each of stages, methods and augmentations from their
docstrings. A hook of mkdocs; `python .mkdocs/pages.py FOLDER` writes the pages of docstrings alone."""

import re
import sys
from pathlib import Path
from typing import Any

from raydistill.explanation import explain, topics

ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("stages", "methods", "augmentations")
ELSEWHERE = {"README.md": "index.md", "configs/RESULTS.md": "results.md"}
"""Pages of the site that lie outside docs/."""


def reference(group: str) -> str:
    """Everything that `distill explain` says of the names of a group."""
    names = topics()[group]
    parts = [f"## {name}\n\n```text\n{explain(name).split(chr(10), 2)[2]}\n```" for name in names]
    return "\n\n".join([f"# {group.capitalize()}", *parts, ""])


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those of docs/."""
    from mkdocs.structure.files import File

    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_moved(text, Path(source).parent)))
    for group in GROUPS:
        files.append(File.generated(config, f"reference/{group}.md", content=reference(group)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files that are no pages of the site become words: the name of the file."""
    return markdown if page.file.generated_by else _moved(markdown, Path("docs"))


def _moved(text: str, folder: Path) -> str:
    """A page of `folder` with its links as they are from docs/."""

    def moved(link: re.Match[str]) -> str:
        words, target, anchor = link.groups()
        file = (ROOT / folder / target).resolve().relative_to(ROOT).as_posix()
        page = ELSEWHERE.get(file) or file.removeprefix("docs/")
        is_page = file in ELSEWHERE or (file.startswith("docs/") and file.endswith(".md"))
        return f"[{words}]({page}{anchor or ''})" if is_page else f"{words} (`{file}`)"

    return re.sub(r"\[([^\]\[]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", moved, text)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for group in GROUPS:
        (folder / f"{group}.md").write_text(reference(group), encoding="utf-8")

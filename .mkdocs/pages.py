"""What the site has besides docs/: README and results, and pages that are written while it is built: one for each group
of what a plan can name, from the schema, and one of the API. A hook of mkdocs."""

import json
import re
from pathlib import Path
from typing import Any

import api
import reference

HERE = Path(__file__).parent
ROOT = HERE.parent
ELSEWHERE = {"README.md": "index.md", "configs/RESULTS.md": "results.md"}
"""Pages of the site that lie outside docs/."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those of docs/."""
    from mkdocs.structure.files import File

    texts = {f"reference/{group}.md": reference.page(group) for group in reference.groups()}
    texts["reference/api.md"] = api.page()
    texts |= {name: (HERE / name).read_text(encoding="utf-8") for name in ("katex.js", "site.css")}
    for file in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        texts[f"notebooks/{file.stem}.md"] = notebook(file)
    for source, page in ELSEWHERE.items():
        texts[page] = _moved((ROOT / source).read_text(encoding="utf-8"), Path(source).parent)
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    return files


def notebook(file: Path) -> str:
    """The cells of a notebook as a page, without outputs; the file itself lies beside it."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    parts = [
        "".join(cell["source"])
        if cell["cell_type"] == "markdown"
        else f"```python\n{''.join(cell['source'])}\n```"
        for cell in cells
    ]
    title, *rest = parts
    return "\n\n".join([title, f"As a notebook: [{file.name}]({file.name}).", *rest, ""])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files that are no pages of the site become words: the name of the file."""
    return markdown if page.file.generated_by else _moved(markdown, Path("docs"))


def _moved(text: str, folder: Path) -> str:
    """A page of `folder` with its links as they are from docs/."""

    def moved(link: re.Match[str]) -> str:
        words, target, anchor = link.groups()
        file = (ROOT / folder / target).resolve().relative_to(ROOT).as_posix()
        page = ELSEWHERE.get(file) or file.removeprefix("docs/")
        page = re.sub(r"\.ipynb$", ".md", page)
        is_page = file in ELSEWHERE or file.startswith("docs/")
        return f"[{words}]({page}{anchor or ''})" if is_page else f"{words} (`{file}`)"

    return re.sub(r"\[([^\]\[]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", moved, text)

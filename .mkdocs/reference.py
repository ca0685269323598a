"""A page for each group of what a plan can name, from the schema: what it is, and what it can be told."""

import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prose import inline, markdown

from raydistill.explanation import Option, Topic, options, topics

HERE = Path(__file__).parent
LONG = 8
"""Of so many names it is enough to say of which group they are."""


def groups() -> dict[str, dict[str, Topic]]:
    """What has pages, in the order of `distill explain`."""
    return topics()


def page(group: str) -> str:
    """All names of a group, each with a heading of its own."""
    known = groups()[group]
    title = f"# {group.capitalize()}\n\nWritten from the schema: `distill explain NAME` says the same in a terminal."
    return "\n\n".join([title, *(_section(group, name, topic) for name, topic in known.items()), ""])


@cache
def seen() -> dict[str, dict[str, Any]]:
    """Equations of methods, and what was seen of them here."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "methods.yaml").read_text(encoding="utf-8"))
    return found


def anchor(heading: str) -> str:
    """What a heading is called in links, here and on the common forges."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def _section(group: str, name: str, topic: Topic) -> str:
    parts = [f"## {name}", markdown(inspect.getdoc(topic.kind) or "")]
    if group == "methods" and name in seen():
        parts.insert(1, equation(name))
        parts.append(_results(seen()[name].get("seen", [])))
    if topic.preset:
        parts.append(
            "Decided by the name: " + ", ".join(f"`{key}: {value}`" for key, value in topic.preset.items())
        )
    if found := options(topic):
        rows = ["| key | what may stand there | default | meaning |", "|---|---|---|---|", *map(_row, found)]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def equation(name: str) -> str:
    """A method's loss for KaTeX; what it is made of stands on lines of its own, or narrow screens would cut it off."""
    return f"$$\n\\begin{{gathered}} {seen()[name]['equation']} \\end{{gathered}}\n$$"


def _results(found: list[dict[str, str]]) -> str:
    if not found:
        return "**Seen here**: not measured yet."
    rows = [f"- {inline(row['says'])} ([results](../results.md#{anchor(row['section'])}))" for row in found]
    return "\n".join(["**Seen here**:", "", *rows])


def _row(option: Option) -> str:
    default = "required" if option.default is None else f"`{option.default}`"
    return f"| `{option.key}` | {_type(option.type)} | {default} | {inline(option.meaning)} |"


def _type(text: str) -> str:
    """Long lists of names become a link to the page that explains them."""
    written, _, names = text.partition("one of ")
    for group, known in groups().items():
        if len(known) >= LONG and names.split(", ") == list(known):
            return f"{written}one of the [{group}]({group}.md)"
    return inline(text)

"""Docstrings as Markdown: paragraphs, with what is indented in them as code."""

import re


def markdown(text: str, language: str = "yaml") -> str:
    """A docstring, as `inspect.getdoc` gives it, for a page; `language` is that of its code."""
    parts: list[list[str]] = []
    for line in text.splitlines():
        if not line.strip():
            parts.append([])
        elif not parts or (parts[-1] and _is_code(parts[-1][-1]) != _is_code(line)):
            parts.append([line])
        else:
            parts[-1].append(line)
    return "\n\n".join(
        _code(part, language) if _is_code(part[0]) else inline(" ".join(part)) for part in parts if part
    )


def inline(text: str) -> str:
    """Words of ours that are no Markdown but for what stands between backticks."""
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([\\*_<\[\]$|])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def _is_code(line: str) -> bool:
    return line.startswith("  ")


def _code(lines: list[str], language: str) -> str:
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join([f"```{language}", *(line[indent:] for line in lines), "```"])

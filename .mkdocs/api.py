"""The page of `import raydistill`: every public name with its signature and docstring."""

import ast
import inspect
import textwrap
from typing import Any

from prose import inline, markdown

import raydistill

WIDTH = 100
INDENT = " " * 4
QUOTE = "'"


def page() -> str:
    """Functions first, then classes, then errors, each in the order of the alphabet."""
    found = {name: getattr(raydistill, name) for name in sorted(raydistill.__all__)}
    errors = {
        name: value
        for name, value in found.items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    classes = {name: value for name, value in found.items() if inspect.isclass(value) and name not in errors}
    functions = {name: value for name, value in found.items() if inspect.isroutine(inspect.unwrap(value))}
    return "\n\n".join(
        [
            "# API",
            "What `import raydistill` offers; [From Python](../python.md) has an example. Other names may change.",
            "## Functions",
            *(_function(name, value) for name, value in functions.items()),
            "## Classes",
            *(_class(name, value) for name, value in classes.items()),
            "## Errors",
            *(f"### {name}\n\n{_told(value)}" for name, value in errors.items()),
            "",
        ]
    )


def _function(name: str, function: Any) -> str:
    written = textwrap.fill(signature(function), WIDTH, subsequent_indent=INDENT)
    return f"### {name}\n\n```python\n{written}\n```\n\n{_told(function)}"


def _class(name: str, kind: type) -> str:
    own = {
        key: function for key, value in vars(kind).items() if (function := _function_of(value)) is not None
    }
    rows = [
        f"- `{signature(function)}`: {inline(' '.join(_docstring(function).split()))}"
        for key, function in own.items()
        if not key.startswith("_") and function.__doc__
    ]
    return "\n\n".join(part for part in (f"### {name}", _told(kind), "\n".join(rows)) if part)


def _function_of(member: Any) -> Any:
    """The function of a method or property; None of anything else."""
    if isinstance(member, property):
        return member.fget
    if isinstance(member, classmethod | staticmethod):
        return member.__func__
    return member if inspect.isfunction(member) else None


def _told(value: Any) -> str:
    return markdown(_docstring(value), "text")


def _docstring(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "")


def signature(function: Any) -> str:
    """As it is written in the source, so that types keep their short names."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body
    assert isinstance(tree, ast.FunctionDef)
    tree.args.args = [argument for argument in tree.args.args if argument.arg not in ("self", "cls")]
    returns = f" -> {ast.unparse(tree.returns).strip(QUOTE)}" if tree.returns else ""
    return f"{tree.name}({ast.unparse(tree.args)}){returns}"

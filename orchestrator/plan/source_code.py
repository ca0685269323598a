"""The code behind a module of the user's: what it is, whatever its comments say, and all of their own that it imports.

Nothing is imported to find out. A module's own identity is the digest of its syntax tree without docstrings, so that a
comment or another line break trains nothing again. What cannot be seen, because it is put together while the code
runs, or because somebody else's package does it, is listed instead: whoever relies on a result should know.
"""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module, metadata
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

from raydistill.tasks.digests import digest_below, digest_file

OUR_PACKAGE = __name__.partition(".")[0]
INSTALLED = ("site-packages", "dist-packages")
IMPORTERS = ("import_module", "__import__")
RUNNERS = ("run_path", "run_module", "spec_from_file_location")
DOWNLOADERS = (
    "from_pretrained",
    "hf_hub_download",
    "load_state_dict_from_url",
    "snapshot_download",
    "urlopen",
    "urlretrieve",
)
PATH_MAKERS = ("Path", "join", "joinpath")
TOLD_BY_RECORDS = ("numpy", "torch", "torchvision")  # what all models are made of
HARMLESS = ("pydantic", "pydantic_core")  # checks options, and computes nothing
LONGEST_PATH = 300


@dataclass(frozen=True)
class SourceCode:
    """The user's own modules, and the files that they name in plain text, with their digests; and what is `unseen`."""

    modules: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Module:
    """A module on the disk. `file` is None for a folder that is a package without `__init__.py`."""

    name: str
    file: Path | None
    package: tuple[Path, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is part of this project, or of Python."""
        return self.name.partition(".")[0] in (OUR_PACKAGE, *sys.stdlib_module_names)

    @property
    def is_installed(self) -> bool:
        """Whether it was installed, as opposed to written here."""
        places = [self.file] if self.file else list(self.package)
        return any(set(INSTALLED) & set(place.parts) or _is_below(place, _libraries()) for place in places)


def find_module(name: str) -> Module | None:
    """The module as the import path has it; the working folder comes last."""
    folders = [Path(entry or ".").absolute() for entry in sys.path]
    parts = name.split(".")
    found = None
    for depth, part in enumerate(parts, start=1):
        found = _find_in(".".join(parts[:depth]), part, [*folders, Path.cwd()] if depth == 1 else folders)
        if found is None and depth == 1:
            found = _elsewhere(part)
        if found is None:
            return None
        folders = list(found.package)
    return found


def read_source(name: str) -> SourceCode | None:
    """The code behind the module `name`; None when there is none. An installed package counts as a whole."""
    asked = find_module(name)
    if asked is None:
        return None
    if asked.is_installed:
        top = find_module(name.partition(".")[0])
        return _installed_package(top or asked)
    return _Reading(asked).source


def _installed_package(top: Module) -> SourceCode:
    """Every file of code below a package that was installed: read once, then known by its stamp."""
    if not top.package:
        return SourceCode({top.name: digest_file(top.file)} if top.file else {})
    folder = top.package[0]
    endings = (".py", *EXTENSION_SUFFIXES)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.name.endswith(endings)]
    return SourceCode({f"{top.name}/{name}": digest for name, digest in digest_below(folder, names).items()})


class _Reading:
    """One walk from a module through what it imports."""

    def __init__(self, asked: Module) -> None:
        self.modules: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.unseen: dict[str, None] = {}
        self.waiting = list(_with_packages(asked.name))
        while self.waiting:
            self._read(self.waiting.pop())

    @property
    def source(self) -> SourceCode:
        """What was found, in an order of its own."""
        modules, files = (dict(sorted(found.items())) for found in (self.modules, self.files))
        return SourceCode(modules, files, tuple(sorted(self.unseen)))

    def _read(self, name: str) -> None:
        if name in self.modules:
            return
        module = find_module(name)
        if module is None or module.is_ours:
            return
        if module.is_installed:
            if (top := name.partition(".")[0]) not in (*TOLD_BY_RECORDS, *HARMLESS):
                self._note(_installed_as(top))
            return
        if module.file is None:
            return
        if module.file.suffix != ".py":
            self.modules[name] = digest_file(module.file)
            self._note(f"what the compiled `{name}` does beyond its own file")
            return
        parsed = _parse(module.file.read_bytes())
        self.modules[name] = parsed.digest
        package = name if module.package else name.rpartition(".")[0]
        for imported in parsed.imports:
            self.waiting += _imported(imported, package)
        for text in parsed.unseen:
            self._note(f"{text} in `{name}`")
        for path in parsed.paths:
            self._add_file(path, module.file.parent)

    def _add_file(self, text: str, beside: Path) -> None:
        for place in (Path.cwd(), beside):
            file = place / text
            if file.is_file() and file.suffix != ".py":
                self.files[text] = digest_file(file)
                return

    def _note(self, text: str) -> None:
        self.unseen[text] = None


@dataclass(frozen=True)
class _Import:
    """`module` at a relative `level`, and what is taken from it; of a plain import nothing is."""

    module: str
    level: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Parsed:
    digest: str
    imports: tuple[_Import, ...]
    paths: tuple[str, ...]
    unseen: tuple[str, ...]


@lru_cache(maxsize=4096)
def _parse(content: bytes) -> _Parsed:
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # whoever imports it says so
        return _Parsed(hashlib.sha256(content).hexdigest(), (), (), ())
    _drop_docstrings(tree)
    text = "".join(_pieces(tree))
    return _Parsed(
        hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        tuple(_imports(tree)),
        tuple(dict.fromkeys(_paths(tree))),
        tuple(dict.fromkeys(_unseen(tree))),
    )


def _drop_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]


def _pieces(node: object) -> Iterator[str]:
    """A syntax tree as text. Not `ast.dump`, whose form changes with Python; empty fields, which versions add, are
    left out."""
    if isinstance(node, ast.AST):
        yield f"{type(node).__name__}("
        for name, value in ast.iter_fields(node):
            if value is not None and value != [] and name != "kind":
                yield f"{name}="
                yield from _pieces(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in node:
            yield from _pieces(item)
            yield ","
        yield "]"
    else:
        yield f"{type(node).__name__} {node!r}"


def _imports(tree: ast.Module) -> Iterator[_Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (_Import(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield _Import(node.module or "", node.level, names)
        elif isinstance(node, ast.Call) and _called(node) in IMPORTERS and (name := _first_text(node)):
            yield _Import(name.lstrip("."), len(name) - len(name.lstrip(".")))
        elif isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            yield _Import("", 1, tuple(_texts(node.value)))  # what `from package import *` brings along


def _imported(imported: _Import, package: str) -> Iterator[str]:
    """The modules that an import may run: its packages, itself, and those of its names that are modules."""
    around = package.split(".") if package else []
    if imported.level > 1:
        around = around[: len(around) - imported.level + 1]
    parts = [*(around if imported.level else []), *([imported.module] if imported.module else [])]
    module = ".".join(parts)
    yield from _with_packages(module)
    for name in imported.names:
        yield from _with_packages(f"{module}.{name}" if module else name)


def _with_packages(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1) if all(parts[:end]))


def _paths(tree: ast.Module) -> Iterator[str]:
    """Texts that may name a file: a word such as `relu` does not, whatever lies in the folder."""
    for text in (*_texts(tree), *_joined_texts(tree)):
        if ("." in text or "/" in text) and len(text) < LONGEST_PATH and text.isprintable():
            yield text


def _unseen(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = _called(node)
        if called in IMPORTERS and not _first_text(node):
            yield f"the computed import (`{called}`)"
        elif called in RUNNERS or (isinstance(node.func, ast.Name) and called in ("exec", "eval")):
            yield f"the code that `{called}` runs"
        elif called in DOWNLOADERS or ast.unparse(node.func).endswith("hub.load"):
            yield f"what `{called}` downloads"


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def _first_text(node: ast.Call) -> str:
    first = node.args[0] if node.args else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def _texts(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def _joined_texts(tree: ast.AST) -> Iterator[str]:
    """Paths in pieces: `Path("data") / "scale.txt"`, `os.path.join("data", "scale.txt")`; the part that is known."""
    for inner in ast.walk(tree):
        if isinstance(inner, ast.BinOp | ast.Call) and len(pieces := _path_pieces(inner)) > 1:
            yield "/".join(pieces)


def _path_pieces(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return [*_path_pieces(node.left), *_path_pieces(node.right)]
    if isinstance(node, ast.Call) and _called(node) in PATH_MAKERS:
        return [piece for argument in node.args for piece in _path_pieces(argument)]
    return []


def _find_in(name: str, part: str, folders: Sequence[Path]) -> Module | None:
    """The first of these folders that has the package or module; else the folders that are one without a file."""
    bare = []
    for folder in folders:
        package = folder / part
        if (package / "__init__.py").is_file():
            return Module(name, package / "__init__.py", (package,))
        for ending in (*EXTENSION_SUFFIXES, ".py"):
            if (folder / f"{part}{ending}").is_file():
                return Module(name, folder / f"{part}{ending}")
        if package.is_dir():
            bare.append(package)
    return Module(name, None, tuple(bare)) if bare else None


def _elsewhere(part: str) -> Module | None:
    """A package that the import path does not show: one under development, installed by a finder of its own."""
    try:
        spec = find_spec(part)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return None
    return Module(part, Path(spec.origin), tuple(map(Path, spec.submodule_search_locations or ())))


@lru_cache(maxsize=1)
def _libraries() -> tuple[Path, ...]:
    """Where Python and what was installed for it lie, and we."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    ours = Path(import_module(OUR_PACKAGE).__path__[0]).resolve()
    return (ours, *(Path(sysconfig.get_path(kind)).resolve() for kind in kinds))


def _is_below(place: Path, folders: Iterable[Path]) -> bool:
    return any(place.resolve().is_relative_to(folder) for folder in folders)


def _installed_as(top: str) -> str:
    for name in (top, top.replace("_", "-")):
        try:
            return f"the installed package `{name}` {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return f"the installed package `{top}`"

"""What a job needs of this machine: the project's files, without data, results, caches and secrets, as one zip file.

Two parts travel. The working folder is what the user has written: the plan and modules of theirs. Our own packages
travel beside it, so that the job runs the code that checked the plan, whatever the Ray cluster has installed; in a
checkout they are not packed twice. The zip file of the same files is the same file, and Ray keeps packages by digest:
what has been sent before is not sent again.
"""

import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from raydistill.errors import PlanError
from raydistill.execution.ray_backend.connection import use_token

OWN_PACKAGES = ("raydistill", "raydistill.models", "raydistill.tasks")

# In the language of .gitignore; a later rule wins, so a `!rule` of the user's brings something back.
NEVER_SENT = (
    ".*",  # hidden: .git, .venv, caches, and files with passwords
    "__pycache__/",
    "*.py[co]",
    "*.egg-info/",
    "node_modules/",
    "/data/",
    "/runs/",
    "mlruns/",
    "mlartifacts/",
    "*.db",
    *(f"*.{ending}" for ending in ("pt", "pt2", "pth", "ckpt", "onnx", "safetensors", "gguf", "h5")),
    *(f"*.{ending}" for ending in ("parquet", "arrow", "npy", "npz", "tar", "gz", "tgz", "zip", "whl")),
)
NEVER_OWN = ("__pycache__", "*.pyc")
IGNORE_FILES = (".gitignore", ".rayignore")
MAX_BYTES = 100 * 2**20  # of one request, as Ray's dashboard takes it; it advertises 512
MIB = 2**20
SHOWN = 8
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file knows: times are no part of the content


@dataclass(frozen=True)
class PackedFile:
    """A file of the working folder, and where it goes in the package."""

    source: Path
    name: str
    bytes: int


@dataclass(frozen=True)
class Package:
    """The files that a job gets, and the folder that they come from."""

    folder: Path
    files: tuple[PackedFile, ...]

    @property
    def bytes(self) -> int:
        """Before they are packed."""
        return sum(file.bytes for file in self.files)

    def holds(self, path: Path) -> bool:
        """Whether this file, or something below this folder, is sent."""
        name = _name_below(self.folder, path.absolute())
        return name is not None and any(
            file.name == name or file.name.startswith(f"{name}/") for file in self.files
        )

    def summary(self) -> str:
        """One line: how many files, how large, and of what."""
        parts: dict[str, int] = {}
        for file in self.files:
            top, below, _ = file.name.partition("/")
            parts[top + below] = parts.get(top + below, 0) + 1
        shown = [f"{name} ({count})" if name.endswith("/") else name for name, count in sorted(parts.items())]
        more = f", and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
        return f"{counted(len(self.files))}, {size(self.bytes)}: {', '.join(shown[:SHOWN])}{more}"


def collect(folder: Path, plan_file: Path, exclude: Sequence[str], include: Sequence[str]) -> Package:
    """The files below `folder` that are sent, and in any case the plan, wherever it is."""
    rules = [*NEVER_SENT, *_rules_of(folder), *exclude, *(f"!{pattern}" for pattern in include)]
    files = {file.name: file for file in _walk(folder, rules)}
    name = plan_name(folder, plan_file)
    files[name] = PackedFile(plan_file.absolute(), name, plan_file.stat().st_size)
    return Package(folder, tuple(files[name] for name in sorted(files)))


def plan_name(folder: Path, plan_file: Path) -> str:
    """Where the plan is in the package: where it is below the folder, or else at the top."""
    return _name_below(folder, plan_file.absolute()) or plan_file.name


def write_zip(package: Package, target: Path) -> int:
    """Write the package; returns its bytes. `PlanError` as soon as it is more than Ray takes."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in package.files:
            entry = zipfile.ZipInfo(file.name, EPOCH)
            mode = 0o755 if file.source.stat().st_mode & stat.S_IXUSR else 0o644
            entry.external_attr = (stat.S_IFREG | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            with file.source.open("rb") as source, archive.open(entry, "w") as packed:
                while block := source.read(MIB):
                    packed.write(block)
                    if target.stat().st_size > MAX_BYTES:
                        raise _too_large(package)
    if target.stat().st_size > MAX_BYTES:
        raise _too_large(package)
    return target.stat().st_size


def own_folders() -> dict[str, Path]:
    """Our own packages and where they lie: below one another when installed, side by side in a checkout."""
    return {name: Path(import_module(name).__path__[0]).resolve() for name in OWN_PACKAGES}


def own_size() -> tuple[int, int]:
    """Files and bytes of our own packages."""
    files = {file for folder in own_folders().values() for file in folder.rglob("*.py")}
    return len(files), sum(file.stat().st_size for file in files)


def copy_own(target: Path) -> Path:
    """Put our own packages below `target` the way they are imported; returns the folder of the outermost."""
    for name, folder in own_folders().items():
        place = target.joinpath(*name.split("."))
        shutil.copytree(folder, place, ignore=shutil.ignore_patterns(*NEVER_OWN), dirs_exist_ok=True)
    return target / OWN_PACKAGES[0]


def size(count: int) -> str:
    """Bytes as a person says them."""
    return f"{count / MIB:.1f} MiB" if count >= MIB / 10 else f"{count / 1024:.1f} KiB"


def counted(files: int) -> str:
    """`1 file`, `7 files`."""
    return f"{files} file{'' if files == 1 else 's'}"


def _walk(folder: Path, rules: Sequence[str]) -> Iterator[PackedFile]:
    """Files that no rule excludes. Links to folders are not followed: they lead to data more often than to code."""
    ignored = {"": matcher(rules)}
    brought_back = [rule.lstrip("!/") for rule in rules if rule.startswith("!")]
    own = set(own_folders().values())

    def is_out(name: str) -> bool:
        return any(
            matches(name.removeprefix(place)) for place, matches in ignored.items() if name.startswith(place)
        )

    def is_entered(here: Path, name: str) -> bool:
        below = f"{_prefix(folder, here)}{name}/"
        is_environment = (here / name / "pyvenv.cfg").exists()
        if is_environment or (here / name).resolve() in own:
            return False
        return not is_out(below) or any(rule.startswith(below) for rule in brought_back)

    for place, folders, names in os.walk(folder):
        here = Path(place)
        if here != folder and (lines := _rules_of(here)):
            ignored[_prefix(folder, here)] = matcher(lines)
        folders[:] = sorted(name for name in folders if is_entered(here, name))
        for name in sorted(names):
            path, below = here / name, _prefix(folder, here) + name
            if path.is_file() and not is_out(below):
                yield PackedFile(path, below, path.stat().st_size)


def _prefix(folder: Path, here: Path) -> str:
    """What the names of files in `here` begin with: nothing, or `package/`."""
    return "" if here == folder else f"{here.relative_to(folder).as_posix()}/"


def matcher(rules: Sequence[str]) -> Any:
    """A function that says whether rules in the language of .gitignore match a path.

    Ray's own copy of `pathspec`, so that a .rayignore means here what it means to Ray.
    """
    use_token()  # ray reads the mode while it is imported, which may be here
    from ray._private.thirdparty.pathspec import PathSpec

    return PathSpec.from_lines("gitwildmatch", rules).match_file


def _rules_of(folder: Path) -> list[str]:
    files = [folder / name for name in IGNORE_FILES]
    return [
        line for file in files if file.is_file() for line in file.read_text(errors="replace").splitlines()
    ]


def _name_below(folder: Path, path: Path) -> str | None:
    if not path.is_relative_to(folder):
        return None
    name = PurePosixPath(path.relative_to(folder).as_posix())
    return None if ".." in name.parts else str(name)


def _too_large(package: Package) -> PlanError:
    largest = sorted(package.files, key=lambda file: -file.bytes)[:SHOWN]
    lines = "".join(f"\n  {size(file.bytes):>12}  {file.name}" for file in largest)
    return PlanError(
        f"`{package.folder}` is too large to send: {counted(len(package.files))}, {size(package.bytes)}, of which Ray"
        f" takes {size(MAX_BYTES)} packed; keep data on a file system that the nodes share, and leave the rest out with"
        f" `--exclude PATTERN` or a `.rayignore`. The largest:{lines}"
    )

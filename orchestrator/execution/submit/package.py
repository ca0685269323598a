"""What a job needs of this machine, as one zip file.

Two parts travel. From the working folder what the plan needs (`needs`), without what has to stay at home (`rules`).
Our own packages travel beside it, so that the job runs the code that checked the plan, whatever the Ray cluster has
installed; in a checkout they are not packed twice. The zip file of the same files is the same file, and Ray keeps
packages by digest: what has been sent before is not sent again.
"""

import os
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path, PurePosixPath

from raydistill.errors import PlanError
from raydistill.execution.submit.needs import Needs, refuse_left_out
from raydistill.execution.submit.rules import Reason, Rules, is_home

OWN_PACKAGES = ("raydistill", "raydistill.models", "raydistill.tasks")

NEVER_OWN = ("__pycache__", "*.pyc")
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
    """The files that a job gets, and the folder that they come from. `left_out`: files that stay, although a user would
    expect them to be sent."""

    folder: Path
    files: tuple[PackedFile, ...]
    left_out: tuple[str, ...] = ()

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
        more = f", and {len(shown) - SHOWN} more (`--verbose` lists all)" if len(shown) > SHOWN else ""
        return f"{counted(len(self.files))}, {size(self.bytes)}: {', '.join(shown[:SHOWN])}{more}"


def collect(
    folder: Path,
    plan_file: Path,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    needs: Needs | None = None,
) -> Package:
    """The files below `folder` that are sent: what `needs` covers, or all of them, and what `include` names.

    The plan is sent in any case, wherever it is. `PlanError` for a needed file that a rule leaves out.
    """
    if is_home(folder):
        raise PlanError(
            f"`{folder}` is a home folder or holds one: run `distill submit` in a folder of the plan and its modules"
        )
    needs = needs or Needs(is_whole=True)
    rules = Rules(folder, exclude, include)
    files: dict[str, PackedFile] = {}
    left_out = []
    for name in {**dict.fromkeys(_walk(folder, rules)), **_files_of(needs, folder)}:
        if not needs.covers(name) and not rules.includes(name):
            continue
        reason = rules.reason(name)
        if reason is None:
            files[name] = PackedFile(folder / name, name, (folder / name).stat().st_size)
        elif reason.is_told:
            left_out.append(f"`{name}` is not sent: {reason.text}")
    name = plan_name(folder, plan_file)
    files[name] = PackedFile(plan_file.absolute(), name, plan_file.stat().st_size)
    package = Package(folder, tuple(files[name] for name in sorted(files)), tuple(left_out))
    return _checked(package, needs, rules)


def _files_of(needs: Needs, folder: Path) -> dict[str, None]:
    """Needed files that lie behind a link to a folder, which no walk enters."""
    return {name: None for name in (*needs.required, *needs.mentioned) if (folder / name).is_file()}


def _checked(package: Package, needs: Needs, rules: Rules) -> Package:
    """The package, with a word on what its modules name and a rule leaves out; `PlanError` for what the plan needs."""
    for name, need in needs.required.items():
        reason = rules.reason(name)
        is_installed = need.is_module and reason is not None and reason.is_asked_for
        if not package.holds(package.folder / name) and not is_installed:
            raise refuse_left_out(name, need, reason)
    told = [
        f"`{name}`, which `{module}` names, is not sent{_because(rules.reason(name))}; `--include {name}` sends it"
        for name, module in needs.mentioned.items()
        if not package.holds(package.folder / name)
    ]
    return replace(package, left_out=(*package.left_out, *told))


def _because(reason: Reason | None) -> str:
    return "" if reason is None else f": {reason.text}"


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
    found = {file for folder in own_folders().values() for file in folder.rglob("*")}
    files = {file for file in found if file.is_file() and "__pycache__" not in file.parts}
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


def _walk(folder: Path, rules: Rules) -> Iterator[str]:
    """Names of files below `folder`. Links to folders are not followed: they lead to data more often than to code."""
    own = set(own_folders().values())
    for place, folders, names in os.walk(folder):
        here = Path(place)
        prefix = "" if here == folder else f"{here.relative_to(folder).as_posix()}/"
        folders[:] = sorted(
            name
            for name in folders
            if rules.is_entered(prefix + name)
            and not (here / name / "pyvenv.cfg").exists()
            and (here / name).resolve() not in own
        )
        yield from (prefix + name for name in sorted(names) if (here / name).is_file())


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

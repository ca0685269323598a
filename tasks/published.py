"""Public data sets: files laid out as torchvision does, read in place, downloaded by torchvision on request."""

import tempfile
from pathlib import Path
from typing import ClassVar

from raydistill.tasks.digests import digest_files
from raydistill.tasks.task import Arrays, Task, UserPath, data_root


class PublishedTask(Task):
    """A public data set in torchvision's files."""

    folder: UserPath | None = None
    """Where the files are (torchvision's `root`); without it, `$RAYDISTILL_DATA`, or `~/.cache/raydistill`."""
    download: bool = False
    """Let torchvision download what is missing."""

    torchvision_name: ClassVar[str]
    torchvision_splits: ClassVar[tuple[dict[str, str], ...]] = ({},)
    wanted_files: ClassVar[str]
    published_sizes: ClassVar[tuple[int, int]]

    def locate(self) -> dict[str, Path] | None:
        """The data set's files by name, or None when one of them is not there."""
        raise NotImplementedError

    def parse(self, files: dict[str, Path]) -> dict[str, Arrays]:
        """`train` and `test` from the files that `locate` found."""
        raise NotImplementedError

    def roots(self) -> list[Path]:
        """Folders to look in, best first; a download goes to the first."""
        return [self.folder or data_root()]

    def missing_files(self) -> str | None:
        if self.download or self.locate() is not None:
            return None
        return (
            f"task `{self.name}` finds no data in `{self.roots()[0]}`: put {self.wanted_files} there, "
            "name another `folder`, or set `download: true`"
        )

    def content(self) -> str:
        # Before a download there is nothing to digest, and the name must not change after it.
        if self.download:
            return "published"
        return digest_files(self.locate() or {})

    def read(self) -> dict[str, Arrays]:
        if self.locate() is None:
            self._download()
        files = self.locate()
        if files is None:
            raise FileNotFoundError(f"task `{self.name}`: the download left no {self.wanted_files}")
        parts = self.parse(files)
        self._check_sizes(parts)
        return parts

    def _check_sizes(self, parts: dict[str, Arrays]) -> None:
        sizes = (len(parts["train"].labels), len(parts["test"].labels))
        if self.download and sizes != self.published_sizes:
            raise ValueError(
                f"task `{self.name}`: `{self.roots()[0]}` holds {sizes[0]} + {sizes[1]} samples, not the published "
                f"{self.published_sizes[0]} + {self.published_sizes[1]}; without `download` they are used as they are"
            )

    def _download(self) -> None:
        """Download beside, then rename: two workers that need the same data do not see each other's half files."""
        import torchvision

        root = self.roots()[0]
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            for split in self.torchvision_splits:
                getattr(torchvision.datasets, self.torchvision_name)(temporary, download=True, **split)
            for source in Path(temporary).iterdir():
                _move_unless_there(source, root / source.name)


def _move_unless_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise

"""The examples of docs/bring_your_own.md on the disk: plans and packages, as their reader would have typed them."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from raydistill.cli import main
from raydistill.plan import address
from raydistill.plan.load import load_plan
from raydistill.plan.order import Graph, order_stages

PAGE = Path(__file__).parents[2] / "docs" / "bring_your_own.md"
FILE = re.compile(
    r"^`([\w/]+\.(?:py|yaml))`[^\n]*\n(?:[^\n]+\n)*\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


PACKAGES = ("my_lab", "my_texts")


class Lab:
    """The folder of somebody who brings his own; the working folder of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plan = folder, folder / "plan.yaml"
        for name, text in FILE.findall(PAGE.read_text(encoding="utf-8")):
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text(encoding="utf-8")
        assert old in text
        self.write(name, text.replace(old, new))

    def distill(self, *arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    def graph(self, *overrides: str) -> Graph:
        plan = load_plan(self.plan, overrides)
        return order_stages(plan)

    def fingerprints(self) -> dict[str, str]:
        """Of all nodes, as a process has them that was started after the last edit."""
        self.forget()
        return {name: node.fingerprint for name, node in self.graph().nodes.items()}

    def forget(self) -> None:
        """Be a process that has imported nothing of the laboratory."""
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        address._met.clear()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    lab = Lab(tmp_path)
    lab.forget()
    yield lab
    lab.forget()

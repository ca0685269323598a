"""docs/quickstart.md, followed as it stands, but for its installation and the plan that is tested elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "quickstart.md").read_text(encoding="utf-8")
SHELL = {
    "SHELL": "/bin/bash",
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
}


def blocks(language: str, part: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL)


def files(part: str) -> dict[str, str]:
    """The files that a part of the page asks for: each block's is the first that the paragraph above it names."""
    found = re.findall(
        r"^(\S[^\n]*(?:\n[^\n]+)*)\n\n```(?:python|yaml)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL
    )
    return {re.findall(r"`([\w-]+\.(?:py|yaml))`", words)[0]: text for words, text in found}


@pytest.mark.slow
def test_own_pictures_become_a_student_in_onnx(tmp_path: Path) -> None:
    own = PAGE[PAGE.index("## 3") :]
    written = files(own)
    assert set(written) == {"own_pictures.py", "my-pictures.yaml", "classify.py"}
    for name, text in written.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    said = []
    for commands in blocks("bash", own):
        ended = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=tmp_path,
            env={**os.environ, **SHELL},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert ended.returncode == 0, ended.stderr
        said.append(ended.stdout)
    assert (tmp_path / "phone/model.onnx").is_file()
    assert re.fullmatch(r"digit-\d \d+\.\d%\n", said[-1])

"""What `submit` packs: what the plan needs, nothing that looks private, nothing from outside of the folder."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from raydistill.cli import main
from raydistill.execution.submit.package import collect, write_zip

PLAN = """\
name: away
task: {name: tensors, file: /shared/data.npz}
stages:
  teacher: {stage: train, model: {name: "my_nets.logits:build"}, epochs: 1}
  student: {stage: train, model: {name: torchvision, architecture: squeezenet1_1, weights: w.bin}, epochs: 1}
"""
MODULE = """\
from pathlib import Path

import my_layers
from . import heads

WIDTHS = Path("inputs") / "scale.txt"
"""
NEEDED = {
    *("plan.yaml", "w.bin", "inputs/scale.txt", "my_layers.py"),
    *("my_nets/__init__.py", "my_nets/logits.py", "my_nets/heads.py", "my_nets/widths.json"),
}
PRIVATE = (
    *("id_rsa", "id_ed25519", "server.pem", "tls.key", "store.p12", "store.pfx", "vault.kdbx", "deploy.ppk"),
    *("credentials.json", "credentials", "aws-credentials.csv", "service-account-7.json", "kaggle.json"),
    *("secrets.yaml", "secrets.toml", "client_secret_1.json", "hf_token.txt", "TOKEN", "prod.env"),
    *("htpasswd", "passwords.txt", "main.tfstate", "main.tfstate.backup", "Server.PEM", "_netrc", "a.ovpn"),
)
STORES = ("a.db", "a.sqlite", "a.sqlite3", "a.db-wal", "a.duckdb", "a.bin", "a.pkl", "a.joblib", "a.keras")


def put(folder: Path, *names: str, text: str = "") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan, two modules and what they read, beside much that is nobody's business."""
    folder = tmp_path / "home" / "project"
    put(folder, *NEEDED, "notes/diary.md", "other_nets/__init__.py", "report.pdf", "my_nets/draft.py")
    (folder / "plan.yaml").write_text(PLAN)
    (folder / "my_nets" / "logits.py").write_text(MODULE)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folder)
    return folder


def submit(*arguments: object, plan: object = "plan.yaml") -> Result:
    words = ("submit", plan, "--runs", "/r", "--dry-run", *arguments)
    return CliRunner().invoke(main, [str(word) for word in words])


def error(result: Result) -> str:
    """The one line of an error, below notes on data that only the nodes have."""
    assert result.exit_code == 2, result.output
    *notes, line = result.output.splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert line.startswith("error: ")
    return line


def sent(*arguments: object) -> set[str]:
    """What a dry run lists."""
    result = submit("--include", "w.bin", "--verbose", *arguments)
    assert result.exit_code == 0, result.output
    return {line.strip() for line in result.output.splitlines() if line.startswith("  ")}


def test_what_travels_is_what_the_plan_needs(project: Path) -> None:
    assert sent() == NEEDED | {"my_nets/draft.py"}


def test_the_whole_folder_travels_where_it_is_asked_for(project: Path) -> None:
    more = {"notes/diary.md", "other_nets/__init__.py", "report.pdf", "my_nets/draft.py"}
    assert sent("--whole-folder") == NEEDED | more


def test_what_is_included_travels_though_nothing_needs_it(project: Path) -> None:
    assert sent("--include", "notes/") == NEEDED | {"my_nets/draft.py", "notes/diary.md"}


@pytest.mark.parametrize("name", [*PRIVATE, *STORES])
def test_keys_passwords_databases_and_weights_stay_at_home(project: Path, tmp_path: Path, name: str) -> None:
    put(project, f"my_nets/{name}", name)
    package = collect(project, project / "plan.yaml", (), ())
    write_zip(package, tmp_path / "package.zip")
    assert name not in {Path(packed).name for packed in zipfile.ZipFile(tmp_path / "package.zip").namelist()}


@pytest.mark.parametrize("name", ["server.pem", "hf_token.txt", "credentials.json"])
def test_a_private_name_is_told_and_brought_by_include_alone(project: Path, name: str) -> None:
    put(project, f"my_nets/{name}")
    (project / ".gitignore").write_text("!*\n")
    told = submit("--include", "w.bin")
    assert f"note: `my_nets/{name}` is not sent: its name is that of a secret" in told.output
    assert f"my_nets/{name}" in sent("--include", name)


def test_a_key_is_known_by_its_first_line_whatever_its_name(project: Path) -> None:
    put(project, "my_nets/deploy.txt", text="-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n")
    assert "my_nets/deploy.txt" not in sent()


def test_code_and_vocabularies_of_tokenizers_are_no_secrets(project: Path) -> None:
    names = {"my_nets/tokenizer.py", "my_nets/tokens.py", "my_nets/tokenizer.json"}
    put(project, *names)
    assert names <= sent()


def test_links_that_leave_the_folder_are_not_followed(project: Path, tmp_path: Path) -> None:
    put(tmp_path, "passwd", text="root:x:0:0")
    (project / "my_nets" / "users.txt").symlink_to(tmp_path / "passwd")
    (project / "my_nets" / "more").symlink_to(tmp_path)
    assert "my_nets/users.txt" not in sent("--include", "users.txt")
    told = submit("--include", "w.bin").output
    assert "note: `my_nets/users.txt` is not sent: it is a link out of this folder" in told


def test_a_link_to_what_stays_at_home_stays_at_home(project: Path) -> None:
    put(project, ".env", "id_rsa")
    (project / "my_nets" / "settings.txt").symlink_to(project / ".env")
    (project / "my_nets" / "key.txt").symlink_to(project / "id_rsa")
    (project / "my_nets" / "same.py").symlink_to(project / "my_layers.py")
    assert {"my_nets/settings.txt", "my_nets/key.txt", "my_nets/same.py"} & sent() == {"my_nets/same.py"}


@pytest.mark.parametrize("place", ["home", ".", "/"])
def test_a_home_folder_is_never_sent(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path / place)
    assert "home folder" in error(submit("--include", "*", plan=project / "plan.yaml"))


@pytest.mark.parametrize(
    ("rule", "name", "who"),
    [
        ("log*", "my_nets/logits.py", "stages.teacher.model.name"),
        ("heads.py", "my_nets/heads.py", "stages.teacher.model.name"),
        ("my_layers.py", "my_layers.py", "stages.teacher.model.name"),
        ("", "w.bin", "stages.student.model.weights"),
    ],
)
def test_what_the_plan_needs_and_a_rule_leaves_out_is_an_error_before_anything_is_sent(
    project: Path, rule: str, name: str, who: str
) -> None:
    (project / ".gitignore").write_text(f"{rule}\n")
    line = error(submit() if name == "w.bin" else submit("--include", "w.bin"))
    assert f"`{name}` is not sent" in line
    assert who in line
    assert f"--include {name}" in line


def test_a_needed_secret_is_an_error_too(project: Path) -> None:
    put(project, "secrets.py", "my_nets/secrets.py")
    (project / "my_layers.py").write_text("import secrets\n")
    assert "secrets.py" not in sent()  # the standard library's is meant
    (project / "my_layers.py").write_text("from my_nets import secrets\n")
    line = error(submit("--include", "w.bin"))
    assert "`my_nets/secrets.py` is not sent: its name is that of a secret" in line


def test_a_file_that_a_module_reads_and_a_rule_leaves_out_is_told(project: Path) -> None:
    put(project, "data/scale.txt", "data/more.txt")
    module = 'import os\nSCALE = open("data/scale.txt")\nMORE = os.path.join("data", "more.txt")\n'
    (project / "my_layers.py").write_text(module)
    told = submit("--include", "w.bin").output
    assert "note: `data/scale.txt`, which `my_nets.logits` names, is not sent" in told
    assert "note: `data/more.txt`, which `my_nets.logits` names, is not sent" in told


def test_a_dry_run_says_how_to_see_every_file(project: Path) -> None:
    put(
        project, *(f"extra/{number}/a.txt" for number in range(3)), *(f"f{number}.txt" for number in range(9))
    )
    assert "more (`--verbose` lists all)" in submit("--include", "w.bin", "--whole-folder").output


def test_a_dry_run_refuses_what_the_real_one_refuses(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydistill.execution.submit.package.MAX_BYTES", 20_000)
    (project / "my_nets" / "table.txt").write_bytes(np.random.default_rng(0).bytes(60_000))
    result = submit("--include", "w.bin")
    assert result.exit_code == 2
    assert "too large to send" in result.output

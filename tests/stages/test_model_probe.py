"""Features and models that do not suit are found before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torchvision.models import resnet18

from raydistill.cli import main
from raydistill.kinds.survey import ProbedModel
from raydistill.stages.model_probe import Probe, probe_model, two_samples

PLAN = """\
name: probe
task: {name: mnist}
stages:
  teacher: {stage: train, model: {name: cnn, widths: [16, 32]}, epochs: 3}
  student:
    stage: distill
    student: {name: cnn, widths: [16, 32]}
    teachers: [teacher]
    mode: live
    methods:
      - {method: hinton}
      - {method: fsp}
    epochs: 2
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "student: {name: cnn, widths: [16",
            "student: {name: cnn, widths: [8",
            "12: stages.student.methods.1: FSP needs",
        ),
        (
            "{method: fsp}",
            "{method: hints, student_feature: stag1}",
            "no feature `stag1`; did you mean `stage1`?",
        ),
        ("name: cnn, widths: [16, 32]}\n    teachers", "name: mlp}\n    teachers", "fewer than two stages"),
        ("    mode: live\n", "", "which are not stored; set `mode: live`"),
        ("teachers: [teacher]", "teachers: [teacher, other]", "the features of one teacher; name one"),
        (
            "{method: fsp}",
            "{method: ca_mkd, feature_weight: 50, teacher_feature: stage3}",
            "no feature `stage3`",
        ),
        (
            "    mode: live\n    methods:\n      - {method: hinton}\n      - {method: fsp}\n",
            "    method: {method: ca_mkd, feature_weight: 50}\n",
            "which are not stored; set `mode: live`",
        ),
        ("- {method: fsp}", "- {method: hinton}", "a method is listed twice"),
        ("    methods:\n", "    method: {method: hinton}\n    methods:\n", "write one `method`, or several"),
    ],
)
def test_what_does_not_suit_is_one_line_and_exit_code_2(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in PLAN
    text = PLAN.replace(old, new, 1)
    if "other" in new:
        text += "  other: {stage: train, model: {name: cnn, widths: [16, 32]}, epochs: 3, seed: 5}\n"
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    result = CliRunner().invoke(main, ["run", str(file), "--dry-run"])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert words in line


def test_what_suits_passes(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    result = CliRunner().invoke(main, ["run", str(file), "--dry-run", "--runs", str(tmp_path)])
    assert result.exit_code == 0, result.output


HEAD = """
import collections, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, num_classes)

    def forward(self, x):
        return self.wrap(self.head(self.body(x.flatten(1)).relu()))

    def wrap(self, logits):
        return logits

def build(num_classes):
    return Net(num_classes)
"""
Try = Callable[..., Probe]


@pytest.fixture
def attempt(stages: Any, users_models: Callable[[str], str]) -> Try:
    """Probe a network whose source is `HEAD` and these lines, for images of 8 x 8 pixels in 3 classes."""

    def probe(more: str = "", model: dict[str, Any] | None = None, **options: Any) -> Probe:
        stages.write({"teacher": {"stage": "train", "model": {"name": "mlp"}, "epochs": 1}})
        task = stages.plan.task
        data = task.load()
        model = model or {"name": f"{users_models(HEAD + more)}:build"}
        values = {"stages": ["teacher"], "model": model, "num_classes": 3, "transfer": {}, **options}
        return probe_model(ProbedModel.model_validate(values), task, data, two_samples(data, "cpu"))

    return probe


def wrapped(code: str) -> str:
    return f"Net.wrap = lambda self, logits: {code}"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("def build(num_classes): return Net(1000)", "gives 1000 outputs for each"),
        (wrapped("(logits, logits)"), "returns a tuple of 2 in eval mode; return the logits alone"),
        (wrapped("(logits, 0) if self.training else logits"), "returns a tuple of 2 in train mode;"),
        (wrapped("[logits]"), "returns a list of 1 in eval mode;"),
        (wrapped("{'logits': logits, 'hidden': logits}"), "a dict with the keys `logits`, `hidden`"),
        (wrapped("type('Answer', (), {'logits': logits})()"), "a Answer, whose `logits` are meant"),
        (wrapped("logits.squeeze()[..., None]"), "shape (2, 3, 1) for a batch of 2"),
        (wrapped("logits.squeeze()"), "shape (3,) for a batch of 1, not (1, 3)"),
        (wrapped("logits.detach()"), "no gradient reaches any of its weights"),
        (
            "def build(num_classes): return Net(num_classes).requires_grad_(False)",
            "all 4 of its parameters are frozen",
        ),
        ("def build(num_classes): return nn.Flatten()", "gives 64 outputs"),
        ("def build(num_classes): raise KeyError('backbone')", "cannot be built: KeyError: 'backbone'"),
        (
            "def build(num_classes): return nn.Sequential(nn.Conv2d(3, num_classes, 8), nn.Flatten())",
            "cannot take a batch of 2 samples of shape (1, 8, 8) in eval mode: RuntimeError: ",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_told_with_what_it_does(attempt: Try, more: str, words: str) -> None:
    error = attempt(more).error
    assert error is not None
    assert error.startswith("model `users_")
    assert words in error
    assert "\n" not in error


def test_what_is_frozen_is_looked_for_before_work(attempt: Try) -> None:
    layers = "nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes)"
    normed = f"def build(num_classes): return nn.Sequential({layers})"
    # A batch of one has no variance: a norm that stands still asks for none.
    assert "the last batch of an epoch is one" in (attempt(normed, batch_size=107).error or "")
    assert attempt(normed, batch_size=107, freeze=["[12].*"]).error is None
    assert "`freeze: [tail.*]` matches no parameter" in (attempt(normed, freeze=["tail.*"]).error or "")
    assert "leaves nothing to train" in (attempt(normed, freeze=["*"]).error or "")
    quick = attempt(normed, parameter_groups=[{"match": "tail.*", "lr_scale": 10}])
    assert "`parameter_groups.0.match: tail.*` matches no parameter of the model; known: `1.*`" in (
        quick.error or ""
    )


def test_a_model_that_is_fit_is_counted_and_leaves_the_random_state(attempt: Try) -> None:
    state = torch.random.get_rng_state()
    assert attempt() == Probe(64 * 8 + 8 + 8 * 3 + 3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_layers_that_no_gradient_reaches_do_no_harm_on_several_workers_neither(attempt: Try) -> None:
    spare = (
        "def build(num_classes):\n    net = Net(num_classes)\n    net.spare = nn.Linear(2, 2)\n    return net"
    )
    assert attempt(spare).error is None
    assert attempt(spare, workers=2).error is None


@pytest.mark.parametrize(
    ("batch_size", "is_wrong"), [(107, True), (18, False), (53, False), (1, True), (108, False)]
)
def test_a_last_batch_of_one_is_an_error_for_a_model_that_cannot_train_on_it(
    attempt: Try, batch_size: int, is_wrong: bool
) -> None:
    normalised = """
def build(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))
"""  # 150 images, of which 30 are for the test and a tenth of the rest for validation: 108
    error = attempt(normalised, batch_size=batch_size).error
    assert (error is not None) == is_wrong
    assert error is None or f"108 samples in batches of {batch_size}; set another `batch_size`" in error
    assert attempt(batch_size=batch_size).error is None


def test_a_last_batch_is_counted_in_what_the_stage_trains_on(attempt: Try) -> None:
    normalised = (
        "def build(num_classes): return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), Net(num_classes))"
    )
    half = {"transfer": {"fraction": 0.5}, "batch_size": 53}  # 54 samples
    assert attempt(normalised, **half).error is not None
    assert attempt(normalised, **half, shards=2).error is None
    assert attempt(normalised, **half, workers=2).error is None
    assert attempt(normalised, batch_size=53, transfer=None).error is None


def test_weights_of_another_number_of_classes_begin_a_training_and_are_no_teacher(
    attempt: Try, tmp_path: Path, stages: Any
) -> None:
    stages.file.unlink()
    np.savez(
        stages.file, inputs=np.random.default_rng(0).normal(size=(60, 3, 32, 32)), labels=np.arange(60) % 3
    )
    save_file(resnet18(num_classes=10).state_dict(), tmp_path / "w.safetensors")
    model = {"name": "torchvision", "architecture": "resnet18", "weights": str(tmp_path / "w.safetensors")}
    assert attempt(model=model).error is None
    error = attempt(model=model, is_trained=False).error
    assert error is not None
    assert "`fc.weight` (10, 512), the model needs (3, 512)" in error
    assert attempt(model=model | {"ignore": ["fc.*"]}, is_trained=False).error is None
    assert attempt(model={"name": "torchvision", "architecture": "resnet18"}).error is None


def test_probabilities_are_not_taken_for_logits(attempt: Try, users_models: Callable[[str], str]) -> None:
    source = "from torch import nn\ndef build(num_classes):\n    return nn.Sequential(nn.Flatten(),"
    name = users_models(source + " nn.Linear(64, num_classes), nn.Softmax(1))")
    error = attempt(model={"name": f"{name}:build"}, is_trained=False).error
    assert error is not None
    assert "write `gives: probabilities` beside it" in error
    for gives in ("probabilities", "logits"):
        assert attempt(model={"name": f"{name}:build", "gives": gives}, is_trained=False).error is None


def test_the_weights_of_another_stage_fit_or_are_refused_before_it_is_trained(attempt: Try) -> None:
    model = {"name": "mlp", "widths": [8]}
    assert attempt(model=model, initial=model).error is None
    assert attempt(model=model, initial=model | {"num_classes": 7}).error is None
    error = attempt(model=model, initial={"name": "mlp", "widths": [9]}).error
    assert error is not None
    assert "cannot start with the weights of `mlp` (`initial`)" in error


@pytest.mark.parametrize(
    ("code", "words", "mended"),
    [
        (
            "{'aux': logits[:, :2], 'logits': logits}",
            "or write `output: logits` beside it",
            {"output": "logits"},
        ),
        (
            "type('ImageClassifierOutput', (), {'logits': logits})()",
            "write `output: logits`",
            {"output": "logits"},
        ),
        ("(logits, logits[:, :2])", "or write `output: 0` beside it", {"output": 0}),
        ("logits.softmax(1)", "write `gives: probabilities` beside it", {"gives": "probabilities"}),
        ("{'p': logits.softmax(1)}", "write `output: p`", {"output": "p", "gives": "probabilities"}),
    ],
)
def test_outputs_of_other_forms_are_said_with_the_option_that_takes_them(
    code: str, words: str, mended: dict[str, Any], attempt: Try, users_models: Callable[[str], str]
) -> None:
    name = f"{users_models(HEAD + wrapped(code))}:build"
    assert words in str(attempt(model={"name": name}, is_trained=False).error)
    assert attempt(model={"name": name, **mended}, is_trained=False).error is None

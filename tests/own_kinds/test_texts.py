"""The texts of docs/bring_your_own.md: a task of Datasets, tokens padded by a function, models of the user's own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raydistill.inference.predict import predict_files
from raydistill.plan.load import load_plan
from raydistill.plan.order import order_stages
from raydistill.training.trust import Trust

RUN = ("--local", "--no-tracking", "--runs", "runs")
SMALL = ("--set", "task.samples=240", "--set", "stages.teacher.epochs=3", "--set", "stages.stored.epochs=2")
SMALL = (*SMALL, "--set", "stages.live.epochs=2")


def results(folder: Path) -> dict[str, Any]:
    last = max((folder / "runs" / "plans" / "my-texts").glob("*/results.json"))
    found: dict[str, Any] = json.loads(last.read_text())
    return found["stages"]


def test_the_example_runs_and_its_students_are_used(lab: Any) -> None:
    done = lab.distill("run", "texts.yaml", *RUN)
    assert done.exit_code == 0, done.output
    stages = results(lab.folder)
    assert all(stages[name]["metrics"]["test/accuracy"] > 0.9 for name in ("teacher", "stored", "live"))
    folders = {name: lab.folder / "runs" / stages[name]["folder"] for name in ("teacher", "stored", "live")}
    assert lab.distill("run", "texts.yaml", *RUN).exit_code == 0
    assert {stage["status"] for stage in results(lab.folder).values()} == {"cached"}

    from my_texts.data import Topics

    sentences = Topics(name="my_texts.data:Topics").load().test.inputs[:5]
    np.save("sentences.npy", sentences.numpy())
    for name, folder in folders.items():
        predicted = [
            dict(row.ranked)
            for row in predict_files(folder, [Path("sentences.npy")], trust=Trust(lab.folder / "runs"))
        ]
        exported = lab.distill("export", folder, name, "--runs", "runs")
        assert exported.exit_code == 0, exported.output
        program: Any = torch.export.load(lab.folder / name / "model.pt2").module()
        ours = [[row[topic] for topic in ("weather", "food", "travel")] for row in predicted]
        torch.testing.assert_close(program(sentences), torch.tensor(ours), atol=1e-5, rtol=0)
        assert program(sentences[:1]).shape == (1, 3)
    evaluated = lab.distill("evaluate", folders["stored"], "--split", "test", "--runs", "runs")
    assert evaluated.exit_code == 0, evaluated.output
    np.save("unknown.npy", np.full((2, 12), 99))
    refused = lab.distill("predict", folders["stored"], "unknown.npy", "--runs", "runs")
    assert refused.exit_code != 0
    assert refused.output.startswith("error: the inputs hold numbers from 99 to 99"), refused.output


def test_a_word_that_a_model_does_not_know_is_found_before_training(lab: Any) -> None:
    lab.edit("my_texts/models.py", "nn.Embedding(WORDS + 1, width", "nn.Embedding(WORDS, width")
    done = lab.distill("run", "texts.yaml", *RUN, *SMALL)
    assert done.exit_code != 0
    assert "of numbers 0 to 60 in eval mode: IndexError" in done.output


def test_a_stream_makes_the_same_students(lab: Any) -> None:
    assert lab.distill("run", "texts.yaml", *RUN, *SMALL).exit_code == 0
    whole = results(lab.folder)
    streamed = lab.distill("run", "texts.yaml", *RUN, *SMALL, "--set", "task.stream=true")
    assert streamed.exit_code == 0, streamed.output
    stream = results(lab.folder)
    for name in ("teacher", "stored"):
        one, two = (
            load_file(lab.folder / "runs" / found[name]["folder"] / "model.safetensors")
            for found in (whole, stream)
        )
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_another_rule_makes_other_sentences(lab: Any) -> None:
    def number() -> str:
        lab.forget()
        return order_stages(load_plan(lab.folder / "texts.yaml")).nodes["teacher"].fingerprint

    before = number()
    lab.edit("my_texts/data.py", '"""Sentences of three topics."""', '"""Three topics."""')
    assert number() == before
    lab.edit("my_texts/corpus.py", "words[places[:2]]", "words[places[:3]]")
    assert number() != before


def test_a_dry_run_loads_no_torch_and_says_what_is_not_seen(lab: Any) -> None:
    probe = (
        "import sys; from raydistill.cli import main;"
        "main(['run', 'texts.yaml', '--dry-run'], standalone_mode=False);"
        "print('loaded:', *{'torch', 'ray', 'numpy', 'my_texts.corpus'} & set(sys.modules))"
    )

    def said() -> list[str]:
        done = subprocess.run([sys.executable, "-c", probe], cwd=lab.folder, capture_output=True, text=True)
        return done.stdout.splitlines()

    named = said()
    lab.edit("my_texts/data.py", 'return "sentences made by a rule"', "return None")
    lines = named, said()
    assert lines[0][-1] == "loaded:"
    assert not any("a change is not seen of the samples" in line for line in lines[0])
    assert any("a change is not seen of the samples" in line for line in lines[1])


@pytest.mark.ray
def test_texts_are_streamed_by_loader_workers_in_workers_of_ray(lab: Any) -> None:
    command = [sys.executable, "-P", "-m", "raydistill.cli", "run", "texts.yaml", "--no-tracking", *SMALL]
    command += ["--set", "task.stream=true", "--set", "stages.live.resources.workers=2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(command, cwd=lab.folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert {stage["status"] for stage in results(lab.folder).values()} == {"done"}

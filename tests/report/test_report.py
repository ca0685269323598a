"""The whole report of runs made by hand: what it says, what it survives, and that it fetches nothing."""

import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raydistill.errors import StoreError
from raydistill.report import write_report
from raydistill.report.curves import Line, learning_curves
from raydistill.report.page import build_page
from raydistill.report.plot_lines import lower_limit
from raydistill.report.plot_matrices import draw_confusion, merge_classes
from raydistill.report.summary import summarize_run
from raydistill.runs.view import open_run, open_stage

Start = Callable[..., Any]
VOID = {"meta", "br", "img", "link", "hr", "input"}
FETCHES = {"script", "iframe", "object", "embed", "link", "base", "form"}


class Page(HTMLParser):
    """Checks while reading that tags are balanced and nothing is fetched; collects the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag not in FETCHES
        for name, value in attributes:
            assert not name.startswith("on"), f"<{tag} {name}> would run code"
            if name in ("src", "href", "xlink:href", "action", "poster", "data"):
                assert value is not None
                assert value.startswith(("data:image/png;base64,", "#")), value[:80]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += text + " "


def page_of(run: Any, **more: Any) -> Page:
    """The page without plots, which are slow to draw."""
    return Page(build_page(summarize_run(open_run(run.write(**more), run.root)), []))


def test_the_report_answers_first_and_draws_everything(distilled: Any) -> None:
    report = write_report(
        distilled.write(command="distill run configs/fake.yaml --set a=<1>"), distilled.root
    )
    html = report.read_text()
    page = Page(html)
    assert "student makes 5.0 ± 1.4 errors on 40 test samples" in page.text
    assert "0.50 times the 10 errors of baseline" in page.text
    assert "8.0 times smaller than its 2 teachers together (500 k against 4 M parameters)" in page.text
    assert "distill run configs/fake.yaml --set a=<1>" in page.text
    assert "What the teacher sees" in page.text
    assert page.tags.count("image") == 8
    assert "url(http" not in html
    plots = {path.name: picture_size(path) for path in (report.parent / "plots").iterdir()}
    assert set(plots) == {
        "graph.png",
        "comparison.png",
        "validation-accuracy.png",
        "train-loss.png",
        "confusion.png",
        "reliability-student.0.png",
        "reliability-2-teacher.png",
        "reliability-baseline.png",
        *(f"soft-targets-{place}.png" for place in range(1, 9)),
    }
    assert min(min(size) for size in plots.values()) > 100
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(drawings) == len(plots)
    fixed = [colour for drawing in drawings for colour in re.findall(r"(?:fill|stroke): (#\w+)", drawing)]
    assert fixed == [], "drawings take the colours of the page"


def picture_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_a_report_written_again_removes_old_plots_and_leaves_those_of_other_runs(
    tmp_path: Path, fake_run: Start
) -> None:
    run = fake_run(tmp_path)
    run.stage("only", role="model", errors=3)
    folder = run.write()
    plots = folder / "plots"
    plots.mkdir()
    older = tmp_path / "older.png"
    older.write_bytes(b"the plot of an older run")
    os.link(older, plots / "comparison.png")
    (plots / "gone.png").write_bytes(b"")
    write_report(folder, tmp_path)
    assert older.read_bytes() == b"the plot of an older run"
    assert not (plots / "gone.png").exists()


def test_failed_and_skipped_stages_are_named_with_the_reason(distilled: Any) -> None:
    why = {"error": "the loss is not finite", "traceback": "\n".join(f"line {line}" for line in range(40))}
    distilled.stage("broken", "distill", role="student", status="failed", **why)
    distilled.stage("after", "distill", role="student", reads=["broken"], status="skipped")
    distilled.stage("later", "evaluate", role="evaluation", reads=["after"], status="skipped")
    page = page_of(distilled, status="failed")
    assert "broken failed the loss is not finite" in page.text
    assert "line 39" in page.text
    assert "line 20" not in page.text
    assert "after skipped it needs broken, which failed" in page.text
    assert "later skipped it needs broken, which failed" in page.text
    assert "student makes 5.0 ± 1.4 errors" in page.text


def test_a_run_without_any_result_still_has_a_report(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("teacher", status="running")
    run.stage("student", "distill", role="student", reads=["teacher"], status="waiting")
    page = Page(write_report(run.write(status="running"), tmp_path).read_text())
    assert "student has no test result: student waiting" in page.text


def test_a_plan_of_one_stage_has_a_report(tmp_path: Path, fake_run: Start, predict: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("only", role="model", parameters=812, **predict(np.arange(30) % 3, 3, 4))
    page = page_of(run)
    assert "only makes 4 errors on 30 test samples" in page.text
    assert "What the teacher sees" not in page.text


def test_hostile_names_stay_text(tmp_path: Path, fake_run: Start, predict: Start) -> None:
    script = "<script>alert('x')</script>"
    run = fake_run(tmp_path)
    names = [script, '" onload="alert(1)', "$\\frac{", "金魚"]
    hostile = predict(np.arange(40) % 4, 4, 5)
    run.stage(f"t{script}", role=script, parameters=10, class_names=names, accuracies=[0.5], **hostile)
    run.stage(f"s{script}", "distill", role="student", reads=[f"t{script}"], class_names=names, **hostile)
    run.stage(f"f{script}", role=script, status="failed", error=script)
    folder = run.write(status=script, plan=script, command=script, versions={script: script})
    (folder / "plan.yaml").write_text(script)
    page = Page(write_report(folder, tmp_path).read_text())
    assert page.text.count(script) > 10
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in (folder / "plots").iterdir())


def test_a_class_that_is_never_predicted_is_named(tmp_path: Path, fake_run: Start) -> None:
    labels = np.arange(30) % 3
    run = fake_run(tmp_path)
    logits = np.eye(3)[np.where(labels == 2, 0, labels)]
    run.stage("only", role="model", class_names=["cat", "dog", "owl"], logits=logits, labels=labels)
    page = page_of(run)
    assert "Class owl is never predicted." in page.text
    assert "owl cat 10 100.0 %" in page.text
    told = page.text[page.text.index("How only does by class") :]
    order = [told.index(name) for name in ("owl", "cat", "dog")]
    assert order == sorted(order), "the worst first"
    assert "owl 10 0.0 % never predicted 0.0 %" in " ".join(told.split())
    assert "cat 10 100.0 % 50.0 % 66.7 %" in " ".join(told.split())


def test_of_many_classes_the_worst_are_listed(tmp_path: Path, fake_run: Start) -> None:
    labels = np.arange(90) % 30
    logits = np.eye(30)[np.where(labels < 3, 29, labels)]
    run = fake_run(tmp_path)
    run.stage(
        "only", role="model", class_names=[f"c{label}" for label in range(30)], logits=logits, labels=labels
    )
    text = " ".join(page_of(run).text.split())
    assert "The 10 other classes have a mean recall of 100.0 %" in text
    assert "c0 3 0.0 % never predicted 0.0 %" in text


def test_what_stages_warn_of_is_listed(tmp_path: Path, fake_run: Start, predict: Start) -> None:
    run = fake_run(tmp_path)
    good = predict(np.arange(30) % 3, 3, 4)
    run.stage("teacher", warnings=["no better than <chance>", "it is large"], **good)
    run.stage("student", "distill", role="student", reads=["teacher"], **good)
    text = page_of(run).text
    assert "Warnings teacher : no better than <chance> teacher : it is large" in text
    remark = {"level": "note", "text": "few <of> them", "stages": []}
    run.write_survey({"train": [97, 3], "test": [5, 5]}, remark)
    text = page_of(run).text
    assert "data : few <of> them teacher : no better" in text
    assert "Samples per class. train: 3 to 97; test: 5." in text
    (run.folder / "survey.json").unlink()
    run.nodes.clear()
    run.stage("other", **good)
    assert "Warnings" not in page_of(run).text


def test_a_thousand_classes_are_drawn_in_shared_cells(
    tmp_path: Path, fake_run: Start, predict: Start
) -> None:
    run = fake_run(tmp_path)
    labels = np.arange(2000) % 1000
    run.stage("only", role="model", **predict(labels, 1000, 30))
    page = Page(write_report(run.write(), run.root).read_text())
    assert "Neighbouring classes share a cell" in page.text


@pytest.mark.parametrize(("classes", "texts"), [(10, 20), (100, 0)])
def test_classes_are_named_in_the_confusion_only_where_they_fit(classes: int, texts: int) -> None:
    names = [f"c{label}" for label in range(classes)]
    axes = draw_confusion(np.eye(classes, dtype=np.int64), names).axes[0]
    labels = [label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    assert sum(label in names for label in labels) == texts


def test_missing_and_damaged_predictions_are_explained_and_the_rest_is_there(distilled: Any) -> None:
    student = distilled.stage_folder("student.0").path
    (student / "predictions-test.safetensors").write_bytes(b"not a tensor")
    page = page_of(distilled)
    assert "predictions-test.safetensors` is damaged" in page.text
    assert "student makes 5.0 ± 1.4 errors" in page.text
    (student / "predictions-test.safetensors").unlink()
    assert "predictions-test.safetensors` is damaged" in page_of(distilled).text


def test_a_stage_that_stored_no_predictions_says_so(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("only", role="model", errors=4)
    page = page_of(run)
    assert "`only` stored no predictions on the test split" in page.text
    assert "only makes 4 errors on 1,000 test samples" in page.text


def test_a_record_that_cannot_be_read_is_named(distilled: Any) -> None:
    baseline = distilled.stage_folder("baseline").path
    (baseline / "record.json").write_text("{")
    page = page_of(distilled)
    assert "baseline: its result cannot be read" in page.text
    assert "record.json` is damaged" in page.text


def test_pictures_that_are_gone_leave_a_sentence(distilled: Any) -> None:
    Path(distilled.task["file"]).unlink()
    page = page_of(distilled)
    assert "The test pictures cannot be read" in page.text
    assert "image" not in page.tags


def test_a_report_never_downloads_data(tmp_path: Path, fake_run: Start, predict: Start) -> None:
    run = fake_run(tmp_path, {"name": "fashion_mnist", "folder": str(tmp_path / "nowhere"), "download": True})
    run.stage("teacher", **predict(np.arange(30) % 10, 10, 4))
    taught = {"config": {"method": {"method": "hinton"}}, **predict(np.arange(30) % 10, 10, 4)}
    run.stage("student", "distill", role="student", reads=["teacher"], **taught)
    assert "finds no data in" in page_of(run).text
    assert not (tmp_path / "nowhere").exists()


def test_inputs_that_are_no_pictures_are_not_shown(tmp_path: Path, fake_run: Start, predict: Start) -> None:
    np.savez(tmp_path / "rows.npz", inputs=np.zeros((40, 7), dtype=np.float32), labels=np.arange(40) % 4)
    run = fake_run(tmp_path, {"name": "tensors", "file": str(tmp_path / "rows.npz")})
    run.stage("teacher", **predict(np.arange(30) % 4, 4, 4))
    taught = {"config": {"method": {"method": "hinton"}}, **predict(np.arange(30) % 4, 4, 4)}
    run.stage("student", "distill", role="student", reads=["teacher"], **taught)
    assert "are not pictures" in page_of(run).text


def test_a_cached_stage_shows_the_time_it_once_took(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("only", role="model", status="cached", errors=4)
    assert open_run(run.write(), tmp_path).stages["only"].seconds == 12.0


def test_a_graph_that_leads_out_of_the_storage_root_is_refused(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path / "runs")
    run.stage("only")
    run.nodes[0] = run.nodes[0].model_copy(update={"folder": "../elsewhere"})
    with pytest.raises(StoreError, match="outside the storage root"):
        write_report(run.write(), run.root)


@pytest.mark.parametrize("text", ["{", "[]", '{"nodes": [{}]}', '{"nodes": 3}'])
def test_a_damaged_graph_is_an_error_that_names_the_file(tmp_path: Path, fake_run: Start, text: str) -> None:
    run = fake_run(tmp_path)
    run.stage("only")
    folder = run.write()
    (folder / "graph.json").write_text(text)
    with pytest.raises(StoreError, match=r"graph\.json"):
        write_report(folder, tmp_path)


def test_a_stage_that_reads_an_unknown_one_is_an_error(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("only", reads=["nobody"])
    with pytest.raises(StoreError, match="nobody"):
        write_report(run.write(), tmp_path)


def test_curves_leave_out_torn_lines_and_values_that_are_not_finite(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "epoch": 1, "a": 0.5}',
        '{"step": 2, "epoch": 2, "a": NaN}',
        "[1]",
        '{"step": 3, "a": 0.7}',
        '{"ste',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    stage = open_stage(tmp_path)
    assert stage.curve("a") == ([1.0, 3.0], [0.5, 0.7])


def test_replicas_are_one_curve_with_their_lowest_and_highest(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("model.0", role="model", errors=1, accuracies=[0.2, 0.4, 0.6])
    run.stage("model.1", role="model", errors=1, accuracies=[0.4, 0.8])
    (line,) = learning_curves(
        summarize_run(open_run(run.write(), tmp_path)).comparison.competitors, "validation/accuracy"
    )
    assert line.epochs.tolist() == [1, 2, 3]
    assert line.mean == pytest.approx([0.3, 0.6, 0.6])
    assert (line.low.tolist(), line.high.tolist()) == ([0.2, 0.4, 0.6], [0.4, 0.8, 0.6])


def test_the_axis_of_accuracies_shows_the_second_half_of_every_curve() -> None:
    def line(values: list[float]) -> Line:
        return Line("x", "model", np.arange(len(values)), *(np.array(values),) * 3)

    rising, poor = line([0.1, 0.5, 0.9, 0.91, 0.92]), line([0.1, 0.3, 0.5, 0.6, 0.6])
    assert 0.1 < lower_limit([rising]) < 0.9
    assert lower_limit([rising, poor]) < 0.5
    assert lower_limit([line([0.98])]) < 0.98


def test_cells_of_neighbouring_classes_add_up() -> None:
    matrix = np.arange(25).reshape(5, 5)
    merged = merge_classes(matrix, 2)
    assert merged.shape == (3, 3)
    assert merged[0, 0] == 0 + 1 + 5 + 6
    assert merged[2, 2] == 24
    assert merged.sum() == matrix.sum()

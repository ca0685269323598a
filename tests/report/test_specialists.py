"""The report on clusters and committees, from stage folders written by hand."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistill.report import write_report
from raydistill.report.clusters import ordered_cells, read_clusterings
from raydistill.report.committees import Coverage, chance_of, fold_coverage
from raydistill.report.comparison import compare
from raydistill.report.page import build_page
from raydistill.report.plot_matrices import shades
from raydistill.report.predictions import read_teaching
from raydistill.report.summary import choose_main, summarize_run
from raydistill.runs.view import open_run

Start = Callable[..., Any]


def text_of(run: Any) -> str:
    """The page without plots, its tags taken away."""
    html = build_page(summarize_run(open_run(run.write(), run.root)), [])
    html = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html).replace("\N{NO-BREAK SPACE}", " "))


def add_clusters(
    run: Any,
    clusters: Sequence[Sequence[int]],
    names: Sequence[str] = tuple("abcdefghij"),
    similarity: np.ndarray | None = None,
    **metrics: float,
) -> Any:
    """A stage of clusters, with a similarity matrix unless there is none."""
    written = {"clusters": clusters, "names": [[names[label] for label in cluster] for cluster in clusters]}
    files: dict[str, Any] = {"clusters.json": json.dumps(written)}
    if similarity is not None:
        files["similarity.safetensors"] = {"similarity": similarity.astype(np.float32)}
    return run.stage(
        "clusters",
        "confusion_clusters",
        role="clusters",
        reads=[node.name for node in run.nodes[:1]],
        config={"matrix": "correlation", "split": "validation"},
        metrics=metrics,
        files=files,
    )


def tables(coverage: Sequence[tuple[int, int, int, int]], **cost: float) -> dict[str, Any]:
    """What committee.json holds, from rows of specialists, samples, right before, change."""
    samples = sum(row[1] for row in coverage)
    right, change = sum(row[2] for row in coverage), sum(row[3] for row in coverage)
    return {
        "samples": samples,
        "generalist": {"accuracy": right / samples, "conditional": 0.431},
        "committee": {"accuracy": (right + change) / samples, "conditional": 0.459},
        "coverage": [
            dict(zip(("specialists", "samples", "right", "change"), row, strict=True)) for row in coverage
        ],
        "cost": {
            "specialists": 2,
            "active": 0.5,
            "asked": 0.4,
            "generalist_seconds": 100.0,
            "specialists_seconds_serial": 61.0,
            "specialists_seconds_parallel": 33.0,
            **cost,
        },
    }


def add_committee(run: Any, name: str, written: Any, *, active: int = 1, **result: Any) -> Any:
    """A committee of the generalist and two specialists, which are added with the first one."""
    names = [node.name for node in run.nodes]
    for index in range(2):
        if f"specialists.{index}" not in names:
            run.stage(
                f"specialists.{index}",
                "train_specialists",
                role="specialist",
                reads=["generalist"],
                parameters=50,
                config={"head": "dustbin", "cluster": index},
                errors=7,
                samples=77,
            )
    text = written if isinstance(written, str) else json.dumps(written)
    return run.stage(
        name,
        "evaluate",
        role="committee",
        reads=["generalist", "specialists.0", "specialists.1"],
        config={"committee": {"active": active, "direction": "forward"}, "split": "test"},
        files={"committee.json": text},
        parameters=200,
        **result,
    )


def test_clusters_are_listed_with_names_and_their_matrix_is_drawn(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("generalist", errors=3)
    names = ["cat", "dog", "owl", "<b>bat</b>", *"efghij"]
    add_clusters(run, [[3, 0, 5], [1, 2, 4, 6, 7, 8, 9]], names, np.eye(10))
    report = write_report(run.write(), tmp_path)
    html = report.read_text()
    assert "10 of 10 classes in 2 clusters of 3 to 7 classes, 5.0 on average" in html
    assert "&lt;b&gt;bat&lt;/b&gt;, cat and f" in html
    assert "<b>bat</b>" not in html
    assert 'aria-label="Similarity of the classes by cluster: clusters"' in html
    assert (report.parent / "plots" / "similarity-clusters.png").exists()


def test_degenerate_clusters_are_warned_of(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path, {"name": "mnist"})
    clusters = [list(range(12, 60)), *([2 * index, 2 * index + 1] for index in range(6)), [60, 61]]
    add_clusters(run, clusters, [f"c{label}" for label in range(70)])
    run.write()
    text = text_of_task(run, 64)
    assert "Cluster 0 holds 48 of 64 classes, 6 times the mean" in text
    assert "2 classes are in no cluster, so that the generalist alone decides on them: 62 and 63" in text
    assert "c12, c13, c14, c15, c16, c17, c18, c19, c20, c21, c22, c23 and 36 more" in text
    assert "no similarities were measured" in text


def text_of_task(run: Any, classes: int) -> str:
    """`text_of` for a task with so many classes."""
    folder = run.write(task={"name": "mnist", "num_classes": classes})
    html = build_page(summarize_run(open_run(folder, run.root)), [])
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_clusters_that_share_most_classes_are_warned_of(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    add_clusters(run, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 5], [5, 6, 7, 8, 9]])
    text = text_of(run)
    assert "5 classes are in more than one cluster" in text
    assert "Clusters 0 and 1 share 4 of 5 classes" in text


def test_good_clusters_are_not_warned_of(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    add_clusters(run, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    text = text_of(run)
    assert "in no cluster" not in text
    assert "two specialists for nearly the same" not in text
    assert "times the mean" not in text


def test_it_is_said_how_much_of_the_confusions_the_clusters_hold(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    held = {"clusters/confusions_held": 0.614}
    add_clusters(run, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], similarity=np.eye(10), **held)
    assert "61.4 % of what it predicts together is in one cluster" in text_of(run)


@pytest.mark.parametrize(
    "damage", ["{", '{"clusters": [[0]]}', '{"clusters": [["x"]], "names": [["x"]]}', "gone", "changed"]
)
def test_clusters_that_cannot_be_read_leave_a_note(tmp_path: Path, fake_run: Start, damage: str) -> None:
    run = fake_run(tmp_path)
    run.stage("only", role="model", errors=3)
    folder = add_clusters(run, [[0, 1], [2, 3]])
    damage_payload(folder, "clusters.json", damage)
    text = text_of(run)
    assert "Clusters of classes" in text
    assert "clusters.json` is damaged" in text
    assert "only makes 3 errors" in text


def damage_payload(folder: Any, name: str, damage: str) -> None:
    """Other content that the record knows, or a file that is gone or no longer what the record says."""
    if damage == "gone":
        (folder.path / name).unlink()
        return
    (folder.path / name).write_text(damage)
    if damage != "changed":
        record = folder.record()
        folder.write_record(record.model_copy(update={"payload": folder.checksums(record.payload)}))


def test_a_matrix_of_other_classes_is_left_out_and_the_lists_are_shown(
    tmp_path: Path, fake_run: Start
) -> None:
    run = fake_run(tmp_path)
    add_clusters(run, [[0, 1], [2, 3, 4, 5, 6, 7, 8, 9]], similarity=np.eye(3))
    text = text_of(run)
    assert "is of 3 classes" in text
    assert "a and b" in text


def test_cells_are_means_of_the_similarities_in_the_order_of_the_clusters() -> None:
    similarity = np.random.default_rng(0).normal(size=(7, 7))
    order = [3, 0, 6, 1, 2, 0, 5]
    cells = ordered_cells(similarity, order, 3)
    for row in range(3):
        for column in range(3):
            rows, columns = order[3 * row : 3 * row + 3], order[3 * column : 3 * column + 3]
            mean = np.mean([similarity[one, other] for one in rows for other in columns])
            assert cells[row, column] == pytest.approx(mean)


def test_a_class_beside_itself_is_no_similarity() -> None:
    similarity = np.array([[0.0, -0.2], [-0.2, 0.0]])
    cells = ordered_cells(similarity, [0, 1, 0], 1)
    assert np.isnan(cells).tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    colours = shades(cells)
    assert np.isfinite(colours).all()
    assert (colours[0, 0, :3] == colours[0, 2, :3]).all()
    assert (colours[0, 0, :3] != colours[0, 1, :3]).any()


def test_more_than_500_classes_share_cells(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    names = [str(label) for label in range(1200)]
    similarity = np.zeros((1200, 1200))
    similarity[:600, :600] = 1
    add_clusters(run, [list(range(600)), list(range(600, 1200))], names, similarity)
    ((clustering,), _) = read_clusterings(open_run(run.write(), tmp_path))
    assert clustering.cells is not None
    assert clustering.cells.shape == (400, 400)
    assert clustering.cells[:200, :200].min() == 1
    assert clustering.cells[200:].max() == 0


def test_a_committee_shows_the_tables_of_the_paper(tmp_path: Path, fake_run: Start, predict: Start) -> None:
    run, labels = fake_run(tmp_path), np.arange(200) % 10
    run.stage("generalist", parameters=100, **predict(labels, 10, 40))
    add_committee(
        run, "committee", tables([(0, 100, 80, 0), (1, 60, 50, 9), (2, 40, 30, 5)]), **predict(labels, 10, 26)
    )
    text = text_of(run)
    assert "committee makes 26 errors on 200 test samples: 13.0 %. It has 200 parameters." in text
    assert "The 2 specialists pay : with them 14 more of 200 samples are right" in text
    assert "generalist 43.1 % 80.0 %" in text
    assert "committee + 2 specialists 45.9 % 87.0 % +8.8 % +14 14, 0" in text
    assert "0 100 80 0 +0.0 %" in text
    assert "1 60 50 +9 +18.0 %" in text
    assert "2 40 30 +5 +16.7 %" in text
    assert "only samples of the specialists' classes (100 of 200)" in text
    assert "Asking only the active specialists saves 75 % of the work" in text
    assert "committee 100 s 61 s 33 s 0.50 of 2 25.0 % 40.0 %" in text


def test_losses_and_chance_are_called_by_their_names(tmp_path: Path, fake_run: Start, predict: Start) -> None:
    labels = np.arange(200) % 10
    for name, errors, change, words in (
        ("worse", 60, -20, "do harm : with them 20 fewer of 200 samples are right"),
        ("chance", 38, 2, "make no difference that could not be chance : with them 2 more"),
        ("same", 40, 0, "change nothing in sum"),
    ):
        run = fake_run(tmp_path / name)
        run.stage("generalist", **predict(labels, 10, 40))
        add_committee(run, "committee", tables([(1, 200, 160, change)]), **predict(labels, 10, errors))
        assert words in text_of(run)


def test_without_predictions_nothing_beyond_the_numbers_is_claimed(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("generalist", errors=40, samples=200)
    add_committee(run, "committee", tables([(1, 200, 160, 30)]), errors=10, samples=200)
    assert "Whether that is chance cannot be told without the generalist's predictions" in text_of(run)


def test_committees_of_one_generalist_share_a_table_with_what_differs(
    tmp_path: Path, fake_run: Start, predict: Start
) -> None:
    run, labels = fake_run(tmp_path), np.arange(200) % 10
    run.stage("generalist", **predict(labels, 10, 40))
    add_committee(run, "one", tables([(1, 200, 160, 20)]), **predict(labels, 10, 20))
    add_committee(run, "three", tables([(1, 200, 160, -20)]), active=3, **predict(labels, 10, 60))
    text = text_of(run)
    assert "Of 2 committees with this generalist, 1 is better than it is alone and 1 is worse" in text
    assert "changes by −20 to +20 of 200" in text
    assert "system n conditional top-1" in text
    assert "three 3 45.9 % 70.0 % −12.5 % −20 0, 20" in text


@pytest.mark.parametrize("damage", ["{", '{"samples": 3}', "[]", "gone", "changed"])
def test_a_committee_that_cannot_be_read_leaves_a_note(tmp_path: Path, fake_run: Start, damage: str) -> None:
    run = fake_run(tmp_path)
    run.stage("generalist", errors=40)
    folder = add_committee(run, "committee", tables([(1, 200, 160, 30)]), errors=10)
    damage_payload(folder, "committee.json", damage)
    text = text_of(run)
    assert "Generalist and specialists" in text
    assert "committee.json` is damaged" in text
    assert "Cost" not in text


def test_a_committee_without_a_result_is_no_section(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("generalist", errors=40)
    run.stage("committee", "evaluate", role="committee", reads=["generalist"], status="failed", error="no")
    run.stage("clusters", "confusion_clusters", role="clusters", reads=["generalist"], status="skipped")
    text = text_of(run)
    assert "Generalist and specialists" not in text
    assert "Clusters of classes" not in text


def test_specialists_compete_only_as_a_committee(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("generalist", errors=40, parameters=100)
    add_committee(run, "committee", tables([(1, 1000, 960, 30)]), errors=10)
    run.stage("student", "distill", role="student", reads=["committee"], errors=20, parameters=40)
    rows = {row.name: row for row in compare(open_run(run.write(), tmp_path)).competitors}
    assert list(rows) == ["generalist", "committee", "student"]
    assert rows["committee"].parameters == 200
    text = text_of(run)
    assert "their numbers do not compare with those of other stages" in text
    assert "5.0 times smaller than generalist and specialists together (40 against 200 parameters)" in text


def test_a_committee_teaches_with_what_it_said_as_a_whole(
    tmp_path: Path, fake_run: Start, predict: Start
) -> None:
    run, labels = fake_run(tmp_path), np.arange(40) % 4
    run.stage("generalist", **predict(labels, 4, 9))
    add_committee(run, "committee", tables([(1, 40, 31, 5)]), **predict(labels, 4, 4))
    run.stage("g.targets", "predict_targets", role="targets", reads=["generalist"])
    fused = {"role": "targets", "reads": ["g.targets", "specialists.0", "specialists.1"]}
    committee = {"active": 1, "direction": "forward"}
    run.stage("fused.targets", "combine_targets", config={"committee": committee}, **fused)
    other = {"committee": {**committee, "active": 2}}
    run.stage("other.targets", "combine_targets", config=other, **fused)
    run.stage("other", "distill", role="student", reads=["other.targets"], **predict(labels, 4, 6))
    run.stage("student", "distill", role="student", reads=["fused.targets"], **predict(labels, 4, 6))
    read = open_run(run.write(), tmp_path)
    student = read.stages["student"]
    teaching = read_teaching(read, student, student.predictions())
    assert (teaching.name, teaching.role) == ("committee", "committee")
    assert (teaching.members[0].logits == read.stages["committee"].predictions().logits).all()
    unjudged = read.stages["other"]
    with pytest.raises(Exception, match="no stage of the plan judges the committee"):
        read_teaching(read, unjudged, unjudged.predictions())


@pytest.mark.parametrize(("wrong", "right"), [(86, 150), (40, 60), (4, 16), (45, 55)])
def test_chance_is_that_of_tossed_coins(wrong: int, right: int) -> None:
    tosses = wrong + right
    exact = 2 * sum(math.comb(tosses, heads) for heads in range(wrong + 1)) / 2**tosses
    # The normal approximation is 18 % off for the few tosses of these, and 11 % far out in the tail.
    assert chance_of(right - wrong, tosses) == pytest.approx(exact, rel=0.2)
    assert chance_of(wrong - right, tosses) == chance_of(right - wrong, tosses)


def test_no_change_is_chance() -> None:
    assert chance_of(0, 10) == 1
    assert chance_of(0, 0) == 1


def test_ten_specialists_and_more_share_a_row() -> None:
    rows = [Coverage(specialists=n, samples=10, right=5, change=1) for n in (12, 0, 10, 9)]
    folded = fold_coverage(rows)
    assert [name for name, _ in folded] == ["0", "9", "10 or more"]
    last = folded[-1][1]
    assert (last.samples, last.right, last.change, last.relative) == (20, 10, 2, 0.2)


def test_what_was_adjusted_stands_below_its_source_and_the_oracle_is_named(
    tmp_path: Path, fake_run: Start
) -> None:
    run = fake_run(tmp_path)
    for index in range(2):
        run.stage(f"small.{index}", "distill", role="student", errors=200 + index, parameters=10)
    run.stage("tiny", "distill", role="student", errors=300, parameters=5)
    for by, errors in (("test_oracle", 90), ("prior", 109)):
        for index in range(2):
            run.stage(
                f"{by}-way.{index}",
                "adjust_class_bias",
                role="student",
                reads=[f"small.{index}"],
                config={"classes": [3, "<owl>"], "by": by},
                metrics={"class_bias/offset": 3.5 + index},
                errors=errors,
                parameters=10,
            )
    comparison = compare(open_run(run.write(), tmp_path))
    assert [row.name for row in comparison.competitors] == ["small", "test_oracle-way", "prior-way", "tiny"]
    main = choose_main(comparison)
    assert main is not None
    assert main.name == "tiny"
    text = text_of(run)
    assert "prior-way ×2 3 and &lt;owl&gt;: +4.00 ± 0.71 by prior 109.0 ± 0.0" in text
    assert "student, oracle" in text
    assert "its test errors are no honest estimate" in text


def test_the_lead_tells_honest_adjustments_only(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("student", "distill", role="student", errors=206)
    for by, errors in (("test_oracle", 100), ("prior", 109)):
        config = {"classes": [3], "by": by}
        run.stage(by, "adjust_class_bias", role="student", reads=["student"], config=config, errors=errors)
    text = text_of(run)
    assert (
        "With the bias of 3 adjusted after training it makes 109 (chosen by their known frequency)." in text
    )

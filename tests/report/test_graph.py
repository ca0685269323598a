"""Where the boxes of the graph lie: nothing overlaps, edges point right, replicas share a box."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from raydistill.report.figures import finished
from raydistill.report.graph import graph_drawing
from raydistill.report.layout import PlacedGraph, place_graph, spread_apart
from raydistill.runs.view import open_run

Start = Callable[..., Any]


def placed(run: Any) -> PlacedGraph:
    return place_graph(open_run(run.write(), run.root))


def random_graph(start: Start, root: Path, seed: int) -> Any:
    draw = np.random.default_rng(seed)
    run = start(root)
    for index in range(25):
        reads = [f"stage-{other}" for other in range(index) if draw.random() < 2 / 25]
        run.stage(f"stage-{index}", "distill" if reads else "train", role="student", reads=reads)
    return run


def test_replicas_and_what_is_inserted_for_each_share_a_box(distilled: Any) -> None:
    boxes = {box.name: box for box in placed(distilled).boxes}
    assert {name: len(box.members) for name, box in boxes.items()} == {
        "teacher": 2,
        "teacher.0.targets": 2,
        "teacher.targets": 1,
        "baseline": 1,
        "student": 2,
    }
    assert boxes["teacher.0.targets"].label == "teacher.targets"


def test_stages_of_different_readers_do_not_share_a_box(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    for index in range(2):
        run.stage(f"teacher.{index}")
        run.stage(
            f"teacher.{index}.targets",
            "predict_targets",
            role="targets",
            inserted=True,
            reads=[f"teacher.{index}"],
        )
    run.stage("student", "distill", role="student", reads=["teacher.0.targets"])
    run.stage("other", "distill", role="student", reads=["teacher.1.targets"])
    assert len(placed(run).boxes) == 5


@pytest.mark.parametrize("seed", range(5))
def test_boxes_do_not_overlap_and_edges_point_to_the_right(
    tmp_path: Path, fake_run: Start, seed: int
) -> None:
    picture = placed(random_graph(fake_run, tmp_path, seed))
    for one, other in combinations(picture.boxes, 2):
        is_beside = one.x + one.width <= other.x or other.x + other.width <= one.x
        is_above = one.y + one.height <= other.y or other.y + other.height <= one.y
        assert is_beside or is_above, f"{one.name} overlaps {other.name}"
    for edge in picture.edges:
        assert all(left[0] < right[0] for left, right in pairwise(edge))
    for box in picture.boxes:
        assert box.x >= 0
        assert box.y >= -1e-9
        assert box.x + box.width <= picture.width + 1e-9
        assert box.y + box.height <= picture.height + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_every_read_is_an_edge_that_passes_no_foreign_box(tmp_path: Path, fake_run: Start, seed: int) -> None:
    run = random_graph(fake_run, tmp_path, seed)
    picture = placed(run)
    assert len(picture.edges) == sum(len(node.reads) for node in run.nodes)
    for edge in picture.edges:
        for x, y in edge[1:-1]:
            for box in picture.boxes:
                assert not (box.x <= x <= box.x + box.width and box.y < y < box.y + box.height)


def test_seventy_stages_of_a_large_plan_become_few_boxes(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    for index in range(30):
        run.stage(f"teacher.{index}")
        run.stage(
            f"teacher.{index}.targets",
            "predict_targets",
            role="targets",
            inserted=True,
            reads=[f"teacher.{index}"],
        )
    reads = [f"teacher.{index}.targets" for index in range(30)]
    run.stage("teacher.targets", "combine_targets", role="targets", inserted=True, reads=reads)
    for index in range(10):
        run.stage(f"student.{index}", "distill", role="student", reads=["teacher.targets"])
    picture = placed(run)
    assert len(picture.boxes) == 4
    assert len({box.middle for box in picture.boxes}) == 1, "a chain is a straight line"


def test_the_drawing_is_valid_and_names_every_stage_when_pointed_at(tmp_path: Path, fake_run: Start) -> None:
    run = fake_run(tmp_path)
    run.stage("teacher", parameters=812, errors=3)
    run.stage("student", "distill", role="student", reads=["teacher"], status="failed", error="<b>&</b>")
    (plot,) = finished([graph_drawing(placed(run))])
    drawing = ElementTree.fromstring(plot.svg)
    titles = [title.text or "" for title in drawing.iter() if title.tag.endswith("title")]
    assert "812 parameters" in titles[0]
    assert "student: failed" in titles[1]
    assert "<b>&</b>" in titles[1]


@pytest.mark.parametrize("name", ["small", "a-much-longer-name"])
@pytest.mark.parametrize("status", ["done", "cached"])
def test_what_stands_in_a_box_stays_inside(tmp_path: Path, fake_run: Start, name: str, status: str) -> None:
    run = fake_run(tmp_path)
    run.stage(f"{name}.0", seconds=2000.0)
    run.stage(f"{name}.1", status=status, seconds=1546.0)
    figure = graph_drawing(placed(run)).figure
    (axes,) = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()
    (shape,) = axes.patches
    box = shape.get_window_extent(renderer)
    texts = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(texts) == 2
    assert all(box.x0 < text.x0 and text.x1 < box.x1 for text in texts)


@pytest.mark.parametrize("seed", range(20))
def test_labels_keep_their_order_and_distance_and_stay_inside(seed: int) -> None:
    draw = np.random.default_rng(seed)
    wishes = sorted(draw.random(draw.integers(1, 30)))
    gap = 0.05
    places = spread_apart(wishes, gap)
    assert all(upper - lower >= min(gap, 1 / (len(wishes) - 1)) - 1e-9 for lower, upper in pairwise(places))
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9


def test_labels_that_have_room_stay_where_they_belong_and_others_part_evenly() -> None:
    assert spread_apart([0.1, 0.5, 0.9], 0.05) == pytest.approx([0.1, 0.5, 0.9])
    assert spread_apart([0.1, 0.5, 0.5], 0.1) == pytest.approx([0.1, 0.45, 0.55])
    assert spread_apart([1.0, 1.0], 0.1) == pytest.approx([0.9, 1.0])

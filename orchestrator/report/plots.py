"""Everything there is to draw about a run."""

from collections.abc import Iterator

from raydistill.metrics import Accuracy
from raydistill.report.costs import weighed
from raydistill.report.curves import learning_curves
from raydistill.report.figures import Drawing, Plot, finished
from raydistill.report.graph import graph_drawing
from raydistill.report.layout import place_graph
from raydistill.report.model_comparisons import ModelComparison
from raydistill.report.plot_lines import draw_curves, draw_temperatures, draw_transfers
from raydistill.report.plot_matrices import draw_attention, draw_confusion, draw_similarity
from raydistill.report.plot_models import draw_layers, draw_looks
from raydistill.report.plot_results import draw_errors, draw_example, draw_front, draw_reliability
from raydistill.report.summary import RunSummary


def draw_plots(summary: RunSummary) -> list[Plot]:
    """The plots of a run, in the style of the report."""
    return finished(_drawings(summary))


def _drawings(summary: RunSummary) -> Iterator[Drawing]:
    if summary.run.stages:
        yield graph_drawing(place_graph(summary.run))
    rows = [competitor for competitor in summary.comparison.competitors if competitor.errors]
    if rows:
        yield Drawing("comparison", "comparison", "Errors on the test split", draw_errors(rows))
    if together := weighed(summary.comparison):
        yield Drawing("front", "front", "Errors against multiply-adds", draw_front(together))
    yield from _draw_series(summary)
    for name, metric, title, is_fraction in (
        ("validation-accuracy", Accuracy.on("validation"), "Validation accuracy", True),
        ("train-loss", "train/loss", "Training loss", False),
    ):
        if lines := learning_curves(summary.comparison.competitors, metric):
            yield Drawing(name, "curves", title, draw_curves(lines, title, is_fraction=is_fraction))
    if summary.confusion is not None and summary.student is not None:
        names = [summary.class_name(label) for label in range(len(summary.confusion))]
        title = f"Confusion of {summary.student.name} on the test split"
        yield Drawing("confusion", "confusion", title, draw_confusion(summary.confusion, names))
    for calibration in summary.calibrations:
        title, name = f"Reliability of {calibration.name}", f"reliability-{calibration.name}"
        yield Drawing(name, "calibration", title, draw_reliability(calibration))
    for place, example in enumerate(summary.examples, start=1):
        title = f"Soft targets of test sample {example.sample}"
        yield Drawing(f"soft-targets-{place}", "examples", title, draw_example(summary, example))


def _draw_series(summary: RunSummary) -> Iterator[Drawing]:
    for clustering in summary.clusterings:
        if clustering.cells is not None:
            name = clustering.stage.name
            title = f"Similarity of the classes by cluster: {name}"
            similarity = draw_similarity(clustering, summary.all_names(clustering.uncovered))
            yield Drawing(f"similarity-{name}", f"clusters-{name}", title, similarity)
    if summary.sweep is not None:
        title = "Test errors by temperature"
        yield Drawing("temperatures", "temperatures", title, draw_temperatures(summary.sweep))
    for place, group in enumerate(summary.transfers):
        for part, figure in draw_transfers(group):
            title, section = f"{part.capitalize()} accuracy by what was learned from", f"transfers-{place}"
            yield Drawing(f"{section}-{part}", section, title, figure)
    for found in summary.attention:
        title = f"Attention of {found.name}"
        yield Drawing(f"attention-{found.name}", "attention", title, draw_attention(found))
    for comparison in summary.model_comparisons:
        yield from _draw_models(comparison)


def _draw_models(comparison: ModelComparison) -> Iterator[Drawing]:
    name = comparison.stage.name
    for pair in comparison.drawn_pairs:
        first, second = (comparison.models[place].name for place in (pair.first, pair.second))
        for measure, title in (("cka", "CKA"), ("mismatch", "Semantic mismatch")):
            drawn = draw_layers(comparison, pair, measure)
            full = f"{title} of the layers of {first} and {second}"
            yield Drawing(f"{measure}-{name}-{first}-{second}", f"layers-{name}", full, drawn)
    if comparison.pictures and any(model.seen_at for model in comparison.written.models):
        yield Drawing(f"grad-cam-{name}", f"looks-{name}", "Where the models look", draw_looks(comparison))

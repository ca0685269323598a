"""The plots, drawn once with matplotlib: as SVG that takes the page's colours, and as PNG on white.

Figures are a hand wide, so that their text stays readable on a phone. Only `Figure` objects are used, no pyplot.
"""

import io
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from raydistill.report.graph import draw_graph
from raydistill.report.layout import place_graph
from raydistill.report.parts import cluster_section
from raydistill.report.plot_attention import draw_attention
from raydistill.report.plot_models import draw_curves, draw_errors, learning_curves
from raydistill.report.plot_predictions import draw_confusion, draw_examples, draw_reliability
from raydistill.report.plot_series import draw_similarity, draw_temperatures, draw_transfers
from raydistill.report.story import Story
from raydistill.report.theme import light, themed

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raydistill",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "text.color": light("ink"),
    "axes.edgecolor": light("muted"),
    "axes.labelcolor": light("muted"),
    "axes.titlecolor": light("ink"),
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": light("rule"),
    "grid.linewidth": 0.7,
    "xtick.color": light("muted"),
    "ytick.color": light("muted"),
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
PNG_DPI = 180


@dataclass(frozen=True)
class Plot:
    """A finished plot: `section` says where the page shows it; `svg` is empty where the page draws its own."""

    name: str
    section: str
    title: str
    svg: str
    png: bytes


def draw_plots(story: Story) -> list[Plot]:
    """Everything there is to draw about a run."""
    return finished(_drawings(story))


def finished(drawings: "Iterable[Drawing]") -> list[Plot]:
    """Plots in our style. The drawings are made here, one after another, as the style holds only here."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes in the PNG, and by the browser in the page.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return [_finish(*drawing) for drawing in drawings]


Drawing = tuple[str, str, str, Figure]


def _drawings(story: Story) -> Iterable[Drawing]:
    if story.run.stages:
        yield "graph", "png-only", "The graph of stages", draw_graph(place_graph(story.run))
    rows = [competitor for competitor in story.comparison.competitors if competitor.errors]
    if rows:
        yield "comparison", "comparison", "Errors on the test split", draw_errors(rows)
    yield from _draw_series(story)
    yield from _draw_curves(story)
    if story.confusion is not None and story.student is not None:
        names = [story.class_name(label) for label in range(len(story.confusion))]
        title = f"Confusion of {story.student.name} on the test split"
        yield "confusion", "confusion", title, draw_confusion(story.confusion, names)
    for calibration in story.calibrations:
        title = f"Reliability of {calibration.name}"
        yield (
            file_name(f"reliability-{calibration.name}"),
            "calibration",
            title,
            draw_reliability(calibration),
        )
    if story.examples:
        yield "soft-targets", "png-only", "Soft targets of a few test pictures", draw_examples(story)


def _draw_series(story: Story) -> Iterable[Drawing]:
    for clustering in story.clusterings:
        if clustering.cells is not None:
            section = cluster_section(clustering.stage.name)
            title = f"Similarity of the classes by cluster: {clustering.stage.name}"
            yield (
                file_name(f"similarity-{clustering.stage.name}"),
                section,
                title,
                draw_similarity(clustering),
            )
    if story.sweep is not None:
        yield "temperatures", "temperatures", "Test errors by temperature", draw_temperatures(story.sweep)
    for place, group in enumerate(story.transfers):
        if (figure := draw_transfers(group)) is not None:
            title = "Accuracy in training and on validation"
            yield f"transfers-{place}", f"transfers-{place}", title, figure
    for found in story.attention:
        title = f"Attention of {found.name}"
        yield file_name(f"attention-{found.name}"), "attention", title, draw_attention(found)


def _draw_curves(story: Story) -> Iterable[Drawing]:
    for name, metric, title, is_fraction in (
        ("validation-accuracy", "validation/accuracy", "Validation accuracy", True),
        ("train-loss", "train/loss", "Training loss", False),
    ):
        lines = learning_curves(story.comparison.competitors, metric)
        if lines:
            yield name, "curves", title, draw_curves(lines, title, is_fraction=is_fraction)


def file_name(name: str) -> str:
    """A name that is safe as a file name everywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _finish(name: str, section: str, title: str, figure: Figure) -> Plot:
    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(w_pad=0.07, h_pad=0.07)
        engine.execute(figure)
        figure.set_layout_engine("none")  # or it would be worked out again for each format
    svg = "" if section == "png-only" else as_svg(figure, title)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    figure.clear()
    return Plot(name, section, title, svg, png.getvalue())


def as_svg(figure: Figure, title: str) -> str:
    """An SVG to put into the page: its text in the page's font, its colours the page's variables."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", facecolor="none", dpi=PNG_DPI, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' id="(?:[A-Za-z]+[A-Za-z0-9.]*_)+\d+"', "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return themed(svg)

"""The style of every plot: drawn once with matplotlib, as SVG that takes the page's colours and as PNG on white.

Figures are a hand wide, so that their text stays readable on a phone. Only `Figure` objects are used, no pyplot, which
would keep every figure alive.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator

from raydistill.report.theme import light, themed

SETTINGS = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own font
    "svg.hashsalt": "raydistill",  # the same drawing has the same bytes
    "text.parse_math": False,  # a class may be called $\frac{
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
Look = dict[str, Any]  # what matplotlib is told about an artist
CSS_DPI = 96


class Drawing(NamedTuple):
    """What is still to be written: `section` says where the page shows it, `titles` what artists say, by their gid,
    when they are pointed at."""

    name: str
    section: str
    title: str
    figure: Figure
    titles: Mapping[str, str] = {}


@dataclass(frozen=True)
class Plot:
    """A finished plot. `svg` is markup that needs no escaping, `width` its natural width on the page in pixels."""

    name: str
    section: str
    svg: str
    png: bytes
    width: float


def finished(drawings: Iterable[Drawing]) -> list[Plot]:
    """Plots in our style. The drawings are made here, one after another, as the style holds only here."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # A class name in a script that the font lacks is drawn as boxes in the PNG, and by the browser in the page.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return [_finish(drawing) for drawing in drawings]


def _finish(drawing: Drawing) -> Plot:
    figure = drawing.figure
    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(w_pad=0.07, h_pad=0.07)
        engine.execute(figure)
        figure.set_layout_engine("none")  # or it would be worked out again for each format
    width = CSS_DPI * float(figure.get_figwidth())
    svg = as_svg(figure, drawing.title, drawing.titles)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    figure.clear()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", drawing.name)  # safe as a file name everywhere
    return Plot(name, drawing.section, svg, png.getvalue(), width)


def as_svg(figure: Figure, title: str, titles: Mapping[str, str]) -> str:
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
    for name, text in titles.items():
        svg = svg.replace(f'<g id="{name}">', f"<g><title>{escape(text)}</title>", 1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return themed(svg)


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one panel."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def free_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in points whose one panel has no axes: x to the right and y down, in points."""
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure, axes


def box_in(axes: Axes) -> None:
    """A thin frame on all four sides."""
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(light("rule"))


def show_values(axes: Axes, *, is_fraction: bool, bins: int = 6) -> None:
    """Round numbers on the vertical axis, percentages for fractions, and a line at each."""
    axes.yaxis.set_major_locator(MaxNLocator(bins, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: axis_text(value, is_fraction=is_fraction))
    axes.grid(axis="y")


def axis_text(value: float, *, is_fraction: bool) -> str:
    """A round number beside an axis: 92.5 % or 0.5."""
    return f"{100 * value:.4g} %" if is_fraction else f"{value:.4g}"


def show_steps(axes: Axes, label: str, bins: int = 6) -> None:
    """Whole numbers, of epochs or trials, on the horizontal axis."""
    axes.xaxis.set_major_locator(MaxNLocator(bins, integer=True))
    axes.set_xlabel(label)


def bar_places(axes: Axes, names: Sequence[str]) -> None:
    """Names at the left of horizontal bars, the first on top, and nothing but the grid behind them."""
    axes.set_yticks(range(len(names)), names, color=light("ink"))
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


class Magnitudes(Locator):
    """Powers of ten; within three of them their doubles and halves as well, since alone they would leave an axis with
    hardly a number; and even steps where the ends are closer yet."""

    def __call__(self) -> Sequence[float]:
        """The numbers of the axis as it is shown now."""
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Those between two positive ends."""
        finder = LogLocator(subs=(1,) if vmax > 1000 * vmin else (1, 2, 5), numticks=9)
        shown = [value for value in finder.tick_values(vmin, vmax) if vmin <= value <= vmax]
        return shown if len(shown) > 1 else MaxNLocator(4).tick_values(vmin, vmax)


def show_magnitudes(axes: Axes, label: str, text: Callable[[float], str]) -> None:
    """A logarithmic axis of costs."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(Magnitudes())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: text(value))
    axes.set_xlabel(label)

"""From a matplotlib figure to an SVG element that takes its colours from the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

#: Colours by role. In the page each becomes the variable of that name, so that the
#: figures follow light, dark and print; the values are those of ``page.css`` in light.
INK, MUTED, GRID, BAND = "#1b2431", "#5c6878", "#d8dee6", "#eef2f7"
ACCENT, SOFT, BAD = "#2563b8", "#a9c4e8", "#c4314b"
#: At least 3:1 against the page, light and dark; a person who sees no red can tell them apart.
PALETTE = (
    "#2f78c4", "#d9731a", "#2b9274", "#b0519d", "#9c7a17",
    "#2b91a8", "#8465cc", "#d0505f", "#6f8a35", "#94705f",
)  # fmt: skip
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--grid", BAND: "--band",
    ACCENT: "--accent", SOFT: "--soft", BAD: "--bad",
    **{colour: f"--c{index}" for index, colour in enumerate(PALETTE)},
}  # fmt: skip
_STYLE: Any = {  # matplotlib's stubs want each name as a literal
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.major.width": 0.7,
    "xtick.minor.width": 0.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.major.width": 0.7,
    "ytick.minor.width": 0.5,
    "legend.frameon": False,
    "patch.linewidth": 0.0,
}


@dataclass(frozen=True)
class Size:
    """For which kind of page a figure is drawn.

    Attributes
    ----------
    suffix : str
        Of the figure's id.
    width : float
        [inches]
    name : int
        Longest name that is drawn in full [characters]; tables have it all.
    """

    suffix: str
    width: float
    name: int


#: A figure is drawn twice, and the page shows the one that fits: letters keep their size.
WIDE, NARROW = Size("", 7.4, 38), Size("-narrow", 4.1, 22)


@dataclass(frozen=True)
class Drawing:
    """A figure that can stand in the page.

    Attributes
    ----------
    name : str
        Its id in the page.
    svg : Markup
    width_px : int
        The width at which its letters have the size of small print.
    """

    name: str
    svg: Markup
    width_px: int


@contextmanager
def style() -> Iterator[None]:
    """Draw inside of this: our style, whatever the user's matplotlibrc says."""
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # a glyph that DejaVu lacks is the browser's to draw
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def canvas(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """Return a figure with one set of axes; all lengths in inches."""
    figure = Figure(figsize=(width, height))
    place = (
        left / width,
        bottom / height,
        (width - left - right) / width,
        (height - top - bottom) / height,
    )
    return figure, figure.add_axes(place)


def finish(figure: Figure, name: str, label: str) -> Drawing:
    """Return the figure as an SVG element.

    Parameters
    ----------
    figure : Figure
    name : str
        Unique in the page; all ids inside begin with it.
    label : str
        What a person who does not see it is told.
    """
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    width, height = (float(side) * 72 for side in figure.get_size_inches())
    opening = (
        f'<svg id="{name}" role="img" aria-label="{escape(label)}"'
        f' viewBox="0 0 {width:g} {height:g}" xmlns:xlink="http://www.w3.org/1999/xlink"'
        ' xmlns="http://www.w3.org/2000/svg">'
    )
    body = text[text.index(">") + 1 :]
    body = re.sub(r'\b(id=")', rf"\1{name}-", body)
    body = re.sub(r'(href="#|url\(#)', rf"\1{name}-", body)
    body = re.sub(r"\s+d=\"[^\"]*\"", _shortened, body)
    body = re.sub(r"style=\"[^\"]*\"", _coloured, body)
    return Drawing(name, Markup(opening + body), round(width * 96 / 72))


def outline(corners: NDArray[np.float64]) -> PathPatch:
    """Return any number of rectangles as one path, which the page can hold in little space.

    Parameters
    ----------
    corners : ndarray, shape (n, 4)
        left, bottom, right, top.
    """
    left, bottom, right, top = corners.T
    points = np.stack(
        [
            np.stack([left, bottom], axis=1),
            np.stack([right, bottom], axis=1),
            np.stack([right, top], axis=1),
            np.stack([left, top], axis=1),
            np.stack([left, bottom], axis=1),
        ],
        axis=1,
    ).reshape(-1, 2)
    codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY] * len(corners)
    path = Outline(points, codes)
    path.should_simplify = False
    return PathPatch(path, linewidth=0)


def shortened(name: str, longest: int = WIDE.name) -> str:
    """Return a name for a figure: printable, its middle left out if it is too long."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    if len(name) <= longest:
        return name
    tail = longest // 2
    return f"{name[: longest - tail - 1]}…{name[-tail:]}"


def room_for(names: Sequence[str], letters: float = 8.5) -> float:
    """Return the width of the longest name [inches] in letters of so many points."""
    font = FontProperties(family="DejaVu Sans", size=letters)
    widths = [text_to_path.get_text_width_height_descent(name, font, False)[0] for name in names]
    return float(max(widths, default=0.0)) / 72


def unit_colours(totals: Sequence[float]) -> tuple[str, ...]:
    """Return a colour for each; where there are more than colours, the smallest share one."""
    if len(totals) <= len(PALETTE):
        return PALETTE[: len(totals)]
    largest = sorted(range(len(totals)), key=lambda index: -totals[index])[: len(PALETTE)]
    coloured = dict(zip(sorted(largest), PALETTE, strict=True))
    return tuple(coloured.get(index, MUTED) for index in range(len(totals)))


def variable(colour: str) -> str:
    """Return the page's name of a colour."""
    return f"var({_VARIABLES[colour]})"


def _shortened(match: re.Match[str]) -> str:
    """Keep two decimals of a path's coordinates: a fiftieth of a pixel."""
    path = re.sub(r"(\.\d\d)\d+", r"\1", match.group())
    return re.sub(r"\s+", " ", path)


def _coloured(match: re.Match[str]) -> str:
    text = re.sub(
        r"#[0-9a-f]{6}",
        lambda colour: (
            f"var({_VARIABLES[colour.group()]})" if colour.group() in _VARIABLES else colour.group()
        ),
        match.group(),
    )
    return re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)

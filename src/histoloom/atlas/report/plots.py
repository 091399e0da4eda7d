"""Plots for the page and for a publication: drawn once, as an SVG document with its numbers as CSV.

A plot is as wide as one or two columns of a journal, with text of 7 to 8 pt, so that it is legible in print as it is.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histoloom.names.table import inert

ONE_COLUMN, TWO_COLUMNS = 89 / 25.4, 183 / 25.4
"""Widths of plots in inches: 89 and 183 mm."""

INK = "#010203"
"""The colour of text and axes while a plot is drawn: black in its file, the colour of the text around it in the page"""
SYNTHETIC, REAL, SOFT = "#d55e00", "#0072b2", "#7f7f7f"
"""Okabe and Ito (2008): samples, real patches, and what they are compared with."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
_FONTS = "Arial, Helvetica, sans-serif"

Cell = str | int | float | None


@dataclass(frozen=True)
class Plot:
    """A plot: the ``name`` of its files without ending, its ``title``, and what it shows in words (``text``).

    ``svg`` is the whole document, ``csv`` the numbers that are drawn. ``wide``: two columns rather than one.
    """

    name: str
    title: str
    text: str
    svg: str
    csv: str
    wide: bool

    @property
    def inline(self) -> Markup:
        """The drawing as an element for the page, in the colours and the font of the text around it.

        It has no fixed size, and its ids are those of no other drawing.
        """
        element = self.svg[self.svg.index("<svg") :].replace(INK, "currentColor")
        head, rest = element.split(">", 1)
        head = re.sub(r'\s(width|height|xmlns(:xlink)?|version)="[^"]*"', "", head)
        rest = re.sub(r"<defs>\s*<style.*?</defs>", "", rest, count=1, flags=re.DOTALL).replace("xlink:href", "href")
        rest = re.sub(r'<g id="[^"]*"', "<g", rest)
        rest = re.sub(r"font-family: [^;\"]*", "font-family: inherit", rest)
        rest = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1; font-family: inherit", rest)
        # safe: matplotlib escapes the text in it
        return Markup(f'{head} aria-hidden="true" focusable="false">{rest}'.strip())

    @property
    def document(self) -> str:
        """The SVG file: black on white, with a font that other programs have."""
        text = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONTS}", self.svg)
        text = re.sub(r"font: ([\d.]+px)[^;\"]*", rf"font: \1 {_FONTS}", text).replace(INK, "#000000")
        head, rest = text.split("<defs", 1)
        return f'{head}<rect width="100%" height="100%" fill="#ffffff"/>\n <defs{rest}'


@contextmanager
def style(name: str) -> Iterator[None]:
    """The look of all plots while one is drawn; ``name`` keeps the ids in it apart from those of others."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # Names in any script: text stays text, so the reader's font draws what the measuring font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def finished(
    figure: Figure, *, name: str, title: str, text: str, header: Sequence[str], rows: Iterable[Sequence[Cell]]
) -> Plot:
    """The plot of a figure, with its numbers below a ``header``; call it inside ``style``."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([inert(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    wide = figure.get_size_inches()[0] > ONE_COLUMN + 0.1
    return Plot(name, title, text, drawing.getvalue(), table.getvalue(), wide)


def light_grid(axes: Axes) -> None:
    """Thin lines behind what is drawn."""
    axes.set_axisbelow(True)
    axes.grid(color=INK, alpha=0.12, linewidth=0.5)

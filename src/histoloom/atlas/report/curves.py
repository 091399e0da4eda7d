"""Training curves as SVG, from the events of a stage's ``log.jsonl``.

The drawing takes the page's own text colour, so that it reads in light and in dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

_INK = "#010203"  # matplotlib wants a colour; the page's own takes its place in the finished drawing
_LINE = "#2b8cd8"
_MOST_POINTS = 400
_COLUMNS = 4


@dataclass(frozen=True)
class Curve:
    """One metric: its value against the images seen. A NaN separates trainings that followed each other."""

    name: str
    images: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    @property
    def last(self) -> float:
        """The last value."""
        return self.values[-1]


def curves(events: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The metrics in a log, in the order in which they first appear; events that are no training steps are skipped."""
    found: dict[str, Curve] = {}
    for event in events:
        images = event.get("images")
        if not isinstance(images, int | float):
            continue
        for name, value in event.items():
            if name == "images" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            curve = found.setdefault(name, Curve(name))
            if curve.images and images <= curve.images[-1]:
                curve.images.append(math.nan)
                curve.values.append(math.nan)
            curve.images.append(float(images))
            curve.values.append(float(value))
    return list(found.values())


def drawing(metrics: Sequence[Curve], *, salt: str) -> str:
    """One small panel a metric, as an SVG element to put into the page; empty where there are no metrics.

    ``salt`` keeps the element's inner ids apart from those of other drawings on the page.
    """
    if not metrics:
        return ""
    rows = math.ceil(len(metrics) / _COLUMNS)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 9.0, "axes.edgecolor": _INK}):
        figure = Figure(figsize=(3.1 * _COLUMNS, 1.9 * rows), layout="constrained")
        figure.patch.set_alpha(0)
        for position, curve in enumerate(metrics):
            _panel(figure.add_subplot(rows, _COLUMNS, position + 1), curve)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _embedded(text.getvalue())


def _panel(axes: Axes, curve: Curve) -> None:
    images, values = _thinned(curve)
    axes.plot(images, values, color=_LINE, linewidth=1.4)
    axes.set_title(curve.name, fontsize=10, color=_INK, loc="left", parse_math=False)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    keep = np.unique(np.linspace(0, len(curve.values) - 1, min(len(curve.values), _MOST_POINTS)).round().astype(int))
    return np.asarray(curve.images)[keep], np.asarray(curve.values)[keep]


def _embedded(document: str) -> str:
    """The ``svg`` element alone, without a prolog and fixed size, in the colour of the text around it."""
    element = document[document.index("<svg") :].replace(_INK, "currentColor")
    head, rest = element.split(">", 1)
    head = re.sub(r'\s(width|height|xmlns(:xlink)?|version)="[^"]*"', "", head)
    rest = re.sub(r"<defs>\s*<style.*?</defs>", "", rest, count=1, flags=re.DOTALL).replace("xlink:href", "href")
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    rest = re.sub(r"font-family: [^;\"]*", "font-family: inherit", rest)
    rest = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1; font-family: inherit", rest)
    return f'{head} aria-hidden="true" focusable="false">{rest}'.strip()

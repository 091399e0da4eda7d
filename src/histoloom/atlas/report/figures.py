"""Figures inside the page: pictures as data URIs, and training curves as SVG.

Shape suffixes: H and W height and width in px, 3 the channels (red, green, blue), uint8 0..255.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

QUALITY = 85

_TEXT_COLOUR = "#010203"  # matplotlib needs a colour; the page's own takes its place in the finished drawing
_LINE = "#2b8cd8"
_MAX_POINTS = 400
_COLUMNS = 4


@dataclass(frozen=True)
class Picture:
    """An image element: ``source`` is a data URI, ``width`` and ``height`` in px, ``text`` describes what is seen."""

    source: str
    width: int
    height: int
    text: str


def picture(image_HW3: np.ndarray, *, text: str, at_most: int = 192) -> Picture:
    """``image_HW3`` as a JPEG without chroma subsampling, shrunk to ``at_most`` px along its longer side."""
    image = Image.fromarray(np.ascontiguousarray(image_HW3))
    image.thumbnail((at_most, at_most), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    source = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    return Picture(source, image.width, image.height, text)


def read_image(path: Path) -> np.ndarray:
    """A picture file as uint8 (H, W, 3)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


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


def curves(events: Sequence[Mapping[str, object]]) -> list[Curve]:
    """The metrics in a log, in the order in which they first appear; events that are no training steps are skipped."""
    by_name: dict[str, Curve] = {}
    for event in events:
        images = event.get("images")
        if not isinstance(images, int | float):
            continue
        for name, value in event.items():
            if name == "images" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            curve = by_name.setdefault(name, Curve(name))
            if curve.images and images <= curve.images[-1]:
                curve.images.append(math.nan)
                curve.values.append(math.nan)
            curve.images.append(float(images))
            curve.values.append(float(value))
    return list(by_name.values())


def curves_svg(metrics: Sequence[Curve], *, salt: str) -> str:
    """One small panel for each metric, as an SVG element for the page; empty where there are no metrics.

    The element has no fixed size and takes the colour and font of the text around it, so that it is legible in light
    and in dark. ``salt`` keeps its inner ids apart from those of other drawings on the page.
    """
    if not metrics:
        return ""
    rows = math.ceil(len(metrics) / _COLUMNS)
    with mpl.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 9.0, "axes.edgecolor": _TEXT_COLOUR}
    ):
        figure = Figure(figsize=(3.1 * _COLUMNS, 1.9 * rows), layout="constrained")
        figure.patch.set_alpha(0)
        for position, curve in enumerate(metrics):
            n = len(curve.values)
            shown = np.unique(np.linspace(0, n - 1, min(n, _MAX_POINTS)).round().astype(int))
            axes = figure.add_subplot(rows, _COLUMNS, position + 1)
            axes.plot(np.asarray(curve.images)[shown], np.asarray(curve.values)[shown], color=_LINE, linewidth=1.4)
            axes.set_title(curve.name, fontsize=10, color=_TEXT_COLOUR, loc="left", parse_math=False)
            axes.patch.set_alpha(0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(colors=_TEXT_COLOUR, labelsize=9)
            axes.grid(color=_TEXT_COLOUR, alpha=0.12, linewidth=0.6)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    document = text.getvalue()

    # The svg element alone, without prolog, size, namespaces, style sheet and fonts of its own
    element = document[document.index("<svg") :].replace(_TEXT_COLOUR, "currentColor")
    head, rest = element.split(">", 1)
    head = re.sub(r'\s(width|height|xmlns(:xlink)?|version)="[^"]*"', "", head)
    rest = re.sub(r"<defs>\s*<style.*?</defs>", "", rest, count=1, flags=re.DOTALL).replace("xlink:href", "href")
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    rest = re.sub(r"font-family: [^;\"]*", "font-family: inherit", rest)
    rest = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1; font-family: inherit", rest)
    return f'{head} aria-hidden="true" focusable="false">{rest}'.strip()

"""Pictures inside the page, their scale bars, and the curves of a training's log.

Shape suffixes: H and W height and width in px, 3 the channels (red, green, blue), uint8 0..255.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

QUALITY = 85

_BAR_SHARE = 0.4  # the longest scale bar, of what it stands under


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


@dataclass(frozen=True)
class ScaleBar:
    """A scale bar of a round length: ``share`` (0..1) of the width of what it stands under."""

    text: str
    share: float


def scale_bar(width_um: float) -> ScaleBar:
    """The longest bar of 1, 2 or 5 times a power of ten that takes at most two fifths of ``width_um``."""
    longest = _BAR_SHARE * width_um
    power = 10.0 ** math.floor(math.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9))
    return ScaleBar(f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm", length / width_um)


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

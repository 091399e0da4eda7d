"""Pictures inside the page: arrays in, data URIs out.

Shape suffixes: H and W height and width in px, 3 the channels (red, green, blue), uint8 0..255.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """An image element: ``source`` is a data URI, ``width`` and ``height`` in px, ``text`` says what is seen."""

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

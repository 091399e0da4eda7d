"""Galleries on one sheet to keep or print: pictures at one scale, a title, a scale bar, and what is real."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE, GAP, MARGIN = 160, 8, 32
"""Side of a patch on the sheet (half of it where surroundings are shown), px between two, and px around all."""

COLUMNS = 6
"""Patches in a row, without their surroundings."""

DPI = 150
"""A patch is 27 mm wide in print."""

_TITLE, _TEXT = 30, 20  # px of the letters
_INK, _SOFT = (16, 20, 24), (80, 88, 98)


@dataclass(frozen=True)
class SheetGallery:
    """One gallery: its title, lines about it, and its pictures, uint8 (H, W, 3) each.

    ``patches_across``: how many patches are as wide as one picture (3 with the surrounding tissue).
    """

    title: str
    lines: tuple[str, ...]
    images: Sequence[np.ndarray]
    patches_across: int = 1


def scale_bar(side_um: float) -> float:
    """The length of a scale bar for patches of ``side_um``: 1, 2 or 5 times a power of ten, at most their side."""
    power = 10.0 ** math.floor(math.log10(side_um))
    return max(step * power for step in (1, 2, 5) if step * power <= side_um)


def gallery_sheet(galleries: Sequence[SheetGallery], *, heading: str, side_um: float) -> Image.Image:
    """All galleries below each other on one white sheet, at one scale."""
    width = 2 * MARGIN + COLUMNS * (TILE + GAP) - GAP

    # The height first: of the heading, and of each gallery with its lines and rows
    tile = TILE if all(gallery.patches_across == 1 for gallery in galleries) else TILE // 2
    sides = [tile * gallery.patches_across for gallery in galleries]
    columns = [max(1, (width - 2 * MARGIN + GAP) // (side + GAP)) for side in sides]
    heights = [
        _TITLE + 14 + (_TEXT + 8) * len(gallery.lines) + -(-len(gallery.images) // across) * (side + GAP) + MARGIN
        for gallery, across, side in zip(galleries, columns, sides, strict=True)
    ]
    top = MARGIN + 2 * (_TEXT + 10) + 30
    sheet = Image.new("RGB", (width, top + sum(heights) + MARGIN // 2), "white")
    draw = ImageDraw.Draw(sheet)

    # What it is, and the scale bar that holds for every picture
    draw.text((MARGIN, MARGIN), _fitting(heading, size=_TEXT, width=width - 2 * MARGIN), _SOFT, font=_font(_TEXT))
    bar_um = scale_bar(side_um)
    bar, y = round(tile * bar_um / side_um), MARGIN + _TEXT + 22
    draw.rectangle((MARGIN, y, MARGIN + bar - 1, y + 7), fill=_INK)
    draw.text((MARGIN + bar + 12, y - 10), f"{bar_um:g} um; a patch is {side_um:.3g} um wide", _INK, font=_font(_TEXT))

    for gallery, across, side, height in zip(galleries, columns, sides, heights, strict=True):
        title = _fitting(gallery.title, size=_TITLE, width=width - 2 * MARGIN)
        draw.text((MARGIN, top), title, _INK, font=_font(_TITLE))
        below = top + _TITLE + 14
        for line in gallery.lines:
            text = _fitting(line, size=_TEXT, width=width - 2 * MARGIN)
            draw.text((MARGIN, below), text, _SOFT, font=_font(_TEXT))
            below += _TEXT + 8
        for number, image in enumerate(gallery.images):
            picture = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
            row, column = divmod(number, across)
            sheet.paste(picture, (MARGIN + column * (side + GAP), below + row * (side + GAP)))
        top += height
    return sheet


def encoded_sheet(sheet: Image.Image, kind: Literal["png", "pdf"]) -> bytes:
    """The sheet as a file."""
    data = io.BytesIO()
    if kind == "pdf":
        sheet.save(data, "PDF", resolution=DPI, quality=92)
    else:
        sheet.save(data, "PNG", dpi=(DPI, DPI))
    return data.getvalue()


def _fitting(text: str, *, size: int, width: int) -> str:
    """The text in one line, cut with an ellipsis where it is wider than ``width`` px."""
    text = " ".join(text.split())
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: it has the letters of most scripts."""
    import matplotlib as mpl

    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)

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

A4 = (1240, 1754)
"""A page in px: 210 by 297 mm."""

_WIDTH = 2 * MARGIN + COLUMNS * (TILE + GAP) - GAP
_EDGE = 60  # px above and below what stands on a page
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
    return _stacked([_heading(heading, galleries, side_um=side_um), *_strips(galleries)])


def gallery_pages(galleries: Sequence[SheetGallery], *, heading: str, side_um: float) -> list[Image.Image]:
    """The same on A4 pages: a row of pictures is on one page, and a title is on the page of its first row."""
    room = A4[1] - 2 * _EDGE
    pages: list[list[Image.Image]] = []
    for strip in _strips(galleries):
        if not pages or sum(one.height for one in pages[-1]) + strip.height > room:
            pages.append([_heading(heading, galleries, side_um=side_um)])
        pages[-1].append(strip)
    result = []
    for number, strips in enumerate(pages, start=1):
        page = Image.new("RGB", A4, "white")
        sheet = _stacked(strips)
        page.paste(sheet, ((A4[0] - sheet.width) // 2, _EDGE))
        text = f"page {number} of {len(pages)}"
        left = A4[0] - (A4[0] - sheet.width) // 2 - MARGIN - _font(_TEXT).getlength(text)
        ImageDraw.Draw(page).text((left, A4[1] - _EDGE), text, _SOFT, font=_font(_TEXT))
        result.append(page)
    return result


def encoded_sheet(
    galleries: Sequence[SheetGallery], *, heading: str, side_um: float, kind: Literal["png", "pdf"]
) -> bytes:
    """The galleries as a file: one PNG, or a PDF of A4 pages."""
    data = io.BytesIO()
    if kind == "pdf":
        first, *others = gallery_pages(galleries, heading=heading, side_um=side_um)
        first.save(data, "PDF", resolution=DPI, quality=92, save_all=True, append_images=others)
    else:
        gallery_sheet(galleries, heading=heading, side_um=side_um).save(data, "PNG", dpi=(DPI, DPI))
    return data.getvalue()


def _tile(galleries: Sequence[SheetGallery]) -> int:
    """The side of a patch, px."""
    return TILE if all(gallery.patches_across == 1 for gallery in galleries) else TILE // 2


def _heading(text: str, galleries: Sequence[SheetGallery], *, side_um: float) -> Image.Image:
    """What the sheet is, and the scale bar that holds for every picture."""
    strip = Image.new("RGB", (_WIDTH, MARGIN + 2 * (_TEXT + 10) + 30), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((MARGIN, MARGIN), _fitting(text, size=_TEXT, width=_WIDTH - 2 * MARGIN), _SOFT, font=_font(_TEXT))
    bar_um = scale_bar(side_um)
    bar, y = round(_tile(galleries) * bar_um / side_um), MARGIN + _TEXT + 22
    draw.rectangle((MARGIN, y, MARGIN + bar - 1, y + 7), fill=_INK)
    draw.text((MARGIN + bar + 12, y - 10), f"{bar_um:g} µm; a patch is {side_um:.3g} µm wide", _INK, font=_font(_TEXT))
    return strip


def _strips(galleries: Sequence[SheetGallery]) -> list[Image.Image]:
    """The galleries in strips that pages may not cut: a title with its lines and the first row, then each row."""
    strips = []
    for gallery in galleries:
        side = _tile(galleries) * gallery.patches_across
        across = max(1, (_WIDTH - 2 * MARGIN + GAP) // (side + GAP))
        rows = [gallery.images[first : first + across] for first in range(0, len(gallery.images), across)] or [()]
        above = _TITLE + 14 + (_TEXT + 8) * len(gallery.lines)
        for number, row in enumerate(rows):
            top = 0 if number else above
            last = MARGIN if number == len(rows) - 1 else 0
            strip = Image.new("RGB", (_WIDTH, top + (side + GAP if row else 0) + last), "white")
            if not number:
                draw = ImageDraw.Draw(strip)
                title = _fitting(gallery.title, size=_TITLE, width=_WIDTH - 2 * MARGIN)
                draw.text((MARGIN, 0), title, _INK, font=_font(_TITLE))
                for place, line in enumerate(gallery.lines):
                    text = _fitting(line, size=_TEXT, width=_WIDTH - 2 * MARGIN)
                    draw.text((MARGIN, _TITLE + 14 + place * (_TEXT + 8)), text, _SOFT, font=_font(_TEXT))
            for column, image in enumerate(row):
                picture = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
                strip.paste(picture, (MARGIN + column * (side + GAP), top))
            strips.append(strip)
    return strips


def _stacked(strips: Sequence[Image.Image]) -> Image.Image:
    """Strips below each other, with half a margin at the end."""
    sheet = Image.new("RGB", (_WIDTH, sum(strip.height for strip in strips) + MARGIN // 2), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


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

"""A layout as the page "Paint" has it: a coarse grid of cells, each with a tissue.

Shapes: h x w cells of a grid, H x W pixels or latent positions.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from histoloom.diffusion.painting.layout import NOTHING, Canvas, Layout, layout_size, read_layout
from histoloom.diffusion.painting.output import areas_geojson
from histoloom.errors import UserError
from histoloom.names import clusters_of_tissue, normalised

MOST_CELLS = 512
"""cells of a grid along its longer side"""
EMPTY = 255
"""the byte of a cell without a tissue"""
PREVIEW_PATCHES = 3
"""patches along a side of a preview"""


class Grid(BaseModel):
    """Tissues on a grid of cells of ``cell`` px over a field of (``width``, ``height``) px.

    ``cells``: a byte for each cell, row by row, in base64: a place in ``tissues``, or 255 where no tissue is. Cells at
    the right and lower end may reach over the field.
    """

    model_config = ConfigDict(extra="forbid")

    width: int = Field(ge=1, le=100_000)
    height: int = Field(ge=1, le=100_000)
    cell: int = Field(ge=1, le=100_000)
    tissues: list[str] = Field(max_length=250)
    cells: str = Field(max_length=400_000)

    @staticmethod
    def of(cells_hw: np.ndarray, *, tissues: Sequence[str], size: tuple[int, int], cell: int) -> Grid:
        """The grid of places in ``tissues``, ``NOTHING`` for none; ``size``: (width, height) of the field, px."""
        data = np.where(cells_hw == NOTHING, EMPTY, cells_hw).astype(np.uint8).tobytes()
        return Grid(
            width=size[0],
            height=size[1],
            cell=cell,
            tissues=list(tissues),
            cells=base64.b64encode(data).decode("ascii"),
        )

    @property
    def shape_hw(self) -> tuple[int, int]:
        """Rows and columns."""
        return -(-self.height // self.cell), -(-self.width // self.cell)

    def layout(self) -> Layout:
        """The grid as a layout, with the names alone that it has. ``UserError`` where it is none, or empty."""
        rows, columns = self.shape_hw
        if max(rows, columns) > MOST_CELLS:
            raise UserError(f"a layout has at most {MOST_CELLS} cells along a side, got {columns} x {rows}")
        try:
            value_N = np.frombuffer(base64.b64decode(self.cells, validate=True), np.uint8)
        except (binascii.Error, ValueError) as error:
            raise UserError("the cells of the layout are not base64") from error
        if len(value_N) != rows * columns:
            raise UserError(
                f"a layout of {columns} x {rows} cells has {rows * columns:,} of them, got {len(value_N):,}"
            )
        if (value_N == EMPTY).any():
            raise UserError(
                f"{(value_N == EMPTY).mean():.1%} of the layout has no tissue; fill it, or choose a background"
            )
        if int(value_N.max()) >= len(self.tissues):
            raise UserError(f"the layout has the tissue number {value_N.max()}, of {len(self.tissues)} tissues")
        used_M, place_N = np.unique(value_N, return_inverse=True)
        names = tuple(self.tissues[int(value)] for value in used_M)
        return Layout(place_N.reshape(rows, columns).astype(np.int16), names)

    def geojson(self) -> str:
        """The layout as a file that ``histoloom paint`` reads, in px of the field."""
        return areas_geojson(self.layout(), factor=self.cell)

    def preview(self, *, part: tuple[int, int] | None, patch: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """A small layout for a preview, a place in the names for each pixel, and the names.

        The whole field, made smaller to some patches, or at its full size the part whose upper left px is ``part``.
        ``patch``: side of a patch, px.
        """
        layout, most = self.layout(), PREVIEW_PATCHES * patch
        if part is None:
            scale = min(1.0, most / max(self.width, self.height))
            width, height = (max(patch, round(side * scale)) for side in (self.width, self.height))
            left, top, step_x, step_y = 0, 0, self.width / width, self.height / height
        else:
            width, height = min(most, self.width), min(most, self.height)
            left, top = min(part[0], self.width - width), min(part[1], self.height - height)
            step_x = step_y = 1.0
        row_H = ((top + (np.arange(height) + 0.5) * step_y) / self.cell).astype(int)
        column_W = ((left + (np.arange(width) + 0.5) * step_x) / self.cell).astype(int)
        return layout.tissue_hw[row_H[:, None], column_W].astype(np.int64), layout.names


def cell_of(size: tuple[int, int], *, factor: int) -> int:
    """The px of a cell for a field of (width, height) px: latent positions of ``factor`` px, or several of them."""
    return factor * max(1, -(-max(size) // (factor * MOST_CELLS)))


def sampled(layout: Layout, *, canvas: Canvas, cell: int) -> np.ndarray:
    """A layout of latent positions at the middles of cells of ``cell`` px, int16 (h, w)."""
    height, width = canvas.shape_hw
    row_h, column_w = (
        np.minimum((np.arange(-(-side * canvas.factor // cell)) + 0.5) * cell / canvas.factor, side - 1).astype(int)
        for side in (height, width)
    )
    picked_hw: np.ndarray = layout.tissue_hw[row_h[:, None], column_w]
    return picked_hw


@dataclass(frozen=True)
class LayoutFileContent:
    """A layout as ``histoloom paint --layout`` reads it: GeoJSON, or an indexed PNG with the text of its legend.

    ``mpp``: um/px of the file.
    """

    content: bytes
    legend: str | None
    mpp: float

    def read(
        self, *, field_mpp: float, factor: int, least: int, most: int, size: tuple[int, int] | None
    ) -> tuple[np.ndarray, tuple[str, ...], Canvas]:
        """The cells, the names, and the canvas: of ``size`` (width, height) px, or what the file covers if None.

        ``UserError`` for what cannot be read, and for a field with a side below ``least`` or above ``most`` px.
        """
        with TemporaryDirectory() as folder:
            file = Path(folder) / ("layout.geojson" if self.legend is None else "layout.png")
            file.write_bytes(self.content)
            if self.legend is not None:
                file.with_suffix(".json").write_text(self.legend, encoding="utf-8")
            width, height = size or layout_size(file, mpp=self.mpp, field_mpp=field_mpp)
            if not least <= min(width, height) <= max(width, height) <= most:
                raise UserError(
                    f"the layout covers {width:,} x {height:,} px; a field has from {least:,} to {most:,} px a side "
                    "here: check the um/px of the file, or give a part of it"
                )
            canvas = Canvas.of((width, height), factor=factor, mpp=field_mpp, window=factor)
            layout = read_layout(file, canvas, mpp=self.mpp)
        return sampled(layout, canvas=canvas, cell=cell_of(canvas.size, factor=factor)), layout.names, canvas


def palette_places(
    names: Sequence[str], *, palette: Sequence[tuple[str, Sequence[int]]], labels: Mapping[int, str], k: int
) -> list[int]:
    """For each name its place in a palette of (name, clusters). ``UserError`` for a name that is no tissue.

    A cluster that shares its name with others stands for all of them.
    """
    by_name = {normalised(name): place for place, (name, _) in enumerate(palette)}
    places = []
    for name in names:
        place = by_name.get(normalised(name))
        if place is None:
            cluster = clusters_of_tissue(labels, name, k=k)[0]
            place = next(number for number, (_, clusters) in enumerate(palette) if cluster in clusters)
        places.append(place)
    return places

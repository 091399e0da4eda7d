"""Layouts from real slides of the run: the tissue of a slide, and of the part that a field starts from."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from pydantic import BaseModel

from histoloom.atlas.browse.drawn_layout import MOST_CELLS, Grid, cell_of, palette_places
from histoloom.atlas.browse.run_slides import SlideInfo
from histoloom.atlas.browse.slide_tissue import SlideTissue, Source, tissue_of_boxes, tissue_of_map
from histoloom.atlas.web.draw import tissues
from histoloom.atlas.web.errors import Conflict
from histoloom.atlas.web.paint import generator_spec
from histoloom.atlas.web.routing import QueryK, View
from histoloom.atlas.web.run_view import RunView
from histoloom.atlas.web.slides import Slide, Slides, thumbnail_address, tissue_map_path
from histoloom.diffusion.painting.layout import NOTHING
from histoloom.errors import UserError

router = APIRouter(prefix="/api/paint/slides", tags=["paint"])

Level0 = Annotated[float, Query(ge=-1e7, le=1e7, allow_inf_nan=False, description="Level-0 px.")]
FieldPx = Annotated[int, Query(ge=1, le=100_000, description="px of the field.")]


class SlideChoice(BaseModel):
    """A slide that a layout may start from: its size in px of the generator's scale."""

    slide_id: str
    title: str
    width: int
    height: int
    thumbnail: str


class SlideLayout(BaseModel):
    """The tissue of a slide or of a part of it; ``empty``: the share of it where no tissue is known, 0..1."""

    layout: Grid
    source: Source
    empty: float


@router.get("")
def slides(view: View, slides: Slides) -> list[SlideChoice]:
    """The slides with patches, those of the run's order first."""
    choices = []
    for info in slides.search(""):
        if info.usable and info.patches and info.zoom is not None:
            scale = scale_of(view, info)
            width, height = round(info.width * scale), round(info.height * scale)
            title = info.slide_id if info.slide_id.startswith(info.slide) else f"{info.slide}, {info.slide_id}"
            thumbnail = thumbnail_address(view, slides, info)
            choices.append(
                SlideChoice(slide_id=info.slide_id, title=title, width=width, height=height, thumbnail=thumbnail)
            )
    return choices


@router.get("/{slide_id}")
def whole_slide(view: View, slide: Slide, k: QueryK) -> SlideLayout:
    """The tissue of the whole slide, to choose a part of."""
    scale = scale_of(view, slide)
    size = max(1, round(slide.width * scale)), max(1, round(slide.height * scale))
    return slide_layout(view, slide, k=k, left=0, top=0, size=size, cell=max(1, -(-max(size) // MOST_CELLS)))


@router.get("/{slide_id}/layout")
def part_of_slide(
    view: View, slide: Slide, k: QueryK, left: Level0, top: Level0, width: FieldPx, height: FieldPx
) -> SlideLayout:
    """The layout of a field of (``width``, ``height``) px whose upper left corner is (``left``, ``top``), px of it."""
    spec = generator_spec(view)
    cell = cell_of((width, height), factor=spec.size // spec.shape[1])
    return slide_layout(view, slide, k=k, left=left, top=top, size=(width, height), cell=cell)


def scale_of(view: RunView, slide: SlideInfo) -> float:
    """px of the generator for a level-0 px of the slide."""
    rows = view.table.on_slide(slide.slide_id)
    if not len(rows):
        raise Conflict("this slide has no patches in the run; choose another one")
    return view.size / float(view.table.extent_N[rows[0]])


def slide_layout(
    view: RunView, slide: SlideInfo, *, k: int, left: float, top: float, size: tuple[int, int], cell: int
) -> SlideLayout:
    """The tissue of a part of a slide in the tissues of the palette; what the generator cannot draw is empty."""
    known, scale = slide_tissue(view, slide, k=k), scale_of(view, slide)
    rows, columns = -(-size[1] // cell), -(-size[0] // cell)
    box = (left / scale, top / scale, (left + columns * cell) / scale, (top + rows * cell) / scale)
    cells = known.cells(box, (rows, columns))

    offered = tissues(view, k=k)
    palette = [(one.name, one.clusters) for one in offered]
    labels = {number: label.name for number, label in view.drawn_labels(k).items()}
    places = []
    for name in known.names:
        try:
            places += palette_places([name], palette=palette, labels=labels, k=k)
        except UserError:  # a name of corrected patches that the generator was not trained on
            places.append(NOTHING)
    cells = np.array([*places, NOTHING], np.int16)[cells]
    grid = Grid.of(cells, tissues=[one.name for one in offered], size=size, cell=cell)
    return SlideLayout(layout=grid, source=known.source, empty=float((cells == NOTHING).mean()))


def slide_tissue(view: RunView, slide: SlideInfo, *, k: int) -> SlideTissue:
    """The tissue of a slide: of the map that ``histoloom map`` made, of the report's, or of the run's patches."""
    if (found := tissue_of_map(view.path, slide=slide.slide_id, k=k, labels=view.labels(k))) is not None:
        return found
    report = tissue_map_path(view, slide, k=k)
    if report is not None and report.with_suffix(".npz").is_file():
        from histoloom.atlas.maps.tissue_map import SlideMap  # loads torch

        stored = SlideMap.load_cells(report.with_suffix(".npz"), k=k, thumbnail=np.zeros((1, 1, 3), np.uint8))
        groups = stored.groups(view.path, k=k, patches=view.run.require("patches"), slide_id=slide.slide_id)
        names = tuple(group.name for group in groups.groups)
        return tissue_of_boxes(stored.boxes_N4, groups.group_N, names=names, source="report")
    rows, groups = view.table.on_slide(slide.slide_id), view.groups(k)
    names = tuple(group.name for group in groups.groups)
    return tissue_of_boxes(view.table.boxes(rows), groups.group_N[rows], names=names, source="patches")

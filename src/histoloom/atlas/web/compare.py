"""Two galleries beside each other at one scale: groups, real patches and synthetic ones; and galleries as files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import quote, urlencode

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response
from PIL import Image, ImageDraw

from histoloom.atlas.browse.cluster_table import SortOrder
from histoloom.atlas.browse.run_slides import RunSlides
from histoloom.atlas.browse.sheet import SheetGallery, encoded_sheet, scale_bar
from histoloom.atlas.web.gallery_api import PAGE, FilterQuery, filtered, pages, slide_counts
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.pictures import encoded, patch_address, sample_address
from histoloom.atlas.web.routing import PageNumber, PatchId, QueryK, Version, View, cached_response
from histoloom.atlas.web.run_view import RunView, Sample
from histoloom.atlas.web.slides import Slides, errors_as_http
from histoloom.errors import UserError

router = APIRouter()

ZOOMS = (48, 96, 192, 384)
"""Sides of a patch on the page, CSS px."""

FIELD = 3
"""With the surrounding tissue a picture is as wide as so many patches."""

NOT_FOR_DIAGNOSIS = "Synthetic: research material, not for diagnosis."

_GALLERY = re.compile(r"(real|synthetic)|(synthetic-)?(\d{1,4})")
GalleryText = Annotated[
    str,
    Query(max_length=40, description="A group's number, real, synthetic, or synthetic-NUMBER for samples of a group."),
]
Zoom = Annotated[int, Query(ge=0, le=len(ZOOMS) - 1, description="From 0, the smallest.")]
OrderQuery = Annotated[SortOrder, Query(description="Of real patches.")]


@dataclass(frozen=True)
class Selection:
    """Which pictures a gallery has: real or synthetic ones, of one group or, where it is None, of all."""

    real: bool
    group: int | None


@dataclass(frozen=True)
class Gallery:
    """One page of a gallery: rows of real patches, or samples. ``total`` are those on all pages."""

    title: str
    selection: Selection
    total: int
    rows_M: np.ndarray
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture on the page: its address, its text, its link, its side in CSS px, and its patch where it is one."""

    src: str
    text: str
    href: str
    side: int
    patch_id: str = ""


@dataclass(frozen=True)
class Shown:
    """What the address asks for: two galleries (or one, for a file) and how they are shown."""

    left: str = "real"
    right: str = "synthetic"
    order: SortOrder = "random"
    page: int = 0
    zoom: int = 1
    around: bool = False
    slide: str = ""
    patient: str = ""

    def query(self, k: int, **changes: str | int) -> str:
        """The parameters of the page with changes."""
        values = {"k": k, **vars(self), "around": int(self.around)} | changes
        return urlencode({name: value for name, value in values.items() if value != ""})


def shown_of(
    filters: FilterQuery,
    left: GalleryText = "real",
    right: GalleryText = "synthetic",
    order: OrderQuery = "random",
    page: PageNumber = 0,
    zoom: Zoom = 1,
    around: Annotated[int, Query(ge=0, le=1, description="1: with the surrounding tissue.")] = 0,
) -> Shown:
    """The parameters of the page."""
    return Shown(left, right, order, page, zoom, bool(around), filters.slide, filters.patient)


ShownQuery = Annotated[Shown, Depends(shown_of)]


@router.get("/compare", response_class=HTMLResponse, tags=["pages"])
def compare_page(request: Request, view: View, slides: Slides, k: QueryK, shown: ShownQuery) -> HTMLResponse:
    """Two galleries side by side."""
    galleries = both_galleries(view, k=k, shown=shown)
    last = max(pages(gallery.total) for gallery in galleries) - 1
    rows = np.concatenate([gallery.rows_M for gallery in galleries]).astype(np.int64)
    problems = slide_problems(view, slides, rows=rows) if shown.around else {}
    side_um = view.size * view.mpp
    return render(
        request,
        "compare.html",
        k=k,
        addresses={other: "/compare?" + shown.query(other, left="real", right="synthetic", page=0) for other in view.ks}
        | {k: "/compare?" + shown.query(k)},
        shown=shown,
        link=lambda **changes: "/compare?" + shown.query(k, **changes),
        sheet=lambda kind: f"/compare.{kind}?" + shown.query(k),
        galleries=[(gallery, pictures(view, gallery, k=k, shown=shown, problems=problems)) for gallery in galleries],
        choices=choices(view, k=k),
        problems=sorted(set(problems.values()) - {""}),
        zooms=ZOOMS,
        last=last,
        bar_um=f"{scale_bar(side_um):g}",
        bar=round(ZOOMS[shown.zoom] * scale_bar(side_um) / side_um),
        side_um=view.side_um,
        slides=slide_counts(view, rows=np.flatnonzero(view.grouping(k).table.label_N >= 0)),
        not_for_diagnosis=NOT_FOR_DIAGNOSIS,
    )


@router.get("/compare.{kind}", response_class=Response, tags=["pictures"])
def sheet(view: View, slides: Slides, k: QueryK, shown: ShownQuery, kind: Literal["png", "pdf"]) -> Response:
    """The galleries of the page on one PNG sheet, or on A4 pages; ``right`` may be empty, for one gallery alone."""
    read, table = _surroundings_reader(view, slides), view.table
    result = []
    for gallery in both_galleries(view, k=k, shown=shown):
        first = PAGE * shown.page
        n = max(len(gallery.rows_M), len(gallery.samples))
        which = (
            f"{first + 1:,} to {first + n:,} of {gallery.total:,}"
            if n
            else f"none on this page, {gallery.total:,} in all"
        )
        around = shown.around and gallery.selection.real and n > 0
        lines = [
            f"Real patches, {which}; order: {shown.order}" if gallery.selection.real else f"Synthetic patches, {which}"
        ]
        if gallery.selection.real:
            images = list(table.patches.images(gallery.rows_M)) if n else []
            lines += [
                f"{name}: {value}" for name, value in (("Slide", shown.slide), ("Patient", shown.patient)) if value
            ]
        else:
            folder = view.run.folder("samples")
            images = [np.asarray(Image.open(folder / sample.file).convert("RGB")) for sample in gallery.samples]
            lines.append(NOT_FOR_DIAGNOSIS)
        if around:
            with errors_as_http():
                images = [read(int(row)) for row in gallery.rows_M]
            lines.append("With the surrounding tissue; the patch is framed.")
        result.append(SheetGallery(gallery.title, tuple(lines), images, FIELD if around else 1))
    name = re.sub(r"[^\w-]+", "-", f"{view.title}-k{k}-{shown.left}-{shown.right}", flags=re.ASCII).strip("-")
    return Response(
        encoded_sheet(result, heading=f"{view.title}, {k} groups", side_um=view.size * view.mpp, kind=kind),
        media_type="application/pdf" if kind == "pdf" else "image/png",
        headers={"Content-Disposition": f'inline; filename="{name}.{kind}"', "Cache-Control": "no-store"},
    )


@router.get("/api/patches/{patch_id}/surroundings.jpg", response_class=Response, tags=["pictures"])
def surroundings(request: Request, view: View, slides: Slides, patch_id: PatchId, v: Version = "") -> Response:
    """A real patch in the middle of the tissue about it, three patches wide, as the slide's file shows it."""
    row, read = view.row_of(patch_id), _surroundings_reader(view, slides)
    with errors_as_http():
        identity = slides.identity(str(view.table.slides["slide_id"].iloc[view.table.slide_N[row]]))
        return cached_response(
            request,
            made_from=(identity, view.version, request.url.path),
            immutable=v == view.version,
            media_type="image/jpeg",
            make=lambda: encoded(read(row)),
        )


def both_galleries(view: RunView, *, k: int, shown: Shown) -> list[Gallery]:
    """The page's galleries; one where ``right`` is empty. ``UserError`` where the address names none."""
    left, right = parse_gallery(shown.left), parse_gallery(shown.right) if shown.right else None
    if left.group is None and right is not None and right.group is not None and not left.real:
        left = Selection(real=False, group=right.group)  # synthetic beside a group: of the same group
    elif right is not None and right.group is None and left.group is not None and not right.real:
        right = Selection(real=False, group=left.group)
    return [gallery_of(view, k=k, selection=one, shown=shown) for one in (left, right) if one is not None]


def parse_gallery(text: str) -> Selection:
    """``3``, ``real``, ``synthetic`` or ``synthetic-3``; ``UserError`` for anything else."""
    match = _GALLERY.fullmatch(text)
    if match is None:
        raise UserError("left and right are the number of a group, real, synthetic, or synthetic- and a number")
    whole, synthetic, group = match.groups()
    return Selection(real=whole == "real" or (whole is None and not synthetic), group=int(group) if group else None)


def gallery_of(view: RunView, *, k: int, selection: Selection, shown: Shown) -> Gallery:
    """A page of the pictures of a selection; slide and patient filter real patches alone."""
    group, start = selection.group, PAGE * shown.page
    if group is not None:
        view.check_cluster(k, group)
        group = view.tissue_of(k, group)
    name = "all groups" if group is None else view.names(k)[group].replace("cluster", "group")
    title = f"{'Real' if selection.real else 'Synthetic'}: {name}"
    if group is not None and not name.startswith("group "):
        title += f" ({group})"
    if not selection.real:
        groups = list(view.tissue_clusters(k)) if group is None else [group]
        samples = [view.samples_of(k, one) for one in groups]
        # Of all groups: the first of each, then the second of each
        mixed = [sample for one in samples for sample in one]
        mixed.sort(key=lambda sample: sample.index)
        return Gallery(title, selection, len(mixed), np.empty(0, np.int64), tuple(mixed[start : start + PAGE]))
    clusters = view.grouping(k).table
    rows_M = np.flatnonzero(clusters.label_N >= 0) if group is None else clusters.members[group]
    rows_M = filtered(view, rows_M, slide=shown.slide, patient=shown.patient)
    rows_M = clusters.sorted_rows(rows_M, order=shown.order, random_N=view.random_N)
    return Gallery(title, selection, len(rows_M), rows_M[start : start + PAGE])


def choices(view: RunView, *, k: int) -> list[tuple[str, str]]:
    """What can be selected: the parameter and its title."""
    names, groups = view.names(k), view.tissue_clusters(k)
    titles = {
        group: f"group {group}" if names[group] == f"cluster {group}" else f"{group} · {names[group]}"
        for group in groups
    }
    return [
        ("real", "Real: all groups"),
        ("synthetic", "Synthetic: same group"),
        *((str(group), f"Real: {title}") for group, title in titles.items()),
        *((f"synthetic-{group}", f"Synthetic: {title}") for group, title in titles.items()),
    ]


def pictures(view: RunView, gallery: Gallery, *, k: int, shown: Shown, problems: dict[str, str]) -> list[Picture]:
    """The pictures of a gallery; those of slides with a problem are shown without their surroundings."""
    side, table, result = ZOOMS[shown.zoom], view.table, []
    for sample in gallery.samples:
        text = f"Synthetic patch {sample.index + 1} of group {sample.cluster}"
        result.append(
            Picture(sample_address(view, sample.sample_id), text, sample_address(view, sample.sample_id), side)
        )
    slide_ids = table.slides["slide_id"].astype(str).to_numpy()[table.slide_N[gallery.rows_M]]
    for row, patch_id, slide_id in zip(gallery.rows_M, table.ids(gallery.rows_M), slide_ids, strict=True):
        x, y = round(float(table.x_N[row])), round(float(table.y_N[row]))
        href = f"/slides/{quote(slide_id, safe='')}?k={k}&patch={x},{y}"
        src, width, about = patch_address(view, patch_id), side, ""
        if shown.around and not problems[slide_id]:
            src = f"/api/patches/{quote(patch_id, safe='')}/surroundings.jpg?v={view.version}"
            width, about = FIELD * side, " with the surrounding tissue"
        result.append(Picture(src, f"Patch of {slide_id} at {x}, {y}{about}", href, width, patch_id))
    return result


def slide_problems(view: RunView, slides: RunSlides, *, rows: np.ndarray) -> dict[str, str]:
    """Why the slide of some patches cannot be read, by its id; empty texts where it can."""
    names = view.table.slides["slide_id"].astype(str)
    slide_ids = [names.iloc[number] for number in np.unique(view.table.slide_N[rows])]
    return {slide_id: slides.problem(slide_id) for slide_id in slide_ids}


def _surroundings_reader(view: RunView, slides: RunSlides) -> Callable[[int], np.ndarray]:
    """A function that reads a patch with the tissue about it from its slide, and frames the patch."""
    table, names = view.table, view.table.slides["slide_id"].astype(str)

    def read(row: int) -> np.ndarray:
        extent, size, margin = float(table.extent_N[row]), table.size, (FIELD - 1) / 2
        x, y = float(table.x_N[row]) - margin * extent, float(table.y_N[row]) - margin * extent
        slide_id = names.iloc[table.slide_N[row]]
        picture = Image.fromarray(slides.square(slide_id, x=x, y=y, extent=FIELD * extent, size=FIELD * size))
        draw, start = ImageDraw.Draw(picture), round(margin * size)
        for grow, colour in ((2, "white"), (1, "black")):
            draw.rectangle(
                (start - grow, start - grow, start + size - 1 + grow, start + size - 1 + grow), outline=colour
            )
        return np.asarray(picture)

    return read

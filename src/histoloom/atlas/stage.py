"""The stage ``report``: tissue maps of some slides, and the page that shows the whole run."""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from histoloom.atlas.maps import palette
from histoloom.atlas.maps.cluster_colours import cluster_colours
from histoloom.atlas.maps.embedding_file import write_embedding
from histoloom.atlas.maps.map_cells import read_cells, write_cells
from histoloom.atlas.maps.palette import Rgb, hexadecimal
from histoloom.atlas.maps.tissue_map import (
    chosen_k,
    classify_slide,
    load_classifier,
    overlaid,
    stains_of,
    write_picture,
)
from histoloom.atlas.report import gallery
from histoloom.atlas.report.page import render
from histoloom.atlas.report.pictures import read_image
from histoloom.atlas.report.read_run import RunSource
from histoloom.clustering.classifier import Classifier
from histoloom.names import current_labels
from histoloom.progress import meter
from histoloom.run.directory import Artifact, read_json, replacing, write_json, write_text
from histoloom.run.stage import StageContext
from histoloom.slides.entries import OK, SlideError
from histoloom.slides.inventory.pseudonyms import real_file, told
from histoloom.slides.patch_set import PatchSet


def run(context: StageContext) -> None:
    """Draw the maps that are not there yet, then write the page."""
    folder = context.out / "maps"
    folder.mkdir(exist_ok=True)
    _draw_maps(context, folder=folder)
    embedding = write_embedding(context) if context.config.report.embeddings else None
    source = RunSource(context.run, config=context.config, inputs=context.inputs, maps=folder, embedding=embedding)
    html = render(source.page())
    write_text(context.out / "report.html", html)
    context.say(f"report: {len(html) / 1e6:.1f} MB")


def _draw_maps(context: StageContext, *, folder: Path) -> None:
    slides = PatchSet.open(context.inputs["patches"]).slides
    used = slides[slides["status"] == OK].set_index("slide_id", drop=False)
    chosen = gallery.spread(used.index.tolist(), groups=used["patient"].tolist(), n=context.config.report.map_slides)
    wanted, hues = _identity(context), _colours(context)
    waiting = [slide_id for slide_id in chosen if not _is_drawn(context, slide_id, wanted=wanted, folder=folder)]
    classifier = load_classifier(context.config, context.inputs) if waiting else None
    with meter("mapping slides", total=len(chosen), done=len(chosen) - len(waiting)) as progress:
        for slide_id in waiting:
            assert classifier is not None, "loaded where a slide waits"
            drawn = _draw_map(context, row=used.loc[slide_id].to_dict(), classifier=classifier, folder=folder)
            write_json(folder / f"{slide_id}.json", drawn | wanted | _colour_record(hues))
            progress.advance(1)
    for slide_id in chosen:
        _recolour(context, slide_id, colours=hues, folder=folder)


def shown_k(context: StageContext) -> int:
    """The k that the report shows in detail: the chosen one, unless the configuration names another."""
    return context.config.report.k or chosen_k(context.inputs["clusters"])


def _identity(context: StageContext) -> dict[str, Any]:
    """What a map's cells depend on; names and colours are not part of it."""
    artifact = Artifact.read(context.inputs["clusters"])
    assert artifact is not None, "clusters are published before the report is made"
    return {"clusters": artifact.fingerprint, "k": shown_k(context), "limit": context.config.report.map_patches}


def _is_drawn(context: StageContext, slide_id: str, *, wanted: Mapping[str, Any], folder: Path) -> bool:
    """Whether the map is in ``folder``; one of the last report is taken over where it would come out the same."""
    for place in (folder, context.run / "report" / "maps"):
        path = place / f"{slide_id}.json"
        drawn = read_json(path) if path.is_file() else {}
        if "missing" in drawn or not wanted.items() <= drawn.items():
            continue
        cells = path.with_suffix(".npz")
        if not cells.is_file() and _colours(context) != palette.colours(shown_k(context)):
            continue  # drawn by a version that kept no cells to colour
        if place != folder:
            for file in (path.with_suffix(".png"), *([cells] if cells.is_file() else []), path):
                with replacing(folder / file.name) as temporary:
                    shutil.copyfile(file, temporary)
        return True
    return False


def _colours(context: StageContext) -> list[Rgb]:
    k = shown_k(context)
    return cluster_colours(current_labels(context.run, k=k), k=k)


def _colour_record(hues: Sequence[Rgb]) -> dict[str, Any]:
    return {"colours": [hexadecimal(colour) for colour in hues]}


def _recolour(context: StageContext, slide_id: str, *, colours: Sequence[Rgb], folder: Path) -> None:
    """Draw a map again where it was drawn in other colours; the slide may be gone."""
    path, wanted = folder / f"{slide_id}.json", _colour_record(colours)
    drawn = read_json(path)
    cells = path.with_suffix(".npz")
    if "missing" in drawn or wanted.items() <= drawn.items() or not cells.is_file():
        return
    k, thumbnail = shown_k(context), read_image(context.inputs["patches"] / "thumbnails" / f"{slide_id}.jpg")
    found = read_cells(cells, k=k, thumbnail=thumbnail)
    write_picture(path.with_suffix(".png"), overlaid(found, k=k, colours=colours))
    write_json(path, drawn | wanted)


def _draw_map(
    context: StageContext, *, row: Mapping[Hashable, Any], classifier: Classifier, folder: Path
) -> dict[str, Any]:
    """Write the slide's picture; returns what to say of it, with the reason where it could not be read."""
    config, slide_id = context.config, str(row["slide_id"])
    about = {"slide_id": slide_id, "title": slide_id if row["slide"] == slide_id else f"{row['slide']}, {slide_id}"}
    try:
        found = classify_slide(
            real_file(str(row["file"])),
            label=classifier.labels,
            size=config.patches.size,
            mpp=config.patches.mpp,
            limit=config.report.map_patches,
            source_mpp=float(row["source_mpp"]),
            stains=stains_of(context.inputs["patches"], config=config, file=Path(row["file"])),
        )
    except SlideError as error:
        reason = told(error, stored=str(row["file"]))
        context.say(f"{slide_id}: no tissue map, {reason}")
        return about | {"missing": reason}
    k = shown_k(context)
    write_cells(folder / f"{slide_id}.npz", found, k=k)
    write_picture(folder / f"{slide_id}.png", overlaid(found, k=k, colours=_colours(context)))
    return about | {"patches": len(found.boxes_N4)}

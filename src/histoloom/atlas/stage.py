"""The stage ``report``: tissue maps of some slides, the page that shows the whole run, and its plots as files."""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Mapping
from dataclasses import replace

from histoloom.atlas.browse.cluster_table import round_robin
from histoloom.atlas.maps import palette
from histoloom.atlas.maps.embedding import write_embedding
from histoloom.atlas.maps.overlay import MapRecord
from histoloom.atlas.maps.palette import cluster_colours
from histoloom.atlas.maps.tissue_map import (
    SlideMap,
    classify_slide,
    load_classifier,
    run_stains,
    write_png,
)
from histoloom.atlas.report.figures import read_image
from histoloom.atlas.report.page import render
from histoloom.atlas.report.read_run import read_page
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.features.base import ImagesUnsupported
from histoloom.clustering.results import Decision
from histoloom.names import current_labels
from histoloom.names.corrections import current_corrections
from histoloom.progress import meter
from histoloom.run.directory import Artifact, fingerprint, replacing, write_text
from histoloom.run.stage import StageContext
from histoloom.slides.entries import OK, SlideError
from histoloom.slides.inventory.pseudonyms import public_reason, real_file
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.readers.scale import Scale


def run(context: StageContext) -> None:
    """Draw the tissue maps that are not there yet, then write the page and its plots."""
    config, folder = context.config, context.out / "maps"
    folder.mkdir(exist_ok=True)
    clustering = Artifact.read(context.inputs["clusters"])
    assert clustering is not None, "clusters are published before the report is made"
    k = config.report.k or Decision.load(context.inputs["clusters"]).k

    # Maps of a few slides, from as many patients as possible. Unchanged maps of the last report are kept.
    slides = PatchSet.open(context.inputs["patches"]).slides
    used = slides[slides["status"] == OK].set_index("slide_id", drop=False)
    selected = [used.index[row] for row in round_robin(used["patient"].tolist())[: config.report.map_slides]]
    current = MapRecord("", clusters=clustering.fingerprint, k=k, limit=config.report.map_patches)
    missing = [slide_id for slide_id in selected if not _reuse_map(context, slide_id, current=current)]
    classifier: Classifier | None = None
    try:
        classifier = load_classifier(config, context.inputs) if missing else None
    except ImagesUnsupported as error:
        context.say(f"no tissue maps: {error}")
        missing = []
        for slide_id in selected:
            replace(current, slide_id=slide_id, title=slide_id, missing=str(error)).save(folder / f"{slide_id}.json")
    with meter("mapping slides", total=len(selected), done=len(selected) - len(missing)) as progress:
        for slide_id in missing:
            assert classifier is not None, "loaded where a slide has no map"
            _classify_slide(context, row=used.loc[slide_id].to_dict(), classifier=classifier, current=current)
            progress.advance(1)
    for slide_id in selected:
        _draw_map(context, slide_id)

    embedding = write_embedding(context) if config.report.embeddings else None
    page = read_page(context.run, config=config, inputs=context.inputs, maps=folder, embedding=embedding)
    html = render(page)
    write_text(context.out / "report.html", html)
    (context.out / "figures").mkdir(exist_ok=True)
    for plot in page.plots.values():
        write_text(context.out / "figures" / f"{plot.name}.svg", plot.document)
        write_text(context.out / "figures" / f"{plot.name}.csv", plot.csv)
    context.say(f"report: {len(html) / 1e6:.1f} MB")


def _reuse_map(context: StageContext, slide_id: str, *, current: MapRecord) -> bool:
    """Whether the slide's map is in this report's folder, or could be copied from the last report."""
    own, k = context.out / "maps", current.k
    plain = cluster_colours(current_labels(context.run, k=k), k=k) == palette.colours(k)
    plain = plain and not current_corrections(context.run, k=k)
    for folder in (own, context.run / "report" / "maps"):
        path = folder / f"{slide_id}.json"
        record = MapRecord.load(path)
        if record is None or record.missing:
            continue
        if (record.clusters, record.k, record.limit) != (current.clusters, current.k, current.limit):
            continue
        cells = path.with_suffix(".npz")
        if not cells.is_file() and not plain:
            continue  # an earlier version kept no cells, so that the map cannot be drawn in other colours
        if folder != own:
            for file in (path.with_suffix(".png"), *([cells] if cells.is_file() else []), path):
                with replacing(own / file.name) as temporary:
                    shutil.copyfile(file, temporary)
        return True
    return False


def _classify_slide(
    context: StageContext, *, row: Mapping[Hashable, object], classifier: Classifier, current: MapRecord
) -> None:
    """Classify a slide (a row of ``slides.parquet``); write its cells and its record, or why it cannot be read."""
    config, patches = context.config, context.inputs["patches"]
    slide_id, slide, file = str(row["slide_id"]), str(row["slide"]), str(row["file"])
    path = context.out / "maps" / f"{slide_id}.json"
    record = replace(current, slide_id=slide_id, title=slide_id if slide == slide_id else f"{slide}, {slide_id}")
    try:
        slide_map = classify_slide(
            real_file(file, paths=config.slides.paths),
            classify=classifier.labels,
            surroundings=classifier.features.with_surroundings,
            size=config.patches.size,
            mpp=config.patches.mpp,
            limit=config.report.map_patches,
            scale=Scale(float(str(row["source_mpp"])), str(row.get("mpp_source", ""))),
            stains=run_stains(patches, config=config),
            name=slide,
        )
    except SlideError as error:
        reason = public_reason(error, stored=file)
        context.say(f"{slide_id}: no tissue map, {reason}")
        replace(record, missing=reason).save(path)
        return
    slide_map.save_cells(path.with_suffix(".npz"), k=record.k)
    replace(record, patches=len(slide_map.boxes_N4)).save(path)


def _draw_map(context: StageContext, slide_id: str) -> None:
    """Draw a map from its cells where names, colours or corrections have changed; the slide itself may be gone."""
    path, patches = context.out / "maps" / f"{slide_id}.json", context.inputs["patches"]
    record, stored = MapRecord.load(path), path.with_suffix(".npz")
    if record is None or record.missing or not stored.is_file():
        return
    thumbnail = read_image(patches / "thumbnails" / f"{slide_id}.jpg")
    slide_map = SlideMap.load_cells(stored, k=record.k, thumbnail=thumbnail)
    cells = slide_map.groups(context.run, k=record.k, patches=patches, slide_id=slide_id)
    drawn = fingerprint([[group.colour for group in cells.groups], cells.group_N.tolist()])
    if record.drawn != drawn:
        write_png(path.with_suffix(".png"), slide_map.picture(cells))
        replace(record, drawn=drawn).save(path)

"""The stage ``report``: tissue maps of some slides, and the page that shows the whole run."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from histoloom.atlas import gallery, maps
from histoloom.atlas.classifier import Classifier
from histoloom.atlas.names import current_names, refresh_sample_names
from histoloom.atlas.page import render
from histoloom.atlas.palette import colours
from histoloom.atlas.source import STAGES, RunSource
from histoloom.atlas.tissue_map import SlideMap, classify_slide
from histoloom.config import Config
from histoloom.devices import accelerator
from histoloom.errors import UserError
from histoloom.progress import meter
from histoloom.slides.entries import SlideError
from histoloom.stages import StageContext
from histoloom.store import Run, disk_errors_explained, read_json, replacing, write_json, write_text

_NETWORKS = ("autoencoder", "latents", "clusters")


def run(context: StageContext) -> None:
    """Draw the maps that are not there yet, then write the page into the stage and as ``RUN/report.html``."""
    folder = context.out / "maps"
    folder.mkdir(exist_ok=True)
    _draw_maps(context, folder=folder)
    _write_page(context.run, config=context.config, inputs=context.inputs, out=context.out)
    context.say(f"report: {context.run / 'report.html'}")


def refresh(run: Path) -> bool:
    """Bring the expert's names into the samples' table and the finished report; False where there is no report yet."""
    refresh_sample_names(run)
    opened = Run.open(run)
    if opened.artifact("report") is None:
        return False
    inputs = {stage: opened.require(stage) for stage in STAGES}
    _write_page(run, config=opened.config, inputs=inputs, out=opened.folder("report"))
    return True


def _write_page(run: Path, *, config: Config, inputs: Mapping[str, Path], out: Path) -> None:
    html = render(RunSource(run, config=config, inputs=inputs, maps=out / "maps").page())
    write_text(out / "report.html", html)
    write_text(run / "report.html", html)


def _draw_maps(context: StageContext, *, folder: Path) -> None:
    slides = pd.read_parquet(context.inputs["patches"] / "slides.parquet")
    used = slides[slides["status"] == "ok"].set_index("slide_id", drop=False)
    groups = list(zip(used["patient"], used["slide"], strict=True))
    chosen = gallery.spread(used.index.tolist(), groups=groups, n=context.config.report.map_slides)
    waiting = [slide_id for slide_id in chosen if not (folder / f"{slide_id}.json").is_file()]
    if not waiting:
        return
    classifier = _classifier(context.config, context.inputs)
    with meter("mapping slides", total=len(chosen), done=len(chosen) - len(waiting)) as progress:
        for slide_id in waiting:
            _draw_map(context, row=used.loc[slide_id].to_dict(), classifier=classifier, folder=folder)
            progress.advance(1)


def _draw_map(context: StageContext, *, row: Mapping[Hashable, Any], classifier: Classifier, folder: Path) -> None:
    """Write the slide's picture and, after it, the JSON that says it is whole."""
    config, slide_id = context.config, str(row["slide_id"])
    title = slide_id if row["slide"] == slide_id else f"{row['slide']}, {slide_id}"
    k = _chosen_k(context.inputs["clusters"])
    try:
        found = classify_slide(
            Path(row["file"]),
            label=classifier.labels,
            size=config.patches.size,
            mpp=config.patches.mpp,
            limit=config.report.map_patches,
            source_mpp=float(row["source_mpp"]),
        )
    except SlideError as error:
        context.say(f"{slide_id}: no tissue map, {error}")
        write_json(folder / f"{slide_id}.json", {"slide_id": slide_id, "title": title, "missing": str(error)})
        return
    _write_picture(folder / f"{slide_id}.png", overlaid(found, k=k))
    drawn = {"slide_id": slide_id, "title": title, "k": k, "patches": len(found.boxes_N4)}
    write_json(folder / f"{slide_id}.json", drawn)


def overlaid(found: SlideMap, *, k: int) -> np.ndarray:
    """The tissue map of ``k`` clusters over the slide's thumbnail, uint8 (h, w, 3)."""
    layer = maps.overlay(
        found.boxes_N4,
        labels_N=found.labels[k],
        colours=colours(k),
        dimensions=found.dimensions,
        shape=(found.thumbnail.shape[0], found.thumbnail.shape[1]),
    )
    return maps.blend(found.thumbnail, layer_HW4=layer)


def map_slide(run: Path, slide: Path, *, out: Path, k: int | None, mpp: float | None) -> None:
    """Classify a slide with a run's clusters and write GeoJSON for QuPath, and a picture beside it (``.png``).

    ``k``: None for the chosen one. ``mpp``: the slide's um/px at level 0; None for what the file says. Raises
    ``UserError``.
    """
    opened = Run.open(run)
    sweep = opened.config.clusters.k
    if k is not None and k not in sweep:
        raise UserError(f"k = {k} is not in this run's sweep; allowed: {', '.join(map(str, sweep))}")
    if out.suffix not in {".geojson", ".json"}:
        raise UserError(f"--out wants a name that ends in .geojson, got {out.name}")
    classifier = _classifier(opened.config, {stage: opened.require(stage) for stage in _NETWORKS})
    k = k or _chosen_k(opened.folder("clusters"))
    config = opened.config
    try:
        found = classify_slide(
            slide,
            label=classifier.labels,
            size=config.patches.size,
            mpp=config.patches.mpp,
            limit=config.report.map_patches,
            source_mpp=mpp,
        )
    except SlideError as error:
        raise UserError(f"{slide}: {error}") from error
    names = current_names(run, k=k)
    drawn = maps.geojson(found.boxes_N4, labels_N=found.labels[k], names=names, colours=colours(k))
    with disk_errors_explained(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(drawn, ensure_ascii=False))
        _write_picture(out.with_suffix(".png"), overlaid(found, k=k))


def _classifier(config: Config, inputs: Mapping[str, Path]) -> Classifier:
    return Classifier.load(
        autoencoder=inputs["autoencoder"],
        latents=inputs["latents"],
        clusters=inputs["clusters"],
        device=accelerator(config.runtime).device,
    )


def _chosen_k(clusters: Path) -> int:
    return int(read_json(clusters / "choice.json")["k"])


def _write_picture(path: Path, image: np.ndarray) -> None:
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")

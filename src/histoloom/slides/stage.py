"""The patches stage: slides -> tissue -> random patches on disk, as docs/reference/run-directory.md says.

Every slide is one file of patches, written whole; an interrupted stage keeps the files that it has, and since
positions depend on the settings and the slides alone, it ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from histoloom.config import Config
from histoloom.errors import UserError
from histoloom.run.directory import disk_errors_explained, replacing
from histoloom.run.stage import StageContext
from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.inventory.find import find_slides, none_usable
from histoloom.slides.patch_set import PatchSetInfo, SlideRow
from histoloom.slides.patches.extract import (
    ExtractionJob,
    ExtractionResult,
    OverviewJob,
    ThumbnailJob,
    extract_patches,
    make_thumbnail,
    write_overview,
)
from histoloom.slides.patches.filters import REASONS, Filters
from histoloom.slides.patches.grid import smaller_than_patch
from histoloom.slides.patches.sampling import (
    Positions,
    SlideGeometry,
    draw_candidates,
    patch_extent,
    splits_of,
)
from histoloom.slides.patches.surroundings import fields_of, image_side
from histoloom.slides.places import read_places
from histoloom.slides.readers.scale import SETTING
from histoloom.slides.stain.normalise import SlideStains, StainNormaliser, estimate_slide, reference_of, stain_jobs
from histoloom.slides.workers.workers import Workers

ENLARGED_WARNING = 1.5
"""The log warns where a slide's um/px is more than this times the patches'."""

EMPTY_TISSUE, EMPTY_WARNING = 0.05, 0.5
"""The log warns where more than the second share of the patches have less than the first share of tissue."""

_REASONS_IN_SUMMARY = 5
_NAMES_IN_MESSAGE = 10

Entries = Sequence[SlideEntry]
Reasons = Mapping[str, str]
"""Why slides are left out, by slide id."""


def run(context: StageContext) -> None:
    """Find the slides, draw patches from them and write them into ``context.out``.

    Slides that cannot be read or used are left out, with the reason in slides.parquet. Raises ``UserError`` where no
    slide is usable, or where there are fewer training patches than clusters.
    """
    context = replace(context, out=context.out.absolute())  # workers may have other working directories
    config, out = context.config, context.out
    if config.patches.count is not None and config.slides.places is None:
        _check_count(config.patches.count, config=config, what="patches.count is")
    with (
        disk_errors_explained(out),
        Workers(config.runtime.workers, scheduler=config.runtime.scheduler, place=out) as workers,
    ):
        around = ("surroundings",) if config.clusters.surroundings else ()
        for name in ("images", "thumbnails", "overviews", "checkpoints", *around):
            (out / name).mkdir(parents=True, exist_ok=True)
        _remove_unfinished_files(out)

        entries = _usable_slides(context)
        geometries, reasons = _find_tissue(entries, context=context, workers=workers)
        entries = _leave_out(entries, reasons=reasons, context=context)
        files = {name: out / "checkpoints" / f"{name}.candidates.npz" for name in geometries}
        reasons = draw_candidates(entries, geometries=geometries, files=files, config=config)
        entries = _leave_out(entries, reasons=reasons, context=context)
        normalisers = _estimate_stains(entries, geometries=geometries, context=context, workers=workers)
        results = _extract(
            entries, geometries=geometries, candidates=files, normalisers=normalisers, context=context, workers=workers
        )
        reasons = {name: result.reason for name, result in results.items() if result.positions is None}
        entries = _leave_out(entries, reasons=reasons, context=context)

        positions = {name: result.positions for name, result in results.items() if result.positions is not None}
        rejected = {name: result.rejected for name, result in results.items()}
        splits = _write_tables(entries, geometries=geometries, positions=positions, rejected=rejected, context=context)
        overviews = [
            OverviewJob(
                thumbnail=out / "thumbnails" / f"{entry.slide_id}.jpg",
                target=out / "overviews" / f"{entry.slide_id}.jpg",
                geometry=geometries[entry.slide_id],
                positions=positions[entry.slide_id],
                split=splits[entry.slide_id],
            )
            for entry in entries
            if entry.usable
        ]
        workers.run(write_overview, jobs=overviews, label="overviews")
        _remove_unfinished_files(out)


def _remove_unfinished_files(out: Path) -> None:
    """Remove what killed processes left: in an earlier call, or on a cluster in this one."""
    for unfinished in out.glob("*/.*.part"):
        unfinished.unlink(missing_ok=True)


def _check_count(count: int, *, config: Config, what: str) -> None:
    most = max(config.clusters.k)
    if count < most:
        raise UserError(
            f"{what} {count}, fewer than the {most} clusters of the largest clusters.k: "
            "raise patches.count, give more slides, or lower clusters.k"
        )


def _leave_out(entries: Entries, *, reasons: Reasons, context: StageContext) -> list[SlideEntry]:
    """The entries, those with a reason left out; raises ``UserError`` where none remains."""
    result = []
    for entry in entries:
        reason = reasons.get(entry.slide_id)
        if reason is not None:
            context.say(f"left out {entry.display_name}: {reason}")
        result.append(entry if reason is None else entry.left_out(reason))
    if not any(entry.usable for entry in result):
        raise UserError(none_usable(result))
    return result


def _usable_slides(context: StageContext) -> list[SlideEntry]:
    """The inventory; slides that are smaller than one patch are left out."""
    config, patches = context.config, context.config.patches
    entries = find_slides(config.slides, say=context.say)
    for entry in entries:
        if not entry.usable:
            context.say(f"left out {entry.display_name}: {entry.status}")
    too_small = {
        entry.slide_id: smaller_than_patch(
            (entry.width, entry.height), source_mpp=entry.source_mpp, size=patches.size, mpp=patches.mpp
        )
        for entry in entries
        if entry.usable
        and patch_extent(patches.size, mpp=patches.mpp, source_mpp=entry.source_mpp)
        > min(entry.width, entry.height) + 1e-6
    }
    entries = _leave_out(entries, reasons=too_small, context=context)

    # What works, but may not be what the user wants.
    usable = [entry for entry in entries if entry.usable]
    coarse = [entry.source_mpp for entry in usable if entry.source_mpp > ENLARGED_WARNING * patches.mpp]
    if coarse:
        context.say(
            f"patches.mpp {patches.mpp:g} is finer than {len(coarse)} of {len(usable)} slides are (the coarsest "
            f"has {max(coarse):g} um/px): their patches are enlarged, without detail of their own"
        )
    if config.slides.mpp is not None:
        own = [e for e in usable if e.mpp_source != SETTING and not math.isclose(e.source_mpp, config.slides.mpp)]
        if own:
            context.say(
                f"slides.mpp {config.slides.mpp:g} is not used for {len(own)} of {len(usable)} slides: a table or the "
                f"file says another mpp ({own[0].display_name}: {own[0].source_mpp:g}, {own[0].mpp_source}); a column "
                "mpp of a CSV goes before the file"
            )
    return entries


def _find_tissue(
    entries: Entries, *, context: StageContext, workers: Workers
) -> tuple[dict[str, SlideGeometry], Reasons]:
    """Each usable slide's geometry and tissue; writes the thumbnails."""
    config = context.config.patches
    usable = [entry for entry in entries if entry.usable]
    jobs = [ThumbnailJob(entry, context.out / "thumbnails" / f"{entry.slide_id}.jpg") for entry in usable]
    results = workers.run(make_thumbnail, jobs=jobs, label="thumbnails")
    odd = [f"{e.display_name} ({r.not_he})" for e, r in zip(usable, results, strict=True) if r.not_he]
    if odd:
        more = f" and {len(odd) - _NAMES_IN_MESSAGE} more" if len(odd) > _NAMES_IN_MESSAGE else ""
        context.say(
            f"{len(odd)} of {len(usable)} slides do not look like haematoxylin and eosin, for which presets, tissue "
            f"detection and patches.stain are made: {', '.join(odd[:_NAMES_IN_MESSAGE])}{more}; they are used as they "
            "are: look at patches/overviews"
        )
    geometries, reasons = {}, {}
    for entry, result in zip(usable, results, strict=True):
        if result.tissue is None:
            reasons[entry.slide_id] = result.reason
        elif config.tissue == "detect" and entry.places is None and result.empty:
            reasons[entry.slide_id] = "no tissue was found on it; patches.tissue=all takes patches anywhere"
        else:
            extent = patch_extent(config.size, mpp=config.mpp, source_mpp=entry.source_mpp)
            corner_N2 = None
            if entry.places is not None:
                try:
                    places = read_places(
                        entry.places,
                        dimensions=(entry.width, entry.height),
                        extent=extent,
                        size=config.size,
                        source_mpp=entry.source_mpp,
                    )
                except SlideError as error:
                    reasons[entry.slide_id] = entry.public_reason(error)
                    continue
                corner_N2, extent = places.corner_N2, places.extent
                if places.left_out:
                    reach = f"{places.left_out} of {places.left_out + len(corner_N2)} places"
                    context.say(f"{entry.display_name}: {reach} reach over the slide's edge and are left out")
            geometries[entry.slide_id] = SlideGeometry(
                entry.width, entry.height, extent, result.tissue, result.pen, result.regions, corner_N2
            )
    return geometries, reasons


def _estimate_stains(
    entries: Entries, *, geometries: Mapping[str, SlideGeometry], context: StageContext, workers: Workers
) -> dict[str, StainNormaliser | None]:
    """The stain normaliser of each usable slide, by slide_id; empty with ``stain: none``. Writes stain.json."""
    config = context.config.patches
    if config.stain == "none":
        return {}
    tissue = {slide_id: geometry.tissue for slide_id, geometry in geometries.items()}
    jobs = stain_jobs(entries, tissue=tissue, thumbnails=context.out / "thumbnails", method=config.stain)
    results = workers.run(estimate_slide, jobs=list(jobs.values()), label="stains")
    slides = dict(zip(jobs, results, strict=True))
    stains = SlideStains(config.stain, reference_of(config, method=config.stain, slides=slides), slides)
    for name, stain in slides.items():
        if stain is None:
            context.say(f"{name}: too little stained tissue to estimate its stain; its patches keep their colours")
    stains.save(context.out)
    return {entry.slide_id: stains.normaliser(slides[entry.slide]) for entry in entries if entry.usable}


def _extract(
    entries: Entries,
    *,
    geometries: Mapping[str, SlideGeometry],
    candidates: Mapping[str, Path],
    normalisers: Mapping[str, StainNormaliser | None],
    context: StageContext,
    workers: Workers,
) -> dict[str, ExtractionResult]:
    """Write each usable slide's patches; returns which, by slide_id."""
    config, around = context.config.patches, context.config.clusters.surroundings
    jobs = [
        ExtractionJob(
            entry,
            candidates=candidates[entry.slide_id],
            extent=geometries[entry.slide_id].extent,
            size=config.size,
            target=context.out / "images" / f"{entry.slide_id}.npy",
            checkpoint=context.out / "checkpoints" / f"{entry.slide_id}.json",
            filters=Filters.of(config, source_mpp=entry.source_mpp),
            normaliser=normalisers.get(entry.slide_id),
            surroundings=context.out / "surroundings" / f"{entry.slide_id}.npy" if around else None,
        )
        for entry in entries
        if entry.usable
    ]
    results = workers.run(extract_patches, jobs=jobs, label="patches")
    return {job.entry.slide_id: result for job, result in zip(jobs, results, strict=True)}


def _write_tables(
    entries: Entries,
    *,
    geometries: Mapping[str, SlideGeometry],
    positions: Mapping[str, Positions],
    rejected: Mapping[str, Mapping[str, int]],
    context: StageContext,
) -> dict[str, str]:
    """Write index.parquet, slides.parquet and meta.json; returns each slide's split."""
    config = context.config
    counts = {entry.slide_id: len(positions[entry.slide_id]) if entry.usable else 0 for entry in entries}
    splits = splits_of(entries, counts=counts, config=config.patches.split, seed=config.seed, say=context.say)

    parts = []
    for entry in entries:
        if entry.usable:
            at = positions[entry.slide_id]
            columns = {
                "patch_id": [f"{entry.slide_id}_x{x}_y{y}" for x, y in zip(at.x, at.y, strict=True)],
                "slide_id": entry.slide_id,
                "slide": entry.slide,
                "patient": entry.patient,
                "split": splits[entry.slide_id],
                "x": at.x,
                "y": at.y,
                "extent": float(geometries[entry.slide_id].extent),
                "tissue": at.tissue,
            }
            if config.slides.regions is not None:
                columns["region"] = geometries[entry.slide_id].region_names(x=at.x, y=at.y)
            if config.clusters.surroundings:
                extent = geometries[entry.slide_id].extent
                fields_N3 = fields_of(at.x, at.y, extent=extent, dimensions=(entry.width, entry.height))
                names = ("field_x", "field_y", "field_extent")
                columns |= dict(zip(names, fields_N3.T, strict=True))
            parts.append(pd.DataFrame(columns))
    index = pd.concat(parts, ignore_index=True)
    train = int((index["split"] == "train").sum())
    _check_count(train, config=config, what="the training patches number")

    slides = [
        SlideRow(
            slide_id=entry.slide_id,
            file=entry.stored_file,
            patient=entry.patient,
            slide=entry.slide,
            width=entry.width,
            height=entry.height,
            mpp=entry.mpp,
            mpp_source=entry.mpp_source,
            split=splits[entry.slide_id],
            patches=counts[entry.slide_id],
            status=entry.status,
            rejected=dict(rejected.get(entry.slide_id, dict.fromkeys(REASONS, 0))),
            extra=dict(entry.extra),
        )
        for entry in entries
    ]
    _report_numbers(index, slides=slides, train=train, context=context)
    with replacing(context.out / "index.parquet") as temporary:
        index.to_parquet(temporary, index=False)
    SlideRow.save(slides, context.out)
    side = image_side(config.patches.size) if config.clusters.surroundings else None
    PatchSetInfo(size=config.patches.size, mpp=config.patches.mpp, n=len(index), surroundings=side).save(context.out)
    return splits


def _report_numbers(index: pd.DataFrame, *, slides: Sequence[SlideRow], train: int, context: StageContext) -> None:
    """Log what differs from the settings, then how many slides and patches are used, and why not the others."""
    config = context.config.patches
    used = sum(slide.patches > 0 for slide in slides)
    limits = [config.count, config.per_slide * used if config.per_slide is not None else None]
    wanted = min((limit for limit in limits if limit is not None), default=0)
    given = context.config.slides.places is not None
    if len(index) < wanted and not given:
        context.say(f"{len(index)} patches instead of {wanted}: the slides have no more that qualify")
    empty = float((index["tissue"] < EMPTY_TISSUE).mean())
    if config.tissue == "all" and empty > EMPTY_WARNING and not given:
        context.say(
            f"{empty:.0%} of the patches show no tissue, and most of the training will go to them; "
            f"to keep to the tissue: histoloom run {context.run} --set patches.tissue=detect"
        )

    # Reasons are grouped by how they begin; what follows is about the single slide.
    reasons = Counter(re.split(r" ?[(:;]", slide.status)[0] for slide in slides if not slide.usable)
    shown = reasons.most_common(_REASONS_IN_SUMMARY)
    if others := reasons.total() - sum(count for _, count in shown):
        shown.append(("other reasons", others))
    left_out = f"; left out: {', '.join(f'{count} ({reason})' for reason, count in shown)}" if shown else ""
    context.say(f"slides: {used:,} of {len(slides):,} used{left_out}")
    rejected = {reason: [n for slide in slides if (n := slide.rejected[reason])] for reason in REASONS}
    drawn = len(index) + sum(map(sum, rejected.values()))
    context.say(
        f"patches: {len(index):,} of {drawn:,} drawn, {train:,} for training"
        + "".join(f"; rejected for {why}: {sum(n):,} (on {len(n)} slides)" for why, n in rejected.items() if n)
    )

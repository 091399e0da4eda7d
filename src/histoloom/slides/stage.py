"""The patches stage: slides -> tissue -> random patches on disk, as docs/reference/run-directory.md says.

Every slide is one file of patches, written whole; an interrupted stage keeps the files that it has, and since
positions depend on the settings and the slides alone, it ends with the same bytes as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from histoloom.config import Config, PatchesConfig
from histoloom.errors import UserError
from histoloom.run.directory import disk_errors_explained, replacing, write_json
from histoloom.run.stage import StageContext
from histoloom.slides.entries import SlideEntry
from histoloom.slides.inventory.find import find_slides, none_usable
from histoloom.slides.patches.candidates import CandidatePatches, drafts_of, extent_of, filters_of, mpp_of
from histoloom.slides.patches.extract import Extraction, Survey, extract, survey
from histoloom.slides.patches.filters import REASONS, AcceptedPatches, Candidates
from histoloom.slides.patches.grid import smaller_than_patch
from histoloom.slides.patches.overview import overviews, write_overview
from histoloom.slides.patches.sampling import Field, Positions
from histoloom.slides.patches.splits import splits_of
from histoloom.slides.stain.normalise import Recolouring
from histoloom.slides.stain.per_slide import SlideStains, estimate_sample, reference_of, samples
from histoloom.slides.workers.workers import Workers

UPSAMPLING_WORTH_SAYING = 1.5
EMPTY = 0.05
MOSTLY = 0.5

Entries = Sequence[SlideEntry]
Reasons = Mapping[str, str]


def run(context: StageContext) -> None:
    """Find the slides, draw patches from them and write them into ``context.out``.

    Slides that cannot be read or used are left out, with the reason in slides.parquet. Raises ``UserError`` where no
    slide is usable, or where there are fewer training patches than clusters.
    """
    context = replace(context, out=context.out.absolute())  # workers may have other working directories
    config = context.config
    if config.patches.count is not None:
        _check_count(config.patches.count, config=config, what="patches.count is")
    leave_out = partial(_leave_out, say=context.say)
    spread = Workers(config.runtime.workers, scheduler=config.runtime.scheduler, place=context.out)
    with disk_errors_explained(context.out), spread as workers:
        _prepare(context.out)
        entries = _found(context)
        entries = leave_out(entries, reasons=_too_small(entries, config=config.patches))
        _remark(entries, context=context)
        fields, reasons = _surveyed(entries, context=context, workers=workers)
        entries = leave_out(entries, reasons=reasons)
        drafts, reasons = drafts_of(entries, fields=fields, config=config)
        entries = leave_out(entries, reasons=reasons)
        recolourings = _recolourings(entries, fields=fields, context=context, workers=workers)
        taken, reasons = _extracted(
            entries, fields=fields, drafts=drafts, recolourings=recolourings, context=context, workers=workers
        )
        entries = leave_out(entries, reasons=reasons)
        positions = {name: drafts[name].positions.take(np.array(found.rows, np.int64)) for name, found in taken.items()}
        splits = _write_tables(entries, fields=fields, positions=positions, taken=taken, context=context)
        jobs = overviews(entries, fields=fields, positions=positions, splits=splits, out=context.out)
        workers.run(write_overview, jobs=jobs, label="overviews")
        _sweep(context.out)


def _prepare(out: Path) -> None:
    for name in ("images", "thumbnails", "overviews"):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
    _sweep(out)


def _sweep(out: Path) -> None:
    """Remove what killed processes left unfinished: in an earlier call, or on a cluster in this one."""
    for torn in out.glob("*/.*.part"):
        torn.unlink(missing_ok=True)


def _check_count(count: int, *, config: Config, what: str) -> None:
    most = max(config.clusters.k)
    if count < most:
        raise UserError(
            f"{what} {count}, fewer than the {most} clusters of the largest clusters.k: "
            "raise patches.count, give more slides, or lower clusters.k"
        )


def _found(context: StageContext) -> list[SlideEntry]:
    entries = find_slides(context.config.slides)
    for entry in entries:
        if not entry.usable:
            context.say(f"left out {entry.display_name}: {entry.status}")
    return entries


def _leave_out(entries: Entries, *, reasons: Reasons, say: Callable[[str], None]) -> list[SlideEntry]:
    """The entries, those with a reason left out; raises ``UserError`` where none remains."""
    for entry in entries:
        if entry.slide_id in reasons:
            say(f"left out {entry.display_name}: {reasons[entry.slide_id]}")
    result = [entry.left_out(reasons[entry.slide_id]) if entry.slide_id in reasons else entry for entry in entries]
    if not any(entry.usable for entry in result):
        raise UserError(none_usable(result))
    return result


def _too_small(entries: Entries, *, config: PatchesConfig) -> Reasons:
    return {
        entry.slide_id: smaller_than_patch(
            (entry.width, entry.height), source_mpp=mpp_of(entry), size=config.size, mpp=config.mpp
        )
        for entry in entries
        if entry.usable and extent_of(entry, config=config) > min(entry.width, entry.height) + 1e-6
    }


def _remark(entries: Entries, *, context: StageContext) -> None:
    """Say what works, but may not be what was meant."""
    config = context.config
    usable = [entry for entry in entries if entry.usable]
    coarse = [entry for entry in usable if mpp_of(entry) > UPSAMPLING_WORTH_SAYING * config.patches.mpp]
    if coarse:
        context.say(
            f"patches.mpp {config.patches.mpp:g} is finer than {len(coarse)} of {len(usable)} slides are (the coarsest "
            f"has {max(map(mpp_of, coarse)):g} um/px): their patches are enlarged, without detail of their own"
        )
    if config.slides.mpp is not None and not any(entry.mpp_source == "slides.mpp" for entry in usable):
        context.say(f"slides.mpp {config.slides.mpp:g} is not used: every slide, or its table, says its own")


def _surveyed(entries: Entries, *, context: StageContext, workers: Workers) -> tuple[dict[str, Field], Reasons]:
    """Each usable slide's geometry and tissue; writes the thumbnails."""
    config = context.config
    usable = [entry for entry in entries if entry.usable]
    jobs = [Survey(entry, context.out / "thumbnails" / f"{entry.slide_id}.jpg") for entry in usable]
    fields, reasons = {}, {}
    done = workers.run(survey, jobs=jobs, label="thumbnails")
    for entry, result in zip(usable, done, strict=True):
        if result.tissue is None:
            reasons[entry.slide_id] = result.reason
        elif config.patches.tissue == "detect" and not result.tissue.any():
            reasons[entry.slide_id] = "no tissue was found on it; patches.tissue=all takes patches anywhere"
        else:
            extent = extent_of(entry, config=config.patches)
            fields[entry.slide_id] = Field(entry.width, entry.height, extent, result.tissue, result.pen)
    return fields, reasons


def _recolourings(
    entries: Entries, *, fields: Mapping[str, Field], context: StageContext, workers: Workers
) -> dict[str, Recolouring | None]:
    """How each usable slide's stain is normalised, by slide_id; empty with ``stain: none``. Writes stain.json."""
    config = context.config.patches
    if config.stain == "none":
        return {}
    tissue = {slide_id: field.tissue for slide_id, field in fields.items()}
    jobs = samples(entries, tissue=tissue, thumbnails=context.out / "thumbnails", method=config.stain)
    done = workers.run(estimate_sample, jobs=list(jobs.values()), label="stains")
    slides = dict(zip(jobs, done, strict=True))
    stains = SlideStains(config.stain, reference_of(config, method=config.stain, slides=slides), slides)
    for name, stain in slides.items():
        if stain is None:
            context.say(f"{name}: too little stained tissue to tell its stain; its patches keep their colours")
    stains.write(context.out / "stain.json")
    return {entry.slide_id: stains.recolouring(slides[entry.slide]) for entry in entries if entry.usable}


def _extracted(
    entries: Entries,
    *,
    fields: Mapping[str, Field],
    drafts: Mapping[str, CandidatePatches],
    recolourings: Mapping[str, Recolouring | None],
    context: StageContext,
    workers: Workers,
) -> tuple[dict[str, AcceptedPatches], Reasons]:
    """Write each usable slide's patches; returns what was taken, and why some slides gave none."""
    jobs = [
        replace(
            _extraction(entry, field=fields[entry.slide_id], draft=drafts[entry.slide_id], context=context),
            recolour=recolourings.get(entry.slide_id),
        )
        for entry in entries
        if entry.usable
    ]
    done = {
        job.entry.slide_id: result
        for job, result in zip(jobs, workers.run(extract, jobs=jobs, label="patches"), strict=True)
    }
    taken = {name: result.taken for name, result in done.items() if result.taken is not None}
    return taken, {name: result.reason for name, result in done.items() if result.taken is None}


def _extraction(entry: SlideEntry, *, field: Field, draft: CandidatePatches, context: StageContext) -> Extraction:
    config, found = context.config.patches, draft.positions
    background = found.tissue < config.min_tissue if config.tissue == "detect" else np.zeros(len(found), bool)
    return Extraction(
        entry,
        x=found.x,
        y=found.y,
        extent=field.extent,
        size=config.size,
        target=context.out / "images" / f"{entry.slide_id}.npy",
        notes=context.out / "checkpoints" / f"{entry.slide_id}.json",
        candidates=Candidates(found.tissue, found.pen, background, draft.wanted),
        filters=filters_of(entry, config=config),
    )


def _write_tables(
    entries: Entries,
    *,
    fields: Mapping[str, Field],
    positions: Mapping[str, Positions],
    taken: Mapping[str, AcceptedPatches],
    context: StageContext,
) -> dict[str, str]:
    """Write the tables of patches and slides; returns each slide's split."""
    config = context.config
    counts = {entry.slide_id: len(positions[entry.slide_id]) if entry.usable else 0 for entry in entries}
    splits = splits_of(entries, counts=counts, config=config.patches.split, context=context)
    index = pd.concat(
        [
            _patch_rows(
                entry, field=fields[entry.slide_id], drawn=positions[entry.slide_id], split=splits[entry.slide_id]
            )
            for entry in entries
            if entry.usable
        ],
        ignore_index=True,
    )
    train = int((index["split"] == "train").sum())
    _check_count(train, config=config, what="the training patches number")
    slides = pd.DataFrame(
        [
            _slide_row(entry, n=counts[entry.slide_id], split=splits[entry.slide_id], taken=taken.get(entry.slide_id))
            for entry in entries
        ]
    )
    _say_numbers(index, slides=slides, train=train, context=context)
    _write_parquet(index, path=context.out / "index.parquet")
    _write_parquet(slides, path=context.out / "slides.parquet")
    meta = {"size": config.patches.size, "mpp": config.patches.mpp, "n": len(index)}
    write_json(context.out / "meta.json", meta)
    return splits


def _say_numbers(index: pd.DataFrame, *, slides: pd.DataFrame, train: int, context: StageContext) -> None:
    config = context.config.patches
    used = int((slides["patches"] > 0).sum())
    for reason in REASONS:
        column = slides[f"rejected_{reason}"]
        if column.any():
            context.say(
                f"patches rejected for {reason}: {column.sum()} on slides: {(column > 0).sum()}; others were tried"
            )
    limits = [config.count, config.per_slide * used if config.per_slide is not None else None]
    wanted = min((limit for limit in limits if limit is not None), default=0)
    if len(index) < wanted:
        context.say(f"{len(index)} patches instead of {wanted}: the slides have no more that qualify")
    context.say(f"{len(index)} patches of {used} slides, {train} for training")
    empty = float((index["tissue"] < EMPTY).mean())
    if config.tissue == "all" and empty > MOSTLY:
        context.say(
            f"{empty:.0%} of the patches show no tissue, and most of the training will go to them; "
            f"to keep to the tissue: histoloom run {context.run} --set patches.tissue=detect"
        )


def _rejections(taken: AcceptedPatches | None) -> dict[str, int]:
    return {f"rejected_{reason}": taken.rejected[reason] if taken is not None else 0 for reason in REASONS}


def _patch_rows(entry: SlideEntry, *, field: Field, drawn: Positions, split: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patch_id": [f"{entry.slide_id}_x{x}_y{y}" for x, y in zip(drawn.x, drawn.y, strict=True)],
            "slide_id": entry.slide_id,
            "slide": entry.slide,
            "patient": entry.patient,
            "split": split,
            "x": drawn.x,
            "y": drawn.y,
            "extent": float(field.extent),
            "tissue": drawn.tissue,
        }
    )


def _slide_row(entry: SlideEntry, *, n: int, split: str, taken: AcceptedPatches | None) -> dict[str, object]:
    row: dict[str, object] = {
        "slide_id": entry.slide_id,
        "file": entry.stored_file,
        "patient": entry.patient,
        "slide": entry.slide,
        "width": entry.width,
        "height": entry.height,
        "source_mpp": float("nan") if entry.mpp is None else float(entry.mpp),
        "mpp_source": entry.mpp_source,
        "split": split,
        "patches": n,
        "status": entry.status,
    }
    return row | _rejections(taken) | {f"table_{name}": value for name, value in entry.extra}


def _write_parquet(table: pd.DataFrame, *, path: Path) -> None:
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)

"""The patches stage: slides -> tissue -> random patches on disk, as docs/data-model.md says.

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

from histoloom import seeding
from histoloom.config import Config, PatchesConfig, SplitConfig
from histoloom.errors import UserError
from histoloom.slides.entries import SlideEntry
from histoloom.slides.extract import Extraction, Survey, extract, survey
from histoloom.slides.grid import smaller_than_patch
from histoloom.slides.inventory import find_slides, none_usable
from histoloom.slides.normalisation import Recolouring
from histoloom.slides.sampling import Field, Positions, allocate, draw, held_out, patch_extent
from histoloom.slides.slide_stains import SlideStains, estimate_sample, reference_of, samples
from histoloom.slides.splits import table_splits
from histoloom.slides.workers import Workers
from histoloom.stages import StageContext
from histoloom.store import disk_errors_explained, replacing, write_json

UPSAMPLING_WORTH_SAYING = 1.5

Entries = Sequence[SlideEntry]
Reasons = Mapping[str, str]


def run(context: StageContext) -> None:
    """Find the slides, draw patches from them and write them into ``context.out``.

    Slides that cannot be read or used are left out, with the reason in slides.parquet. Raises ``UserError`` where no
    slide is usable, or where there are fewer training patches than clusters.
    """
    context = replace(context, out=context.out.absolute())  # workers may have other working directories
    config = context.config
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
        positions, reasons = _drawn(entries, fields=fields, config=config)
        entries = leave_out(entries, reasons=reasons)
        recolourings = _recolourings(entries, fields=fields, context=context, workers=workers)
        reasons = _extracted(
            entries, fields=fields, positions=positions, recolourings=recolourings, context=context, workers=workers
        )
        entries = leave_out(entries, reasons=reasons)
        _sweep(context.out)
        _write_tables(entries, fields=fields, positions=positions, context=context)


def _prepare(out: Path) -> None:
    for name in ("images", "thumbnails"):
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
            context.say(f"left out {entry.shown}: {entry.status}")
    return entries


def _leave_out(entries: Entries, *, reasons: Reasons, say: Callable[[str], None]) -> list[SlideEntry]:
    """The entries, those with a reason left out; raises ``UserError`` where none remains."""
    for entry in entries:
        if entry.slide_id in reasons:
            say(f"left out {entry.shown}: {reasons[entry.slide_id]}")
    result = [entry.left_out(reasons[entry.slide_id]) if entry.slide_id in reasons else entry for entry in entries]
    if not any(entry.usable for entry in result):
        raise UserError(none_usable(result))
    return result


def _too_small(entries: Entries, *, config: PatchesConfig) -> Reasons:
    return {
        entry.slide_id: smaller_than_patch(
            (entry.width, entry.height), source_mpp=_mpp(entry), size=config.size, mpp=config.mpp
        )
        for entry in entries
        if entry.usable and _extent(entry, config=config) > min(entry.width, entry.height) + 1e-6
    }


def _extent(entry: SlideEntry, *, config: PatchesConfig) -> float:
    return patch_extent(config.size, mpp=config.mpp, source_mpp=_mpp(entry))


def _mpp(entry: SlideEntry) -> float:
    assert entry.mpp is not None, "a usable slide has a scale"
    return entry.mpp


def _remark(entries: Entries, *, context: StageContext) -> None:
    """Say what works, but may not be what was meant."""
    config = context.config
    usable = [entry for entry in entries if entry.usable]
    coarse = [entry for entry in usable if _mpp(entry) > UPSAMPLING_WORTH_SAYING * config.patches.mpp]
    if coarse:
        context.say(
            f"patches.mpp {config.patches.mpp:g} is finer than {len(coarse)} of {len(usable)} slides are (the coarsest "
            f"has {max(map(_mpp, coarse)):g} um/px): their patches are enlarged, without detail of their own"
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
            extent = _extent(entry, config=config.patches)
            fields[entry.slide_id] = Field(entry.width, entry.height, extent, result.tissue)
    return fields, reasons


def _drawn(entries: Entries, *, fields: Mapping[str, Field], config: Config) -> tuple[dict[str, Positions], Reasons]:
    """Each usable slide's positions, in numbers by its area of tissue (with tissue: all, its whole area), um^2."""
    usable = [entry for entry in entries if entry.usable]
    capacity = np.array([fields[entry.slide_id].rows * fields[entry.slide_id].columns for entry in usable])
    weights = np.array([_area(entry, field=fields[entry.slide_id], config=config.patches) for entry in usable])
    counts = allocate(weights, total=config.patches.count, capacity=capacity)
    positions, reasons = {}, {}
    for entry, count in zip(usable, counts, strict=True):
        generator = seeding.numpy_generator(config.seed, "patches", entry.slide_id)
        drawn = draw(int(count), field=fields[entry.slide_id], config=config.patches, generator=generator)
        positions[entry.slide_id] = drawn
        if count == 0:
            reasons[entry.slide_id] = f"none of the {config.patches.count} patches fell to it; raise patches.count"
        elif len(drawn) == 0:
            least = config.patches.min_tissue
            reasons[entry.slide_id] = f"no patch with a tissue share of {least:g} was found; lower patches.min_tissue"
    return positions, reasons


def _area(entry: SlideEntry, *, field: Field, config: PatchesConfig) -> float:
    share = float(field.tissue.mean()) if config.tissue == "detect" else 1.0
    return share * field.width * field.height * _mpp(entry) ** 2


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
    positions: Mapping[str, Positions],
    recolourings: Mapping[str, Recolouring | None],
    context: StageContext,
    workers: Workers,
) -> Reasons:
    """Write each usable slide's patches; returns why some could not be read."""
    jobs = [
        Extraction(
            entry,
            x=positions[entry.slide_id].x,
            y=positions[entry.slide_id].y,
            extent=fields[entry.slide_id].extent,
            size=context.config.patches.size,
            target=context.out / "images" / f"{entry.slide_id}.npy",
            recolour=recolourings.get(entry.slide_id),
        )
        for entry in entries
        if entry.usable
    ]
    reasons = workers.run(extract, jobs=jobs, label="patches")
    return {job.entry.slide_id: reason for job, reason in zip(jobs, reasons, strict=True) if reason is not None}


def _write_tables(
    entries: Entries, *, fields: Mapping[str, Field], positions: Mapping[str, Positions], context: StageContext
) -> None:
    config = context.config
    counts = {entry.slide_id: len(positions[entry.slide_id]) if entry.usable else 0 for entry in entries}
    splits = _splits(entries, counts=counts, config=config.patches.split, context=context)
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
    if len(index) < config.patches.count:
        context.say(f"{len(index)} patches instead of {config.patches.count}: the slides have no more that qualify")
    _write_parquet(index, path=context.out / "index.parquet")
    slides = pd.DataFrame(
        [_slide_row(entry, n=counts[entry.slide_id], split=splits[entry.slide_id]) for entry in entries]
    )
    _write_parquet(slides, path=context.out / "slides.parquet")
    meta = {"size": config.patches.size, "mpp": config.patches.mpp, "n": len(index)}
    write_json(context.out / "meta.json", meta)
    context.say(f"{len(index)} patches of {sum(entry.usable for entry in entries)} slides, {train} for training")


def _splits(
    entries: Entries, *, counts: Mapping[str, int], config: SplitConfig, context: StageContext
) -> dict[str, str]:
    """Each slide's split; empty for those left out. A table's counts more than one that is drawn."""
    if (fixed := table_splits(entries, by=config.by)) is not None:
        context.say("held out: what the table says; patches.split.holdout is not used")
        return dict(fixed)
    group = {entry.slide_id: entry.patient if config.by == "patient" else entry.slide for entry in entries}
    sizes: dict[str, int] = {}
    for entry in entries:
        if entry.usable:
            sizes[group[entry.slide_id]] = sizes.get(group[entry.slide_id], 0) + counts[entry.slide_id]
    held = held_out(list(sizes), counts=sizes, config=config, seed=context.config.seed)
    if held:
        share = sum(sizes[name] for name in held) / sum(sizes.values())
        context.say(f"held out: {config.by} {', '.join(sorted(held))} ({share:.0%} of the patches)")
        _remark_shared_patients(entries, group=group, held=held, context=context)
    elif config.holdout > 0:
        context.say(f"nothing is held out: there is only one {config.by}; give more, or split.by: slide")
    return {
        entry.slide_id: ("holdout" if group[entry.slide_id] in held else "train") if entry.usable else ""
        for entry in entries
    }


def _remark_shared_patients(
    entries: Entries, *, group: Mapping[str, str], held: set[str], context: StageContext
) -> None:
    """Say where slides of one patient lie on both sides: serial sections there would leak."""
    held_patients = {entry.patient for entry in entries if entry.usable and group[entry.slide_id] in held}
    trained_patients = {entry.patient for entry in entries if entry.usable and group[entry.slide_id] not in held}
    both = held_patients & trained_patients
    if both:
        context.say(
            f"slides of {len(both)} patients are both held out and trained on; where a patient's slides are serial "
            "sections, use patches.split.by=patient"
        )


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


def _slide_row(entry: SlideEntry, *, n: int, split: str) -> dict[str, object]:
    return {
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
    } | {f"table_{name}": value for name, value in entry.extra}


def _write_parquet(table: pd.DataFrame, *, path: Path) -> None:
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)

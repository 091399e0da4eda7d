"""Where on each slide patches are tried, and how many of them are wanted. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from histoloom import seeding
from histoloom.config import Config, PatchesConfig
from histoloom.slides.entries import SlideEntry
from histoloom.slides.patches.filters import RESERVE, RESERVE_LEAST, Filters
from histoloom.slides.patches.sampling import Field, Positions, capacity, draw, numbers, patch_extent


@dataclass(frozen=True)
class CandidatePatches:
    """A slide's candidates, in the order in which they are tried, and how many of them are wanted."""

    positions: Positions
    wanted: int


def extent_of(entry: SlideEntry, *, config: PatchesConfig) -> float:
    """The level-0 side, px, of a usable slide's patches."""
    return patch_extent(config.size, mpp=config.mpp, source_mpp=mpp_of(entry))


def mpp_of(entry: SlideEntry) -> float:
    """A usable slide's um/px at level 0."""
    assert entry.mpp is not None, "a usable slide has a scale"
    return entry.mpp


def drafts_of(
    entries: Sequence[SlideEntry], *, fields: Mapping[str, Field], config: Config
) -> tuple[dict[str, CandidatePatches], dict[str, str]]:
    """Each usable slide's candidates, the wanted ones first; the numbers by its area of tissue (tissue: all, its whole
    area), um^2.
    """
    usable = [entry for entry in entries if entry.usable]
    room = np.array([capacity(fields[entry.slide_id], config=config.patches) for entry in usable])
    weights = np.array([_area(entry, field=fields[entry.slide_id], config=config.patches) for entry in usable])
    counts = numbers(weights, capacity=room, config=config.patches)
    drafts, reasons = {}, {}
    for entry, count in zip(usable, counts.tolist(), strict=True):
        generator = seeding.numpy_generator(config.seed, "patches", entry.slide_id)
        filtered = filters_of(entry, config=config.patches).active
        drawn = draw(
            count,
            field=fields[entry.slide_id],
            config=config.patches,
            generator=generator,
            reserve=RESERVE * count + RESERVE_LEAST if filtered else 0,
        )
        drafts[entry.slide_id] = CandidatePatches(drawn, count)
        if count == 0:
            reasons[entry.slide_id] = f"none of the {config.patches.count} patches fell to it; raise patches.count"
        elif len(drawn) == 0:
            least = config.patches.min_tissue
            reasons[entry.slide_id] = f"no patch with a tissue share of {least:g} was found; lower patches.min_tissue"
    return drafts, reasons


def filters_of(entry: SlideEntry, *, config: PatchesConfig) -> Filters:
    """The filters for a usable slide's patches."""
    enlarged = max(1.0, mpp_of(entry) / config.mpp)
    return Filters(blur=config.min_sharpness, pen=config.max_pen, enlarged=enlarged)


def _area(entry: SlideEntry, *, field: Field, config: PatchesConfig) -> float:
    share = float(field.tissue.mean()) if config.tissue == "detect" else 1.0
    return share * field.width * field.height * mpp_of(entry) ** 2

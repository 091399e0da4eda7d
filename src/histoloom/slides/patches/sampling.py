"""Which patches are drawn: how many of each slide, where on it, and which are held out.

Random positions are whole level-0 pixels, drawn at full resolution: a position drawn on a thumbnail would lie on that
thumbnail's grid. A grid is centred on its slide, so that what is left over is the same at opposite edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoloom import seeding
from histoloom.config import Config, PatchesConfig, SplitConfig
from histoloom.errors import UserError
from histoloom.run.directory import replacing
from histoloom.slides.entries import SlideEntry
from histoloom.slides.patches.filters import Filters
from histoloom.slides.regions import Regions
from histoloom.slides.tissue.mask import PackedMask, tissue_share

_MOST_CANDIDATES = 2_000_000
_ROUNDING = 1e-6  # px; an extent of 256.0000001 fits 256
_SPARES_PER_PATCH, _MIN_SPARES = 16, 256  # further candidates, where a filter may reject some


@dataclass(frozen=True)
class SlideGeometry:
    """A slide's width and height (level-0 px), the side of its patches there, its tissue and its pen.

    ``regions``: where patches may lie; None: anywhere. ``places``: the upper left corners of all patches, int64 (n, 2);
    None: they are drawn.
    """

    width: int
    height: int
    extent: float
    tissue: PackedMask
    pen: PackedMask | None = None
    regions: Regions | None = None
    places: np.ndarray | None = None

    def share(self, mask: PackedMask | np.ndarray | None, *, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Share of a mask in each patch at level-0 (x, y), float (n,) 0..1; 0 without a mask, or with an empty one."""
        mask_hw = mask.unpacked() if isinstance(mask, PackedMask) else mask
        if mask_hw is None or not mask_hw.any():
            return np.zeros(len(x))
        return tissue_share(mask_hw, x=x, y=y, extent=self.extent, width=self.width, height=self.height)

    def region_names(self, *, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The name of the region that has the largest part of each patch at level-0 (x, y), (n,)."""
        if self.regions is None:
            return np.full(len(x), "", object)
        label_hw, names = self.regions.labels.unpacked(), self.regions.names
        shares_RN = np.stack([self.share(label_hw == number, x=x, y=y) for number in range(1, len(names) + 1)])
        return np.array(names, object)[shares_RN.argmax(axis=0)]

    @property
    def columns(self) -> int:
        """How many different x a patch may have."""
        return max(0, math.floor(self.width - self.extent + _ROUNDING) + 1)

    @property
    def rows(self) -> int:
        """How many different y a patch may have."""
        return max(0, math.floor(self.height - self.extent + _ROUNDING) + 1)


@dataclass(frozen=True)
class Positions:
    """Upper left corners, int64 (n,), level-0 px, and each patch's shares of tissue and of pen, float (n,)."""

    x: np.ndarray
    y: np.ndarray
    tissue: np.ndarray
    pen: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: np.ndarray) -> Positions:
        """The positions of some rows, in their order."""
        return Positions(self.x[rows], self.y[rows], self.tissue[rows], self.pen[rows])


@dataclass(frozen=True)
class CandidatePatches:
    """A slide's candidates, in the order in which they are tried, and how many of them are wanted.

    ``background``, bool (n,): which of them were drawn for having less tissue than ``patches.min_tissue``.
    """

    positions: Positions
    background: np.ndarray
    wanted: int

    @classmethod
    def load(cls, path: Path) -> CandidatePatches:
        """Read what ``save`` wrote."""
        with np.load(path) as arrays:
            positions = Positions(arrays["x"], arrays["y"], arrays["tissue"], arrays["pen"])
            return cls(positions, arrays["background"], int(arrays["wanted"]))

    def save(self, path: Path) -> None:
        """Write an .npz file."""
        at = self.positions
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, x=at.x, y=at.y, tissue=at.tissue, pen=at.pen, background=self.background, wanted=self.wanted)

    def first(self) -> np.ndarray:
        """The rows that are accepted where nothing is rejected: the first wanted ones, in their order."""
        return np.arange(min(self.wanted, len(self.positions)))


def patch_extent(size: int, *, mpp: float, source_mpp: float) -> float:
    """Level-0 side, px, of a patch of ``size`` px at ``mpp`` um/px on a slide of ``source_mpp`` um/px."""
    return size * mpp / source_mpp


def draw_candidates(
    entries: Sequence[SlideEntry], *, geometries: Mapping[str, SlideGeometry], files: Mapping[str, Path], config: Config
) -> dict[str, str]:
    """Write each usable slide's candidates, the wanted ones first, into its file; returns why some slides have none.

    The patches are shared out by the slides' area of tissue, um^2; with ``tissue: all``, by their whole area. Where
    filters are active there are 17 candidates for each patch, so that memory holds those of one slide.
    """
    patches = config.patches
    reasons: dict[str, str] = {}
    drawn: list[SlideEntry] = []
    limits, areas = [], []
    for entry in entries:
        if not entry.usable:
            continue
        geometry = geometries[entry.slide_id]
        if geometry.places is not None:
            given = _given_candidates(geometry, config=patches)
            given.save(files[entry.slide_id])
            if not len(given.positions):
                reasons[entry.slide_id] = "none of its places lies inside its regions; lower patches.min_region"
            continue
        drawn.append(entry)
        limits.append(position_count(geometry, config=patches))
        tissue_hw = geometry.tissue.unpacked()
        usable_hw = tissue_hw if patches.tissue == "detect" else np.ones_like(tissue_hw)
        share = float((usable_hw if geometry.regions is None else usable_hw & geometry.regions.inside_hw).mean())
        areas.append(share * geometry.width * geometry.height * entry.source_mpp**2)
    counts = patches_per_slide(np.array(areas), capacity=np.array(limits), config=patches)

    for entry, count in zip(drawn, counts.tolist(), strict=True):
        spares = (
            _SPARES_PER_PATCH * count + _MIN_SPARES if Filters.of(patches, source_mpp=entry.source_mpp).active else 0
        )
        positions = draw_positions(
            count,
            geometry=geometries[entry.slide_id],
            config=patches,
            generator=seeding.numpy_generator(config.seed, "patches", entry.slide_id),
            spares=spares,
        )
        detect = patches.tissue == "detect"
        background = positions.tissue < patches.min_tissue if detect else np.zeros(len(positions), bool)
        CandidatePatches(positions, background, count).save(files[entry.slide_id])
        if count == 0:
            reasons[entry.slide_id] = f"none of the {patches.count} patches fell to it; raise patches.count"
        elif len(positions) == 0:
            inside = "" if entry.regions is None else f", of which {patches.min_region:g} lies inside its regions,"
            lower = "patches.min_tissue" if entry.regions is None else "patches.min_tissue or patches.min_region"
            reasons[entry.slide_id] = (
                f"no patch with a tissue share of {patches.min_tissue:g}{inside} was found; lower {lower}"
            )
    return reasons


def _given_candidates(geometry: SlideGeometry, *, config: PatchesConfig) -> CandidatePatches:
    """All of a slide's places, in their order; with regions, those that lie inside. No others replace them."""
    assert geometry.places is not None, "the places are given"
    x, y = geometry.places.T
    positions = Positions(x, y, geometry.share(geometry.tissue, x=x, y=y), geometry.share(geometry.pen, x=x, y=y))
    if geometry.regions is not None:
        inside = geometry.share(geometry.regions.inside_hw, x=x, y=y)
        positions = positions.take(np.flatnonzero(inside >= config.min_region))
    return CandidatePatches(positions, np.zeros(len(positions), bool), len(positions))


# --- how many of each slide ---


def position_count(geometry: SlideGeometry, *, config: PatchesConfig) -> int:
    """How many different positions a slide has for a patch, with tissue or without."""
    if config.sampling == "grid":
        return len(_grid_corners(geometry, overlap=config.overlap)[0])
    return geometry.columns * geometry.rows


def patches_per_slide(weights: np.ndarray, *, capacity: np.ndarray, config: PatchesConfig) -> np.ndarray:
    """How many patches each slide is to give, int64 (n,).

    ``count`` is shared out by ``weights`` (n,), and no slide gives more than ``per_slide`` or than its ``capacity``
    (n,); without a ``count``, each gives as many as that.
    """
    most = np.where(weights > 0, capacity if config.per_slide is None else np.minimum(capacity, config.per_slide), 0)
    total = int(most.sum()) if config.count is None else config.count
    return allocate(weights, total=total, capacity=most)


def allocate(weights: np.ndarray, *, total: int, capacity: np.ndarray) -> np.ndarray:
    """Share ``total`` out by ``weights`` (n,), largest remainder first; int64 (n,).

    Every weight above 0 gets at least one where ``total`` allows, and none more than its ``capacity`` (n,).
    """
    capacity = np.where(weights > 0, capacity, 0).astype(np.int64)
    total = int(min(total, capacity.sum()))
    least = np.minimum(capacity, 1 if total >= np.count_nonzero(capacity) else 0)
    exact = np.zeros(len(weights))
    if total > 0:
        # The multiple of the weights whose parts, held between least and capacity, sum up to the total, by bisection.
        low, high = 0.0, float(capacity.max()) / float(weights[weights > 0].min())
        for _ in range(100):
            middle = (low + high) / 2
            enough = np.clip(middle * weights, least, capacity).sum() >= total
            low, high = (low, middle) if enough else (middle, high)
        exact = np.asarray(np.clip(high * weights, least, capacity))
    whole = np.minimum(np.floor(exact + _ROUNDING).astype(np.int64), capacity)
    order = np.argsort(np.where(whole < capacity, whole - exact, np.inf), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole


# --- where on a slide ---


def draw_positions(
    count: int, *, geometry: SlideGeometry, config: PatchesConfig, generator: np.random.Generator, spares: int = 0
) -> Positions:
    """``count`` different positions on a slide and ``spares`` more; fewer where it has no more that qualify.

    With ``tissue: detect``, ``background_share`` of the first ``count`` and of the others have less tissue than
    ``min_tissue`` (as far as the slide has such places) and the rest at least that much; where there is less tissue
    than wanted, fewer come out.
    """
    wanted = count + spares
    anywhere = config.tissue == "all"
    batch = wanted if anywhere and geometry.regions is None else 16 * wanted + 4096
    while True:
        drawn = _random_positions(batch, geometry=geometry, config=config, generator=generator)
        no_more = len(drawn) < batch or batch >= _MOST_CANDIDATES
        if geometry.regions is not None:
            inside = geometry.share(geometry.regions.inside_hw, x=drawn.x, y=drawn.y)
            drawn = drawn.take(np.flatnonzero(inside >= config.min_region))
        if anywhere:
            if geometry.regions is None or len(drawn) >= wanted or no_more:
                return drawn.take(np.arange(min(wanted, len(drawn))))
            batch = min(8 * batch, _MOST_CANDIDATES)
            continue
        qualified = _qualified_rows(drawn.tissue, count=wanted, config=config)
        if len(qualified) == wanted or no_more:
            drawn = drawn.take(qualified)
            first = _qualified_rows(drawn.tissue, count=count, config=config)
            return drawn.take(np.concatenate([first, np.setdiff1d(np.arange(len(drawn)), first)]))
        batch = min(8 * batch, _MOST_CANDIDATES)


def _random_positions(
    count: int, *, geometry: SlideGeometry, config: PatchesConfig, generator: np.random.Generator
) -> Positions:
    """Up to ``count`` different positions, in random order, with their shares of tissue and pen."""
    if config.sampling == "grid":
        x, y = _grid_corners(geometry, overlap=config.overlap)
        chosen = generator.permutation(len(x))[:count]
        x, y = x[chosen], y[chosen]
    else:
        places = geometry.columns * geometry.rows
        flat = generator.choice(places, size=min(count, places), replace=False)
        x, y = flat % geometry.columns, flat // geometry.columns
    return Positions(x, y, geometry.share(geometry.tissue, x=x, y=y), geometry.share(geometry.pen, x=x, y=y))


def _grid_corners(geometry: SlideGeometry, *, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners x, y, int64 (n,), row by row, of patches that each share ``overlap`` of their side with the next."""
    axes = []
    for length in (geometry.width, geometry.height):
        room = length - geometry.extent
        pitch = max(1.0, geometry.extent * (1 - overlap))
        count = math.floor(room / pitch + _ROUNDING) + 1 if room >= -_ROUNDING else 0
        start = max(0.0, (room - (count - 1) * pitch) / 2)
        axes.append(np.floor(start + pitch * np.arange(count) + _ROUNDING).astype(np.int64))
    x, y = axes
    return np.tile(x, len(y)), np.repeat(y, len(x))


def _qualified_rows(tissue: np.ndarray, *, count: int, config: PatchesConfig) -> np.ndarray:
    """Rows of the first candidates that fit, in the order in which they were drawn.

    Where there is less tissue than wanted, background is scarce in proportion: its share stays.
    """
    enough = tissue >= config.min_tissue
    share = config.background_share
    background = round(share * count)
    most = round(share / (1 - share) * np.count_nonzero(enough)) if share else 0
    outside = np.flatnonzero(~enough)[: min(background, most)]
    inside = np.flatnonzero(enough)[: count - len(outside)]
    return np.sort(np.concatenate([inside, outside]))


# --- which are held out ---


def splits_of(
    entries: Sequence[SlideEntry],
    *,
    counts: Mapping[str, int],
    config: SplitConfig,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Each slide's split by slide id: "train", "holdout", or empty for slides that are left out.

    A table's splits count more than drawn ones. ``counts`` are the slides' patches. Raises ``UserError`` where a table
    puts a patient (or slide, with ``by: slide``) in both.
    """
    group = _groups(entries, by=config.by)
    usable = [entry for entry in entries if entry.usable]
    result = dict.fromkeys(group, "")

    # A slide without a split in a table shares that of its group, else it is trained on.
    listed: dict[str, str] = {}
    for entry in entries:
        if entry.split and listed.setdefault(group[entry.slide_id], entry.split) != entry.split:
            raise UserError(
                f"the table puts {config.by} {group[entry.slide_id]} in both train and holdout (a copy of a slide "
                "counts with it); correct its column split"
                + (", or use patches.split.by=slide" if config.by == "patient" else "")
            )
    if listed:
        say("held out: what the table says; patches.split.holdout is not used")
        return result | {entry.slide_id: listed.get(group[entry.slide_id], "train") for entry in usable}

    sizes: dict[str, int] = {}
    for entry in usable:
        sizes[group[entry.slide_id]] = sizes.get(group[entry.slide_id], 0) + counts[entry.slide_id]
    held = held_out(list(sizes), counts=sizes, config=config, seed=seed)
    if held:
        share = sum(sizes[name] for name in held) / sum(sizes.values())
        say(f"held out: {config.by} {', '.join(sorted(held))} ({share:.0%} of the patches)")
    elif config.holdout > 0:
        say(f"nothing is held out: there is only one {config.by}; give more, or split.by: slide")

    # Slides of one patient on both sides: serial sections there would leak.
    result |= {entry.slide_id: "holdout" if group[entry.slide_id] in held else "train" for entry in usable}
    held_patients, trained_patients = (
        {entry.patient for entry in usable if result[entry.slide_id] == split} for split in ("holdout", "train")
    )
    both = held_patients & trained_patients
    if both:
        say(
            f"slides of {len(both)} patients are both held out and trained on; where a patient's slides are serial "
            "sections, use patches.split.by=patient"
        )
    return result


def _groups(entries: Sequence[SlideEntry], *, by: str) -> dict[str, str]:
    """Each slide's patient (or slide), by slide id; where a slide has a copy elsewhere, both groups are one."""
    group = {entry.slide_id: entry.patient if by == "patient" else entry.slide for entry in entries}
    first: dict[str, str] = {}
    for entry in entries:
        original = group[first.setdefault(entry.content or entry.slide_id, entry.slide_id)]
        merged = group[entry.slide_id]
        if merged != original:
            group = {slide_id: original if name == merged else name for slide_id, name in group.items()}
    return group


def held_out(groups: Sequence[str], *, counts: Mapping[str, int], config: SplitConfig, seed: int) -> set[str]:
    """The groups (patients or slides) to hold out, whole, near ``config.holdout`` of all patches.

    Groups are tried in a random order; one is held out where that brings the share nearer to the wanted one. Where
    none does, the smallest is held out; with a single group nothing is.
    """
    names = sorted(set(groups))
    if config.holdout == 0 or len(names) < 2:
        return set()
    wanted = config.holdout * sum(counts[name] for name in names)
    chosen: list[str] = []
    held = 0
    for index in seeding.permutation(seed, "patches", "split", n=len(names)):
        name = names[index]
        nearer = abs(held + counts[name] - wanted) < abs(held - wanted)
        if nearer and len(chosen) < len(names) - 1:
            chosen.append(name)
            held += counts[name]
    return set(chosen) or {min(names, key=lambda name: (counts[name], name))}

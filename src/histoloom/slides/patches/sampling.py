"""Which patches to take: how many of each slide, where on it, and what is held out. Pure functions.

Random positions are whole level-0 pixels, drawn at full resolution: a position drawn on a thumbnail would lie on that
thumbnail's grid. A grid is centred on its slide, so that what is left over is the same at opposite edges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from histoloom import seeding
from histoloom.config import PatchesConfig, SplitConfig
from histoloom.slides.tissue.mask import tissue_share

_MOST_CANDIDATES = 2_000_000
_ROUNDING = 1e-6  # px; an extent of 256.0000001 fits 256


@dataclass(frozen=True)
class Field:
    """A slide's width and height (level-0 px), the side of its patches there, its tissue and its pen, bool (h, w)."""

    width: int
    height: int
    extent: float
    tissue: np.ndarray
    pen: np.ndarray | None = None

    @property
    def columns(self) -> int:
        """Different x of a patch."""
        return max(0, math.floor(self.width - self.extent + _ROUNDING) + 1)

    @property
    def rows(self) -> int:
        """Different y of a patch."""
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
        """Some of them."""
        return Positions(self.x[rows], self.y[rows], self.tissue[rows], self.pen[rows])


def patch_extent(size: int, *, mpp: float, source_mpp: float) -> float:
    """Level-0 side, px, of a patch of ``size`` px at ``mpp`` um/px on a slide of ``source_mpp`` um/px."""
    return size * mpp / source_mpp


def allocate(weights: np.ndarray, *, total: int, capacity: np.ndarray) -> np.ndarray:
    """Share ``total`` out by ``weights`` (n,), largest remainder first; int64 (n,).

    Every weight above 0 gets at least one where ``total`` allows, and none more than its ``capacity`` (n,).
    """
    capacity = np.where(weights > 0, capacity, 0).astype(np.int64)
    total = int(min(total, capacity.sum()))
    least = np.minimum(capacity, 1 if total >= np.count_nonzero(capacity) else 0)
    exact = _proportional(weights, total=total, least=least, most=capacity)
    whole = np.minimum(np.floor(exact + _ROUNDING).astype(np.int64), capacity)
    order = np.argsort(np.where(whole < capacity, whole - exact, np.inf), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole


def _proportional(weights: np.ndarray, *, total: int, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Multiples of ``weights``, held between ``least`` and ``most``, that sum up to ``total``: float (n,)."""
    if total == 0:
        return np.zeros(len(weights))
    low, high = 0.0, float(most.max()) / float(weights[weights > 0].min())
    for _ in range(100):
        middle = (low + high) / 2
        enough = np.clip(middle * weights, least, most).sum() >= total
        low, high = (low, middle) if enough else (middle, high)
    return np.asarray(np.clip(high * weights, least, most))


def capacity(field: Field, *, config: PatchesConfig) -> int:
    """How many different places for a patch a slide has, whatever lies there."""
    return len(_grid(field, overlap=config.overlap)[0]) if config.sampling == "grid" else field.columns * field.rows


def numbers(weights: np.ndarray, *, capacity: np.ndarray, config: PatchesConfig) -> np.ndarray:
    """How many patches each slide is to give, int64 (n,).

    ``count`` is shared out by ``weights`` (n,), and no slide gives more than ``per_slide`` or than its ``capacity``
    (n,); without a ``count``, each gives as many as that.
    """
    most = np.where(weights > 0, capacity if config.per_slide is None else np.minimum(capacity, config.per_slide), 0)
    total = int(most.sum()) if config.count is None else config.count
    return allocate(weights, total=total, capacity=most)


def draw(
    count: int, *, field: Field, config: PatchesConfig, generator: np.random.Generator, reserve: int = 0
) -> Positions:
    """``count`` different positions on a slide and ``reserve`` more; fewer where it has no more that qualify.

    With ``tissue: detect``, ``background_share`` of the first ``count`` and of the others have less tissue than
    ``min_tissue`` (as far as the slide has such places) and the rest at least that much; where there is less tissue
    than wanted, fewer come out.
    """
    wanted = count + reserve
    lot = wanted if config.tissue == "all" else 16 * wanted + 4096
    while True:
        found = _candidates(lot, field=field, config=config, generator=generator)
        if config.tissue == "all":
            return found
        chosen = _by_tissue(found.tissue, count=wanted, config=config)
        if len(chosen) == wanted or len(found) < lot or lot >= _MOST_CANDIDATES:
            found = found.take(chosen)
            first = _by_tissue(found.tissue, count=count, config=config)
            return found.take(np.concatenate([first, np.setdiff1d(np.arange(len(found)), first)]))
        lot = min(8 * lot, _MOST_CANDIDATES)


def _candidates(count: int, *, field: Field, config: PatchesConfig, generator: np.random.Generator) -> Positions:
    """Up to ``count`` different places, in random order, with what lies there."""
    if config.sampling == "grid":
        x, y = _grid(field, overlap=config.overlap)
        chosen = generator.permutation(len(x))[:count]
        x, y = x[chosen], y[chosen]
    else:
        places = field.columns * field.rows
        flat = generator.choice(places, size=min(count, places), replace=False)
        x, y = flat % field.columns, flat // field.columns
    tissue = tissue_share(field.tissue, x=x, y=y, extent=field.extent, width=field.width, height=field.height)
    if field.pen is None or not field.pen.any():
        return Positions(x, y, tissue, np.zeros(len(x)))
    pen = tissue_share(field.pen, x=x, y=y, extent=field.extent, width=field.width, height=field.height)
    return Positions(x, y, tissue, pen)


def _grid(field: Field, *, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners x, y, int64 (n,), row by row, of patches that each share ``overlap`` of their side with the next."""
    x = _along(field.width, extent=field.extent, overlap=overlap)
    y = _along(field.height, extent=field.extent, overlap=overlap)
    return np.tile(x, len(y)), np.repeat(y, len(x))


def _along(length: int, *, extent: float, overlap: float) -> np.ndarray:
    room = length - extent
    if room < -_ROUNDING:
        return np.zeros(0, np.int64)
    pitch = max(1.0, extent * (1 - overlap))
    count = math.floor(room / pitch + _ROUNDING) + 1
    start = max(0.0, (room - (count - 1) * pitch) / 2)
    return np.floor(start + pitch * np.arange(count) + _ROUNDING).astype(np.int64)


def _by_tissue(tissue: np.ndarray, *, count: int, config: PatchesConfig) -> np.ndarray:
    """Rows of the first candidates that fit, in the order in which they were drawn.

    Where there is less tissue than wanted, background is scarce in proportion: its share stays.
    """
    enough = tissue >= config.min_tissue
    background = round(config.background_share * count)
    share = config.background_share
    most = round(share / (1 - share) * np.count_nonzero(enough)) if share else 0
    outside = np.flatnonzero(~enough)[: min(background, most)]
    inside = np.flatnonzero(enough)[: count - len(outside)]
    return np.sort(np.concatenate([inside, outside]))


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

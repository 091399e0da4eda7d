"""Which patches to take: how many of each slide, where on it, and what is held out. Pure functions.

Positions are whole level-0 pixels, drawn at full resolution: a position drawn on a thumbnail would lie on that
thumbnail's grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from histoloom import seeding
from histoloom.config import PatchesConfig, SplitConfig
from histoloom.slides.tissue import tissue_share

_MOST_CANDIDATES = 2_000_000
_ROUNDING = 1e-6  # px; an extent of 256.0000001 fits 256


@dataclass(frozen=True)
class Field:
    """A slide's width and height (level-0 px), the side of its patches there, and its tissue, bool (h, w)."""

    width: int
    height: int
    extent: float
    tissue: np.ndarray

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
    """Upper left corners, int64 (n,), level-0 px, and each patch's tissue share, float (n,)."""

    x: np.ndarray
    y: np.ndarray
    tissue: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: np.ndarray) -> Positions:
        """Some of them."""
        return Positions(self.x[rows], self.y[rows], self.tissue[rows])


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


def draw(count: int, *, field: Field, config: PatchesConfig, generator: np.random.Generator) -> Positions:
    """``count`` different random positions on a slide, fewer where it has no more that qualify.

    With ``tissue: detect``, ``background_share`` of them have less tissue than ``min_tissue`` (as far as the slide has
    such places) and the others at least that much.
    """
    if config.tissue == "all":
        return _candidates(count, field=field, generator=generator)
    background = round(config.background_share * count)
    lot = 16 * count + 4096
    while True:
        found = _candidates(lot, field=field, generator=generator)
        chosen = _by_tissue(found, count=count, background=background, least=config.min_tissue)
        if len(chosen) == count or len(found) < lot or lot >= _MOST_CANDIDATES:
            return found.take(chosen)
        lot = min(8 * lot, _MOST_CANDIDATES)


def _candidates(count: int, *, field: Field, generator: np.random.Generator) -> Positions:
    places = field.columns * field.rows
    flat = generator.choice(places, size=min(count, places), replace=False)
    x, y = flat % field.columns, flat // field.columns
    share = tissue_share(field.tissue, x=x, y=y, extent=field.extent, width=field.width, height=field.height)
    return Positions(x, y, share)


def _by_tissue(found: Positions, *, count: int, background: int, least: float) -> np.ndarray:
    """Rows of the first candidates that fit, in the order in which they were drawn."""
    enough = found.tissue >= least
    outside = np.flatnonzero(~enough)[:background]
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

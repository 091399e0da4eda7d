"""The patches that a slide gives: the first of its candidates, in their order, that no filter rejects.

A rejected patch is replaced by the next candidate of its kind (tissue or background), so that the number and the share
of background stay as far as the candidates reach. Which patches come out depends on the candidates and on their pixels
alone. Pure but for what ``read`` and ``keep`` do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from histoloom.slides.tissue.focus import sharpness

REASONS = ("blur", "pen")
RESERVE, RESERVE_LEAST = 16, 256
"""Candidates for each wanted patch, and more of them, where a filter may reject some."""

JUDGED = 0.2
"""Least tissue share of a patch whose focus is judged: glass with a cloud of eosin on it is not blurred tissue."""


@dataclass(frozen=True)
class Filters:
    """Least ``sharpness`` (None: any) of patches that have ``enlarged`` px a px of the slide, and most ``pen``."""

    blur: float | None
    pen: float | None
    enlarged: float = 1.0

    @property
    def active(self) -> bool:
        """Whether any patch may be rejected."""
        return self.blur is not None or self.pen is not None

    def objection(self, patch_HW3: np.ndarray) -> str | None:
        """Why a patch's pixels, uint8 (H, W, 3), are rejected; None where they are not."""
        if self.blur is None:
            return None
        found = sharpness(patch_HW3, enlarged=self.enlarged)
        return "blur" if found is not None and found < self.blur else None


@dataclass(frozen=True)
class Candidates:
    """Places in the order in which they are tried: shares of ``tissue`` and ``pen``, float (n,), and which of them
    count as ``background``, bool (n,).
    """

    tissue: np.ndarray
    pen: np.ndarray
    background: np.ndarray
    wanted: int

    def first(self) -> np.ndarray:
        """The rows that are taken where nothing is rejected: the first wanted ones, in their order."""
        return np.arange(min(self.wanted, len(self.pen)))


@dataclass
class AcceptedPatches:
    """``rows`` of the candidates, by slot, and how many were ``rejected`` for each reason."""

    rows: list[int]
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))


def choose(
    candidates: Candidates,
    *,
    filters: Filters,
    read: Callable[[int], np.ndarray],
    keep: Callable[[int, np.ndarray], None],
    in_order: Callable[[np.ndarray], np.ndarray],
) -> AcceptedPatches:
    """Fill the slots 0, 1, ... and ``keep(slot, patch)`` what fills each; slots that nothing fills are -1 in ``rows``.

    ``read(row)`` gives a candidate's patch; ``in_order`` sorts rows into the order in which they are best read.
    """
    first = candidates.first()
    taken = AcceptedPatches([-1] * len(first))
    spare = {
        kind: deque((np.flatnonzero(candidates.background[len(first) :] == kind) + len(first)).tolist())
        for kind in (False, True)
    }
    pending = {int(row): slot for slot, row in enumerate(first)}
    while pending:
        replacements: dict[int, int] = {}
        for row in in_order(np.array(sorted(pending))).tolist():
            patch, objection = _judged(row, candidates=candidates, filters=filters, read=read)
            if patch is not None and objection is None:
                taken.rows[pending[row]] = row
                keep(pending[row], patch)
                continue
            assert objection is not None, "what is not kept has a reason"
            taken.rejected[objection] += 1
            queue = spare[bool(candidates.background[row])] or spare[False]
            if queue:
                replacements[queue.popleft()] = pending[row]
        pending = replacements
    return taken


def _judged(
    row: int, *, candidates: Candidates, filters: Filters, read: Callable[[int], np.ndarray]
) -> tuple[np.ndarray | None, str | None]:
    """A candidate's patch and what speaks against it; one under pen is not even read."""
    if filters.pen is not None and candidates.pen[row] > filters.pen:
        return None, "pen"
    patch = read(row)
    return patch, filters.objection(patch) if candidates.tissue[row] >= JUDGED else None


def moves(rows: list[int]) -> list[tuple[int, int]]:
    """Which slots' patches to move where, (from, to), so that the filled slots come first."""
    full = [slot for slot, row in enumerate(rows) if row >= 0]
    empty = [slot for slot, row in enumerate(rows) if row < 0 and slot < len(full)]
    return list(zip(reversed(full[len(full) - len(empty) :]), empty, strict=True)) if empty else []

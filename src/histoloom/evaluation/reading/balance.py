"""How many pictures of each tissue, and which: as even as there are pictures, no place of a slide twice.

Legend of shapes: N patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd


def allot(n: int, *, capacities: Sequence[int], rng: np.random.Generator) -> list[int]:
    """``n`` things over groups as evenly as their capacities allow; who gets the odd ones is drawn.

    Sums to ``n``, or to all capacities where these are fewer.
    """
    counts = [0] * len(capacities)
    left = min(n, sum(capacities))
    while left:
        open_ = [group for group, limit in enumerate(capacities) if counts[group] < limit]
        share = left // len(open_)
        given = open_ if share else rng.choice(open_, size=left, replace=False).tolist()
        for group in given:
            more = min(max(1, share), capacities[group] - counts[group])
            counts[group] += more
            left -= more
    return counts


def spread_order(slides: Sequence[str], *, first: np.ndarray, uses: np.ndarray, rng: np.random.Generator) -> list[int]:
    """An order of patches to take from: the least used, of these the ones that are ``first``, slide by slide in turn.

    Who saw a picture before, and was told at the end, would know it: that weighs more than where it is from.

    ``first`` (N,) bool: patches of held-out slides; ``uses`` (N,): how many readings showed each before.
    """
    table = pd.DataFrame({"slide": list(slides), "later": ~first, "uses": uses, "chance": rng.random(len(slides))})
    table = table.sort_values(["uses", "later", "chance"])
    table["turn"] = table.groupby(["slide", "uses", "later"]).cumcount()
    return [int(row) for row in table.sort_values(["uses", "later", "turn", "chance"]).index]


def apart(order: Iterable[int], *, places: pd.DataFrame, most: int) -> list[int]:
    """The first ``most`` rows of ``order`` that overlap no earlier one; ``places`` has slide_id, x, y, extent (px)."""
    taken: dict[str, list[tuple[float, float, float]]] = {}
    slides, x, y, extent = (places[name].tolist() for name in ("slide_id", "x", "y", "extent"))
    rows: list[int] = []
    for row in order:
        others = taken.setdefault(slides[row], [])
        if any(max(abs(x[row] - a), abs(y[row] - b)) < max(extent[row], side) for a, b, side in others):
            continue
        others.append((x[row], y[row], extent[row]))
        rows.append(row)
        if len(rows) == most:
            break
    return rows


def distinct(rows: Iterable[int], *, n: int, digest: Callable[[int], str], seen: set[str]) -> list[int]:
    """The first ``n`` rows whose pictures are not ``seen`` yet; their digests are added to ``seen``."""
    found: list[int] = []
    for row in rows:
        if len(found) == n:
            break
        if (mark := digest(row)) not in seen:
            seen.add(mark)
            found.append(row)
    return found

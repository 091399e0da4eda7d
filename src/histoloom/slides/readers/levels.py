"""Which images of a file are levels of the slide's pyramid: reductions of the whole slide, and nothing else.

Files hold labels and macro images too, sometimes in tiles as the slide itself, and some scanners pad a level to whole
tiles, which stretches it. A level counts where both sides are smaller by the same factor, within the rounding of a
pixel, and where no name says that it is something else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ASIDE = re.compile(r"(?<![a-z])(label|macro|overview|thumbnail)s?(?![a-z])", re.IGNORECASE)
# Aperio names an image in the second line of its description: "label 415x422".
_ASIDE_LINE = re.compile(r"^\s*(label|macro|overview|thumbnail)(?![a-z])", re.IGNORECASE | re.MULTILINE)

Size = tuple[int, int]
"""(width, height), px."""


def is_aside(name: str) -> bool:
    """Whether an image's name says, as a word of its own, that it shows the label or the whole glass."""
    return bool(_ASIDE.search(name))


def describes_aside(description: str) -> bool:
    """The same for the description of a TIFF's page, where such a word starts a line."""
    return bool(_ASIDE_LINE.search(description))


def factors(finer: Size, coarser: Size) -> tuple[float, float] | None:
    """The smallest and largest factor by which ``coarser`` can be a reduction of ``finer``; None where it is none.

    Programs round a level's sides up or down, so that each is off by less than a pixel.
    """
    if min(coarser) < 1 or any(small >= large for small, large in zip(coarser, finer, strict=True)):
        return None
    low = max(large / (small + 1) for small, large in zip(coarser, finer, strict=True))
    high = min(large / (small - 1) if small > 1 else float("inf") for small, large in zip(coarser, finer, strict=True))
    return (low, high) if low < high else None


def following(numbers: Sequence[int], *, sizes: Sequence[Size]) -> list[int]:
    """Those of ``numbers`` (of ``sizes``) whose size makes them a reduction of the one kept before; the first is."""
    kept = list(numbers[:1])
    for number in numbers[1:]:
        if factors(sizes[kept[-1]], sizes[number]) is not None:
            kept.append(number)
    return kept

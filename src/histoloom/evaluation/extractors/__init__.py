"""Every extractor by the kind that its name begins with: one file and one line each."""

from __future__ import annotations

from collections.abc import Mapping

from histoloom.errors import UserError
from histoloom.evaluation.extractors import lpips_trunk, pixels
from histoloom.evaluation.extractors.base import Extractor, Maker, Sources

__all__ = ["EXTRACTORS", "Extractor", "Sources", "make_extractor"]

EXTRACTORS: Mapping[str, Maker] = {
    "pixels": pixels.make,
    "lpips-alex": lpips_trunk.maker("alex"),
    "lpips-squeeze": lpips_trunk.maker("squeeze"),
    "lpips-vgg": lpips_trunk.maker("vgg"),
}


def make_extractor(name: str, *, sources: Sources) -> Extractor:
    """The extractor called ``KIND`` or ``KIND:REST``; ``UserError`` where it is unknown or not at hand."""
    kind, _, rest = name.partition(":")
    if kind not in EXTRACTORS:
        raise UserError(f"no extractor is called {name!r}; known are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[kind](rest, sources)

"""Every extractor by the kind that its name begins with: one file and one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from histoloom.errors import UserError
from histoloom.evaluation.extractors import foreign, inception, lpips_trunk, pixels, run_encoder
from histoloom.evaluation.extractors.base import Extractor, Maker, Sources

__all__ = ["EXTRACTORS", "Extractor", "Sources", "make_extractor", "make_extractors"]

EXTRACTORS: Mapping[str, Maker] = {
    "pixels": pixels.make,
    "lpips-alex": lpips_trunk.maker("alex"),
    "lpips-squeeze": lpips_trunk.maker("squeeze"),
    "lpips-vgg": lpips_trunk.maker("vgg"),
    "encoder": run_encoder.make,
    "inception": inception.make,
    "hf": foreign.maker("hf"),
    "timm": foreign.maker("timm"),
}


def make_extractor(name: str, *, sources: Sources) -> Extractor:
    """The extractor called ``KIND`` or ``KIND:REST``; ``UserError`` where it is unknown or not at hand."""
    kind, _, rest = name.partition(":")
    return _maker(kind)(rest, sources)


def make_extractors(names: Sequence[str], *, sources: Sources, size: int) -> tuple[list[Extractor], dict[str, str]]:
    """The extractors that can be had for images whose shorter side is ``size`` px, and for each other one why not.

    Raises ``UserError`` for a name that is unknown.
    """
    found, missing = [], {}
    for name in dict.fromkeys(names):
        _maker(name.partition(":")[0])
        try:
            extractor = make_extractor(name, sources=sources)
        except UserError as error:
            missing[name] = str(error)
            continue
        if size < extractor.least:
            missing[name] = f"images of {size} px are too small for it; it needs at least {extractor.least} px"
        else:
            found.append(extractor)
    return found, missing


def _maker(kind: str) -> Maker:
    if kind not in EXTRACTORS:
        raise UserError(f"no extractor is called {kind!r}; known are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[kind]

"""Every kind of features that patches can be clustered by: one file and one line each."""

from __future__ import annotations

from collections.abc import Mapping

from histoloom.clustering.features.kinds import codes, encoder, latents, pooled, selfsup
from histoloom.clustering.features.kinds.base import Features, Kind, Sources

__all__ = ["KINDS", "Features", "Kind", "Sources"]

KINDS: Mapping[str, Kind] = {
    "latents": latents.KIND,
    "pooled": pooled.KIND,
    "codes": codes.KIND,
    "selfsup": selfsup.KIND,
    "encoder": encoder.KIND,
}

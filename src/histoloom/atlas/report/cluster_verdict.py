"""The verdict on the samples of one cluster, in one line of words: what the numbers below it come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from histoloom.atlas.report.distribution_table import DistributionRow

TEXTURES = ("lpips-alex", "lpips-squeeze", "lpips-vgg")
"""extractors that see sharpness and texture, which generators lose first; the first that was measured speaks"""


def cluster_verdict(
    *, faithful: str, distribution: Sequence[DistributionRow], originality: Mapping[str, Any], files: Sequence[str]
) -> str:
    """Recognition, texture and copies of a cluster's samples; empty where none of them was judged.

    ``faithful`` is the cluster's line of ``faithfulness_lines``, ``originality`` the content of ``originality.json``
    ({}: nobody looked), ``files`` the names of the cluster's samples.
    """
    parts = [faithful.partition(":")[0], _texture(distribution), _copies(originality, files=files)]
    said = "; ".join(part for part in parts if part)
    return said[:1].upper() + said[1:] + "." if said else ""


def _texture(rows: Sequence[DistributionRow]) -> str:
    distances = {row.extractor: row for row in rows if row.metric == "kid"}
    for name in TEXTURES:
        if name in distances:
            return f"texture {distances[name].reading}"
    return ""


def _copies(originality: Mapping[str, Any], *, files: Sequence[str]) -> str:
    if originality.get("copy_rate") is None or not files:
        return ""
    wanted = set(files)
    copies = sum(entry["copy"] for entry in originality["samples"] if entry["file"] in wanted)
    if not copies:
        return "no sample looks like a copy"
    return f"{copies} of {len(wanted)} samples {'look' if copies > 1 else 'looks'} like a copy"

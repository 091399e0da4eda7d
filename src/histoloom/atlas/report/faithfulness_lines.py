"""What ``evaluation/faithfulness.json`` says, as sentences of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WATCHERS = (
    ("clusterer", "reconstructions", "the run's clusterer", "of real patches after the VQ-GAN"),
    ("judge", "held_out", "the independent judge", "of real patches of held-out slides"),
)
"""Who looks: key, what its reference is called, and both in words."""
TRAINED = {"real": "real patches", "synthetic": "samples alone", "both": "both"}


def cluster_line(content: Mapping[str, Any], *, cluster: int, k: int) -> str:
    """The verdict on the samples of a cluster; empty where nothing was judged at this k."""
    parts, worse = [], []
    for key, reference, who, of_what in WATCHERS:
        seen = _of(content, key, "samples", k=k)
        if seen is None or seen["recall"][cluster] is None:
            continue
        beside = _beside(content[key][reference], cluster=cluster, words=of_what)
        parts.append(f"{who} recognises {seen['recall'][cluster]:.0%} of the samples{beside}")
        worse.append(_below(seen, content[key][reference], cluster=cluster))
        mistaken = _taken_for(seen["confusion"][cluster], cluster=cluster)
        if mistaken is not None:
            parts[-1] += f", and takes them for cluster {mistaken} most often else"
    if not parts:
        return ""
    return f"{_verdict(worse)}: {'; '.join(parts)}."


def summary_lines(content: Mapping[str, Any], *, k: int) -> tuple[str, ...]:
    """What all samples together are, and what they are good for."""
    if content.get("k") != k:
        return ()
    if "note" in content:
        return (f"Whether samples show what they should was not judged: {content['note']}.",)
    useful = content["usefulness"]
    scores = [f"{_percent(useful[name])} trained on {words}" for name, words in TRAINED.items()]
    return (
        "A small classifier of the clusters, tested on real patches of held-out slides, recognises "
        + ", ".join(scores[:-1])
        + f" and {scores[-1]} ({content['n_real']:,} real patches, {content['n_synthetic']:,} samples; balanced over "
        "clusters).",
    )


def _of(content: Mapping[str, Any], key: str, images: str, *, k: int) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = content[key][images] if content.get("k") == k and key in content else None
    return found


def _beside(reference: Mapping[str, Any], *, cluster: int, words: str) -> str:
    value = reference["recall"][cluster]
    return f" ({words}: none at hand)" if value is None else f" ({value:.0%} {words})"


def _below(seen: Mapping[str, Any], reference: Mapping[str, Any], *, cluster: int) -> bool:
    """Whether samples are recognised less often than real patches, as far as the intervals tell them apart."""
    mine, theirs = seen["intervals"][cluster], reference["intervals"][cluster]
    return theirs is not None and bool(mine[1] < theirs[0])


def _taken_for(row: Sequence[int], *, cluster: int) -> int | None:
    """The other cluster that at least a tenth of the images are taken for, the commonest."""
    others = {number: count for number, count in enumerate(row) if number != cluster}
    commonest = max(others, key=lambda number: others[number])
    return commonest if others[commonest] >= max(1, sum(row) / 10) else None


def _verdict(worse: Sequence[bool]) -> str:
    if not any(worse):
        return "Recognised like real tissue"
    return "Recognised less often than real tissue" if all(worse) else "Not recognised by all as real tissue is"


def _percent(score: Mapping[str, Any]) -> str:
    low, high = score["interval"]
    return f"{score['accuracy']:.0%} ({low:.0%} to {high:.0%})"

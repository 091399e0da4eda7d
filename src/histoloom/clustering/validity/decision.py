"""Which k, and whether there are clusters at all: the rule over what ``comparison`` measured.

Shapes: N points, D features.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from histoloom.clustering.validity.index_vote import Choice
from histoloom.clustering.validity.indices import INDICES
from histoloom.clustering.validity.null_comparison import Findings, compare
from histoloom.errors import UserError

MAJORITY = 3  # of the five indices
LEAST_AGREEMENT = 0.5  # Jaccard; Hennig (2007) calls a cluster below that dissolved
LEAST_SHARE = 0.005
POINTS_A_CLUSTER = 4

GOOD_AGREEMENT = 0.75  # adjusted Rand index

RULE = (
    "a k stands if, for k-means on the features, (1) at least 3 of the five indices are better, each by its 95 % "
    "interval, than on Gaussian data of the same covariance, than on the features permuted one by one, and than on "
    "their principal components permuted one by one; (2) the clusters of two parts of the data without a common patch "
    "agree: those they agree about least share at least half of their patches (Jaccard index 0.5), and more than on "
    "the Gaussian data, by its 95 % interval; (3) no cluster holds under 0.5 % of the patches. The largest k that "
    "stands is chosen. If there is none, a k stands in part where (1) and (3) hold and the two parts agree on the "
    "whole (adjusted Rand index 0.75), and more than on each kind of data without clusters, by its 95 % interval. Of "
    "these the largest is chosen that they agree about as well as about any, within the deviation among the draws. If "
    "there is none either, there is no evidence of clusters"
)
NONE = "No evidence of clusters"


@dataclass(frozen=True)
class Evidence:
    """``k`` is None where there is no evidence of clusters. ``findings``: empty where there were too few points.

    ``standing``: the k that stand by the rule, ``partly``: those that stand in part only. ``text`` says what was found
    in plain words.
    """

    k: int | None
    standing: tuple[int, ...]
    partly: tuple[int, ...]
    rule: str
    text: str
    findings: Mapping[int, Findings]


def choose_with_nulls(
    x_ND: np.ndarray,
    *,
    ks: Sequence[int],
    seed: int,
    draws: int = 8,
    points: int = 1500,
    passed_over: Collection[int] = (),
) -> Evidence:
    """Choose among ``ks`` for features (N, D) of any type, or find no evidence of clusters.

    ``draws`` (at least 2) sets of at most ``points`` points are clustered, of the data and of each null; equal points
    count once. ``passed_over``: k that cannot be chosen. ``UserError`` for values that are not finite.
    """
    if x_ND.ndim != 2 or not np.isfinite(x_ND).all():
        raise UserError(f"features must be a table (points, features) of finite numbers, got shape {x_ND.shape}")
    distinct_ND = np.unique(np.asarray(x_ND, dtype=np.float64), axis=0)
    needed = POINTS_A_CLUSTER * max(ks)
    if min(len(distinct_ND), points) < needed:
        few = f"too few different patches were looked at: {min(len(distinct_ND), points)}, at least {needed} are needed"
        return Evidence(None, (), (), RULE, f"{NONE}: {few} for k = {max(ks)}.", {})
    findings = compare(distinct_ND, ks=ks, seed=seed, draws=draws, points=points)
    open_ones = {k: found for k, found in findings.items() if k not in passed_over}
    standing = tuple(k for k, found in open_ones.items() if not objections(found))
    partly = tuple(k for k, found in open_ones.items() if objections(found) and _stands_in_part(found))
    k = max(standing, default=None)
    if k is None and partly:
        k = as_stable_as_any(partly, findings=findings)
    return Evidence(k, standing, partly, RULE, _text(findings, k=k, standing=standing), findings)


def _better(found: Findings) -> int:
    """How many indices are better than on every null."""
    return sum(found.indices[name].least.low > 0 for name in INDICES)


def _stands_in_part(found: Findings) -> bool:
    agreed = found.stability["agreement"]
    is_stable = agreed.real >= GOOD_AGREEMENT and agreed.least.low > 0
    return is_stable and _better(found) >= MAJORITY and found.smallest >= LEAST_SHARE


def as_stable_as_any(ks: Sequence[int], *, findings: Mapping[int, Findings]) -> int:
    """The largest k whose agreement is at most a deviation among draws below the best one's.

    Agreement falls with the number of clusters also where they are all there, so the best one alone would favour few.
    """
    agreed = {k: findings[k].stability["agreement"] for k in ks}
    best = max(agreed.values(), key=lambda compared: compared.real)
    return max(k for k, compared in agreed.items() if compared.real >= best.real - best.deviation)


def objections(found: Findings) -> list[str]:
    """What speaks against a k by the rule, in plain words; empty where it stands."""
    weakest, reasons = found.stability["weakest"], []
    better = _better(found)
    if better < MAJORITY:
        reasons.append(f"{better} of {len(INDICES)} indices better than without clusters")
    if weakest.real < LEAST_AGREEMENT:
        reasons.append(f"not found again in other patches ({weakest.real:.2f})")
    elif weakest.excess["gaussian"].low <= 0:
        reasons.append("found again no better than on Gaussian data")
    if found.smallest < LEAST_SHARE:
        reasons.append(f"a cluster with {100 * found.smallest:.1f} % of the patches")
    return reasons


def _text(findings: Mapping[int, Findings], *, k: int | None, standing: Sequence[int]) -> str:
    if k is None:
        return f"{NONE}: no k of the sweep stands by the rule.{_unusual(findings)}"
    found = findings[k]
    least, agreed = (found.stability[name].real for name in ("weakest", "agreement"))
    again = (
        f"the clusters are found again in other patches (the least reproducible one shares {least:.2f} of its patches)"
        if standing
        else f"most of the clusters are found again in other patches (adjusted Rand index {agreed:.2f}), but not all: "
        f"the least reproducible one shares {least:.2f} of its patches, so that k itself is uncertain"
    )
    others = f" k = {', '.join(map(str, standing))} stand." if len(standing) > 1 else ""
    return (
        f"Evidence of clusters: at k = {k}, {_better(found)} of {len(INDICES)} indices are better than on data without "
        f"clusters, and {again}.{others}"
    )


def _unusual(findings: Mapping[int, Findings]) -> str:
    """What keeps indices that look good from being evidence."""
    unusual = [k for k, found in findings.items() if _better(found) >= MAJORITY]
    if not unusual:
        return " The indices are no better than on data without clusters."
    return (
        f" At k = {', '.join(map(str, unusual))} most indices are better than on data without clusters, as skewed or "
        "curved data without clusters can be too, but no such k gives clusters that are found again in other patches."
    )


def with_evidence(plain: Choice, *, evidence: Evidence, chooser: Literal["nulls", "plain"] = "nulls") -> dict[str, Any]:
    """What ``choice.json`` holds: the chosen k and why; the plain rule's k where ``chooser`` says so or none stands."""
    found = evidence.k is not None
    k, rule, reason = evidence.k, evidence.rule, ""
    if chooser == "plain":
        k, rule, reason = plain.k, plain.rule, f" k = {plain.k} is taken by the plain rule, as clusters.chooser says."
    elif not found:
        k, reason = plain.k, f" k = {plain.k} is taken by the plain rule because a number is needed."
    return vars(plain) | {
        "k": k,
        "rule": rule,
        "evidence": evidence.text + reason,
        "found": found,
        "standing": list(evidence.standing),
        "partly": list(evidence.partly),
        "plain": {"k": plain.k, "rule": plain.rule, "evidence": plain.evidence},
        "nulls": [asdict(found) | {"objections": objections(found)} for found in evidence.findings.values()],
    }

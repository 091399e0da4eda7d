"""Every metric of two sets: one file and one line each."""

from __future__ import annotations

from histoloom.evaluation.set_metrics import density_coverage, frechet, kid, mmd, precision_recall
from histoloom.evaluation.set_metrics.base import Estimate, SetMetric

__all__ = ["SET_METRICS", "Estimate", "SetMetric"]

SET_METRICS: tuple[SetMetric, ...] = (
    frechet.METRIC,
    kid.METRIC,
    mmd.METRIC,
    precision_recall.METRIC,
    density_coverage.METRIC,
)

"""The tables of Rumman et al., Bioengineering 2025, 12(7), 764, for showing a run's numbers beside them.

Their data (whole slides of liver metastases, 10,000 patches) are others than any run's here: the numbers show the
layout and the order of magnitude, and do not compare as scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

INDEX_TITLES = {
    "calinski_harabasz": "Calinski-Harabasz",
    "c_index": "C index",
    "dunn": "Dunn",
    "hartigan": "Hartigan",
    "mcclain_rao": "McClain-Rao",
}
"""The five validity indices in the paper's order."""

METRIC_TITLES = {"ssim": "SSIM", "ms_ssim": "MS-SSIM", "lpips": "LPIPS"}
"""The three similarity metrics in the paper's order."""

BETTER: dict[str, Literal["larger", "smaller"]] = {
    "calinski_harabasz": "larger",
    "c_index": "smaller",
    "dunn": "larger",
    "hartigan": "larger",
    "mcclain_rao": "smaller",
    "ssim": "larger",
    "ms_ssim": "larger",
    "lpips": "smaller",
}
"""Whether a larger or a smaller value means tighter clusters, or more similar images."""


@dataclass(frozen=True)
class PaperRow:
    """One k of the paper's two tables."""

    k: int
    calinski_harabasz: float
    c_index: float
    dunn: float
    hartigan: float
    mcclain_rao: float
    ssim: float
    ms_ssim: float
    lpips: float

    def value(self, column: str) -> float:
        """The number in ``column``, one of ``INDEX_TITLES`` or ``METRIC_TITLES``."""
        return float(getattr(self, column))


ROWS = (
    PaperRow(10, 2142.54026, 0.12234, 0.00441, 0.65763, 0.54631, 0.7814, 0.2138, 0.5008),
    PaperRow(11, 2866.86433, 0.10477, 0.00477, 1.05432, 0.49791, 0.7835, 0.2130, 0.5003),
    PaperRow(12, 1865.81774, 0.12042, 0.00463, 0.72021, 0.55443, 0.7801, 0.2168, 0.5032),
    PaperRow(13, 2836.22720, 0.09131, 0.00424, 1.22610, 0.46335, 0.7865, 0.2161, 0.4987),
    PaperRow(14, 3367.74211, 0.07645, 0.00548, 1.47801, 0.41643, 0.7988, 0.2196, 0.4923),
    PaperRow(15, 2027.82944, 0.10489, 0.00424, 1.04494, 0.51414, 0.7889, 0.2152, 0.4980),
    PaperRow(16, 2603.28507, 0.08615, 0.00490, 1.36384, 0.45223, 0.7908, 0.2186, 0.4939),
)

CITATION = "Rumman et al., Bioengineering 2025, 12(7), 764"

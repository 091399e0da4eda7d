"""The tables of Rumman et al., Bioengineering 2025, 12(7), 764, which the report shows beside a run's numbers.

The paper's data (whole slides of liver metastases, 10,000 patches) differ from those of any run here. Its numbers show
the layout and the order of magnitude; they do not compare as scores.
"""

from __future__ import annotations

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


ROWS: dict[int, dict[str, float]] = {
    k: dict(zip(BETTER, values, strict=True))
    for k, *values in (
        (10, 2142.54026, 0.12234, 0.00441, 0.65763, 0.54631, 0.7814, 0.2138, 0.5008),
        (11, 2866.86433, 0.10477, 0.00477, 1.05432, 0.49791, 0.7835, 0.2130, 0.5003),
        (12, 1865.81774, 0.12042, 0.00463, 0.72021, 0.55443, 0.7801, 0.2168, 0.5032),
        (13, 2836.22720, 0.09131, 0.00424, 1.22610, 0.46335, 0.7865, 0.2161, 0.4987),
        (14, 3367.74211, 0.07645, 0.00548, 1.47801, 0.41643, 0.7988, 0.2196, 0.4923),
        (15, 2027.82944, 0.10489, 0.00424, 1.04494, 0.51414, 0.7889, 0.2152, 0.4980),
        (16, 2603.28507, 0.08615, 0.00490, 1.36384, 0.45223, 0.7908, 0.2186, 0.4939),
    )
}
"""The paper's numbers by k, and by index or metric."""

CITATION = "Rumman et al., Bioengineering 2025, 12(7), 764"

"""What the choice of k shows on the paper's own features: its indices beside those of data without clusters.

Reads ``paper/k14-latents-and-clusters.csv`` of the authors' public repository (randomaccess2023/KPC_LDM_128), a row for
each of 10,000 patches: 16 features, the cluster at k = 14, and its probability. Prints three tables: the five indices
at k = 14, Calinski-Harabasz for every k, and what the rule of docs/explanation/choosing-k.md says.

    python benchmarks/paper_null_models.py [--data FOLDER] [--draws 5]

FOLDER is that of the tests' real data: by default HISTOLOOM_TEST_DATA, or ../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import adjusted_rand_score, calinski_harabasz_score, normalized_mutual_info_score

from histoloom.atlas.report.paper import ROWS
from histoloom.clustering.stage import kmeans_labels
from histoloom.clustering.validity.decision import decide_by_nulls, objections
from histoloom.clustering.validity.indices import INDICES, validity_indices
from histoloom.clustering.validity.null_comparison import NULLS
from histoloom.seeding import numpy_generator

K, KS, FEATURES = 14, tuple(range(10, 17)), 16
FOLDER = Path(__file__).parents[2] / "shared" / "data"


def null_draws(x_ND: np.ndarray, *, draws: int) -> dict[str, list[np.ndarray]]:
    """As many points as the features, ``draws`` times from each null model."""
    return {
        name: [fit(x_ND)(len(x_ND), numpy_generator(0, "benchmark", "paper", name, draw)) for draw in range(draws)]
        for name, fit in NULLS.items()
    }


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and deviation of several draws; four digits behind the point where they are small."""
    digits = 0 if np.mean(values) > 100 else 4
    return f"{np.mean(values):,.{digits}f} ({np.std(values, ddof=1):,.{digits}f})"


def five_indices_at_14(x_ND: np.ndarray, labels_N: np.ndarray, nulls: Mapping[str, Sequence[np.ndarray]]) -> None:
    """The five indices of the paper's clusters, of k-means, and of k-means on the null models."""

    def indices(points_ND: np.ndarray, codes_N: np.ndarray) -> dict[str, float]:
        result = validity_indices(torch.from_numpy(points_ND), torch.from_numpy(codes_N.astype(np.int64)))
        return {name: getattr(result, name) for name in INDICES}

    found_N = kmeans_labels(x_ND, k=K, seed=0)
    rows = {
        name: {index: f"{value:.5f}" for index, value in indices(x_ND, codes_N).items()}
        for name, codes_N in (("the paper's clusters", labels_N), ("k-means, same features", found_N))
    }
    for name, drawn in nulls.items():
        values = [indices(points_ND, kmeans_labels(points_ND, k=K, seed=0)) for points_ND in drawn]
        rows[f"k-means, {name} null"] = {index: mean_and_deviation([v[index] for v in values]) for index in INDICES}
    print(pd.DataFrame(rows).T.to_string())
    nmi, ari = normalized_mutual_info_score(labels_N, found_N), adjusted_rand_score(labels_N, found_N)
    print(f"the paper's clusters and k-means agree: NMI {nmi:.2f}, adjusted Rand index {ari:.2f}\n")


def calinski_harabasz_by_k(x_ND: np.ndarray, nulls: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Calinski-Harabasz for every k: as published, and of k-means on the features and on the null models."""

    def score(points_ND: np.ndarray, k: int) -> float:
        return float(calinski_harabasz_score(points_ND, kmeans_labels(points_ND, k=k, seed=0)))

    rows = []
    for k in KS:
        row = {"k": str(k), "published": f"{ROWS[k]['calinski_harabasz']:,.0f}", "k-means": f"{score(x_ND, k):,.0f}"}
        rows.append(row | {name: mean_and_deviation([score(d_ND, k) for d_ND in ds]) for name, ds in nulls.items()})
    print(pd.DataFrame(rows).to_string(index=False), end="\n\n")


def decision(x_ND: np.ndarray) -> None:
    """The rule that compares with null models, on the features."""
    decided = decide_by_nulls(x_ND, ks=KS, seed=0, draws=16)
    print(decided.text)
    for k, comparison in decided.comparisons.items():
        agreed, weakest = (comparison.stability[name] for name in ("agreement", "weakest"))
        stability = f"agreement {agreed.real:.2f}, least reproducible cluster {weakest.real:.2f}"
        print(f"k = {k}: {stability}; {', '.join(objections(comparison)) or 'passes'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HISTOLOOM_TEST_DATA", FOLDER)))
    parser.add_argument("--draws", type=int, default=5, help="sets of points of each null model")
    arguments = parser.parse_args()
    path = arguments.data / "paper" / "k14-latents-and-clusters.csv"
    if not path.is_file():
        parser.error(f"{path} is not there; it comes from the authors' repository, randomaccess2023/KPC_LDM_128")

    table = pd.read_csv(path, header=None)
    x_ND, labels_N = table.iloc[:, :FEATURES].to_numpy(), table[FEATURES].to_numpy()
    sizes_K = np.bincount(labels_N, minlength=K)
    scale_D = np.linalg.svd(x_ND - x_ND.mean(0), compute_uv=False) ** 2
    print(f"{len(x_ND):,} patches, clusters of {sizes_K.min()} to {sizes_K.max()}")
    print(f"{100 * (table[FEATURES + 1] > 0.9).mean():.0f} % of the patches have a probability above 0.9")
    shares = ", ".join(f"{100 * share:.1f}" for share in scale_D[:5] / scale_D.sum())
    print(f"share of the variance of the first five principal components, %: {shares}\n")

    nulls = null_draws(x_ND, draws=arguments.draws)
    five_indices_at_14(x_ND, labels_N, nulls)
    calinski_harabasz_by_k(x_ND, nulls)
    decision(x_ND)


if __name__ == "__main__":
    main()

"""Information maximisation beside other clusterings, on slides whose tissue is known.

For each seed: new procedural slides (half of them in another stain), new training with the preset demo. At every k of
the sweep: agreement with the true tissue (NMI, ARI, matched accuracy: the best one-to-one match of clusters and
tissues) and NMI with the slide. Baselines get pooled latents, as they are and whitened, and histograms of codes.
The truth is used here only.

    python benchmarks/clusterings.py --out FOLDER [--seeds 0 1 2 3 4] [--features latents selfsup] [--encoder hf:NAME]

With ``--features`` the stage clusters is repeated for each kind; baselines get the vectors of each such kind too.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.mixture import GaussianMixture

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features.bank import KINDS, validity_features
from histoloom.clustering.features.latents import pooled
from histoloom.clustering.stage import by_falling_size, kmeans_labels
from histoloom.demo import run_demo
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.evaluation.truth import true_classes
from histoloom.pipeline import execute
from histoloom.run.directory import Run
from histoloom.seeding import derive
from histoloom.setup import change_settings
from histoloom.slides.patch_set import PatchSet

KEPT_VARIANCE = 0.99
NEIGHBOURS = 15
_SHRINKAGE = 1e-4  # of the features' mean variance, added to each covariance
_MIXTURE_STARTS = 2


def gaussian_mixture_labels(x_ND: np.ndarray, *, k: int, seed: int) -> np.ndarray:
    """The likeliest component of a mixture of K full-covariance Gaussians, the best of two starts by likelihood.

    For features of few dimensions: whiten pooled latents first (``diffusion.latent_space``).
    """
    model = GaussianMixture(
        k,
        reg_covar=_SHRINKAGE * float(x_ND.var(axis=0).mean()),
        n_init=_MIXTURE_STARTS,
        random_state=derive(seed, "mixture", k) % 2**32,
    )
    return by_falling_size(model.fit_predict(x_ND.astype(np.float64)), k=k)


def spectral_labels(x_ND: np.ndarray, *, k: int, seed: int) -> np.ndarray:
    """Spectral clustering of the graph of nearest neighbours (Ng et al. 2001; von Luxburg 2007)."""
    model = SpectralClustering(
        k,
        affinity="nearest_neighbors",
        n_neighbors=min(NEIGHBOURS, len(x_ND) - 1),
        assign_labels="cluster_qr",
        random_state=derive(seed, "spectral", k) % 2**32,
    )
    with warnings.catch_warnings():
        # A graph in several parts is what clear clusters give.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        return by_falling_size(model.fit_predict(x_ND), k=k)


BASELINES: Mapping[str, Callable[..., np.ndarray]] = {
    "kmeans": kmeans_labels,
    "gaussian_mixture": gaussian_mixture_labels,
    "spectral": spectral_labels,
}
"""By name: ``method(x_ND, k=..., seed=...)`` gives labels 0..k-1 (N,), numbered by falling size."""


def matched_accuracy(truth: np.ndarray, labels: np.ndarray) -> float:
    """Share of patches in the tissue that their cluster is matched with; clusters beyond the tissues match none."""
    table = contingency_matrix(truth, labels)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(truth))


def feature_kinds(latents: LatentSet) -> dict[str, np.ndarray]:
    """Features (n, D) by name."""
    rows, clusters = np.arange(len(latents)), latents.folder.parent / "clusters"
    space = LatentSpace.fit(latents.latents, rows=latents.rows("train"), whiten=KEPT_VARIANCE)
    return {
        "pooled": validity_features(latents, rows, kind="pooled", clusters=clusters),
        "whitened": pooled(space.encode(latents.raw(rows))).numpy(),
        "codes": validity_features(latents, rows, kind="codes", clusters=clusters),
    }


def of_kind(run: Path, *, kind: str, encoder: str | None) -> Clustering:
    """The run's clusters of another kind of features; all else stays, and what it replaces goes to ``superseded/``."""
    name = encoder if kind == "encoder" else None
    settings = [f"clusters.features={kind}", f"clusters.encoder={name or 'null'}", "clusters.selfsup=null"]
    changed = change_settings(Run.open(run), settings, save=False)
    execute(changed, until="clusters")
    return Clustering.open(run / "clusters")


def clusterings(
    run: Path, *, patch_ids: pd.Series, seed: int, features: list[str], encoder: str | None
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Name, k and labels (n,) in the patches' order."""
    latents = LatentSet.open(run / "latents")
    assert list(latents.table["patch_id"]) == list(patch_ids), "latents keep the patches' order"
    kinds = feature_kinds(latents)
    for kind in features:
        found = of_kind(run, kind=kind, encoder=encoder)
        if kind not in ("latents", *kinds):
            kinds[kind] = np.load(run / "clusters" / "features.npy")
        for k in found.ks:
            name = "information maximisation" + (f", {kind}" if kind != "latents" else "")
            yield name, k, found.labels(k).loc[patch_ids].to_numpy()
    for k in found.ks:
        for method, labels_of in BASELINES.items():
            for kind, x_ND in kinds.items():
                if not (method == "gaussian_mixture" and kind != "whitened"):
                    yield f"{method}, {kind}", k, labels_of(x_ND, k=k, seed=seed)


def scores(run: Path, *, seed: int, features: list[str], encoder: str | None) -> list[dict[str, object]]:
    patches = PatchSet.open(run / "patches")
    truth = true_classes(patches.table, slides=patches.slides)
    slide = pd.factorize(patches.table["slide_id"])[0]
    known = truth >= 0
    chosen = Clustering.open(run / "clusters").chosen
    return [
        {
            "clustering": name,
            "seed": seed,
            "k": k,
            "chosen": k == chosen,
            "NMI": normalized_mutual_info_score(truth[known], labels[known]),
            "ARI": adjusted_rand_score(truth[known], labels[known]),
            "matched": matched_accuracy(truth[known], labels[known]),
            "NMI with slide": normalized_mutual_info_score(slide, labels),
        }
        for name, k, labels in clusterings(
            run, patch_ids=patches.table["patch_id"], seed=seed, features=features, encoder=encoder
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--features", nargs="+", choices=KINDS, default=["latents"], help="what is clustered")
    parser.add_argument("--encoder", help="with --features encoder: hf:NAME or timm:NAME")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for seed in arguments.seeds:
        run_demo(arguments.out / f"seed-{seed}", seed=seed, until="clusters")
        run = arguments.out / f"seed-{seed}" / "run"
        rows += scores(run, seed=seed, features=arguments.features, encoder=arguments.encoder)
    table = pd.DataFrame(rows)
    measures = ["NMI", "ARI", "matched", "NMI with slide"]
    for title, part in (("at the chosen k", table[table["chosen"]]), ("over all k", table)):
        by_seed = part.groupby(["clustering", "seed"], sort=False)[measures].mean()
        summary = by_seed.groupby("clustering", sort=False).agg(["mean", "std"])
        print(f"\n{title}, mean and deviation over {len(arguments.seeds)} seeds:\n{summary.round(3).to_string()}")
    print("\n" + table[table["clustering"].str.startswith("information maximisation")].round(3).to_string(index=False))


if __name__ == "__main__":
    main()

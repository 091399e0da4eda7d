"""How well the demo's clusters find the tissue that its slides were painted with.

For each seed: new slides, new training, then the normalised mutual information between clusters and true tissue at the
chosen k, beside k-means on the same latents at the same k. The truth is used here only.

    python benchmarks/demo_nmi.py --out FOLDER [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import normalized_mutual_info_score

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features import features_of
from histoloom.clustering.kmeans import kmeans_labels
from histoloom.demo import run_demo
from histoloom.evaluation.truth import true_classes
from histoloom.slides.patch_set import PatchSet


def scores(run: Path, *, seed: int) -> list[dict[str, float | int]]:
    patches, latents, clustering = (
        PatchSet.open(run / "patches"),
        LatentSet.open(run / "latents"),
        Clustering.open(run / "clusters"),
    )
    truth_n = true_classes(patches.table, slides=patches.slides)
    known = truth_n >= 0
    slide_n = pd.factorize(patches.table["slide_id"])[0]
    x_ND = features_of(latents, np.arange(len(latents)), kind="pooled")
    rows = []
    for k in clustering.ks:
        labels = clustering.labels(k).loc[patches.table["patch_id"]].to_numpy()
        baseline = kmeans_labels(x_ND, k=k, seed=seed)
        rows.append(
            {
                "seed": seed,
                "k": k,
                "chosen": int(k == clustering.chosen),
                "nmi": normalized_mutual_info_score(truth_n[known], labels[known]),
                "kmeans_nmi": normalized_mutual_info_score(truth_n[known], baseline[known]),
                "nmi_with_slide": normalized_mutual_info_score(slide_n, labels),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        run_demo(arguments.out / f"seed-{seed}", seed=seed, until="clusters")
        rows += scores(arguments.out / f"seed-{seed}" / "run", seed=seed)
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    print("\nat the chosen k:")
    print(table[table["chosen"] == 1].round(3).to_string(index=False))


if __name__ == "__main__":
    main()

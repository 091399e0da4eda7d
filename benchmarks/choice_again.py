"""How often a run's choice of k comes out again: on halves of its patches, on halves of its slides, with other seeds.

Features and clusters are those of the run; only the comparison with data without clusters is repeated, as the stage
``clusters`` makes it. No label is read.

Then the same on data like the features whose number of clusters is known: ``structureless`` is a Gaussian with their
mean and covariance, of which no k should be accepted, and ``separated`` a mixture of Gaussians about as many centres
(of k-means) as the run's k, of the sizes of its clusters, with a quarter of the deviation within them.

    python benchmarks/choice_again.py RUN [--repeats 6] [--planted 20]
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.features.bank import validity_features
from histoloom.clustering.results import Decision
from histoloom.clustering.validity.decision import decide_by_nulls
from histoloom.run.directory import Run
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet


def main() -> None:
    """Print the run's k and, for each kind of repetition, how often each k was chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--planted", type=int, default=20)
    arguments = parser.parse_args()

    run = Run.open(arguments.run)
    config, latents = run.config.clusters, LatentSet.open(run.folder("latents"))
    rows_T = latents.rows(split="train")
    table = PatchSet.open(run.folder("patches")).columns("patch_id", "slide").set_index("patch_id")
    slides_T = table.loc[latents.table["patch_id"].to_numpy()[rows_T], "slide"].to_numpy()
    x_TD = validity_features(latents, rows_T, kind=config.validity_features, clusters=run.folder("clusters"))
    decision = Decision.load(run.folder("clusters"))
    state = "accepted" if decision.standing else "accepted in part" if decision.partly else "by the vote, none accepted"
    print(f"the run: k = {decision.k}, {state}; sweep {list(config.k)}")

    slides = np.unique(slides_T)
    for kind in ("other seeds", "halves of the patches", "halves of the slides"):
        chosen: list[str] = []
        for repeat in range(arguments.repeats):
            random = numpy_generator(run.config.seed, "choice again", kind, repeat)
            if kind == "other seeds":
                kept_T = np.ones(len(x_TD), bool)
            elif kind == "halves of the patches":
                kept_T = random.permutation(len(x_TD)) < len(x_TD) // 2
            else:
                kept_T = np.isin(slides_T, random.permutation(slides)[: max(1, len(slides) // 2)])
            result = decide_by_nulls(
                x_TD[kept_T],
                ks=config.k,
                seed=run.config.seed + (repeat + 1 if kind == "other seeds" else 0),
                draws=config.null_draws,
                points=config.null_points,
            )
            chosen.append("none" if result.k is None else str(result.k))
        print(f"{kind}: {counted(chosen)} of {arguments.repeats}", flush=True)

    for kind in ("structureless", "separated"):
        chosen = []
        for repeat in range(arguments.planted):
            random = numpy_generator(run.config.seed, "choice again", kind, repeat)
            planted_TD = structureless(x_TD, random) if kind == "structureless" else separated(x_TD, decision.k, random)
            result = decide_by_nulls(
                planted_TD, ks=config.k, seed=repeat, draws=config.null_draws, points=config.null_points
            )
            chosen.append("none" if result.k is None else str(result.k))
        right = "none" if kind == "structureless" else decision.k
        print(f"{kind} ({right} is right): {counted(chosen)} of {arguments.planted}", flush=True)


def counted(chosen: Sequence[str]) -> str:
    return ", ".join(f"{k}: {n}" for k, n in sorted(Counter(chosen).items()))


def structureless(x_ND: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """As many draws from the Gaussian with the mean and covariance of ``x_ND``."""
    return gaussian(x_ND - x_ND.mean(axis=0), len(x_ND), random) + x_ND.mean(axis=0)


def separated(x_ND: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
    """As many draws from a mixture about the centres of k-means, with a quarter of the deviation within clusters."""
    model = KMeans(k, n_init=4, random_state=int(random.integers(2**31))).fit(x_ND)
    within_ND = x_ND - model.cluster_centers_[model.labels_]
    return model.cluster_centers_[model.labels_] + gaussian(within_ND, len(x_ND), random) / 4


def gaussian(centred_ND: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """``n`` draws with mean 0 and the covariance of ``centred_ND``: random sums of its rows."""
    draws_nD: np.ndarray = random.standard_normal((n, len(centred_ND))) @ centred_ND / np.sqrt(len(centred_ND))
    return draws_nD


if __name__ == "__main__":
    main()

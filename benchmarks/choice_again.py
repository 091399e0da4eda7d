"""How often a run's choice of k comes out again: on halves of its patches, on halves of its slides, with other seeds.

Features and clusters are those of the run; only the comparison with data without clusters is repeated, as the stage
``clusters`` makes it. No label is read.

    python benchmarks/choice_again.py RUN [--repeats 6]
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

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
    arguments = parser.parse_args()

    run = Run.open(arguments.run)
    config, latents = run.config.clusters, LatentSet.open(run.folder("latents"))
    rows_T = latents.rows(split="train")
    table = PatchSet.open(run.folder("patches")).columns("patch_id", "slide").set_index("patch_id")
    slides_T = table.loc[latents.table["patch_id"].to_numpy()[rows_T], "slide"].to_numpy()
    x_TD = validity_features(latents, rows_T, kind=config.validity_features, clusters=run.folder("clusters"))
    decision = Decision.load(run.folder("clusters"))
    print(f"the run: k = {decision.k}, {'accepted' if decision.standing else 'none accepted'}; sweep {list(config.k)}")

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
        counts = ", ".join(f"{k}: {n}" for k, n in sorted(Counter(chosen).items()))
        print(f"{kind}: {counts} of {arguments.repeats}")


if __name__ == "__main__":
    main()

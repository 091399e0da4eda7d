"""How far the samples of finished runs are from real tissue, beside how far real tissue is from itself.

    python benchmarks/distances.py RUN[=SAMPLES] ... [--extractors pixels lpips-alex lpips-squeeze] [-n N] [--draws 8]
    [--json]

For the chosen k of each run (of the samples, where they have that k alone): Frechet and kernel distance (KID) of
samples to held-out real patches, and to training patches. SAMPLES is a folder that ``histoloom sample`` wrote, in place
of RUN/samples. A set of samples has every cluster by its frequency among the real patches that it is compared with; so
has the floor, which is real patches of the other split in the same number. The same number n is drawn from every run,
since a Frechet distance falls as n rises; each value is the mean over draws. +- is one standard error, from halves of
the sets (evaluation/set_metrics/base.py). Ratio: samples' distance over the floor's. At most 2,000 real patches.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from histoloom.clustering.clustering_set import Clustering
from histoloom.evaluation.distribution import ClusterRows, cluster_quotas, cluster_shares, draw_rows, rows_by_cluster
from histoloom.evaluation.extractors import Extractor, ExtractorSources, make_extractor
from histoloom.evaluation.images import SampleFolder
from histoloom.evaluation.set_metrics import frechet_distance, kernel_distance
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet

EXTRACTORS = ("pixels", "lpips-alex", "lpips-squeeze")
METRICS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], float]] = {
    "frechet": (frechet_distance, 1),
    "KID x1000": (kernel_distance, 1000),
}
MOST_REAL = 2000
BATCH = 64


@dataclass(frozen=True)
class Material:
    """A run's chosen k: real rows by split, and rows of samples, each by cluster."""

    name: str
    k: int
    patches: PatchSet
    samples: SampleFolder
    real: Mapping[str, ClusterRows]
    synthetic: ClusterRows

    def shares(self, split: str) -> dict[int, float]:
        """Of each cluster that has samples, among the split's patches."""
        return cluster_shares(self.real[split], clusters=sorted(self.synthetic))

    def most(self) -> int:
        """The largest set of samples that has the shares of either split."""
        return min(sum(cluster_quotas(self.shares(split), available=self.synthetic).values()) for split in self.real)


def material(argument: str) -> Material:
    """``RUN`` or ``RUN=SAMPLES``."""
    run, _, folder = argument.partition("=")
    path = Path(run)
    samples = SampleFolder(Path(folder) if folder else path / "samples")
    chosen = Clustering.open(path / "clusters").chosen
    k = chosen if chosen in samples.ks else samples.ks[0]
    patches = PatchSet.open(path / "patches")
    clusters = pd.read_parquet(path / "clusters" / "index.parquet").set_index("patch_id")
    labels = clusters[f"k{k}"].reindex(patches.table["patch_id"]).to_numpy()
    rng = numpy_generator(0, "distances", "real")
    rows = {split: patches.rows(split) for split in ("holdout", "train")}
    rows = {split: np.sort(rng.permutation(found)[:MOST_REAL]) for split, found in rows.items()}
    real: dict[str, ClusterRows] = {split: rows_by_cluster(labels, rows=found) for split, found in rows.items()}
    return Material(path.name, k, patches, samples, real, samples.rows(k))


def features(
    read: Callable[[np.ndarray], np.ndarray], found: ClusterRows, *, extractor: Extractor
) -> dict[int, np.ndarray]:
    """Features of each row."""
    rows = np.concatenate(list(found.values()))
    parts = [extractor.features(read(rows[start : start + BATCH])) for start in range(0, len(rows), BATCH)]
    return dict(zip(rows.tolist(), np.concatenate(parts), strict=True))


def stacked(of: dict[int, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """The features (n, D) of these rows."""
    return np.stack([of[int(row)] for row in rows])


def measured(
    function: Callable[[np.ndarray, np.ndarray], float], sets: list[tuple[np.ndarray, np.ndarray]]
) -> list[float]:
    """Mean over the draws, and its standard error: that of the first draw, from random halves."""
    rng = numpy_generator(0, "distances", "halves")
    a_ND, b_MD = sets[0]
    halves = [
        function(rng.permutation(a_ND)[: len(a_ND) // 2], rng.permutation(b_MD)[: len(b_MD) // 2]) for _ in range(10)
    ]
    return [float(np.mean([function(a, b) for a, b in sets])), float(np.std(halves, ddof=1))]


def compare(run: Material, *, extractor: Extractor, n: int, draws: int) -> Iterator[dict[str, object]]:
    """An entry for each split and metric."""
    real = {split: features(run.patches.images, found, extractor=extractor) for split, found in run.real.items()}
    synthetic = features(run.samples.images, run.synthetic, extractor=extractor)
    for split, other in (("holdout", "train"), ("train", "holdout")):
        shares = run.shares(split)
        wanted = cluster_quotas(shares, available=run.synthetic, most=n)
        target = {cluster: rows for cluster, rows in run.real[split].items() if cluster in shares}
        all_real = stacked(real[split], np.concatenate(list(target.values())))
        sets = _sets(run.synthetic, synthetic, wanted=wanted, draws=draws)
        floors = _sets(run.real[other], real[other], wanted=wanted, draws=draws)
        for metric, (function, scale) in METRICS.items():
            value, error = (scale * v for v in measured(function, [(x, all_real) for x in sets]))
            floor, floor_error = (scale * v for v in measured(function, [(x, all_real) for x in floors]))
            yield {
                "run": run.name, "k": run.k, "extractor": extractor.name, "metric": metric, "to": split,
                "n": len(sets[0]), "n_real": len(all_real), "n_floor": len(floors[0]), "value": value, "error": error,
                "floor": floor, "floor_error": floor_error, "ratio": value / floor if floor > 0 else None,
            }  # fmt: skip


def _sets(found: ClusterRows, of: dict[int, np.ndarray], *, wanted: dict[int, int], draws: int) -> list[np.ndarray]:
    rngs = (numpy_generator(0, "distances", "draw", number) for number in range(draws))
    return [stacked(of, draw_rows(found, quotas=wanted, rng=rng)) for rng in rngs]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN[=SAMPLES]")
    parser.add_argument("--extractors", nargs="+", default=EXTRACTORS)
    parser.add_argument("-n", type=int, help="samples a set; by default as many as the run with the fewest gives")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    runs = [material(argument) for argument in arguments.runs]
    n = min([run.most() for run in runs] + ([arguments.n] if arguments.n else []))
    entries = []
    for name in arguments.extractors:
        extractor = make_extractor(name, sources=ExtractorSources(torch.device("cpu")))
        for run in runs:
            for entry in compare(run, extractor=extractor, n=n, draws=arguments.draws):
                entries.append(entry)
                if not arguments.json:
                    print(line(entry), flush=True)
    if arguments.json:
        print(json.dumps(entries))


def line(entry: dict[str, object]) -> str:
    """An entry for people."""
    ratio = f"{entry['ratio']:7.2f}" if entry["ratio"] is not None else "      -"
    return (
        f"{entry['run']:14} k={entry['k']:<3} {entry['extractor']:14} {entry['metric']:10} to {entry['to']:8} "
        f"{entry['value']:9.4f} +- {entry['error']:.4f}   "
        f"real-real {entry['floor']:9.4f} +- {entry['floor_error']:.4f}   ratio {ratio}   "
        f"n {entry['n']} against {entry['n_real']} (floor {entry['n_floor']})"
    )


if __name__ == "__main__":
    main()

"""Features and objectives of clusters beside each other, on tissue whose labels are kept back.

For each data set and seed a run is made: new patches, new trainings, with the preset as it is, but for more k. Its
stages make the clusters, also those of other features and objectives, for which the stage ``clusters`` alone is made
again. The rows ``k-means`` cluster the same features of the same patches: fitted on the training split, as the stage
is. Labels are read here alone, for the scores.

    python benchmarks/clusterings.py --out FOLDER [--data FOLDER] [--sets her2 crc demo] [--seeds 0 1 2]
                                     [--rows colour default ...] [--set SETTING ...]

her2: three sections of two breast tumours; on one of them, patches within 100 um of a spot have its label.
crc: 70 tiles of colorectal tissue in seven classes; each tile counts as a slide.
demo: procedural slides, which know their tissue.

Prints a table for each data set and measure, for k = 10, k = 14, and the k that the preset's own clusters choose: means
over the seeds, each with Student's 95 % interval of the mean. The same ``--out`` again continues where a call stopped.
``clusterings.csv`` there has every number.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from scipy.stats import t as student
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score
from sklearn.mixture import GaussianMixture

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.confounding.association import patch_stains
from histoloom.clustering.features.bank import validity_features
from histoloom.clustering.stage import by_falling_size, kmeans_labels
from histoloom.config import make_config, read_preset, with_settings
from histoloom.demo import SLIDE_MPP, SLIDE_SIDE, SLIDES
from histoloom.errors import UserError
from histoloom.evaluation.truth import true_classes
from histoloom.pipeline import execute, run_clusters
from histoloom.run.directory import Run, fingerprint
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import derive
from histoloom.setup import init_run
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.procedural.slides import make_slides

KS = (10, 14)
SPOT_UM = 100.0  # a patch has the label of a spot whose middle is so near its own
LEAST_PATCHES = 20  # with a label, for a slide to count within itself
COMPONENTS = 32
NEIGHBOURS = 15
_STARTS = 4
_SHRINKAGE = 1e-4  # of the features' mean variance, added to each covariance
_MIXTURE_STARTS = 2

LAST_FILE = "confounding.json"  # that the stage writes

MEASURES = ("NMI with the label", "NMI with the label within each slide", "NMI with the slide")


# --- the data sets


@dataclass(frozen=True)
class LabelledSet:
    """Slides and how to label their patches: a number for each, (N,), -1 where it is not known."""

    preset: str
    slides: Callable[[Path, int], list[Path]]
    label: Callable[[PatchSet], np.ndarray]
    settings: tuple[str, ...] = ()
    mpp: float | None = None


def labelled_sets(data: Path) -> dict[str, LabelledSet]:
    """By name; ``data`` is the folder of the tests' real data."""

    def near_spots(patches: PatchSet) -> np.ndarray:
        spots = pd.read_csv(data / "labels" / "her2-B1.csv")
        spots = spots[spots["label"] != "undetermined"]
        table = patches.table.merge(patches.slides[["slide_id", "file", "source_mpp"]], on="slide_id", how="left")
        middle_N2 = table[["x", "y"]].to_numpy(float) + table[["extent"]].to_numpy(float) / 2
        distance_N, spot_N = cKDTree(spots[["x", "y"]].to_numpy()).query(middle_N2)
        near_N = (distance_N * table["source_mpp"].to_numpy(float) < SPOT_UM) & table["file"].str.endswith(
            "her2-B1.tif"
        )
        return np.where(near_N, pd.factorize(spots["label"], sort=True)[0][spot_N], -1)

    def of_tiles(patches: PatchSet) -> np.ndarray:
        label_by_file = pd.read_csv(data / "labels" / "crc.csv").set_index("file")["label"]
        file_by_slide = patches.slides.set_index("slide_id")["file"]
        files = [Path(file_by_slide[slide]).name for slide in patches.table["slide_id"]]
        return np.asarray(pd.factorize(label_by_file.loc[files], sort=True)[0])

    def made(folder: Path, seed: int) -> list[Path]:
        make_slides(folder, seed=seed, count=SLIDES, size=SLIDE_SIDE, mpp=SLIDE_MPP)
        return [folder]

    her2 = [data / "slides" / f"her2-{name}.tif" for name in ("B1", "C1", "C3")]
    return {
        "her2": LabelledSet("cpu", lambda _folder, _seed: her2, near_spots),
        # Tiles of 112 um hold no patch of the preset's 128 um.
        "crc": LabelledSet(
            "cpu",
            lambda _folder, _seed: [data / "tiles" / "crc"],
            of_tiles,
            settings=("patches.mpp=0.5", "patches.count=2100"),
            mpp=0.5,
        ),
        "demo": LabelledSet("demo", made, lambda patches: true_classes(patches.table, slides=patches.slides)),
    }


# --- clusterings of features


def gaussian_mixture_labels(x_ND: np.ndarray, *, k: int, seed: int) -> np.ndarray:
    """The likeliest component of a mixture of K full-covariance Gaussians, the best of two starts by likelihood.

    For features of few dimensions.
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


def kmeans_of_training(x_ND: np.ndarray, *, rows_T: np.ndarray, k: int, seed: int) -> np.ndarray:
    """k-means fitted on some rows, for all rows."""
    model = KMeans(k, n_init=_STARTS, random_state=derive(seed, "benchmark", k) % 2**32).fit(x_ND[rows_T])
    return np.asarray(model.predict(x_ND))


def colour(patches: PatchSet) -> np.ndarray:
    """Mean and deviation of RGB over each patch, (N, 6)."""
    chunks = np.array_split(np.arange(len(patches)), -(-len(patches) // 64))
    return np.concatenate([patch_stains(patches.images(rows)).colour_N6 for rows in chunks])


# --- the rows of the table


@dataclass(frozen=True)
class Row:
    """A clustering: the stage's with ``settings`` over the preset's, or ``method`` on some of its ``features``."""

    title: str
    settings: tuple[str, ...] = ()
    features: str | None = None
    method: str = "k-means"


PATCH_ALONE = ("clusters.features=perceptual", "clusters.surroundings=0")
VIEWS = (
    "clusters.surroundings=0",
    "clusters.positives=views",
    "clusters.independence=0",
    "clusters.training.batch_size=128",
    "clusters.training.phases.0.lr=0.002",
    "clusters.training.phases.0.images=48000",
)
CODES = ("clusters.features=codes", *VIEWS)
LATENTS = ("clusters.features=latents", "clusters.validity_features=pooled", *VIEWS)

ROWS: Mapping[str, Row] = {
    "colour": Row("k-means, colour", features="colour"),
    "kmeans-codes": Row("k-means, codes", features="codes"),
    "kmeans-latents": Row("k-means, pooled latents", features="pooled"),
    "kmeans-perceptual": Row("k-means, perceptual, patch alone", PATCH_ALONE, "same"),
    "kmeans-default": Row("k-means, the preset's features", features="same"),
    "mixture-default": Row("Gaussian mixture, the same, 32 components", features="same", method="gaussian_mixture"),
    "spectral-default": Row("spectral, the same, 32 components", features="same", method="spectral"),
    "codes": Row("Histoloom, codes, views", CODES),
    "latents": Row("Histoloom, latents, views", LATENTS),
    "perceptual": Row("Histoloom, perceptual, patch alone", PATCH_ALONE),
    "default": Row("Histoloom, the preset's defaults"),
}
"""By the names that ``--rows`` takes."""


def made_clusters(run: Run, settings: Sequence[str], *, out: Path) -> Path:
    """The folder of the run's clusters, or of those that the stage makes in ``out`` with other ``settings``."""
    if not settings:
        return run.folder("clusters")
    if not (out / LAST_FILE).is_file():
        out.mkdir(parents=True, exist_ok=True)
        config = make_config(with_settings(run.config.model_dump(mode="json"), settings))
        inputs = {name: run.folder(name) for name in ("patches", "latents", "autoencoder")}
        run_clusters(StageContext(run.path, config, out, inputs, EventLog(out / "log.jsonl")))
    return out


def labels_of(row: Row, run: Run, *, ks: Sequence[int], clusters: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Each k's labels (N,) in the order of the run's patches; ``clusters``: the folder of the row's stage."""
    patches, latents = PatchSet.open(run.folder("patches")), LatentSet.open(run.folder("latents"))
    seed, rows_T, rows_N = run.config.seed, latents.rows("train"), np.arange(len(latents))
    ids = patches.table["patch_id"]
    assert latents.table["patch_id"].tolist() == ids.tolist(), "latents keep the patches' order"
    if row.features is None:
        clustering = Clustering.open(clusters)
        for k in ks:
            yield k, clustering.labels(k).loc[ids].to_numpy()
        return
    x_ND = (
        colour(patches)
        if row.features == "colour"
        else validity_features(latents, rows_N, kind=row.features, clusters=clusters)
    )
    if row.method != "k-means":
        x_ND = PCA(min(COMPONENTS, x_ND.shape[1]), random_state=0).fit(x_ND[rows_T]).transform(x_ND)
    for k in ks:
        if row.method == "k-means":
            yield k, kmeans_of_training(x_ND, rows_T=rows_T, k=k, seed=seed)
        else:
            yield k, BASELINES[row.method](x_ND, k=k, seed=seed)


# --- scores


def within_slides(label_N: np.ndarray, clusters_N: np.ndarray, *, slide_N: np.ndarray) -> float:
    """NMI with the label on each slide that has several, weighted by its patches; NaN where there is none."""
    values, weights = [], []
    for slide in np.unique(slide_N):
        rows = slide_N == slide
        if rows.sum() >= LEAST_PATCHES and len(np.unique(label_N[rows])) > 1:
            values.append(normalized_mutual_info_score(label_N[rows], clusters_N[rows]))
            weights.append(rows.sum())
    return float(np.average(values, weights=weights)) if values else math.nan


def scores(label_N: np.ndarray, clusters_N: np.ndarray, *, slide_N: np.ndarray) -> dict[str, float]:
    """The measures by name; patches without a label count for the slide alone."""
    known = label_N >= 0
    return dict(
        zip(
            MEASURES,
            (
                float(normalized_mutual_info_score(label_N[known], clusters_N[known])),
                within_slides(label_N[known], clusters_N[known], slide_N=slide_N[known]),
                float(normalized_mutual_info_score(slide_N, clusters_N)),
            ),
            strict=True,
        )
    )


def interval(values: Sequence[float]) -> str:
    """Mean and Student's 95 % interval of the mean."""
    values_S = np.asarray(values, float)
    if np.isnan(values_S).any():
        return "none"
    mean, seeds = values_S.mean(), len(values_S)
    if seeds < 2:
        return f"{mean:.3f}"
    half = float(student.ppf(0.975, seeds - 1)) * values_S.std(ddof=1) / math.sqrt(seeds)
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


@dataclass
class Results:
    """Every number, and the tables made of them."""

    records: list[dict[str, object]] = field(default_factory=list)

    def add(self, name: str, *, seed: int, title: str, k: int, is_chosen: bool, values: Mapping[str, float]) -> None:
        """One clustering's scores; the chosen k counts also where it is one of ``KS``."""
        columns = [f"k = {k}"] * (k in KS) + ["chosen k"] * is_chosen
        for column in columns:
            self.records.append({"set": name, "seed": seed, "clustering": title, "column": column, "k": k, **values})

    def print(self, name: str) -> None:
        """A table in Markdown for each measure."""
        table = pd.DataFrame(self.records)
        table = table[table["set"] == name]
        columns = [f"k = {k}" for k in KS] + ["chosen k"]
        chosen = table[table["column"] == "chosen k"].groupby("seed")["k"].first().tolist()
        for measure in MEASURES:
            print(f"\n{name}, {measure}; chosen k = {', '.join(map(str, chosen))}\n")
            print(f"| clustering | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
            for title, part in table.groupby("clustering", sort=False):
                cells = [interval(part.loc[part["column"] == column, measure].tolist()) for column in columns]
                print(f"| {title} | {' | '.join(cells)} |", flush=True)


def sweep_of(preset: str) -> str:
    """The preset's k, and those of the table, as a setting."""
    ks = sorted({*read_preset(preset)["clusters"]["k"], *KS})
    return f"clusters.k=[{', '.join(map(str, ks))}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HISTOLOOM_TEST_DATA", "../shared/data")))
    parser.add_argument("--sets", nargs="+", default=["her2", "crc", "demo"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--set", dest="settings", nargs="+", default=[], help="settings of every run")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sets, results = labelled_sets(arguments.data.resolve()), Results()
    for name in arguments.sets:
        given = sets[name]
        for seed in arguments.seeds:
            place = arguments.out / f"{name}-{seed}"
            slides = given.slides(place / "slides", seed)
            if absent := [slide for slide in slides if not slide.exists()]:
                print(f"{name} is skipped: no {absent[0]}; set HISTOLOOM_TEST_DATA to the folder of the test data")
                break
            settings = [f"seed={seed}", sweep_of(given.preset), *given.settings, *arguments.settings]
            run = init_run(place / "run", slides=slides, preset=given.preset, mpp=given.mpp, settings=settings)
            execute(run, until="clusters")
            chosen = Clustering.open(run.folder("clusters")).chosen
            patches = PatchSet.open(run.folder("patches"))
            label_N, slide_N = given.label(patches), pd.factorize(patches.table["slide"])[0]
            for row in (ROWS[key] for key in arguments.rows):
                try:
                    clusters = made_clusters(run, row.settings, out=place / fingerprint(row.settings))
                except UserError as error:
                    print(f"{name}, seed {seed}: {row.title} is skipped: {error}")
                    continue
                for k, clusters_N in labels_of(row, run, ks=sorted({*KS, chosen}), clusters=clusters):
                    values = scores(label_N, clusters_N, slide_N=slide_N)
                    results.add(name, seed=seed, title=row.title, k=k, is_chosen=k == chosen, values=values)
            pd.DataFrame(results.records).to_csv(arguments.out / "clusterings.csv", index=False)
        else:
            known = label_N >= 0
            classes = len(np.unique(label_N[known]))
            print(f"\n{name}: {known.sum()} of {len(known)} patches have a label, of {classes} classes")
            results.print(name)


if __name__ == "__main__":
    main()

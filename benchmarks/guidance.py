"""Guidance strength against faithfulness and diversity, on a finished run.

For each guidance the same images (seeds, clusters of the chosen k, equally many of each) are drawn. Faithfulness: how
often a cluster classifier, trained on the run's real training patches, predicts the requested cluster (balanced
accuracy). Realism and diversity: precision and recall by ``--extractor`` against held-out real patches, and the mean
distance of the features of two samples of a cluster over that of two real patches of the cluster (1: as various as real
tissue). With ``--out`` the classifier and the samples are kept, and a later call goes on.

    python benchmarks/guidance.py RUN --out FOLDER [--guidance 1 1.5 2 3 5] [--each 40] [--extractor lpips-alex]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import pdist

from histoloom.clustering.clustering_set import Clustering
from histoloom.config import ClusterClassifierConfig, RuntimeConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.sample_folder import SampleJob, cluster_file, write_samples
from histoloom.diffusion.generation.sample_spec import SampleSpec
from histoloom.evaluation.cluster_classifier import ClusterClassifier, LabelledSet, predict_clusters, train_classifier
from histoloom.evaluation.extractors import ExtractorSources, make_extractor
from histoloom.evaluation.faithfulness import recognition
from histoloom.evaluation.images import SampleFolder
from histoloom.evaluation.set_metrics import covered
from histoloom.run.directory import Run
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet

RUNTIME = RuntimeConfig()


class Material:
    """The run's real patches at the chosen k: the classifier trained on them, and features of held-out ones."""

    def __init__(self, run: Run, *, out: Path, extractor: str) -> None:
        clustering = Clustering.open(run.require("clusters"))
        self.k = clustering.chosen
        self.patches = PatchSet.open(run.require("patches"))
        ids = self.patches.columns("patch_id", "split")
        labels = clustering.table.set_index("patch_id").loc[ids["patch_id"], f"k{self.k}"].to_numpy(np.int64)
        train, held_out = (np.flatnonzero((ids["split"] == split).to_numpy()) for split in ("train", "holdout"))
        self.classifier = self._trained(labels[train], rows=train, out=out)
        sources = ExtractorSources(torch.device("cpu"), autoencoder=run.require("autoencoder"), download=True)
        self.extractor = make_extractor(extractor, sources=sources)
        self.labels = labels[held_out]
        images = self.patches.images(held_out)
        self.features = self.extractor.features(images)
        self.predicted = predict_clusters(self.classifier, lambda rows: images[rows], n=len(images), runtime=RUNTIME)

    def _trained(self, labels_N: np.ndarray, *, rows: np.ndarray, out: Path) -> ClusterClassifier:
        return train_classifier(
            LabelledSet(labels_N, lambda indices: self.patches.images(rows[indices])),
            name="real",
            config=ClusterClassifierConfig(),
            clusters=self.k,
            runtime=RUNTIME,
            seed=0,
            out=out / "classifier",
        )


def variety(features_ND: np.ndarray, labels_N: np.ndarray) -> dict[int, float]:
    """The mean distance between two images of each cluster that has two."""
    clusters, counts = np.unique(labels_N, return_counts=True)
    return {int(c): float(pdist(features_ND[labels_N == c]).mean()) for c in clusters[counts > 1]}


def row(material: Material, generator: Generator, *, guidance: float, out: Path, each: int) -> dict[str, float]:
    """What one guidance gives."""
    specs = [SampleSpec(k=material.k, cluster=c, index=i, seed=0) for c in range(material.k) for i in range(each)]
    sampler = generator.spec.sampler.model_copy(update={"guidance": guidance})
    folder = out / f"guidance-{guidance:g}-{each}"
    write_samples(generator, SampleJob(specs=specs, file_of=cluster_file, sampler=sampler), folder=folder)
    samples = SampleFolder(folder)
    labels = samples.table["cluster"].to_numpy(np.int64)
    images = samples.images(np.arange(len(labels)))
    predicted = predict_clusters(material.classifier, lambda rows: images[rows], n=len(images), runtime=RUNTIME)
    features = material.extractor.features(images)
    mine, real = variety(features, labels), variety(material.features, material.labels)
    rng = numpy_generator(0, "benchmark", "guidance")
    return {
        "guidance": guidance,
        "recognised": recognition(labels, predicted, clusters=material.k, rng=rng).accuracy,
        "precision": float(covered(features, by_MD=material.features).mean()),
        "recall": float(covered(material.features, by_MD=features).mean()),
        "variety": float(np.mean([mine[c] / real[c] for c in mine if c in real])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 5.0])
    parser.add_argument("--each", type=int, default=40)
    parser.add_argument("--extractor", default="lpips-alex")
    given = parser.parse_args()
    run = Run.open(given.run)
    material = Material(run, out=given.out, extractor=given.extractor)
    reference = recognition(
        material.labels, material.predicted, clusters=material.k, rng=numpy_generator(0, "reference")
    )
    print(
        f"k = {material.k}; of {reference.n} held-out real patches the classifier recognises {reference.accuracy:.3f}"
    )
    generator = Generator.load(given.run)
    how = {"out": given.out, "each": given.each}
    rows = [row(material, generator, guidance=guidance, **how) for guidance in given.guidance]
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()

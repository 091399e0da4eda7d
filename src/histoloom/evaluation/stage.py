"""The stage ``evaluation``: how good are the samples, measured against real patches?"""

from __future__ import annotations

import shutil

import numpy as np

from histoloom.clustering.clustering_set import Clustering
from histoloom.evaluation.distribution import write_distribution
from histoloom.evaluation.faithfulness import write_faithfulness
from histoloom.evaluation.images import NO_TISSUE, SampleFolder
from histoloom.evaluation.originality.report import write_originality
from histoloom.evaluation.paper_similarity import write_paper_similarity
from histoloom.evaluation.similarity import PARTIAL, write_similarity
from histoloom.evaluation.truth import write_truth
from histoloom.evaluation.two_sample import write_two_sample
from histoloom.evaluation.verdicts import write_verdicts
from histoloom.names import artefacts_of, clustering_of, read_events
from histoloom.run.stage import StageContext
from histoloom.slides.patch_set import PatchSet


def run(context: StageContext) -> None:
    """Write a JSON file of each kind of measurement (``histoloom.evaluation.results``).

    Truth is written only where slides have true maps, originality and the paper's definitions of similarity only where
    the configuration asks for them. Clusters flagged as artefact are left out of all but truth and originality.
    """
    patches = PatchSet.open(context.inputs["patches"])
    artefacts = artefacts_of(read_events(context.run), clustering=clustering_of(context.run))
    samples = SampleFolder(context.inputs["samples"], left_out=artefacts)
    clustering = Clustering.open(context.inputs["clusters"])
    labels = clustering.labels_of(patches.folder / "index.parquet")
    tissue = {k: np.where(np.isin(labels[k], artefacts.get(k, [])), NO_TISSUE, labels[k]) for k in labels}
    for k, left_out in artefacts.items():
        context.say(f"k = {k}: left out as artefacts: clusters {', '.join(map(str, left_out))}")

    write_similarity(context, patches=patches, labels=tissue, samples=samples)
    if context.config.evaluation.paper_definitions:
        write_paper_similarity(context, patches=patches, labels=tissue, samples=samples)
    write_distribution(context, patches=patches, labels=tissue, samples=samples)
    write_faithfulness(context, patches=patches, labels=tissue, samples=samples)
    write_two_sample(context, patches=patches, labels=tissue, samples=samples)
    write_verdicts(context, samples=samples, k=clustering.chosen)
    write_truth(context, patches=patches, labels=labels)
    if context.config.evaluation.originality != "off":
        write_originality(context, patches=patches, samples=samples)
    shutil.rmtree(context.out / PARTIAL, ignore_errors=True)

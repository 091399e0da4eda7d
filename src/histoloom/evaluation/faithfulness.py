"""Do samples show what they should, and are they useful for training? ``faithfulness.json``, of the chosen k.

Two networks recognise samples. One is the run's own clusterer; its reference is what it recognises in held-out real
patches after a pass through the VQ-GAN, since a sample is no sharper than that. The other is a classifier that was
trained on real patches; its reference is what it recognises in held-out real patches as they are.

Usefulness: classifiers that were trained on samples alone, and on samples and real patches together, are tested on real
patches of held-out slides, and compared with the one that was trained on real patches. Each sees as many images. Legend
of shapes: N images, K clusters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from histoloom.autoencoder.vqgan import Autoencoder, to_float, to_uint8
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features.base import ImagesUnsupported
from histoloom.evaluation.cluster_classifier import LabelledSet, predict_clusters, train_classifier
from histoloom.evaluation.images import NO_TISSUE, ImageRows, SampleFolder
from histoloom.evaluation.results import (
    Accuracy,
    ClassifierRecognition,
    ClustererRecognition,
    Faithfulness,
    Recognition,
    Usefulness,
)
from histoloom.evaluation.statistics import wilson_interval
from histoloom.progress import meter
from histoloom.run.stage import StageContext
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import accelerator, full_precision
from histoloom.training.memory import in_fitting_parts

BLOCK = 32
MIN_HELD_OUT = 20
"""held-out patches; with fewer nothing is measured"""
RESAMPLES = 1000


def write_faithfulness(
    context: StageContext, *, patches: PatchSet, labels: Mapping[int, np.ndarray], samples: SampleFolder
) -> None:
    """Write ``faithfulness.json``; ``labels`` are the patches' clusters of each k, in their order."""
    if context.config.evaluation.cluster_classifier is None:
        return
    k = Clustering.open(context.inputs["clusters"]).chosen
    if k not in samples.ks:
        return
    train, held_out = (
        LabelledSet(labels[k][rows], ImageRows(patches.images, rows).read)
        for rows in (rows[labels[k][rows] != NO_TISSUE] for rows in (patches.rows("train"), patches.rows("holdout")))
    )
    sample_rows = np.concatenate(list(samples.rows(k).values()))
    sample_clusters = samples.table["cluster"].to_numpy(np.int64)[sample_rows]
    synthetic = LabelledSet(sample_clusters, ImageRows(samples.images, sample_rows).read)
    if len(held_out) < MIN_HELD_OUT:
        context.say("faithfulness is not measured: there are too few held-out patches to compare with")
        Faithfulness(k=k, note="too few held-out patches").save(context.out)
        return

    classifier, usefulness = _classify(context, train=train, synthetic=synthetic, held_out=held_out, k=k)
    clusterer, no_clusterer = None, None
    if {"autoencoder", "latents"} <= context.inputs.keys():
        try:
            clusterer = _recluster(context, synthetic=synthetic, held_out=held_out, k=k)
        except ImagesUnsupported as error:
            no_clusterer = str(error)
            context.say(f"the run's clusterer does not judge the samples: {error}")
    result = Faithfulness(
        k=k,
        n_real=len(train),
        n_synthetic=len(synthetic),
        classifier=classifier,
        usefulness=usefulness,
        clusterer=clusterer,
        no_clusterer=no_clusterer,
    )
    result.save(context.out)

    # One line for the log: accuracies, each with its reference, and what samples are good for.
    parts = []
    if clusterer is not None:
        parts.append(
            f"the clusterer recognises {clusterer.samples.accuracy:.0%} of the samples "
            f"({clusterer.reconstructions.accuracy:.0%} of held-out real patches)"
        )
    parts.append(
        f"the cluster classifier recognises {classifier.samples.accuracy:.0%} of the samples "
        f"({classifier.held_out.accuracy:.0%} of held-out real patches)"
    )
    parts.append(
        f"tested on held-out slides, a cluster classifier reaches {usefulness.real.accuracy:.0%} trained on real "
        f"patches, {usefulness.synthetic.accuracy:.0%} on samples, {usefulness.both.accuracy:.0%} on both"
    )
    context.say(f"k = {k}: {'; '.join(parts)}")


def _classify(
    context: StageContext, *, train: LabelledSet, synthetic: LabelledSet, held_out: LabelledSet, k: int
) -> tuple[ClassifierRecognition, Usefulness]:
    """What classifiers that were trained on real patches, on samples and on both recognise."""
    config = context.config
    assert config.evaluation.cluster_classifier is not None, "the caller has checked"
    on_held_out: dict[str, Recognition] = {}
    on_samples = None
    for name, images in (("real", train), ("synthetic", synthetic), ("both", train + synthetic)):
        classifier = train_classifier(
            images,
            name=name,
            config=config.evaluation.cluster_classifier,
            clusters=k,
            runtime=config.runtime,
            seed=config.seed,
            out=context.out / "classifiers" / name,
        )
        tests = {"held out": held_out, "samples": synthetic} if name == "real" else {"held out": held_out}
        for what, tested in tests.items():
            predicted_N = predict_clusters(classifier, tested.read, n=len(tested), runtime=config.runtime)
            rng = numpy_generator(config.seed, "evaluation", "cluster classifier", name, what)
            result = recognition(tested.labels_N, predicted_N, clusters=k, rng=rng)
            if what == "held out":
                on_held_out[name] = result
            else:
                on_samples = result
    assert on_samples is not None, "one of the three is trained on real patches"
    accuracies = {name: Accuracy(accuracy=r.accuracy, interval=r.interval) for name, r in on_held_out.items()}
    return ClassifierRecognition(samples=on_samples, held_out=on_held_out["real"]), Usefulness(**accuracies)


def _recluster(context: StageContext, *, synthetic: LabelledSet, held_out: LabelledSet, k: int) -> ClustererRecognition:
    """What the run's clusterer recognises in samples, and in reconstructions of held-out patches."""
    device = accelerator(context.config.runtime).device
    clusterer = Classifier.load(
        autoencoder=context.inputs["autoencoder"],
        latents=context.inputs["latents"],
        clusters=context.inputs["clusters"],
        device=device,
    )
    autoencoder = Autoencoder.load(context.inputs["autoencoder"]).to(device)
    results = {}
    for name, images in (("samples", synthetic), ("reconstructions", held_out)):
        parts = []
        with meter(f"clustering {name}", total=len(images)) as counter:
            for start in range(0, len(images), BLOCK):
                block = images.read(np.arange(start, min(len(images), start + BLOCK)))
                if name == "reconstructions":
                    block = reconstruct(autoencoder, block, device=device)
                parts.append(clusterer.labels(block)[k])
                counter.advance(len(block))
        rng = numpy_generator(context.config.seed, "evaluation", "clusterer", name)
        results[name] = recognition(images.labels_N, np.concatenate(parts), clusters=k, rng=rng)
    return ClustererRecognition(**results)


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, images_NHW3: np.ndarray, *, device: torch.device) -> np.ndarray:
    """Images after a pass through the VQ-GAN, uint8 (N, H, W, 3); ``BLOCK`` at a time."""

    def of_block(block_BHW3: np.ndarray) -> np.ndarray:
        x_B3HW = to_float(torch.from_numpy(block_BHW3).to(device))
        return to_uint8(autoencoder.reconstruct(x_B3HW)).cpu().numpy()

    parts = []
    with full_precision():
        for start in range(0, len(images_NHW3), BLOCK):
            block_BHW3 = images_NHW3[start : start + BLOCK]
            parts += in_fitting_parts(of_block, block_BHW3, name="reconstructing images")
    return np.concatenate(parts)


def recognition(
    labels_N: np.ndarray, predicted_N: np.ndarray, *, clusters: int, rng: np.random.Generator
) -> Recognition:
    """Confusion, recalls and balanced accuracy of predicted clusters; every cluster counts the same."""
    assert len(labels_N), "images to recognise"
    confusion_KK = confusion_matrix(labels_N, predicted_N, labels=np.arange(clusters))
    sizes_K = confusion_KK.sum(axis=1)
    right_K = confusion_KK.diagonal()
    present = np.flatnonzero(sizes_K)

    # Resampling the images of a cluster with replacement makes the number of right ones binomial.
    recalls_R = []
    for cluster in present:
        is_right = predicted_N[labels_N == cluster] == cluster
        recalls_R.append(rng.binomial(len(is_right), is_right.mean(), size=RESAMPLES) / len(is_right))
    low, high = np.quantile(np.mean(recalls_R, axis=0), [0.025, 0.975])
    return Recognition(
        n=len(labels_N),
        accuracy=float(np.mean(right_K[present] / sizes_K[present])),
        interval=(float(low), float(high)),
        recall=tuple(float(r / n) if n else None for r, n in zip(right_K, sizes_K, strict=True)),
        intervals=tuple(wilson_interval(int(r), int(n)) if n else None for r, n in zip(right_K, sizes_K, strict=True)),
        confusion=tuple(tuple(row) for row in confusion_KK.tolist()),
    )

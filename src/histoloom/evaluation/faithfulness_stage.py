"""The part of the stage ``evaluation`` that asks whether samples show what they should, and what they are good for.

``faithfulness.json``, of the chosen k. Two look at samples: the run's own clusterer, whose reference is what it sees in
held-out real patches after a pass through the VQ-GAN (a sample is no sharper than that), and an independent judge
trained on real patches (``judge.py``), whose reference is what it sees in held-out real patches as they are.
Usefulness: judges trained on samples alone, and on samples and real patches together, tested on real patches of
held-out slides beside the judge trained on real ones; each sees as many images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from histoloom.autoencoder.vqgan import Autoencoder, to_float, to_uint8
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.clustering_set import Clustering
from histoloom.config import ClusterClassifierConfig
from histoloom.evaluation.cluster_classifier import ClusterClassifier, LabelledSet, Reader, judged, learn
from histoloom.evaluation.recognition import Recognition, recognition
from histoloom.evaluation.sample_folder import SampleFolder
from histoloom.progress import meter
from histoloom.run.directory import write_json
from histoloom.run.stage import StageContext
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import accelerator, full_precision

BLOCK = 32
LEAST = 20
"""held-out patches; with fewer nothing is judged"""


@dataclass(frozen=True)
class Labelled:
    """Images with the cluster that each is of."""

    labels_N: np.ndarray
    read: Reader

    def __len__(self) -> int:
        return len(self.labels_N)

    def with_(self, other: Labelled) -> Labelled:
        """These, then the others."""

        def read(numbers: np.ndarray) -> np.ndarray:
            mine = numbers < len(self)
            asked = ((self, numbers[mine]), (other, numbers[~mine] - len(self)))
            images = np.concatenate([whose.read(some) for whose, some in asked if len(some)])
            return images[np.argsort(np.argsort(~mine, kind="stable"))]

        return Labelled(np.concatenate([self.labels_N, other.labels_N]), read)


def write_faithfulness(
    context: StageContext, *, patches: PatchSet, labels: Mapping[int, np.ndarray], samples: SampleFolder
) -> None:
    """Write ``faithfulness.json``; ``labels`` are the patches' clusters of each k, in their order."""
    judge = context.config.evaluation.cluster_classifier
    if judge is None:
        return
    k = Clustering.open(context.inputs["clusters"]).chosen
    if k not in samples.ks:
        return
    real = {split: _real(patches, labels[k], split=split) for split in ("train", "holdout")}
    drawn = _drawn(samples, k=k)
    if len(real["holdout"]) < LEAST:
        context.say("faithfulness is not judged: there are too few held-out patches to compare with")
        write_json(context.out / "faithfulness.json", {"k": k, "note": "too few held-out patches"})
        return
    found: dict[str, Any] = {"k": k, "n_real": len(real["train"]), "n_synthetic": len(drawn)}
    found |= _judgements(context, config=judge, real=real, drawn=drawn, k=k)
    if {"autoencoder", "latents"} <= context.inputs.keys():
        found["clusterer"] = _reclustered(context, drawn=drawn, held_out=real["holdout"], k=k)
    write_json(context.out / "faithfulness.json", found)
    context.say(summary(found))


def _real(patches: PatchSet, labels: np.ndarray, *, split: str) -> Labelled:
    rows = np.flatnonzero((patches.columns("split")["split"] == split).to_numpy())
    return Labelled(labels[rows].astype(np.int64), lambda numbers: patches.images(rows[numbers]))


def _drawn(samples: SampleFolder, *, k: int) -> Labelled:
    by_cluster = samples.rows(k)
    rows = np.concatenate(list(by_cluster.values()))
    labels = np.concatenate([np.full(len(some), cluster) for cluster, some in by_cluster.items()])
    return Labelled(labels.astype(np.int64), lambda numbers: samples.images(rows[numbers]))


def _judgements(
    context: StageContext, *, config: ClusterClassifierConfig, real: Mapping[str, Labelled], drawn: Labelled, k: int
) -> dict[str, Any]:
    """What judges trained on real patches, on samples and on both see."""
    trainings = {"real": real["train"], "synthetic": drawn, "both": real["train"].with_(drawn)}
    tested: dict[str, Recognition] = {}
    of_samples = None
    for name, material in trainings.items():
        judge = _trained(context, material, config=config, name=name, k=k)
        tested[name] = _seen(context, judge, real["holdout"], what=[name, "held out"], k=k)
        if name == "real":
            of_samples = _seen(context, judge, drawn, what=[name, "samples"], k=k)
    assert of_samples is not None, "one of the three is trained on real patches"
    return {
        "judge": {"samples": of_samples.as_json(), "held_out": tested["real"].as_json()},
        "usefulness": {name: {"accuracy": r.accuracy, "interval": list(r.interval)} for name, r in tested.items()},
    }


def _trained(
    context: StageContext, material: Labelled, *, config: ClusterClassifierConfig, name: str, k: int
) -> ClusterClassifier:
    return learn(
        LabelledSet(name, material.labels_N, material.read),
        config=config,
        clusters=k,
        runtime=context.config.runtime,
        seed=context.config.seed,
        out=context.out / "judges" / name,
    )


def _seen(context: StageContext, judge: ClusterClassifier, images: Labelled, *, what: list[str], k: int) -> Recognition:
    seen_N = judged(judge, images.read, n=len(images), runtime=context.config.runtime)
    rng = numpy_generator(context.config.seed, "evaluation", "judge", *what)
    return recognition(images.labels_N, seen_N, clusters=k, rng=rng)


def _reclustered(context: StageContext, *, drawn: Labelled, held_out: Labelled, k: int) -> dict[str, Any]:
    """What the run's clusterer sees in samples, and in reconstructions of held-out patches."""
    device = accelerator(context.config.runtime).device
    folders: dict[str, Path] = {name: context.inputs[name] for name in ("autoencoder", "latents", "clusters")}
    classifier = Classifier.load(**folders, device=device)
    autoencoder = Autoencoder.load(folders["autoencoder"]).to(device)
    found = {}
    for name, images in (("samples", drawn), ("reconstructions", held_out)):
        parts = []
        with meter(f"clustering {name}", total=len(images)) as counter:
            for start in range(0, len(images), BLOCK):
                block = images.read(np.arange(start, min(len(images), start + BLOCK)))
                block = block if name == "samples" else reconstructed(autoencoder, block, device=device)
                parts.append(classifier.labels(block)[k])
                counter.advance(len(block))
        rng = numpy_generator(context.config.seed, "evaluation", "clusterer", name)
        found[name] = recognition(images.labels_N, np.concatenate(parts), clusters=k, rng=rng).as_json()
    return found


@torch.no_grad()
def reconstructed(autoencoder: Autoencoder, images_NHW3: np.ndarray, *, device: torch.device) -> np.ndarray:
    """Images after a pass through the VQ-GAN, uint8 (N, H, W, 3)."""
    with full_precision():
        x_N3HW = to_float(torch.from_numpy(images_NHW3).to(device))
        return to_uint8(autoencoder.decode(autoencoder.encode(x_N3HW))).cpu().numpy()


def summary(found: Mapping[str, Any]) -> str:
    """One line: accuracies, each with its reference, and what samples are good for."""
    useful, parts = found["usefulness"], []
    for who, reference in (("clusterer", "reconstructions"), ("judge", "held_out")):
        if who in found:
            mine, theirs = found[who]["samples"]["accuracy"], found[who][reference]["accuracy"]
            parts.append(f"the {who} recognises {mine:.0%} of the samples ({theirs:.0%} of held-out real patches)")
    parts.append(
        f"a judge tested on held-out slides reaches {useful['real']['accuracy']:.0%} trained on real patches, "
        f"{useful['synthetic']['accuracy']:.0%} on samples, {useful['both']['accuracy']:.0%} on both"
    )
    return f"k = {found['k']}: " + "; ".join(parts)

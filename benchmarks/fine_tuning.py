"""Fine-tuning against training from nothing on a few slides: nearness to held-out tissue, originality, faithfulness.

    python benchmarks/fine_tuning.py --generator GENERATOR --slides her2-B1.tif her2-C?.tif --patients B C C C C \
        --held-out B --out FOLDER [--images 4000 16000 64000] [--samples 512] [--set key=value]

For each number of images, two runs of the same preset: one from nothing, one with ``--from GENERATOR``; both VQ-GAN and
U-Net see that many. Every image is described by the pooled taps of LPIPS's SqueezeNet, in the principal components of
the real patches. ``frechet``: distance (squared, of Gaussians) of samples to patches of the held-out patient; its floor
is that of the training patches. ``nearest``: median distance of a sample to its nearest training patch, as a share of
that of a training patch to the nearest of another slide (train on two): about 1 where samples are as new as
other tissue, near 0 where they are copies. ``recognised``: share of samples, as many of each cluster of the chosen k,
in which the run's clusterer sees their own cluster (mean over clusters); ``chance`` is 1 / k, and ``recognised_real``
what it sees in held-out patches after a pass through the VQ-GAN. Shapes: N images, F features.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from histoloom import Generator, PatchSet, Run, execute, init_run
from histoloom.autoencoder.lpips import LPIPS
from histoloom.autoencoder.vqgan import to_float
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.clustering_set import Clustering
from histoloom.evaluation.faithfulness import recognition, reconstruct
from histoloom.evaluation.set_metrics import frechet_distance

CHUNK = 32
COMPONENTS = 24
EACH = 16
"""samples of each cluster that are shown to the clusterer"""


def features(images: Sequence[np.ndarray] | np.ndarray, *, trunk: LPIPS) -> np.ndarray:
    """Means over positions of every tap, (N, F)."""
    parts = []
    with torch.no_grad():
        for part in chunks(images):
            x_NCHW = to_float(torch.from_numpy(np.stack(list(part))))
            parts.append(torch.cat([tap.mean(dim=(2, 3)) for tap in trunk.features(x_NCHW)], dim=1).numpy())
    return np.concatenate(parts).astype(np.float64)


def nearest(sample_NF: np.ndarray, train_NF: np.ndarray, *, slides_N: np.ndarray) -> float:
    """Median distance to the nearest training patch, as a share of what training patches have to other slides'."""
    real_NN = np.where(slides_N[:, None] == slides_N[None, :], np.inf, cdist(train_NF, train_NF))
    own_N = real_NN.min(axis=1)
    return float(np.median(cdist(sample_NF, train_NF).min(axis=1)) / np.median(own_N[np.isfinite(own_N)]))


def faithfulness(run: Path, *, generator: Generator, each: int) -> dict[str, float]:
    """How often the run's clusterer sees their own cluster in samples, ``each`` of one, and in held-out patches."""
    k, device = generator.spec.chosen_k, generator.device
    classifier = Classifier.load(**{name: run / name for name in ("autoencoder", "latents", "clusters")}, device=device)
    specs = [spec for cluster in range(k) for spec in generator.sample_specs(str(cluster), n=each, seed=0, k=k)]
    drawn = [one.image for one in generator.draw(specs, sampler=generator.spec.sampler)]
    patches, labels = PatchSet.open(run / "patches"), Clustering.open(run / "clusters").labels(k)
    rows = patches.rows(split="holdout")
    own_N = labels.loc[patches.columns("patch_id")["patch_id"].to_numpy()[rows]].to_numpy()
    held = [reconstruct(generator.autoencoder, patches.images(part), device=device) for part in chunks(rows)]
    labelled: dict[str, tuple[list[int] | np.ndarray, list[np.ndarray] | np.ndarray]] = {
        "recognised": ([spec.cluster for spec in specs], drawn),
        "recognised_real": (own_N, np.concatenate(held)),
    }
    accuracy = {}
    for name, (own, images) in labelled.items():
        seen_N = np.concatenate([classifier.labels(np.stack(list(part)))[k] for part in chunks(images)])
        rng = np.random.default_rng(0)
        accuracy[name] = recognition(np.asarray(own, dtype=np.int64), seen_N, clusters=k, rng=rng).accuracy
    return accuracy | {"chance": 1 / k}


def chunks(items: Sequence[Any] | np.ndarray) -> Iterator[Any]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def scores(run: Path, *, trunk: LPIPS, samples: int) -> dict[str, float]:
    patches = PatchSet.open(run / "patches")
    rows = {split: patches.rows(split=split) for split in ("train", "holdout")}
    real = {split: features(patches.images(rows[split]), trunk=trunk) for split in rows}
    generator = Generator.load(run)
    made_NF = features([sample.image for sample in generator.sample(n=samples, seed=0)], trunk=trunk)
    pca = PCA(min(COMPONENTS, len(rows["train"]) - 1), whiten=True).fit(np.concatenate(list(real.values())))
    train_NF, held_NF, made_NF = (pca.transform(x) for x in (real["train"], real["holdout"], made_NF))
    slides_N = patches.columns("slide_id")["slide_id"].to_numpy()[rows["train"]]
    return {
        "frechet": frechet_distance(made_NF, held_NF),
        "floor": frechet_distance(train_NF, held_NF),
        "to_training": frechet_distance(made_NF, train_NF),
        "nearest": nearest(made_NF, train_NF, slides_N=slides_N),
        **faithfulness(run, generator=generator, each=EACH),
    }


def write_table(arguments: argparse.Namespace) -> Path:
    """Which patient each slide is of, and who is held out."""
    path = Path(arguments.out) / "slides.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "patient", "split"])
        for slide, patient in zip(arguments.slides, arguments.patients, strict=True):
            writer.writerow([slide.resolve(), patient, "holdout" if patient == arguments.held_out else "train"])
    return path


def trained(arguments: argparse.Namespace, *, images: int, start: Path | None, table: Path) -> Run:
    settings = [
        *(f"{network}.training.phases.0.images={images}" for network in ("autoencoder", "diffusion")),
        *arguments.set,
    ]
    kind = "nothing" if start is None else "generator"
    run = init_run(
        arguments.out / f"{kind}-{images}",
        slides=arguments.slides,
        preset=arguments.preset,
        table=table,
        settings=settings,
        start=start,
    )
    execute(run, until="diffusion")
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--slides", type=Path, nargs="+", required=True)
    parser.add_argument("--patients", nargs="+", required=True, help="of each slide")
    parser.add_argument("--held-out", required=True, help="the patient that is not trained on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--images", type=int, nargs="+", default=[4000, 16000, 64000])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    table, trunk = write_table(arguments), LPIPS.load("squeeze").eval()
    rows = []
    for images in arguments.images:
        for start in (None, arguments.generator):
            run = trained(arguments, images=images, start=start, table=table)
            kind = "nothing" if start is None else "generator"
            rows.append({"from": kind, "images": images, **scores(run.path, trunk=trunk, samples=arguments.samples)})
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=len(rows) == 1), flush=True)
    table_of = pd.DataFrame(rows).pivot(index="images", columns="from", values="frechet")
    print("\nfrechet to the held-out patient, from the generator as a share of from nothing:")
    print((table_of["generator"] / table_of["nothing"]).round(3).to_string())


if __name__ == "__main__":
    main()

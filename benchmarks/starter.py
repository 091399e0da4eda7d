"""The starter generator from the slides to the folder ``starter/``: weights, card, evidence, pictures.

    python benchmarks/starter.py RUN --slides OSTEOSARCOMA_FIELDS --out starter [--names benchmarks/starter_names.csv]

Makes RUN by the preset ``starter``, or continues it: all stages, a sharper decoder (``decoder_alone.py``), the
clusters' names, the student, and the export. The names were given once, by looking. Each line of NAMES is a name and
patches that showed it; a cluster gets the name of the line whose patches it has most of, so that a run whose clusters
come in another order is named right. A cluster without a name ends the script: look at RUN/report.html,
``histoloom name RUN CLUSTER NAME``, and start it again.

``evaluation/`` gets the run's numbers (``NUMBERS``), the most suspicious pairs of a sample and its nearest training
patch, and ``clusters.jpg``: for each cluster real patches on the left, the first samples that were drawn on the right.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from decoder_alone import IMAGES, train_decoder
from PIL import Image, ImageDraw

from histoloom import pipeline
from histoloom.autoencoder.quality import measure
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.clustering.clustering_set import Clustering
from histoloom.diffusion.distillation import DistillConfig, distil
from histoloom.evaluation.images import SampleFolder
from histoloom.names import add_name, current_names, default_name
from histoloom.run.directory import Run
from histoloom.run.stage import EventLog, StageContext
from histoloom.setup import init_run
from histoloom.sharing.export import Terms, export_generator
from histoloom.slides.patch_set import PatchSet

DATA = (
    'Osteosarcoma fields, H&E, 10x: Leavey et al., "Osteosarcoma data from UT Southwestern & UT Dallas for Viable and '
    'Necrotic Tumor Assessment", The Cancer Imaging Archive, 2019, CC BY 3.0. '
    "45 fields of 20 slides of 4 patients; patches were cut from them at random."
)
NUMBERS = ("similarity", "distribution", "two_sample", "faithfulness", "originality", "verdicts")
WEIGHTS = "autoencoder.safetensors"
EACH, MARGIN, LINE = 5, 6, 14


def sheet(run: Run) -> Image.Image:
    """Real patches and samples of every cluster of the chosen k."""
    clustering = Clustering.open(run.require("clusters"))
    patches, samples = PatchSet.open(run.require("patches")), SampleFolder(run.require("samples"))
    k, names = clustering.chosen, current_names(run.path, k=clustering.chosen)
    labels = clustering.table.set_index("patch_id")[f"k{k}"].loc[patches.columns("patch_id")["patch_id"]].to_numpy()
    side = patches.size
    width, height = 2 * EACH * side + MARGIN, side + LINE
    picture = Image.new("RGB", (width, k * height), "white")
    for cluster in range(k):
        rows = np.flatnonzero(labels == cluster)
        real = patches.images(rows[np.linspace(0, len(rows) - 1, EACH).astype(int)])
        drawn = samples.images(samples.rows(k)[cluster][:EACH])
        top = cluster * height
        ImageDraw.Draw(picture).text((2, top + 1), f"{cluster}: {names[cluster]}", fill="black")
        for number in range(EACH):
            picture.paste(Image.fromarray(real[number]), (number * side, top + LINE))
            picture.paste(Image.fromarray(drawn[number]), ((EACH + number) * side + MARGIN, top + LINE))
    return picture


def suspicious(run: Run) -> Image.Image:
    """The pairs that ``suspicious.npz`` keeps: samples above, their nearest training patches below."""
    with np.load(run.require("evaluation") / "suspicious.npz") as kept:
        rows = [np.concatenate(list(kept[side]), axis=1) for side in ("sample", "nearest")]
    return Image.fromarray(np.concatenate(rows, axis=0))


def cluster_names(rows: list[tuple[str, list[str]]], *, labels: dict[str, int]) -> dict[int, str]:
    """Clusters and their names, from rows of a name and the patches that showed it.

    Each row names the cluster that has most of its patches; of several rows, the one with the most patches there wins.
    """
    found: dict[int, tuple[int, str]] = {}
    for name, patches in rows:
        votes = Counter(labels[patch] for patch in patches if labels.get(patch, -1) >= 0)
        if votes:
            cluster, count = votes.most_common(1)[0]
            found[cluster] = max(found.get(cluster, (0, "")), (count, name))
    return {cluster: name for cluster, (_, name) in sorted(found.items())}


def name_clusters(run: Run, table: Path) -> None:
    """Name the clusters that have no name yet, by ``table``."""
    clustering = Clustering.open(run.require("clusters"))
    k = clustering.chosen
    labels = dict(zip(clustering.table["patch_id"], clustering.table[f"k{k}"].astype(int), strict=True))
    with table.open(newline="", encoding="utf-8") as file:
        rows = [(name, patches.split()) for name, patches in csv.reader(file)]
    names = current_names(run.path, k=k)
    for cluster, name in cluster_names(rows, labels=labels).items():
        if names[cluster] == default_name(cluster):
            add_name(run.path, cluster=cluster, name=name, k=k, rater="starter")


def sharpen(run: Run) -> None:
    """Give the run's autoencoder a decoder that was trained alone, from RUN/decoder; the latents stay as they are.

    The stages after it do not see the change, because no setting changes. Samples of another decoder end the script.
    """
    made, own = run.path / "decoder", run.require("autoencoder")
    train_decoder(run, folder=made, images=IMAGES)
    if (own / WEIGHTS).read_bytes() == (made / WEIGHTS).read_bytes():
        return
    if run.artifact("samples") is not None:
        raise SystemExit(f"{run.path}/samples has another decoder: move it, evaluation and report away and start again")
    context = StageContext(run.path, run.config, own, {}, EventLog(own / "log.jsonl"))
    measure(context, modules={"autoencoder": Autoencoder.load(made)}, patches=PatchSet.open(run.require("patches")))
    for name in ("autoencoder.json", WEIGHTS):  # the weights last: a stopped copy is made again
        shutil.copy2(made / name, own / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--names", type=Path, default=Path(__file__).with_name("starter_names.csv"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if not (arguments.run / "config.yaml").is_file():
        init_run(arguments.run, slides=[arguments.slides], preset="starter")
    run = Run.open(arguments.run)
    pipeline.execute(run, until="diffusion")
    sharpen(run)
    name_clusters(run, arguments.names)
    k = Clustering.open(run.require("clusters")).chosen
    nameless = [str(c) for c, name in current_names(run.path, k=k).items() if name == default_name(c)]
    if nameless:
        pipeline.execute(run)
        parser.error(
            f"clusters {', '.join(nameless)} of k = {k} have no name: histoloom name {arguments.run} CLUSTER NAME"
        )
    distil(run, DistillConfig())
    pipeline.execute(run)
    export_generator(run, arguments.out, half=True, terms=Terms(licence="cc-by-3.0", data=DATA))
    evidence = arguments.out / "evaluation"
    evidence.mkdir()
    for name in NUMBERS:
        shutil.copy2(run.require("evaluation") / f"{name}.json", evidence)
    sheet(run).save(evidence / "clusters.jpg", quality=88)
    suspicious(run).save(evidence / "suspicious.png", optimize=True)


if __name__ == "__main__":
    main()

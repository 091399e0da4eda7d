"""The folder ``starter/`` from the finished, named run of its generator: weights, card, evidence, pictures.

    histoloom init RUN --slides OSTEOSARCOMA_FIELDS --preset starter
    histoloom run RUN
    histoloom name RUN CLUSTER NAME        # for every cluster, after looking at RUN/report.html
    histoloom distil RUN
    histoloom run RUN
    python benchmarks/starter.py RUN --out starter

``evaluation/`` gets the run's numbers (``similarity``, ``distribution``, ``faithfulness``, ``originality``), the most
suspicious pairs of a sample and its nearest training patch, and ``clusters.jpg``: for each cluster real patches on the
left, the first samples that were drawn on the right.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from histoloom.clustering.clustering_set import Clustering
from histoloom.evaluation.images import SampleFolder
from histoloom.names import current_names, default_name
from histoloom.run.directory import Run
from histoloom.sharing.export import Terms, export_generator
from histoloom.slides.patch_set import PatchSet

DATA = (
    'Osteosarcoma fields, H&E, 10x: Leavey et al., "Osteosarcoma data from UT Southwestern & UT Dallas for Viable and '
    'Necrotic Tumor Assessment", The Cancer Imaging Archive, 2019, CC BY 3.0. '
    "45 fields of 20 slides of 4 patients; patches were cut from them at random."
)
NUMBERS = ("similarity", "distribution", "faithfulness", "originality")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    k = Clustering.open(run.require("clusters")).chosen
    nameless = [str(c) for c, name in current_names(run.path, k=k).items() if name == default_name(c)]
    if nameless:
        parser.error(
            f"clusters {', '.join(nameless)} of k = {k} have no name: histoloom name {arguments.run} CLUSTER NAME"
        )
    export_generator(run, arguments.out, half=True, terms=Terms(licence="cc-by-3.0", data=DATA))
    evidence = arguments.out / "evaluation"
    evidence.mkdir()
    for name in NUMBERS:
        shutil.copy2(run.require("evaluation") / f"{name}.json", evidence)
    sheet(run).save(evidence / "clusters.jpg", quality=88)
    suspicious(run).save(evidence / "suspicious.png", optimize=True)


if __name__ == "__main__":
    main()

"""The pictures of a run in the README and the docs: clusters with their samples, reconstructions.

python benchmarks/pictures.py RUN --out docs/images --name osteosarcoma
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from histoloom.clustering.clustering_set import Clustering
from histoloom.slides.patch_set import PatchSet

COLUMNS = 12
"""clusters side by side; more make a second band below"""
GAP = 8


def typical(patches: PatchSet, clustering: Clustering, *, k: int, cluster: int, n: int) -> np.ndarray:
    """The ``n`` most probable patches of a cluster, one a slide where it can be."""
    probability = pd.Series(clustering.probabilities(k)[:, cluster], index=clustering.table["patch_id"])
    table = patches.table.assign(p=probability.loc[patches.table["patch_id"]].to_numpy())
    table = table[clustering.labels(k).loc[table["patch_id"]].to_numpy() == cluster].sort_values("p", ascending=False)
    first = table.drop_duplicates("slide_id")
    chosen = pd.concat([first, table.drop(first.index)]).head(n)
    return patches.images(chosen.index.to_numpy())


def clusters_picture(run: Path) -> Image.Image:
    """Real patches above a line, samples below it, a column for each cluster of the chosen k."""
    patches, clustering = PatchSet.open(run / "patches"), Clustering.open(run / "clusters")
    k, size = clustering.chosen, patches.size
    rows = 3 if k <= COLUMNS else 2
    samples = pd.read_csv(run / "samples" / "metadata.csv")
    bands = math.ceil(k / COLUMNS)
    across = math.ceil(k / bands)
    height = 2 * rows * size + GAP
    sheet = Image.new("RGB", (across * (size + GAP) - GAP, bands * (height + 2 * GAP) - 2 * GAP), "white")
    for cluster in range(k):
        names = samples[(samples["k"] == k) & (samples["cluster"] == cluster)]["file_name"].head(rows)
        drawn = [np.asarray(Image.open(run / "samples" / name)) for name in names]
        left, top = cluster % across * (size + GAP), cluster // across * (height + 2 * GAP)
        for first, images in (
            (0, typical(patches, clustering, k=k, cluster=cluster, n=rows)),
            (rows * size + GAP, drawn),
        ):
            for number, image in enumerate(images):
                sheet.paste(Image.fromarray(image), (left, top + first + number * size))
    return sheet


def reconstructions_picture(run: Path) -> Image.Image:
    stored = np.load(run / "autoencoder" / "reconstructions.npz")
    pairs = [np.concatenate([stored[name][i] for name in ("original", "reconstruction")]) for i in range(8)]
    return Image.fromarray(np.concatenate(pairs, axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = {"clusters": clusters_picture, "reconstructions": reconstructions_picture}
    for name, make in pictures.items():
        path = arguments.out / f"{arguments.name}-{name}.jpg"
        make(arguments.run).save(path, quality=85)
        print(path, f"{path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

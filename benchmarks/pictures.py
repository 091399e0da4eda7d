"""The pictures of a run in the README and the docs: clusters with their samples, reconstructions.

python benchmarks/pictures.py RUN --out docs/images --name osteosarcoma
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from histoloom.clustering.clustering_set import Clustering
from histoloom.slides.patch_set import PatchSet

ROWS = 3
GAP = 8


def typical(patches: PatchSet, clustering: Clustering, *, k: int, cluster: int) -> np.ndarray:
    """The most probable patches of a cluster, one a slide where it can be."""
    probability = pd.Series(clustering.probabilities(k)[:, cluster], index=clustering.table["patch_id"])
    table = patches.table.assign(p=probability.loc[patches.table["patch_id"]].to_numpy())
    table = table[clustering.labels(k).loc[table["patch_id"]].to_numpy() == cluster].sort_values("p", ascending=False)
    first = table.drop_duplicates("slide_id")
    chosen = pd.concat([first, table.drop(first.index)]).head(ROWS)
    return patches.images(chosen.index.to_numpy())


def column(images: list[np.ndarray], *, size: int) -> np.ndarray:
    blank = np.full((size, size, 3), 255, np.uint8)
    return np.concatenate([*images, *[blank] * (ROWS - len(images))])


def clusters_picture(run: Path) -> Image.Image:
    patches, clustering = PatchSet.open(run / "patches"), Clustering.open(run / "clusters")
    k, size = clustering.chosen, patches.size
    samples = pd.read_csv(run / "samples" / "metadata.csv")
    columns = []
    for cluster in range(k):
        names = samples[(samples["k"] == k) & (samples["cluster"] == cluster)]["file_name"].head(ROWS)
        drawn = [np.asarray(Image.open(run / "samples" / name)) for name in names]
        real = column(list(typical(patches, clustering, k=k, cluster=cluster)), size=size)
        line = np.full((GAP, size, 3), 255, np.uint8)
        columns += [
            np.concatenate([real, line, column(drawn, size=size)]),
            np.full((6 * size + GAP, GAP, 3), 255, np.uint8),
        ]
    return Image.fromarray(np.concatenate(columns[:-1], axis=1))


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

"""How far clusters agree with k-means on colour: the numbers behind the warning of docs/explanation/confounding.md.

Patches of 128 px of the osteosarcoma fields at 1 um/px, glass left out. Half of them are clustered by several
descriptions of colour and by the activations of an ImageNet classifier; the others get the nearest centre, and are
compared with k-means on their own colour and stain, as a run compares its clusters.

    HISTOLOOM_TEST_DATA=FOLDER python benchmarks/colour_agreement.py [--k 5 10 14 20] [--patches 4000]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from skimage.color import rgb2lab
from sklearn.cluster import KMeans

from histoloom.clustering.confounding.association import PatchStains, colour_agreement, patch_stains
from histoloom.clustering.features.perceptual import PerceptualFeatures

SIDE, CHUNK = 128, 64
LEAST_SATURATION, LEAST_TISSUE = 20, 0.1
"""A pixel is tissue from this difference of its channels on; a patch needs this share of such pixels."""


def patches_of(folder: Path, *, most: int) -> np.ndarray:
    """At most so many patches in random order, uint8 (N, SIDE, SIDE, 3)."""
    patches = []
    for path in sorted(folder.glob("*.jpg")):
        field_HW3 = np.asarray(Image.open(path).convert("RGB"))
        rows, columns = (side // SIDE for side in field_HW3.shape[:2])
        cut = field_HW3[: rows * SIDE, : columns * SIDE].reshape(rows, SIDE, columns, SIDE, 3)
        for patch_HW3 in cut.swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3):
            spread_HW = patch_HW3.max(-1).astype(int) - patch_HW3.min(-1)
            if (spread_HW > LEAST_SATURATION).mean() >= LEAST_TISSUE:
                patches.append(patch_HW3)
    order = np.random.default_rng(0).permutation(len(patches))[:most]
    return np.stack([patches[place] for place in order])


def measured(images_NHW3: np.ndarray) -> PatchStains:
    parts = [patch_stains(images_NHW3[start : start + CHUNK]) for start in range(0, len(images_NHW3), CHUNK)]
    return PatchStains(*(np.concatenate(values) for values in zip(*(vars(p).values() for p in parts), strict=True)))


def histograms(images_NHW3: np.ndarray) -> np.ndarray:
    """Roots of the shares of 4 x 4 x 4 colours, (N, 64)."""
    bins_NP3 = (images_NHW3[:, ::2, ::2] // 64).reshape(len(images_NHW3), -1, 3).astype(int)
    bins_NP = bins_NP3 @ np.array([16, 4, 1])
    return np.sqrt(np.stack([np.bincount(bins_P, minlength=64) / len(bins_P) for bins_P in bins_NP]))


def descriptions(images_NHW3: np.ndarray, stains: PatchStains) -> dict[str, np.ndarray]:
    """Features (N, D) by name; the first are colour, the last are not."""
    lab_NHW3 = np.concatenate([rgb2lab(image[None, ::4, ::4]) for image in images_NHW3])
    features = PerceptualFeatures("efficientnet-lite0", images=None, device=torch.device("cpu"))
    return {
        "RGB, mean and deviation": stains.colour_N6,
        "stain, mean and deviation": stains.stain_N4,
        "RGB, mean": stains.colour_N6[:, :3],
        "Lab, mean and deviation": np.concatenate([lab_NHW3.mean((1, 2)), lab_NHW3.std((1, 2))], axis=1),
        "colour histogram": histograms(images_NHW3),
        "brightness": stains.colour_N6[:, :3].mean(1, keepdims=True),
        "EfficientNet-Lite0": features.compute_images(images_NHW3).numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[5, 10, 14, 20])
    parser.add_argument("--patches", type=int, default=4000)
    arguments = parser.parse_args()
    folder = Path(os.environ.get("HISTOLOOM_TEST_DATA", "../shared/data")) / "tiles" / "osteosarcoma"
    if not folder.is_dir():
        raise SystemExit(f"no fields in {folder}: set HISTOLOOM_TEST_DATA to the folder of the test data")
    images_NHW3 = patches_of(folder, most=arguments.patches)
    stains, half = measured(images_NHW3), len(images_NHW3) // 2
    compared = PatchStains(*(values_N[half:] for values_N in vars(stains).values()))
    print(f"{len(images_NHW3)} patches, {len(images_NHW3) - half} of them compared")
    rows = []
    for name, x_ND in descriptions(images_NHW3, stains).items():
        labels = {k: KMeans(k, n_init=4, random_state=1).fit(x_ND[:half]).predict(x_ND[half:]) for k in arguments.k}
        entries = colour_agreement(labels, stains=compared, seed=0)
        rows += [{"clusters of": name, "k": e.k, "colour": e.colour, "stain": e.stain} for e in entries]
    table = pd.DataFrame(rows)
    table["larger"] = table[["colour", "stain"]].max(axis=1)
    print(table.pivot_table(index="clusters of", columns="k", values="larger", sort=False).round(2).to_string())
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    main()

"""Are painted fields training data for segmentation? A small U-Net, tested on real slides with true maps.

    python benchmarks/painted_usefulness.py RUN --fields FOLDER --out FOLDER --steps 400 --seeds 3

``--fields`` is the folder that ``painted_fields.py`` wrote. Parts of the run's training slides and the fields that were
painted from their maps give sets of equal size, on which the same network is trained for as many steps:

- *painted fields*: pixels of the fields, with the clusters that their layouts ask for;
- *real, clusterer*: pixels of the parts, with the clusters of the run's map;
- *both* of these;
- *real, true labels*: pixels of the parts, with the true map. What labels by hand would reach.

They are tested on whole real slides with true maps: the run's held-out slides, and slides that are made for this and
that no network has seen. Trained on clusters, a network's prediction counts as the true tissue that most pixels of the
cluster show in the training parts, as an expert would name it; true labels serve only this, the test and the last set.
Prints Markdown: IoU by tissue, mean of the seeds, and the range of the mean IoU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tifffile
from painted_segmentation import LabelledField, segment, train_segmenter
from painted_tools import Part, confusions, iou, parts_in
from PIL import Image

from histoloom.run.directory import Run
from histoloom.slides.patch_set import SlideRow
from histoloom.slides.procedural.slides import TissueMap, make_slides

LAYOUT_CLASSES = 64


def enlarged(values_hw: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map at the size of an image, each pixel the nearest value, uint8."""
    return np.asarray(Image.fromarray(values_hw.astype(np.uint8)).resize(shape[::-1], Image.Resampling.NEAREST))


def truth_of(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The true tissue of each pixel, uint8 (H, W)."""
    truth = TissueMap.load(path)
    assert truth is not None, f"{path} has no true map"
    return enlarged(truth.class_hw, shape)


def training_sets(parts: list[Part]) -> dict[str, list[LabelledField]]:
    """The labelled fields of each set; those on clusters and the one on true labels."""
    painted, clustered, true = [], [], []
    for part in parts:
        field_HW3, real_HW3 = tifffile.imread(part.field), tifffile.imread(part.slide)
        painted.append(LabelledField(field_HW3, part.mask()))
        with Image.open(part.layout) as image:
            clustered.append(LabelledField(real_HW3, enlarged(np.asarray(image), real_HW3.shape[:2])))
        true.append(LabelledField(real_HW3, truth_of(part.slide, real_HW3.shape[:2])))
    return {
        "painted fields": painted,
        "real, clusterer": clustered,
        "both": painted + clustered,
        "real, true labels": true,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--fields", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the new slides and of a picture")
    parser.add_argument("--new-slides", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", metavar="SET", help="train on these alone")
    arguments = parser.parse_args()
    rows = [row for row in SlideRow.load(Run.open(arguments.run).folder("patches")) if row.usable]
    held_out = [Path(row.file) for row in rows if row.split == "holdout"]
    parts = [p for p in parts_in(arguments.fields) if p.source not in {path.stem for path in held_out}]
    recipe = TissueMap.load(Path(rows[0].file))
    assert recipe is not None, "the run's slides have true maps"
    assert recipe.recipe is not None, "the run's slides are procedural, as the demo's"
    made = make_slides(
        arguments.out / "slides", seed=int(recipe.recipe["seed"]), count=len(rows) + arguments.new_slides
    )
    tests = [*held_out, *made[len(rows) :]]
    sets, names = training_sets(parts), recipe.classes
    votes_KT = np.zeros((LAYOUT_CLASSES, len(names)), np.int64)
    for by_cluster, by_truth in zip(sets["real, clusterer"], sets["real, true labels"], strict=True):
        np.add.at(votes_KT, (by_cluster.label_HW, by_truth.label_HW), 1)
    tissue_K = votes_KT.argmax(axis=1).astype(np.uint8)
    pixels = sum(field.label_HW.size for field in sets["painted fields"])
    print(f"{len(parts)} parts, {pixels:,} px; tested on {', '.join(path.name for path in tests)}\n")

    images = [tifffile.imread(path) for path in tests]
    truths = [truth_of(path, image.shape[:2]) for path, image in zip(tests, images, strict=True)]
    shown = [images[-1][::4, ::4], _coloured(truths[-1][::4, ::4])]
    print(f"| trained on | {' | '.join(names)} | mean IoU, {arguments.seeds} seeds | px that agree |")
    print(f"|{'---|' * (len(names) + 3)}")
    for title, fields in sets.items():
        if arguments.sets and title not in arguments.sets:
            continue
        on_truth = title == "real, true labels"
        counts = []
        for seed in range(arguments.seeds):
            classes = len(names) if on_truth else int(max(field.label_HW.max() for field in fields)) + 1
            network = train_segmenter(fields, classes=classes, steps=arguments.steps, seed=seed)
            seen = [segment(network, image) for image in images]
            seen = seen if on_truth else [tissue_K[one] for one in seen]
            pairs = [(one.ravel(), other.ravel()) for one, other in zip(truths, seen, strict=True)]
            counts.append(confusions(pairs, tissues=len(names)).sum(axis=0))
        shown.append(_coloured(seen[-1][::4, ::4]))
        ious_ST = np.array([iou(one) for one in counts])
        means_S = np.nanmean(ious_ST, axis=1)
        right = np.mean([one.trace() / one.sum() for one in counts])
        cells = [f"{value:.2f}" for value in ious_ST.mean(axis=0)]
        cells += [f"{means_S.mean():.2f} ({means_S.min():.2f} to {means_S.max():.2f})", f"{right:.2f}"]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)
    Image.fromarray(np.concatenate(shown, axis=1)).save(arguments.out / "segmented.png")


def _coloured(label_HW: np.ndarray) -> np.ndarray:
    """Classes as colours far apart in hue, uint8 (H, W, 3)."""
    hue = (np.arange(256) * 0.61803399 % 1 * 255).astype(np.uint8)
    hsv = np.stack([hue[label_HW], np.full_like(label_HW, 150), np.full_like(label_HW, 230)], axis=2)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


if __name__ == "__main__":
    main()

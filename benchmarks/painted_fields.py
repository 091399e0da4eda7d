"""Painted fields of a run: do they show what the layout asks for, do windows show, does texture repeat?

    python benchmarks/painted_fields.py RUN --out FOLDER --per-slide 2 --crop 512 --steps 10

Round trip: slide -> map -> painted field -> map. Parts are cut at random places of the run's slides. The run's own
clusterer maps a part, this map is the layout of a field of the same size, each with a seed of its own, and both are
mapped again.

- **Agreement with the layout**: intersection over union (IoU) by tissue on the grid of the map, over all fields, by two
  networks: the run's clusterer, and an independent classifier that was trained on the pixels of the run's training
  patches. Floors: the clusterer's agreement with itself when the grid on the real part moves by half a cell, and the
  independent classifier's map of the real part. Clusters with the same name are one tissue. Where slides have true maps
  (the demo) each cluster counts as the true tissue that most of its cells show, as an expert would name it; these
  labels serve this comparison alone.
- **Seams**: the mean absolute difference of neighbouring pixels across lines where windows begin, and across all other
  multiples of the autoencoder's factor, in grey levels; and the p of a test that shuffles which lines are which.
- **Repetition**: the highest autocorrelation of grey values beyond one patch, in the field and in the real part.

Intervals hold 95 % when fields are drawn again. A run that was stopped continues. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from painted_tools import (
    Part,
    at_middles,
    confusions,
    cut_part,
    iou,
    map_of,
    mean_interval,
    mean_iou,
    parts_in,
    slides_of,
    with_interval,
    write_flat,
)
from PIL import Image
from scipy import ndimage

from histoloom.atlas.maps.tissue_map import CLASSIFIER_STAGES, Classify, SlideMap, load_classifier
from histoloom.clustering.clustering_set import Clustering
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.request import Request
from histoloom.diffusion.generation.run_request import sampler_of
from histoloom.diffusion.painting.field import window_starts
from histoloom.diffusion.painting.job import PaintSettings, paint_file
from histoloom.evaluation.cluster_classifier import LabelledSet, predict_clusters, train_classifier
from histoloom.evaluation.images import ImageRows
from histoloom.names import clusters_of_tissue
from histoloom.run.directory import Run
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.procedural.slides import TissueMap
from histoloom.slides.readers.open import open_slide

SHUFFLES = 2000
NEAR = 2
"""cells of the map from a boundary within which a cell is near it"""


@dataclass(frozen=True)
class Seams:
    """Mean absolute differences across window borders and across other lines, grey levels, and the p of the test."""

    at_borders: float
    elsewhere: float
    p: float


def seams(grey_HW: np.ndarray, *, side: int, factor: int, rng: np.random.Generator) -> Seams:
    """Differences across vertical and horizontal lines of the latent grid."""
    scores, border = [], []
    for grey in (grey_HW, grey_HW.T):
        steps_L = np.abs(np.diff(grey.astype(np.float32), axis=1)).mean(axis=0)
        length = grey.shape[1] // factor
        starts = set(window_starts(length, side=side))
        for line in range(2, length - 2):
            at = line * factor - 1
            scores.append(steps_L[at])
            border.append(line in starts)
    score_N, border_N = np.array(scores), np.array(border)
    difference = score_N[border_N].mean() - score_N[~border_N].mean()
    shuffled = []
    for _ in range(SHUFFLES):
        mixed_N = rng.permutation(border_N)
        shuffled.append(score_N[mixed_N].mean() - score_N[~mixed_N].mean())
    p = (1 + sum(abs(one) >= abs(difference) for one in shuffled)) / (1 + SHUFFLES)
    return Seams(float(score_N[border_N].mean()), float(score_N[~border_N].mean()), float(p))


def repetition(grey_HW: np.ndarray, *, side: int) -> float:
    """The highest autocorrelation at shifts of at least ``side`` px, at most a third of the field."""
    centred_HW = grey_HW.astype(np.float64) - grey_HW.mean()
    power = np.abs(np.fft.rfft2(centred_HW, s=[2 * length for length in grey_HW.shape])) ** 2
    correlation = np.fft.irfft2(power)
    overlap = [np.where(np.arange(2 * n) < n, n - np.arange(2 * n), np.arange(2 * n) - n) for n in grey_HW.shape]
    correlation /= np.maximum(np.outer(*overlap), 1) * centred_HW.var()
    rows, columns = (np.minimum(np.arange(2 * n), 2 * n - np.arange(2 * n)) for n in grey_HW.shape)
    far = (np.maximum.outer(rows, columns) >= side) & np.logical_and.outer(
        rows <= grey_HW.shape[0] // 3, columns <= grey_HW.shape[1] // 3
    )
    return float(correlation[far].max())


def independent_classifier(run: Run, *, images: int, out: Path) -> Classify:
    """A network that was trained to tell the run's clusters from the pixels of its training patches."""
    config = run.config
    clustering, patches = Clustering.open(run.folder("clusters")), PatchSet.open(run.folder("patches"))
    k, rows = clustering.chosen, patches.rows("train")
    labels_N = clustering.labels_of(patches.folder / "index.parquet")[k]
    assert config.evaluation.cluster_classifier is not None, "the run's evaluation has a cluster classifier"
    settings = config.evaluation.cluster_classifier
    phase = settings.training.phases[0].model_copy(update={"images": images, "epochs": None})
    classifier = train_classifier(
        LabelledSet(labels_N[rows], ImageRows(patches.images, rows).read),
        name="real",
        config=settings.model_copy(update={"training": settings.training.model_copy(update={"phases": (phase,)})}),
        clusters=k,
        runtime=config.runtime,
        seed=config.seed,
        out=out,
    ).eval()

    def classify(patches_NHW3: np.ndarray, _: np.ndarray | None) -> dict[int, np.ndarray]:
        read = patches_NHW3.__getitem__
        return {k: predict_clusters(classifier, read, n=len(patches_NHW3), runtime=config.runtime)}

    held_out = patches.rows("holdout")
    right = classify(patches.images(held_out), None)[k] == labels_N[held_out]
    print(f"the independent classifier recognises {right.mean():.0%} of {len(right)} held-out patches\n", flush=True)
    return classify


@dataclass(frozen=True)
class Mappers:
    """The networks that map a slide: the run's clusterer and the independent classifier."""

    run: Run
    clusterer: Classify
    surroundings: bool
    independent: Classify

    def by_clusterer(self, path: Path) -> SlideMap:
        """The map of ``histoloom map``."""
        return map_of(path, self.run, self.clusterer, surroundings=self.surroundings)

    def by_independent(self, path: Path) -> SlideMap:
        """The map of the independent classifier, on the same grid."""
        return map_of(path, self.run, self.independent, surroundings=False)


def round_trip(part: Part, mappers: Mappers, generator: Generator, settings: PaintSettings) -> None:
    """Map a part, paint its map, and map the field; writes ``part.cells``."""
    config, k = mappers.run.config, settings.k
    assert k is not None, "the caller has set it"
    real = mappers.by_clusterer(part.slide)
    grid = [len(np.unique(real.boxes_N4[:, side])) for side in (1, 0)]
    layout_hw = real.labels[k].reshape(grid).astype(np.uint8)
    Image.fromarray(layout_hw).save(part.layout)
    legend = {str(cluster): str(cluster) for cluster in range(k)}
    part.layout.with_suffix(".json").write_text(json.dumps(legend), encoding="utf-8")

    with open_slide(part.slide) as slide:
        mpp = slide.mpp or config.patches.mpp
        width, height = (round(side * mpp / config.patches.mpp) for side in real.dimensions)
        whole = slide.read(0, 0, extent=max(slide.dimensions), size=max(width, height))[:height, :width]
    paint_file(generator, part.layout, out=part.field.parent, settings=settings, size_px=(width, height))

    # The same part, read half a cell further: what the clusterer agrees with itself.
    half = config.patches.size // 2
    moved_file = part.slide.with_suffix(".moved.tiff")
    write_flat(moved_file, whole[half:, half:], mpp=config.patches.mpp)
    moved = mappers.by_clusterer(moved_file)
    moved_file.unlink()
    shifted = SlideMap(moved.boxes_N4 + half, moved.labels, (width, height), moved.thumbnail)

    seen = mappers.by_clusterer(part.field)
    truth = TissueMap.load(part.slide)
    np.savez(
        part.cells,
        layout=at_middles(layout_hw, seen),
        clusterer_field=seen.labels[k],
        independent_field=mappers.by_independent(part.field).labels[k],
        independent_real=mappers.by_independent(part.slide).labels[k],
        own=at_middles(layout_hw, shifted),
        moved=moved.labels[k],
        truth=np.empty(0) if truth is None else at_middles(truth.class_hw, real),
    )


def print_agreement(parts: list[Part], generator: Generator, *, k: int, seed: int) -> None:
    """Agreement with the layout, and with true maps where there are any, by tissue."""
    rng = np.random.default_rng(seed)
    cells = [dict(np.load(part.cells)) for part in parts]
    truth = TissueMap.load(parts[0].slide)
    if truth is None:
        names = [generator.labels(k)[cluster].name for cluster in range(k)]
        place_K = np.array([min(clusters_of_tissue(dict(enumerate(names)), name, k=k)) for name in names])
    else:
        layout_N, truth_N = (np.concatenate([one[name] for one in cells]) for name in ("layout", "truth"))
        votes_KT = np.zeros((k, len(truth.classes)), int)
        np.add.at(votes_KT, (layout_N, truth_N), 1)
        place_K, names = votes_KT.argmax(axis=1), list(truth.classes)
        print("clusters as tissues: " + ", ".join(f"{c} {names[place]}" for c, place in enumerate(place_K)) + "\n")

    def pairs(asked: str, seen: str) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(one[asked] if asked == "truth" else place_K[one[asked]], place_K[one[seen]]) for one in cells]

    columns = {
        "field, by the clusterer": pairs("layout", "clusterer_field"),
        "floor: real, grid moved": pairs("own", "moved"),
        "field, by the independent classifier": pairs("layout", "independent_field"),
        "floor: real, by the independent classifier": pairs("layout", "independent_real"),
    }
    if truth is not None:
        columns |= {
            "truth: real, by the clusterer": pairs("truth", "layout"),
            "truth: field, by the clusterer": pairs("truth", "clusterer_field"),
            "truth: real, by the independent classifier": pairs("truth", "independent_real"),
            "truth: field, by the independent classifier": pairs("truth", "independent_field"),
        }
    print(f"| IoU | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    counts = [confusions(one, tissues=len(names)) for one in columns.values()]
    ious = [iou(one.sum(axis=0)) for one in counts]
    for place, name in enumerate(names):
        if not all(np.isnan(values[place]) for values in ious):
            print(f"| {name} | {' | '.join(f'{values[place]:.2f}' for values in ious)} |")
    print(f"| mean | {' | '.join(with_interval(mean_iou(one, rng=rng)) for one in counts)} |")
    for title, of_inside in (("inside a tissue", True), ("near a boundary", False)):
        right = []
        for column in columns.values():
            chosen = [inside_tissue(asked_N) == of_inside for asked_N, _ in column]
            agree = [(asked == seen)[rows] for (asked, seen), rows in zip(column, chosen, strict=True)]
            right.append(np.concatenate(agree).mean())
        print(f"| cells that agree, {title} | {' | '.join(f'{value:.2f}' for value in right)} |")
    print()


def inside_tissue(tissue_N: np.ndarray) -> np.ndarray:
    """Whether all cells within ``NEAR`` of a cell, on its square grid, are of its tissue, bool (N,)."""
    side = math.isqrt(len(tissue_N))
    tissue_hw = tissue_N.reshape(side, side)
    low, high = (take(tissue_hw, 2 * NEAR + 1) for take in (ndimage.minimum_filter, ndimage.maximum_filter))
    return np.asarray(low == high).ravel()


def print_texture(parts: list[Part], generator: Generator, *, seed: int) -> None:
    """Seams and repetition of each field, and their means."""
    rng, size = np.random.default_rng(seed), generator.spec.size
    side, factor = generator.spec.shape[1], generator.spec.size // generator.spec.shape[1]
    print("| field | across window borders / elsewhere (p) | autocorrelation, field | real part |\n|---|---|---|---|")
    rows = []
    for part in parts:
        grey, grey_real = (tifffile.imread(path).astype(np.float32).mean(axis=2) for path in (part.field, part.slide))
        at = seams(grey, side=side, factor=factor, rng=rng)
        repeated, repeated_real = repetition(grey, side=size), repetition(grey_real, side=size)
        rows.append((at.at_borders - at.elsewhere, at.p < 0.05, repeated, repeated_real, repeated - repeated_real))
        print(
            f"| {part.name} | {at.at_borders:.2f} / {at.elsewhere:.2f} ({at.p:.2f}) | {repeated:.2f} | "
            f"{repeated_real:.2f} |"
        )
    difference, low_p, *repeated_F, more = np.array(rows, float).T
    means = [with_interval(mean_interval(values, rng=rng)) for values in (difference, *repeated_F, more)]
    print(f"| mean | difference {means[0]}, {int(low_p.sum())} of {len(rows)} p below 0.05 | {means[1]} | {means[2]} |")
    print(f"\nautocorrelation, field minus real part: {means[3]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slides", type=int, help="the first slides alone")
    parser.add_argument("--per-slide", type=int, default=2, help="parts of each slide")
    parser.add_argument("--crop", type=int, default=512, help="side of a part, px of level 0")
    parser.add_argument("--softness", type=float, default=PaintSettings.softness, help="of boundaries, um")
    parser.add_argument("--method")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--classifier-images", type=int, default=20_000, help="images the classifier is trained on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run, out = Run.open(arguments.run), arguments.out
    generator, k = Generator.load(arguments.run), Clustering.open(run.folder("clusters")).chosen
    sampler = sampler_of(Request(n=1, method=arguments.method, steps=arguments.steps, guidance=None), generator)
    out.mkdir(parents=True, exist_ok=True)
    own = load_classifier(run.config, {stage: run.require(stage) for stage in CLASSIFIER_STAGES})
    independent = independent_classifier(run, images=arguments.classifier_images, out=out / "classifier")
    mappers = Mappers(run, own.labels, own.features.with_surroundings, independent)

    for number in range(arguments.per_slide):
        for slide_number, path in enumerate(slides_of(run)[: arguments.slides]):
            part = Part(out, f"{path.stem}-{number}")
            if part.cells.is_file():
                continue
            cut_part(path, part, side=arguments.crop, seed=arguments.seed)
            seed = arguments.seed + 100 * number + slide_number
            settings = PaintSettings(seed=seed, k=k, sampler=sampler, softness=arguments.softness)
            round_trip(part, mappers, generator, settings)
    print_agreement(parts_in(out), generator, k=k, seed=arguments.seed)
    print_texture(parts_in(out), generator, seed=arguments.seed)


if __name__ == "__main__":
    main()

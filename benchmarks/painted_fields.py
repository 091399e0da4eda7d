"""Painted fields of a run: do they show what the layout asked for, and can the windows be told?

    python benchmarks/painted_fields.py RUN --out FOLDER --slides 2 --method unipc

For some slides of the run: the run's own clusterer maps the slide, the map is the layout of a field of the same size,
and the clusterer maps the field.

- **Agreement with the layout**: intersection over union (IoU) of each tissue on the grid of the map. Its floor is the
  clusterer's agreement with itself on the real slide when the grid is moved by half a cell. Where the slides have true
  maps (the demo), also the agreement of the slide's and of the field's map with the truth, each cluster counted as the
  true tissue that most of its cells on all slides have; these labels serve this comparison alone.
- **Seams**: the mean absolute difference of neighbouring pixels across lines where windows begin, and across all other
  multiples of the autoencoder's factor, in grey levels; and the p of a test that shuffles which lines are which.
- **Repetition**: the highest autocorrelation of the field's grey values beyond one patch, beside that of the slide.

Patches of random places go to ``FOLDER/patches``, for ``histoloom evaluate`` and ``histoloom audit``. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from histoloom.atlas.maps.tissue_map import CLASSIFIER_STAGES, SlideMap, classify_slide, load_classifier
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.results import Decision
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.request import Request
from histoloom.diffusion.generation.run_request import sampler_of
from histoloom.diffusion.painting.field import window_starts
from histoloom.diffusion.painting.job import PaintSettings, paint_file
from histoloom.names import clusters_of_tissue
from histoloom.run.directory import Run
from histoloom.slides.procedural.slides import TissueMap
from histoloom.slides.readers.open import open_slide

SHUFFLES = 2000
PATCHES = 100  # of each field


@dataclass(frozen=True)
class Seams:
    """Mean absolute differences across window borders and across other lines, grey levels, and the p of the test."""

    at_borders: float
    elsewhere: float
    p: float


def iou(one_N: np.ndarray, other_N: np.ndarray) -> dict[int, float]:
    """Intersection over union of each value, over cells that both have."""
    values = np.union1d(one_N, other_N)
    return {
        int(v): float(((one_N == v) & (other_N == v)).sum() / ((one_N == v) | (other_N == v)).sum()) for v in values
    }


def seams(grey_HW: np.ndarray, *, side: int, factor: int, rng: np.random.Generator) -> Seams:
    """Differences across vertical and horizontal lines of the latent grid, standardised by what lies beside them."""
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


def map_of(path: Path, run: Run, classifier: Classifier) -> SlideMap:
    config = run.config
    return classify_slide(
        path,
        classify=classifier.labels,
        surroundings=classifier.features.with_surroundings,
        size=config.patches.size,
        mpp=config.patches.mpp,
        limit=config.report.map_patches,
    )


def write_flat(path: Path, pixels_HW3: np.ndarray, *, mpp: float) -> None:
    """A tiled TIFF of one level that says its um/px."""
    tifffile.imwrite(
        path,
        np.ascontiguousarray(pixels_HW3),
        tile=(256, 256),
        photometric="rgb",
        compression="zlib",
        resolution=(1e4 / mpp,) * 2,
        resolutionunit="CENTIMETER",
    )


def cropped(path: Path, out: Path, *, side: int) -> Path:
    """The upper left part of a slide, and of its true map, as a slide of its own."""
    with open_slide(path) as slide:
        mpp, (width, height) = slide.mpp or 1.0, slide.dimensions
        pixels = slide.pixels(0, 0, level=0, width=min(side, width), height=min(side, height))
    write_flat(out, pixels, mpp=mpp)
    truth = TissueMap.load(path)
    if truth is not None:
        rows, columns = (
            round(part * side / whole) for part, whole in zip(truth.class_hw.shape, (height, width), strict=True)
        )
        TissueMap(truth.class_hw[:rows, :columns], truth.classes).save(out)
    return out


def at_middles(values_hw: np.ndarray, slide_map: SlideMap) -> np.ndarray:
    """The value at the middle of each cell, from a map of the whole slide at any scale."""
    middle_N2 = (slide_map.boxes_N4[:, :2] + slide_map.boxes_N4[:, 2:]) / 2
    width, height = slide_map.dimensions
    rows = (middle_N2[:, 1] / height * values_hw.shape[0]).astype(int)
    columns = (middle_N2[:, 0] / width * values_hw.shape[1]).astype(int)
    return np.asarray(values_hw[rows, columns])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slides", type=int, default=2)
    parser.add_argument("--method")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--crop", type=int, help="take the upper left part of each slide, px of level 0")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run, rng = Run.open(arguments.run), np.random.default_rng(arguments.seed)
    generator, config = Generator.load(arguments.run), run.config
    k = Decision.load(run.folder("clusters")).k
    tissue_of = {c: min(clusters_of_tissue(run.path, str(c), k=k)) for c in range(k)}
    classifier = load_classifier(config, {stage: run.require(stage) for stage in CLASSIFIER_STAGES})
    sampler = sampler_of(Request(n=1, method=arguments.method, steps=arguments.steps, guidance=None), generator)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "patches").mkdir(exist_ok=True)

    slides = [Path(path) for place in config.slides.paths for path in sorted(Path(place).glob("*.tif"))]
    titles = ["slide", "IoU, layout and map of the field", "floor", "agreement", "floor"]
    titles += ["seams: border / elsewhere (p)", "repetition, field / slide"]
    print(f"| {' | '.join(titles)} |")
    print("|---|---|---|---|---|---|---|")
    for path in slides[: arguments.slides]:
        if arguments.crop:
            path = cropped(path, arguments.out / f"{path.stem}-part.tif", side=arguments.crop)
        real = map_of(path, run, classifier)
        labels_N = np.vectorize(tissue_of.get)(real.labels[k])
        grid = [len(np.unique(real.boxes_N4[:, side])) for side in (1, 0)]
        layout = arguments.out / f"{path.stem}.png"
        Image.fromarray(labels_N.reshape(grid).astype(np.uint8)).save(layout)
        layout.with_suffix(".json").write_text(json.dumps({str(c): str(c) for c in range(k)}), encoding="utf-8")
        with open_slide(path) as slide:
            mpp = slide.mpp or config.patches.mpp
        size = tuple(round(side * mpp / config.patches.mpp) for side in real.dimensions)
        field = paint_file(
            generator,
            layout,
            out=arguments.out / f"{path.stem}-field",
            settings=PaintSettings(seed=arguments.seed, k=k, sampler=sampler),
            size_px=(size[0], size[1]),
        )
        pixels = tifffile.imread(field)
        seen = map_of(field, run, classifier)
        seen_N = np.vectorize(tissue_of.get)(seen.labels[k])
        asked_N = at_middles(labels_N.reshape(grid), seen)
        # The same slide, read half a cell further: what the clusterer agrees with itself.
        with open_slide(path) as slide:
            whole = slide.read(0, 0, extent=max(slide.dimensions), size=max(size))[: size[1], : size[0]]
        half = config.patches.size // 2
        moved_file = arguments.out / f"{path.stem}-moved.tif"
        write_flat(moved_file, whole[half:, half:], mpp=config.patches.mpp)
        moved = map_of(moved_file, run, classifier)
        moved_N = np.vectorize(tissue_of.get)(moved.labels[k])
        shifted = SlideMap(moved.boxes_N4 + half, moved.labels, (size[0], size[1]), moved.thumbnail)
        own_N = at_middles(labels_N.reshape(grid), shifted)
        grey, grey_real = (image.astype(np.float32).mean(axis=2) for image in (pixels, whole))
        side, factor = generator.spec.shape[1], generator.spec.size // generator.spec.shape[1]
        at = seams(grey, side=side, factor=factor, rng=rng)
        cells = [
            path.stem,
            f"{np.mean(list(iou(asked_N, seen_N).values())):.2f}",
            f"{np.mean(list(iou(own_N, moved_N).values())):.2f}",
            f"{(asked_N == seen_N).mean():.2f}",
            f"{(own_N == moved_N).mean():.2f}",
            f"{at.at_borders:.2f} / {at.elsewhere:.2f} ({at.p:.3f})",
            f"{repetition(grey, side=config.patches.size):.2f} / {repetition(grey_real, side=config.patches.size):.2f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
        truth = TissueMap.load(path)
        if truth is not None:
            true_N = at_middles(truth.class_hw, real)
            kind_of = {c: int(np.bincount(true_N[labels_N == c]).argmax()) for c in np.unique(labels_N)}
            by_real = np.vectorize(kind_of.get)(labels_N)
            true_seen_N = at_middles(truth.class_hw, seen)
            by_field = np.array([kind_of.get(int(c), -1) for c in seen_N])
            print(
                f"truth of {path.stem}: the slide's map agrees in {(by_real == true_N).mean():.2f} of cells, "
                f"the field's in {(by_field == true_seen_N).mean():.2f}",
                flush=True,
            )
        size_px = config.patches.size
        for number in range(PATCHES):
            y, x = (int(rng.integers(length - size_px + 1)) for length in pixels.shape[:2])
            Image.fromarray(pixels[y : y + size_px, x : x + size_px]).save(
                arguments.out / "patches" / f"{path.stem}-{number:03d}.png"
            )


if __name__ == "__main__":
    main()

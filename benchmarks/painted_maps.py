"""A map of conditions against one tissue at a time: the same layouts painted both ways by the same networks.

    python benchmarks/painted_maps.py RUN --out FOLDER --slides slide-02 slide-01 --crop 512 --steps 10

RUN is a run on slides with true maps, such as the demo. The run's clusterer maps the upper left part of each slide,
this map is the layout of a field, and the clusterer maps the field. Every network takes maps; one that was trained
without ``diffusion.condition_maps`` does so unprepared. Each cluster counts as the true tissue that most of its patches
show; these labels serve this comparison alone. Prints Markdown:

- **IoU, cells**: mean intersection over union of the tissues of layout and field, and the share of cells that agree;
- **capsule**: the share of the layout's cells of the edge of tissue, one or two cells wide, that the field has there,
  and the IoU of these cells;
- **truth**: the share of cells in which the field agrees with the slide's true map, and the IoU of the edge of tissue;
- **CPU s**: processor time of the painting.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from histoloom.atlas.maps.tissue_map import CLASSIFIER_STAGES, SlideMap, classify_slide, load_classifier
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.clustering_set import Clustering
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.painting.job import PaintSettings, paint_file
from histoloom.run.directory import Run
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.procedural.slides import EDGE, TissueMap
from histoloom.slides.readers.open import open_slide


def true_tissues(run: Run, *, k: int, slides: Mapping[str, Path]) -> np.ndarray:
    """The true tissue of most patches of each cluster, (k,)."""
    patches, clustering = PatchSet.open(run.folder("patches")), Clustering.open(run.folder("clusters"))
    labels_N = clustering.labels_of(patches.folder / "index.parquet")[k]
    votes_KT = np.zeros((k, 256), int)
    for slide_id, part in patches.table.groupby("slide_id"):
        truth = TissueMap.load(slides[str(slide_id)])
        assert truth is not None, f"{slide_id} has a true map"
        with open_slide(slides[str(slide_id)]) as slide:
            scale = truth.class_hw.shape[1] / slide.dimensions[0]
        row_N, column_N = (((part[axis] + part["extent"] / 2) * scale).astype(int) for axis in ("y", "x"))
        np.add.at(votes_KT, (labels_N[part.index], truth.class_hw[row_N, column_N]), 1)
    return votes_KT.argmax(axis=1)


def upper_left(path: Path, out: Path, *, side: int) -> np.ndarray:
    """Write the upper left part of a slide as a slide of its own; returns the same part of its true map."""
    truth = TissueMap.load(path)
    assert truth is not None, f"{path} has a true map"
    with open_slide(path) as slide:
        mpp, (width, height) = slide.mpp or 1.0, slide.dimensions
        pixels = slide.pixels(0, 0, level=0, width=side, height=side)
    tifffile.imwrite(
        out, pixels, tile=(256, 256), photometric="rgb", resolution=(1e4 / mpp,) * 2, resolutionunit="CENTIMETER"
    )
    rows, columns = (round(n * side / whole) for n, whole in zip(truth.class_hw.shape, (height, width), strict=True))
    return truth.class_hw[:rows, :columns]


def mapped(path: Path, run: Run, classifier: Classifier) -> SlideMap:
    """A slide's map by the run's clusterer."""
    config = run.config
    return classify_slide(
        path,
        classify=classifier.labels,
        surroundings=classifier.features.with_surroundings,
        size=config.patches.size,
        mpp=config.patches.mpp,
        limit=config.report.map_patches,
    )


def iou(one_N: np.ndarray, other_N: np.ndarray) -> dict[int, float]:
    """Intersection over union of each value that a map has."""
    values = np.union1d(one_N, other_N)
    return {
        int(v): float(((one_N == v) & (other_N == v)).sum() / ((one_N == v) | (other_N == v)).sum()) for v in values
    }


def cells(asked_N: np.ndarray, seen_N: np.ndarray, truth_N: np.ndarray, *, seconds: float) -> list[str]:
    """The numbers of a row: tissues that the layout asks for, that the field shows, and that are true."""
    by_layout, by_truth = iou(asked_N, seen_N), iou(truth_N, seen_N)
    return [
        f"{np.mean(list(by_layout.values())):.2f}",
        f"{(asked_N == seen_N).mean():.2f}",
        f"{(seen_N[asked_N == EDGE] == EDGE).mean():.2f}",
        f"{by_layout.get(EDGE, float('nan')):.2f}",
        f"{(truth_N == seen_N).mean():.2f}",
        f"{by_truth.get(EDGE, float('nan')):.2f}",
        f"{seconds:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slides", nargs="+", required=True, help="names of slides of the run, without suffix")
    parser.add_argument("--crop", type=int, default=512, help="side of the upper left part, px of level 0")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run, out = Run.open(arguments.run), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    slides = {path.stem: path for place in run.config.slides.paths for path in sorted(Path(place).glob("*.tif"))}
    k = Clustering.open(run.folder("clusters")).chosen
    tissue_K = true_tissues(run, k=k, slides=slides)
    classifier = load_classifier(run.config, {stage: run.require(stage) for stage in CLASSIFIER_STAGES})
    generator = Generator.load(run.path)
    spec, sampler = generator.spec, generator.spec.sampler.model_copy(update={"steps": arguments.steps})

    titles = ["slide", "painted", "IoU", "cells", "capsule found", "capsule IoU", "truth, cells", "truth, capsule IoU"]
    print(f"| {' | '.join([*titles, 'CPU s'])} |\n|{'---|' * (len(titles) + 1)}", flush=True)
    for name in arguments.slides:
        part, layout = out / f"{name}.tif", out / f"{name}.png"
        truth_hw = upper_left(slides[name], part, side=arguments.crop)
        real = mapped(part, run, classifier)
        rows = len(np.unique(real.boxes_N4[:, 1]))
        middle_N2 = (real.boxes_N4[:, :2] + real.boxes_N4[:, 2:]) / 2 / arguments.crop * truth_hw.shape[0]
        truth_N = truth_hw[middle_N2[:, 1].astype(int), middle_N2[:, 0].astype(int)]
        Image.fromarray(real.labels[k].reshape(rows, -1).astype(np.uint8)).save(layout)
        legend = {str(cluster): str(cluster) for cluster in range(k)}
        layout.with_suffix(".json").write_text(json.dumps(legend), encoding="utf-8")
        asked_N = tissue_K[real.labels[k]]
        print(f"| {name} | the slide itself | {' | '.join(cells(asked_N, asked_N, truth_N, seconds=0))} |", flush=True)
        for maps in (False, True):
            diffusion = spec.diffusion.model_copy(update={"condition_maps": maps})
            generator.spec = spec.model_copy(update={"diffusion": diffusion})
            start, way = time.process_time(), "under a map" if maps else "a tissue at a time"
            field = paint_file(
                generator,
                layout,
                out=out / f"{name}-{'map' if maps else 'tissues'}",
                settings=PaintSettings(seed=arguments.seed, k=k, sampler=sampler),
                size_px=(arguments.crop, arguments.crop),
            )
            seconds = time.process_time() - start
            seen_N = tissue_K[mapped(field, run, classifier).labels[k]]
            print(f"| {name} | {way} | {' | '.join(cells(asked_N, seen_N, truth_N, seconds=seconds))} |", flush=True)


if __name__ == "__main__":
    main()

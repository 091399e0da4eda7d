"""The starter on real tissue: what fields cost, and the round trip of a real tile.

    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/painted_starter.py starter --out FOLDER \\
        --fields student:512 student:1024 student:2048 unipc:1024 --tile TILE.jpg

Times: a field of each METHOD:SIDE, of a random layout of all tissues in areas of some 200 px, painted in a process of
its own: seconds, processor seconds, and the largest memory. The two variables keep AVX-512 out of it. Fields that are
there are not painted again.

Round trip: a small segmentation network is trained on these fields alone, with the tissues that they asked for. It maps
a real tile, whose tissues nobody labelled; the map is the layout of a field of the same size, and the network maps
that. ``round-trip.jpg`` shows the tile, its map and a detail at full size, and below the field, its map and detail.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
import tifffile
from painted_segmentation import LabelledField, segment, train_segmenter
from PIL import Image
from scipy.spatial import cKDTree

from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import generator_home
from histoloom.diffusion.generation.request import Request
from histoloom.diffusion.generation.run_request import sampler_of
from histoloom.diffusion.painting.job import PaintSettings, paint_file
from histoloom.diffusion.painting.output import FIELD_FILE
from histoloom.seeding import numpy_generator

AREA = 200
"""px between the middles of the areas of a random layout"""
CELL = 32
"""px of a cell of the tile's map: the tissue that most of its pixels have"""
DETAIL = 384
"""px of the detail at full size, and of the pictures beside it"""


def write_layout(path: Path, labels_HW: np.ndarray, *, names: list[str]) -> None:
    """Write an indexed PNG with its legend."""
    Image.fromarray(labels_HW.astype(np.uint8)).save(path)
    path.with_suffix(".json").write_text(json.dumps(dict(enumerate(names))), encoding="utf-8")


def random_layout(side: int, *, tissues: int, seed: int) -> np.ndarray:
    """Areas about random points, (side, side); every tissue comes before one comes again."""
    rng = numpy_generator(seed, "painted starter", side)
    points_M2 = rng.random((round(side / AREA) ** 2, 2)) * side
    rounds = -(-len(points_M2) // tissues)
    tissue_M = np.concatenate([rng.permutation(tissues) for _ in range(rounds)])
    _, nearest = cKDTree(points_M2).query(np.indices((side, side)).reshape(2, -1).T)
    return tissue_M[nearest].reshape(side, side)


def paint(home: Path, layout: Path, out: Path, method: str, seed: int) -> None:
    """Paint a field and write what it took to ``out/cost.json``."""
    start = time.perf_counter()
    generator = Generator.load(home)
    sampler = sampler_of(Request(n=1, method=method, steps=None, guidance=None), generator)
    paint_file(generator, layout, out=out, settings=PaintSettings(seed=seed, sampler=sampler))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds, processor = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    cost = {"s": seconds, "cpu_s": processor, "mb": usage.ru_maxrss / 1024}
    (out / "cost.json").write_text(json.dumps(cost), encoding="utf-8")


def painted(home: Path, layout: Path, out: Path, *, method: str, seed: int) -> dict[str, float]:
    """What a field costs; it is painted in a process of its own where it is not there yet."""
    if not (out / "cost.json").is_file():
        process = multiprocessing.get_context("spawn").Process(target=paint, args=(home, layout, out, method, seed))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"painting {out} failed")
    return {name: float(value) for name, value in json.loads((out / "cost.json").read_text(encoding="utf-8")).items()}


def cells_of(labels_HW: np.ndarray, *, classes: int) -> np.ndarray:
    """The tissue that most pixels of each cell have, (H / CELL, W / CELL)."""
    rows, columns = (length // CELL for length in labels_HW.shape)
    blocks = labels_HW[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
    counts = np.stack([(blocks == tissue).sum(axis=(1, 3)) for tissue in range(classes)])
    return np.asarray(counts.argmax(axis=0))


def coloured(labels_hw: np.ndarray, *, classes: int, side: int) -> np.ndarray:
    """A map in colours far apart in hue, uint8 (side, side, 3)."""
    number = np.arange(classes)
    hsv = np.stack([number * 0.61803399 % 1 * 255, np.full(classes, 140), 235 - number % 3 * 40], axis=1)
    palette = np.asarray(Image.fromarray(hsv.astype(np.uint8)[None], "HSV").convert("RGB"))[0]
    return np.asarray(Image.fromarray(palette[labels_hw]).resize((side, side), Image.Resampling.NEAREST))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fields", nargs="+", metavar="METHOD:SIDE", default=["student:512", "student:1024"])
    parser.add_argument("--tile", type=Path)
    parser.add_argument("--crop", type=int, help="take the middle of the tile, px")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    home, out = generator_home(arguments.generator), arguments.out
    out.mkdir(parents=True, exist_ok=True)
    generator = Generator.load(home)
    names = list(dict.fromkeys(label.name for label in generator.labels(generator.spec.chosen_k).values()))
    classes = len(names)

    print("| field | s | CPU s | CPU s per million px | MB |\n|---|---|---|---|---|", flush=True)
    fields = []
    for place, (method, side) in enumerate(field.split(":") for field in arguments.fields):
        folder, seed = out / f"{place}-{method}-{side}", arguments.seed + place
        labels_HW = random_layout(int(side), tissues=classes, seed=seed)
        write_layout(out / f"{folder.name}.png", labels_HW, names=names)
        cost = painted(home, out / f"{folder.name}.png", folder, method=method, seed=seed)
        cells = [f"{method}, {side} px", *(f"{cost[name]:.0f}" for name in ("s", "cpu_s"))]
        cells += [f"{cost['cpu_s'] / int(side) ** 2 * 1e6:.0f}", f"{cost['mb']:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
        fields.append(LabelledField(tifffile.imread(folder / FIELD_FILE), labels_HW.astype(np.uint8)))
    if arguments.tile is None:
        return

    network = train_segmenter(fields, classes=classes, steps=arguments.steps, seed=arguments.seed)
    tile_HW3 = np.asarray(Image.open(arguments.tile).convert("RGB"))
    if arguments.crop:
        start = (len(tile_HW3) - arguments.crop) // 2
        tile_HW3 = tile_HW3[start : start + arguments.crop, start : start + arguments.crop]
    seen_hw = cells_of(segment(network, tile_HW3), classes=classes)
    layout = out / f"{arguments.tile.stem}.png"
    write_layout(layout, np.kron(seen_hw, np.ones((CELL, CELL), np.uint8)), names=names)
    painted(home, layout, out / arguments.tile.stem, method="student", seed=arguments.seed)
    field_HW3 = tifffile.imread(out / arguments.tile.stem / FIELD_FILE)
    again_hw = cells_of(segment(network, field_HW3), classes=classes)
    agree = (seen_hw == again_hw).mean()
    print(f"\n{arguments.tile.name}: the field's map agrees with the tile's in {agree:.0%} of cells")
    for tissue in np.unique(seen_hw):
        own = seen_hw == tissue
        print(f"- {names[tissue]}: {own.mean():.0%} of the tile, found again in {(again_hw[own] == tissue).mean():.0%}")

    side, at = DETAIL, (tile_HW3.shape[0] - DETAIL) // 2
    whole = [np.asarray(Image.fromarray(image).resize((side, side))) for image in (tile_HW3, field_HW3)]
    maps = [coloured(one, classes=classes, side=side) for one in (seen_hw, again_hw)]
    detail = [image[at : at + side, at : at + side] for image in (tile_HW3, field_HW3)]
    rows = [np.concatenate(row, axis=1) for row in zip(whole, maps, detail, strict=True)]
    Image.fromarray(np.concatenate(rows)).save(out / "round-trip.jpg", quality=85)


if __name__ == "__main__":
    main()

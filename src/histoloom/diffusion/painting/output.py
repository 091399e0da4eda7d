"""The files of a painted field: the field as a tiled pyramid, its labels as a mask and as areas."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import shapely
import tifffile
from PIL import Image

from histoloom.diffusion.painting.layout import Canvas, Layout
from histoloom.run.directory import replacing, write_json, write_text
from histoloom.run.own_output import png_text

FIELD_FILE, RECORD_FILE, MAP_FILE, LEGEND_FILE = "field.ome.tif", "field.json", "map.geojson", "mask.json"
TILE = 256
LARGEST_PNG = 1 << 26
"""pixels above which the mask is a TIFF, which is written and read in tiles"""
ROWS = 1024
"""rows of a level that are made at once"""


def write_field(path: Path, pixel_file: Path, *, mpp: float, tissues: Sequence[str]) -> None:
    """Write pixels, uint8 (H, W, 3) in an npy file, as an OME-TIFF pyramid; each level halves the one before."""
    levels = [np.load(pixel_file, mmap_mode="r")]
    while min(levels[-1].shape[:2]) > 2 * TILE:
        levels.append(halved(levels[-1], pixel_file.with_name(f"level-{len(levels)}.npy")))
    metadata = {
        "axes": "YXS",
        "Name": "synthetic tissue, painted by Histoloom",
        "Description": f"Synthetic: no patient's tissue, not for diagnosis. Tissues: {', '.join(tissues)}",
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
    }
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=levels[0].size > 2**31, ome=True) as tiff:
        for number, level in enumerate(levels):
            tiff.write(
                _tiles(level.__getitem__, shape=level.shape),
                shape=level.shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="zlib",
                predictor=True,
                subifds=len(levels) - 1 if number == 0 else None,
                subfiletype=0 if number == 0 else 1,
                resolution=(1e4 / (mpp * 2**number),) * 2,
                resolutionunit="CENTIMETER",
                metadata=metadata if number == 0 else None,
                software="histoloom",
            )


def write_labels(out: Path, layout: Layout, *, canvas: Canvas) -> None:
    """Write the tissue of each pixel as ``mask`` with its legend, and as areas in ``map.geojson``."""
    factor, (width, height) = canvas.factor, canvas.size
    label_hw = layout.tissue_hw.astype(np.uint8)
    legend = {str(number): name for number, name in enumerate(layout.names)}
    write_json(out / LEGEND_FILE, legend)
    if width * height <= LARGEST_PNG:
        image = Image.fromarray(label_hw).resize((width, height), Image.Resampling.NEAREST).convert("P")
        image.putpalette(_palette(len(layout.names)))
        with replacing(out / "mask.png") as temporary:
            image.save(temporary, "PNG", pnginfo=png_text())
    else:

        def read(place: tuple[slice, slice]) -> np.ndarray:
            row_R, column_C = (np.arange(part.start, part.stop) // factor for part in place)
            part_RC: np.ndarray = label_hw[row_R[:, None], column_C]
            return part_RC

        with replacing(out / "mask.tif") as temporary, tifffile.TiffWriter(temporary) as tiff:
            tiff.write(
                _tiles(read, shape=(height, width)),
                shape=(height, width),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="minisblack",
                compression="zlib",
                resolution=(1e4 / canvas.mpp,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    write_text(out / MAP_FILE, areas_geojson(layout, factor=factor))


def areas_geojson(layout: Layout, *, factor: int) -> str:
    """The areas of a layout as QuPath reads them: one annotation for each connected area, in px of the field."""
    palette = np.array(_palette(len(layout.names))).reshape(-1, 3)
    features = []
    for number, name in enumerate(layout.names):
        properties = {
            "objectType": "annotation",
            "classification": {"name": name, "color": palette[number].tolist()},
            "metadata": {"synthetic": "yes"},
        }
        # The horizontal runs of the tissue as boxes, joined.
        steps_hw = np.diff(np.pad(layout.tissue_hw == number, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        top, left = np.nonzero(steps_hw == 1)
        right = np.nonzero(steps_hw == -1)[1]
        runs = shapely.box(left * factor, top * factor, right * factor, (top + 1) * factor)
        merged = shapely.simplify(shapely.union_all(runs), 0)
        for area in shapely.get_parts(merged):
            rings = [[list(corner) for corner in ring.coords] for ring in (area.exterior, *area.interiors)]
            geometry = {"type": "Polygon", "coordinates": rings}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False)


def _palette(n: int) -> list[int]:
    """``n`` colours, r, g, b one after the other, far apart in hue."""
    hues_n = (np.arange(n) * 0.61803399) % 1
    hsv = Image.fromarray(
        np.stack([hues_n * 255, np.full(n, 170), np.full(n, 220)], axis=1).astype(np.uint8)[None], "HSV"
    )
    return np.asarray(hsv.convert("RGB")).ravel().tolist()


def halved(level: np.ndarray, file: Path) -> np.ndarray:
    """A level of half the size, in a file: each pixel is the mean of 2 x 2."""
    height, width = level.shape[0] // 2, level.shape[1] // 2
    half = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(height, width, 3))
    for top in range(0, height, ROWS):
        rows = min(ROWS, height - top)
        four = level[2 * top : 2 * (top + rows), : 2 * width].reshape(rows, 2, width, 2, 3)
        half[top : top + rows] = np.rint(four.mean(axis=(1, 3), dtype=np.float32))
    return half


def _tiles(read: Callable[[tuple[slice, slice]], np.ndarray], *, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The tiles of a level of (height, width), row by row; those at its end are as small as what is left."""
    height, width = shape[:2]
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            yield np.ascontiguousarray(read(np.s_[top : min(top + TILE, height), left : min(left + TILE, width)]))

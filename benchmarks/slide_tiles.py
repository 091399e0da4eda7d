"""How fast the tiles of the atlas's slide viewer are, beside OpenSlide's own DeepZoomGenerator.

Both give the same places as JPEGs of 256 px at quality 85 without subsampling, from files that are in the system's
cache, in turns, several rounds; each starts a round with nothing decoded. The places are those that a reader of a slide
meets: windows of 7 x 5 tiles at random places of random levels, each then moved right by a tile four times. Ratios are
taken within a round; the table shows medians. OpenSlide does not open flat images.

    python benchmarks/slide_tiles.py FILE... [--threads 2] [--windows 40] [--rounds 3]
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openslide
import pandas as pd
import psutil
from openslide.deepzoom import DeepZoomGenerator

from histoloom import seeding
from histoloom.atlas.browse.run_slides import jpeg
from histoloom.slides.readers.viewer import TILE, SlideCache, Zoom, tile_pixels

ACROSS, DOWN = 7, 5

Place = tuple[Path, int, int, int]
"""A slide's file, and level, column and row of a tile."""


def dimensions(file: Path) -> tuple[int, int]:
    slides = SlideCache()
    with slides.use(file) as slide:
        size = slide.dimensions
    slides.close()
    return size


def windows(files: Sequence[Path], *, count: int, number: int) -> list[Place]:
    """The tiles of ``count`` windows on each slide, as a viewer asks for them."""
    rng = seeding.numpy_generator(0, "benchmark", number)
    places: list[Place] = []
    for file in files:
        zoom = Zoom(*dimensions(file))
        level, left, top = 0, 0, 0
        for window in range(count):
            if window % 5:
                left, top = left + 1, top
            else:
                level = int(rng.integers(zoom.levels))
                columns, rows = zoom.grid(level)
                left, top = int(rng.integers(max(1, columns - ACROSS))), int(rng.integers(max(1, rows - DOWN)))
            columns, rows = zoom.grid(level)
            places += [
                (file, level, column, row)
                for row in range(top, min(top + DOWN, rows))
                for column in range(left, min(left + ACROSS, columns))
            ]
    return list(dict.fromkeys(places))


def by_histoloom() -> tuple[Callable[[Place], int], Callable[[], None]]:
    slides = SlideCache()

    def tile(place: Place) -> int:
        file, level, column, row = place
        with slides.use(file) as slide:
            pixels = tile_pixels(slide, Zoom(*slide.dimensions).tile(level, column=column, row=row))
        return len(jpeg(pixels))

    return tile, slides.close


def by_deepzoom(files: Sequence[Path]) -> tuple[Callable[[Place], int], Callable[[], None]]:
    opened = {file: openslide.OpenSlide(str(file)) for file in files}
    generators = {file: DeepZoomGenerator(slide, tile_size=TILE, overlap=0) for file, slide in opened.items()}

    def tile(place: Place) -> int:
        file, level, column, row = place
        generator = generators[file]
        image = generator.get_tile(generator.level_count - 1 - level, (column, row))
        data = io.BytesIO()
        image.save(data, "JPEG", quality=85, subsampling=0)
        return data.tell()

    def close() -> None:
        for slide in opened.values():
            slide.close()

    return tile, close


def seconds(
    tool: tuple[Callable[[Place], int], Callable[[], None]], *, places: list[Place], threads: int
) -> tuple[float, float]:
    """By the clock, and of all processors."""
    tile, close = tool
    start, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        sizes = list(pool.map(tile, places))
    spent = time.perf_counter() - start, time.process_time() - used
    close()
    assert min(sizes) > 0, "every tile is a picture"
    return spent


def opens(file: Path) -> bool:
    return openslide.OpenSlide.detect_format(str(file)) is not None


def measured(name: str, files: Sequence[Path], *, arguments: argparse.Namespace) -> dict[str, object]:
    rows = []
    for number in range(arguments.rounds):
        places = windows(files, count=arguments.windows, number=number)
        row = {"tiles": float(len(places))}
        tools = {"histoloom": by_histoloom()}
        if all(map(opens, files)):
            tools["DeepZoomGenerator"] = by_deepzoom(files)
        for tool, made in tools.items():
            wall, cpu = seconds(made, places=places, threads=arguments.threads)
            row |= {f"{tool}, tiles/s": len(places) / wall, f"{tool}, CPU ms a tile": 1000 * cpu / len(places)}
        if "DeepZoomGenerator" in tools:
            ours, theirs = (row[f"{tool}, CPU ms a tile"] for tool in tools)
            row["tiles/s / theirs"] = row["histoloom, tiles/s"] / row["DeepZoomGenerator, tiles/s"]
            row["CPU, theirs / ours"] = theirs / ours
        rows.append(row)
    return {"slides": name, **{str(column): median for column, median in pd.DataFrame(rows).median().items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    flat = [file for file in arguments.files if not opens(file)]
    groups = [(file.name, [file]) for file in arguments.files if opens(file)]
    groups += [(f"{len(flat)} flat images", flat)] if flat else []
    rows = []
    for name, files in groups:
        rows.append(measured(name, files, arguments=arguments))
        print(rows[-1], file=sys.stderr, flush=True)
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.1f}".format, na_rep="-"))
    print(
        f"this process, both tools and their libraries: {psutil.Process().memory_info().rss / 2**20:.0f} MiB at the end"
    )


if __name__ == "__main__":
    main()

"""One tool reads patches at given places, two slides at a time; run by slide_reading.py in that tool's own environment.

    python benchmarks/slide_reading_tools.py TOOL PLACES.json

PLACES.json: {"size", "mpp", "workers", "slides": [{"file", "mpp", "extent", "x": [...], "y": [...]}]}. Prints one line
of JSON: {"tool", "patches", "wall", "cpu", "memory_mb"}: seconds of reading (imports and the pool's start are not
counted), CPU seconds of all workers, and the largest worker's peak resident memory.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np


def histoloom(slide, *, size, mpp):
    """Its own stage function, which also writes the store's file."""
    from histoloom.slides.entries import SlideEntry
    from histoloom.slides.patches.extract import ExtractionJob, extract_patches
    from histoloom.slides.patches.filters import Filters
    from histoloom.slides.patches.sampling import CandidatePatches, Positions

    entry = SlideEntry("a", Path(slide["file"]), "p", "s", width=1, height=1, mpp=slide["mpp"], mpp_source="given")
    x, y = np.array(slide["x"]), np.array(slide["y"])
    with tempfile.TemporaryDirectory() as folder:
        none, all_tissue = np.zeros(len(x), dtype=bool), np.ones(len(x))
        candidates = Path(folder) / "candidates.npz"
        CandidatePatches(Positions(x, y, all_tissue, 1 - all_tissue), none, wanted=len(x)).save(candidates)
        job = ExtractionJob(
            entry,
            extent=slide["extent"],
            size=size,
            target=Path(folder) / "a.npy",
            checkpoint=Path(folder) / "a.json",
            candidates=candidates,
            filters=Filters(blur=None, pen=None),
        )
        extracted = extract_patches(job)
        assert extracted.positions is not None, extracted.reason
    yield from ()


def histoloom_reading(slide, *, size, mpp):
    """The same without the store: pixels in memory, as the other tools leave them."""
    from histoloom.slides.readers.open import open_slide

    with open_slide(Path(slide["file"])) as file:
        for x, y in zip(slide["x"], slide["y"], strict=True):
            yield file.read(x, y, extent=slide["extent"], size=size)


def by_hand(slide, *, size, mpp):
    """OpenSlide and Pillow, as a careful script does it."""
    import openslide
    from PIL import Image

    side = slide["extent"]
    with openslide.OpenSlide(slide["file"]) as file:
        for x, y in zip(slide["x"], slide["y"], strict=True):
            region = file.read_region((x, y), 0, (round(side), round(side))).convert("RGB")
            yield np.asarray(region.resize((size, size), Image.Resampling.LANCZOS))


def histolab(slide, *, size, mpp):
    from histolab.slide import Slide
    from histolab.types import CoordinatePair

    side = round(slide["extent"])
    with tempfile.TemporaryDirectory() as folder:
        file = Slide(slide["file"], folder, use_largeimage=True)
        for x, y in zip(slide["x"], slide["y"], strict=True):
            place = CoordinatePair(x, y, x + side, y + side)
            yield np.asarray(file.extract_tile(place, (size, size), mpp=mpp).image)


def tiatoolbox(slide, *, size, mpp):
    from tiatoolbox.wsicore.wsireader import WSIReader

    reader = WSIReader.open(slide["file"], mpp=(slide["mpp"], slide["mpp"]))
    yield from _by_tiatoolbox(reader, slide=slide, size=size, mpp=mpp)


def tiatoolbox_openslide(slide, *, size, mpp):
    """Its OpenSlide reader, which it does not choose for generic TIFF by itself."""
    from tiatoolbox.wsicore.wsireader import OpenSlideWSIReader

    reader = OpenSlideWSIReader(slide["file"], mpp=(slide["mpp"], slide["mpp"]))
    yield from _by_tiatoolbox(reader, slide=slide, size=size, mpp=mpp)


def _by_tiatoolbox(reader, *, slide, size, mpp):
    for x, y in zip(slide["x"], slide["y"], strict=True):
        yield reader.read_rect((x, y), (size, size), resolution=mpp, units="mpp")


def lazyslide(slide, *, size, mpp):
    import wsidata.io
    from wsidata import TileSpec, open_wsi

    file = open_wsi(slide["file"], store=None)
    places = np.stack([slide["x"], slide["y"]], axis=1)
    spec = TileSpec.from_wsidata(file, tile_px=size, mpp=mpp)
    wsidata.io.add_tiles(file, "tiles", xys=places, tile_spec=spec, tissue_ids=np.zeros(len(places), int))
    for tile in file.iter.tile_images("tiles"):
        yield tile.image


def decoding(slide, *, size, mpp):
    """The floor: every touched JPEG tile of level 0 decoded once, and nothing else."""
    import imagecodecs
    import tifffile

    data = Path(slide["file"]).read_bytes()
    with tifffile.TiffFile(slide["file"]) as tiff:
        page = tiff.pages[0]
        offsets, lengths, tables = page.dataoffsets, page.databytecounts, page.jpegtables
        colours = {2: "RGB", 6: "YCBCR"}[int(page.photometric)]
    for number in _touched(page, slide=slide):
        start = offsets[number]
        part = data[start : start + lengths[number]]
        imagecodecs.jpeg8_decode(part, tables=tables, colorspace=colours, outcolorspace="RGB")
    yield from ()


def _touched(page, *, slide):
    columns = -(-page.imagewidth // page.tilewidth)
    touched: set[int] = set()
    for x, y in zip(slide["x"], slide["y"], strict=True):
        right, bottom = (int(np.ceil(v + slide["extent"])) - 1 for v in (x, y))
        for row in range(y // page.tilelength, bottom // page.tilelength + 1):
            touched.update(row * columns + c for c in range(x // page.tilewidth, right // page.tilewidth + 1))
    return sorted(touched)


TOOLS = {
    tool.__name__: tool
    for tool in (histoloom, histoloom_reading, by_hand, histolab, tiatoolbox, tiatoolbox_openslide, lazyslide, decoding)
}


def work(job):
    """Read one slide's patches; returns CPU seconds and peak memory of this process."""
    tool, slide, size, mpp = job
    before = time.process_time()
    for pixels in TOOLS[tool](slide, size=size, mpp=mpp):
        assert pixels.shape[:2] == (size, size), pixels.shape
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return time.process_time() - before, memory


def main():
    tool, places = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    workers, slides = places["workers"], places["slides"]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        few = [s | {"x": s["x"][:1], "y": s["y"][:1]} for s in slides]
        list(pool.map(work, [(tool, s, places["size"], places["mpp"]) for s in few * workers]))
        start = time.perf_counter()
        results = list(pool.map(work, [(tool, s, places["size"], places["mpp"]) for s in slides]))
        wall = time.perf_counter() - start
    result = {
        "tool": tool,
        "patches": sum(len(s["x"]) for s in slides),
        "wall": wall,
        "cpu": sum(cpu for cpu, _ in results),
        "memory_mb": max(memory for _, memory in results),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

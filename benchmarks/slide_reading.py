"""How fast patches are read from slides, beside histolab, TIAToolbox and LazySlide.

Every tool reads the same places (a grid over the tissue that Histoloom finds, or random places in it) at the same
size and mpp, each matching the mpp by its own means, with two worker processes that take slides in the same order.
The row histoloom also writes its store; the others keep nothing. The floor is JPEG decoding: each touched tile once.
Each tool runs in its own environment, one after the other, the whole row several times; the table's ratios are medians
over the rounds.

    python benchmarks/slide_reading.py SLIDE... [--histolab PYTHON] [--tiatoolbox PYTHON] [--lazyslide PYTHON]
        [--layout grid|random] [--size 256] [--mpp 1.0] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from histoloom import seeding
from histoloom.slides.patches.extract import THUMBNAIL_SIDE
from histoloom.slides.patches.sampling import patch_extent
from histoloom.slides.readers.open import open_slide
from histoloom.slides.tissue.mask import tissue_mask, tissue_share

TOOLS = Path(__file__).with_name("slide_reading_tools.py")


def places(file: Path, *, size: int, mpp: float, layout: str) -> dict[str, object]:
    """Corners (whole level-0 px) of the patches with at least half tissue, row by row."""
    with open_slide(file) as slide:
        mask = tissue_mask(slide.thumbnail(THUMBNAIL_SIDE))
        (width, height), source_mpp = slide.dimensions, slide.mpp
    assert source_mpp is not None, f"{file} says no mpp"
    extent = patch_extent(size, mpp=mpp, source_mpp=source_mpp)
    most = (int(width - extent), int(height - extent))
    x, y = (a.ravel() for a in np.meshgrid(*(np.arange(0, end, extent).astype(int) for end in most)))
    share_of = partial(tissue_share, mask, extent=extent, width=width, height=height)
    rows = np.flatnonzero(share_of(x=x, y=y) >= 0.5)
    if layout == "random":
        rng = seeding.numpy_generator(0, "benchmark", file.stem)
        count = len(rows)
        x, y = (rng.integers(0, end, 20 * len(x)) for end in most)
        rows = np.flatnonzero(share_of(x=x, y=y) >= 0.5)[:count]
    x, y = x[rows], y[rows]
    order = np.lexsort((x, y // int(extent)))
    return {
        "file": str(file.resolve()),
        "mpp": source_mpp,
        "extent": extent,
        "x": x[order].tolist(),
        "y": y[order].tolist(),
    }


def measured(tool: str, *, python: str, request: Path) -> dict[str, object]:
    done = subprocess.run([python, str(TOOLS), tool, str(request)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{tool} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def tools(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Each tool and the Python that has it."""
    found = [("decoding", sys.executable), ("histoloom", sys.executable)]
    found += [("histoloom_reading", sys.executable), ("by_hand", sys.executable)]
    found += [("histolab", arguments.histolab)] if arguments.histolab else []
    if arguments.tiatoolbox:
        found += [("tiatoolbox", arguments.tiatoolbox), ("tiatoolbox_openslide", arguments.tiatoolbox)]
    return found + ([("lazyslide", arguments.lazyslide)] if arguments.lazyslide else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="+")
    for tool in ("histolab", "tiatoolbox", "lazyslide"):
        parser.add_argument(f"--{tool}", metavar="PYTHON")
    parser.add_argument("--layout", choices=["grid", "random"], default="grid")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--mpp", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    options = {"size": arguments.size, "mpp": arguments.mpp}
    slides = [places(file, layout=arguments.layout, **options) for file in arguments.slides]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "places.json"
        request.write_text(json.dumps(options | {"workers": 2, "slides": slides}))
        for number in range(arguments.rounds):
            for tool, python in tools(arguments):
                rows.append({"round": number} | measured(tool, python=python, request=request))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(summary(pd.DataFrame(rows)).to_string(float_format="{:.2f}".format))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians over the rounds; ratios are taken within each round."""
    rows["patches/s"] = rows["patches"] / rows["wall"]
    rows["CPU ms a patch"] = 1000 * rows["cpu"] / rows["patches"]
    for column, name in (("wall", "time / histoloom's"), ("cpu", "CPU / histoloom's")):
        ours = rows[rows["tool"] == "histoloom"].set_index("round")[column]
        rows[name] = rows[column] / rows["round"].map(ours)
    numbers = rows.drop(columns=["round", "wall", "cpu"]).groupby("tool", sort=False)
    return numbers.median().astype({"patches": int})


if __name__ == "__main__":
    main()

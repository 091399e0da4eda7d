"""Are planted copies of training patches found, and how often does a real patch of another slide count as one?

Patches are cut from flat fields (the osteosarcoma tiles, with their slides.csv); whole slides train, calibrate or test.
Copies of training patches are changed in each of several ways and looked up. The threshold comes from the calibration
slides, false alarms are counted on the test slides, whose patches set nothing.

    python benchmarks/planted_copies.py --tiles FOLDER [--size 128] [--copies 200] [--autoencoder RUN/autoencoder]
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from histoloom.autoencoder.vqgan import Autoencoder, to_float, to_uint8
from histoloom.evaluation.originality.audit import SURE
from histoloom.evaluation.originality.calibration import MARGIN, RATE, Share, conformal_threshold, min_scores
from histoloom.evaluation.originality.greys import to_greys
from histoloom.evaluation.originality.nearest import Gallery, best_score_of_weakest_half, nearest
from histoloom.seeding import numpy_generator

Places = list[tuple[str, int, int]]
BATCH = 16


class Tiles:
    """The fields by file, and which slide each is of."""

    def __init__(self, folder: Path) -> None:
        self.slide: dict[str, str] = dict(pd.read_csv(folder / "slides.csv")[["file", "slide"]].itertuples(index=False))
        self.field = {name: np.asarray(Image.open(folder / name).convert("RGB")) for name in self.slide}

    def places(self, slides: list[str], *, n: int, size: int, rng: np.random.Generator) -> Places:
        """``n`` places of patches, the fields in turn."""
        names = sorted(name for name, slide in self.slide.items() if slide in slides)
        limit = {name: np.array(self.field[name].shape[:2]) - size + 1 for name in names}
        chosen = [names[number % len(names)] for number in range(n)]
        corners = [(name, rng.integers(0, limit[name])) for name in chosen]
        return [(name, int(corner[0]), int(corner[1])) for name, corner in corners]

    def cut(self, places: Places, *, size: int) -> np.ndarray:
        return np.stack([self.field[name][y : y + size, x : x + size] for name, y, x in places])


def split(tiles: Tiles) -> tuple[list[str], list[str], list[str]]:
    """Slides for training, calibration and test: of every five the last two are held out, one for each."""
    slides = sorted(set(tiles.slide.values()))
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for number, slide in enumerate(slides):
        parts[{3: 1, 4: 2}.get(number % 5, 0)].append(slide)
    return parts


def within(tiles: Tiles, place: tuple[str, int, int], *, size: int) -> tuple[str, int, int]:
    name, y, x = place
    height, width = tiles.field[name].shape[:2]
    return name, min(max(0, y), height - size), min(max(0, x), width - size)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def enlarged(image: np.ndarray) -> np.ndarray:
    side = len(image)
    part = round(side / 1.1)
    edge = (side - part) // 2
    return resized(image[edge : edge + part, edge : edge + part], side)


def compressed(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=30)
    return np.asarray(Image.open(buffer))


def recoloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another stain: optical densities mixed between the channels and stronger or weaker."""
    density = -np.log((image.astype(np.float64) + 1) / 256)
    mixed = density @ (np.eye(3) + rng.uniform(-0.15, 0.15, (3, 3))).T * rng.uniform(0.6, 1.5)
    return np.clip(256 * np.exp(-mixed) - 1, 0, 255).astype(np.uint8)


def collage(image: np.ndarray, other: np.ndarray, *, upright: bool) -> np.ndarray:
    result, half = image.copy(), len(image) // 2
    part = np.s_[:, half:] if upright else np.s_[half:]
    result[part] = other[part]
    return result


def planted(
    tiles: Tiles, places: Places, *, others: np.ndarray, size: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The copies by kind."""
    images = tiles.cut(places, size=size)
    far = size // 4
    moved = [
        within(tiles, (name, y + int(rng.integers(-far, far + 1)), x + int(rng.integers(-far, far + 1))), size=size)
        for name, y, x in places
    ]
    more = round(1.1 * size)
    around = [within(tiles, (n, y - (more - size) // 2, x - (more - size) // 2), size=more) for n, y, x in places]
    return {
        "exact": images,
        "turned": np.stack([np.rot90(image, 1 + n % 3) for n, image in enumerate(images)]),
        "mirrored": np.stack([image[:, ::-1] if n % 2 else image[::-1] for n, image in enumerate(images)]),
        "shifted by up to a quarter": tiles.cut(moved, size=size),
        "other stain": np.stack([recoloured(image, rng) for image in images]),
        "JPEG, quality 30": np.stack([compressed(image) for image in images]),
        "enlarged by 10 %": np.stack([enlarged(image) for image in images]),
        "reduced by 10 %": np.stack([resized(image, size) for image in tiles.cut(around, size=more)]),
        "collage of two halves": np.stack(
            [collage(image, others[n % len(others)], upright=n % 2 == 0) for n, image in enumerate(images)]
        ),
    }


def through(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Encoding, quantising and decoding by a run's autoencoder."""
    model = Autoencoder.load(folder)

    @torch.no_grad()
    def rendered(images: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), BATCH):
            z_NCHW = model.encode(to_float(torch.from_numpy(images[start : start + BATCH].copy())))
            parts.append(to_uint8(model.decode_codes(model.quantize(z_NCHW).z_NCHW)).numpy())
        return np.concatenate(parts)

    return rendered


def shown(share: Share) -> str:
    low, high = share.interval
    return f"{100 * share.value:.1f} % ({100 * low:.1f} to {100 * high:.1f}) of {share.n}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--patches", type=int, default=3000)
    parser.add_argument("--held-out", type=int, default=400, help="for calibration, and again for the test")
    parser.add_argument("--copies", type=int, default=200)
    parser.add_argument("--autoencoder", type=Path, help="a published stage autoencoder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tiles, size = Tiles(arguments.tiles), arguments.size
    rng = numpy_generator(arguments.seed, "benchmark", "copies", size)
    counts = (arguments.patches, arguments.held_out, arguments.held_out)
    parts = split(tiles)
    places = [tiles.places(slides, n=n, size=size, rng=rng) for slides, n in zip(parts, counts, strict=True)]
    train, calibration, test = (tiles.cut(part, size=size) for part in places)
    greys = to_greys(train)
    gallery = Gallery(greys)
    print(f"{size} px; slides: {len(parts[0])} train, {len(parts[1])} calibrate, {len(parts[2])} test", flush=True)

    started = time.process_time()
    rate = RATE / MARGIN if arguments.held_out >= min_scores(RATE / MARGIN) else RATE
    limit = conformal_threshold(nearest(to_greys(calibration), gallery).score_N, rate=rate)
    alarms = nearest(to_greys(test), gallery).score_N > limit
    cost = (time.process_time() - started) / (2 * arguments.held_out)
    print(f"threshold {limit:.3f}; {1e3 * cost:.0f} ms of CPU time a picture among {len(train)} patches", flush=True)
    print(f"false alarms on test slides: {shown(Share(int(alarms.sum()), len(alarms)))}", flush=True)

    order = rng.permutation(len(train))[: 2 * arguments.copies]
    rich = best_score_of_weakest_half(greys[order]) >= SURE
    enough = int(np.searchsorted(rich.cumsum(), arguments.copies)) + 1
    sources, rich = order[:enough], rich[:enough]
    print(f"rich enough to judge: {rich.mean():.0%} of training patches", flush=True)
    copies = planted(tiles, [places[0][n] for n in sources], others=test, size=size, rng=rng)
    if arguments.autoencoder:
        rendered = through(arguments.autoencoder)
        for kind in ("exact", "turned", "collage of two halves"):
            copies[f"{kind}, through a VQ-GAN"] = rendered(copies[kind])
    print("| planted copies | found, of rich patches | found, of all drawn |\n|---|---|---|", flush=True)
    for kind, images in copies.items():
        found = nearest(to_greys(images), gallery).score_N > limit
        both = Share(int(found[rich].sum()), int(rich.sum())), Share(int(found.sum()), len(found))
        print(f"| {kind} | {shown(both[0])} | {shown(both[1])} |", flush=True)


if __name__ == "__main__":
    main()

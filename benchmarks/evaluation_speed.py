"""How long ``histoloom evaluate`` takes, where the time goes, and what it needs in memory.

    python benchmarks/evaluation_speed.py --whole FOLDER [-n 10000] [--size 256] [--extractors pixels lpips-alex]
    python benchmarks/evaluation_speed.py [-n 400] [--metrics 10000 1152]

Images: two folders of n / 2 each (crops of the tissue image that scikit-image ships, each turned and recoloured by its
own seed). ``--whole`` measures everything, part by part: each extractor's features of each folder with an empty cache,
then the whole command, which reads them back; their sum is what the command takes the first time. A part that is done
is noted in FOLDER/timings.json and never measured again, a part that was killed begins anew: call it again and again
until it prints the sum. Without ``--whole`` the command is timed on a few images, and what is extrapolated says so;
``--metrics`` times the set metrics alone, on so many features. CPU seconds stand beside the clock's, since other work
on the machine moves only the latter.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.data import immunohistochemistry

from histoloom.evaluation.extractors import ExtractorSources, make_extractor
from histoloom.evaluation.feature_cache import cached_features
from histoloom.evaluation.folders import evaluate_folders
from histoloom.evaluation.images import ImageFolder
from histoloom.evaluation.set_metrics import SET_METRICS
from histoloom.seeding import numpy_generator

AIM = 10_000
SIDES = ("real", "synthetic")


def write_images(folder: Path, *, n: int, size: int, part: str) -> np.ndarray:
    """Write n PNG files, those that are missing; returns the last one, uint8 (size, size, 3)."""
    folder.mkdir(parents=True, exist_ok=True)
    tissue = immunohistochemistry()
    for number in range(n):
        rng = numpy_generator(0, "evaluation speed", part, number)
        y, x = rng.integers(0, 512 - size + 1, size=2)
        crop = np.rot90(tissue[y : y + size, x : x + size], int(rng.integers(4))) * rng.uniform(0.85, 1.1, size=3)
        image = np.clip(crop, 0, 255).astype(np.uint8)
        path = folder / f"{number:06d}.png"
        if not path.exists():
            Image.fromarray(image).save(path.with_suffix(".part"), format="PNG")
            path.with_suffix(".part").rename(path)
    return image


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - clock, time.process_time() - cpu


def peak_mb() -> float:
    """The most memory that this process had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def folders(*, n: int, size: int, extractors: tuple[str, ...]) -> None:
    """Time the whole command's work."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        image = write_images(place / "real", n=n // 2, size=size, part="real")
        write_images(place / "synthetic", n=n // 2, size=size, part="synthetic")

        def evaluate() -> object:
            return evaluate_folders(
                place / "real", place / "synthetic", extractors=extractors, cache=place / "cache", pairs=64
            )

        for state in ("empty cache", "full cache"):
            clock, cpu = timed(evaluate)
            say(f"{n} images of {size} px, {state}", clock=clock, cpu=cpu)
    for name in extractors:
        of_extractor(name, image=image)


def whole(folder: Path, *, n: int, size: int, extractors: tuple[str, ...]) -> None:
    """Time everything, part by part, going on where an earlier call was killed."""
    noted = folder / "timings.json"
    for side in SIDES:
        write_images(folder / side, n=n // 2, size=size, part=side)
    parts: dict[str, dict[str, float]] = json.loads(noted.read_text()) if noted.is_file() else {}
    caches = {f"{name}, {side}": folder / "cache" / name / side for name in extractors for side in SIDES}

    def features(part: str) -> object:
        name, side = part.split(", ")
        shutil.rmtree(caches[part], ignore_errors=True)
        extractor = make_extractor(name, sources=ExtractorSources(torch.device("cpu")))
        return cached_features(ImageFolder(folder / side), extractor=extractor, cache=caches[part], what=side)

    def command() -> object:
        return evaluate_folders(*(folder / side for side in SIDES), extractors=extractors, cache=folder / "all")

    for part in caches:
        if part not in parts:
            measure(parts, part, partial(features, part), noted=noted)
    for cache in caches.values():
        shutil.copytree(cache, folder / "all", dirs_exist_ok=True)
    if "the command, features at hand" not in parts:
        measure(parts, "the command, features at hand", command, noted=noted)
    for part, measured in parts.items():
        print(
            f"{part}: {measured['clock']:.0f} s, {measured['cpu']:.0f} CPU s, peak {measured['peak']:.0f} MB",
            flush=True,
        )
    clock, cpu = (sum(measured[key] for measured in parts.values()) for key in ("clock", "cpu"))
    print(f"{n} images of {size} px: {clock / 60:.1f} minutes, {cpu / 60:.1f} CPU minutes", flush=True)


def measure(parts: dict[str, dict[str, float]], part: str, function: Callable[[], object], *, noted: Path) -> None:
    """Time a part and note it."""
    clock, cpu = timed(function)
    parts[part] = {"clock": clock, "cpu": cpu, "peak": peak_mb()}
    noted.write_text(json.dumps(parts))


def of_extractor(name: str, *, image: np.ndarray) -> None:
    """Time an extractor on 64 images in memory."""
    extractor = make_extractor(name, sources=ExtractorSources(torch.device("cpu")))
    images = np.repeat(image[None], 64, axis=0)
    extractor.features(images[:8])
    clock, cpu = (seconds / 64 for seconds in timed(lambda: extractor.features(images)))
    per_image = f"{1000 * clock:.1f} ms, {1000 * cpu:.1f} CPU ms an image"
    print(f"{name}: {per_image}; extrapolated to {AIM:,}: {AIM * clock:.0f} s, {AIM * cpu:.0f} CPU s", flush=True)


def metrics(*, n: int, dimension: int) -> None:
    """Time each metric with its interval, on n / 2 features a side."""
    rng = numpy_generator(0, "evaluation speed", "features")
    sides = [np.abs(rng.standard_normal((n // 2, dimension), np.float32)) for _ in range(2)]
    for metric in SET_METRICS:
        clock, cpu = timed(partial(metric.estimate, *sides, rng=rng))
        say(f"{'+'.join(metric.values)}, {n // 2:,} against {n // 2:,} x {dimension:,}", clock=clock, cpu=cpu)


def say(what: str, *, clock: float, cpu: float) -> None:
    """One line."""
    print(f"{what}: {clock:.1f} s, {cpu:.1f} CPU s, peak {peak_mb():.0f} MB", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, help="images in all, 400, with --whole 10000; 0: none")
    parser.add_argument("--whole", type=Path, metavar="FOLDER", help="measure all of it; what is done is kept there")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--extractors", nargs="+", default=["pixels", "lpips-alex"])
    parser.add_argument("--metrics", nargs=2, type=int, metavar=("N", "D"))
    given = parser.parse_args()
    if given.whole:
        whole(given.whole, n=given.n or AIM, size=given.size, extractors=tuple(given.extractors))
    elif given.n != 0:
        folders(n=given.n or 400, size=given.size, extractors=tuple(given.extractors))
    if given.metrics:
        metrics(n=given.metrics[0], dimension=given.metrics[1])


if __name__ == "__main__":
    main()

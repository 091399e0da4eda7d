"""Patches cut anywhere from painted fields, against plain samples of the generator and real patches.

    python benchmarks/painted_patches.py RUN --fields FOLDER --out FOLDER --per-field 40 --steps 10

``--fields`` is the folder that ``painted_fields.py`` wrote. Patches are cut at random places of each field; *across*
are those whose layout has 10 % or more of a second tissue. The sets that they are compared with:

- *same places*: real patches at the same places of the parts whose maps are the fields' layouts. They show the same
  tissues, so they are the floor: what a perfect field would reach.
- *plain samples*: of the same generator and sampler, each of the cluster that the layout has in the middle of a patch.
- *elsewhere*: real patches of the same slides outside the parts, with which the three above are compared.

Printed as Markdown: the two-sample test and distances of ``histoloom evaluate``, of fields against elsewhere and
against plain samples (floor: other plain samples), and of those across boundaries; then copies that ``histoloom audit``
finds of the run's training patches. *same places* is its positive control: its patches overlap training patches.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
from painted_tools import Part, parts_in, place_of, slides_of
from PIL import Image

from histoloom.clustering.clustering_set import Clustering
from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.request import Request
from histoloom.diffusion.generation.run_request import sampler_of
from histoloom.diffusion.generation.sample_spec import SampleSpec
from histoloom.evaluation.folders import evaluate_folders
from histoloom.evaluation.originality.report import audit_folders
from histoloom.evaluation.results import Separation
from histoloom.run.directory import Run
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.readers.open import open_slide

ACROSS = 0.1
"""share of a patch that a second tissue must have for the patch to lie across a boundary"""
EXTRACTORS = ("lpips-alex",)


def save(folder: Path, name: str, image_HW3: np.ndarray) -> None:
    """Write a patch as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_HW3).save(folder / f"{name}.png", compress_level=1)


def cut_patches(parts: Sequence[Part], out: Path, *, size: int, per_field: int, seed: int) -> list[int]:
    """Cut patches of fields and of the real parts at the same places; returns the cluster in the middle of each."""
    middles = []
    for part in parts:
        rng = numpy_generator(seed, "painted patches", part.name)
        field_HW3, real_HW3, mask_HW = tifffile.imread(part.field), tifffile.imread(part.slide), part.mask()
        for number in range(per_field):
            y, x = (int(rng.integers(length - size + 1)) for length in mask_HW.shape)
            place = np.s_[y : y + size, x : x + size]
            shares = np.bincount(mask_HW[place].ravel()) / size**2
            kind = "across" if 1 - shares.max() >= ACROSS else "inside"
            save(out / "fields" / kind, f"{part.name}-{number:03d}", field_HW3[place])
            save(out / "same places" / kind, f"{part.name}-{number:03d}", real_HW3[place])
            middles.append(int(mask_HW[y + size // 2, x + size // 2]))
    return middles


def cut_elsewhere(run: Run, parts: Sequence[Part], out: Path, *, size: int, count: int, seed: int) -> None:
    """Cut ``count`` patches at random places of the slides that touch no part."""
    paths = slides_of(run)
    rng = numpy_generator(seed, "painted patches", "elsewhere")
    side = tifffile.imread(parts[0].slide).shape[0]
    for slide_number, path in enumerate(paths):
        with open_slide(path) as slide:
            own = [part for part in parts if part.source == path.stem]
            taken = [place_of(part, slide.dimensions, side=side, seed=seed) for part in own]
            left_to_cut = len(range(slide_number, count, len(paths)))
            while left_to_cut:
                x, y = (int(rng.integers(length - size + 1)) for length in slide.dimensions)
                if any(-size < x - left < side and -size < y - top < side for left, top in taken):
                    continue
                left_to_cut -= 1
                pixels = slide.pixels(x, y, level=0, width=size, height=size)
                save(out / "elsewhere", f"{path.stem}-{x}-{y}", pixels)


def draw_plain(generator: Generator, clusters: Sequence[int], out: Path, *, sampler: SamplerConfig, seed: int) -> None:
    """Draw plain samples, one of each cluster of the list; "plain again" has as many of another seed."""
    k = generator.spec.chosen_k
    for folder, own_seed in (("plain samples", seed), ("plain again", seed + 1)):
        specs = [SampleSpec(k, cluster, number, own_seed) for number, cluster in enumerate(clusters)]
        for number, sample in enumerate(generator.draw(specs, sampler=sampler)):
            save(out / folder, f"{number:04d}", sample.image)


def write_patches(run: Run, out: Path) -> None:
    """The run's training patches, and the held-out ones with a folder for each slide, as PNGs."""
    patches = PatchSet.open(run.folder("patches"))
    for split, folder in (("train", out / "train"), ("holdout", out / "holdout")):
        rows = patches.rows("train" if split == "train" else "holdout")
        slides = patches.columns("slide_id", rows=rows)["slide_id"]
        for row, slide in zip(rows, slides, strict=True):
            save(folder / str(slide), f"{row:06d}", patches.images([row])[0])


def comparisons(out: Path) -> Iterator[tuple[str, Path, Path, Path]]:
    """What is compared: a title, the reference, the set, and the floor's set."""
    yield "fields", out / "elsewhere", out / "fields", out / "same places"
    yield "fields, across a boundary", out / "elsewhere", out / "fields" / "across", out / "same places" / "across"
    yield "plain samples", out / "elsewhere", out / "plain samples", out / "same places"
    yield "fields against plain samples", out / "plain samples", out / "fields", out / "plain again"


def auc(separation: Separation | None) -> str:
    """``0.98 (0.97 to 0.99)``."""
    if separation is None:
        return "too few"
    low, high = separation.interval
    return f"{separation.auc:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--fields", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-field", type=int, default=40)
    parser.add_argument("--method")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0, help="that of painted_fields.py")
    arguments = parser.parse_args()
    run, out, seed = Run.open(arguments.run), arguments.out, arguments.seed
    parts, size = parts_in(arguments.fields), run.config.patches.size
    generator = Generator.load(arguments.run)
    assert generator.spec.chosen_k == Clustering.open(run.folder("clusters")).chosen
    sampler = sampler_of(Request(n=1, method=arguments.method, steps=arguments.steps, guidance=None), generator)

    shutil.rmtree(out, ignore_errors=True)
    middles = cut_patches(parts, out, size=size, per_field=arguments.per_field, seed=seed)
    cut_elsewhere(run, parts, out, size=size, count=2 * len(middles), seed=seed)
    draw_plain(generator, middles, out, sampler=sampler, seed=seed)
    write_patches(run, out)

    titles = ["set", "n", "AUC by texture", "floor", "AUC by colour", "floor", "Fréchet, LPIPS features", "floor"]
    titles += ["precision", "floor", "recall", "floor"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    notes: dict[str, None] = {}
    for title, reference, compared, floor in comparisons(out):
        result = evaluate_folders(
            reference, compared, floor=floor, seed=seed, extractors=EXTRACTORS, cache=out / "features", download=False
        )
        assert result.two_sample is not None, "evaluate_folders makes the test"
        cells = [title, str(result.n_synthetic)]
        for told in (result.two_sample.texture, result.two_sample.colour):
            cells += ["", ""] if told is None else [auc(told.samples), auc(told.floor)]
        for metric in ("frechet", "precision", "recall"):
            one = result.metrics[f"{metric}/{EXTRACTORS[0]}"]
            cells += [f"{one.value:.3g}", f"{one.floor:.3g}"]
        print(f"| {' | '.join(cells)} |", flush=True)
        if result.two_sample.texture is not None:
            telling = ", ".join(f"{one.name} {one.difference:+.1f}" for one in result.two_sample.texture.telling[:3])
            notes[f"{title}: texture told by {telling} (SD)"] = None
    print("\n" + "\n".join(f"- {note}" for note in notes))

    print("\n| set | n | copies | 95 % | false alarms, held-out patches | highest score |\n|---|---|---|---|---|---|")
    for name in ("fields", "plain samples", "same places"):
        audit = audit_folders(
            out / name, train=out / "train", holdout=out / "holdout", seed=seed, extractors=(), download=False
        )
        assert audit.interval is not None, "an audit of folders is calibrated"
        low, high = audit.interval
        print(
            f"| {name} | {audit.n} | {audit.copies} | {low:.1%} to {high:.1%} | {audit.false_alarm_rate:.1%} of "
            f"{audit.n_test} | {max(sample.score for sample in audit.samples):.2f} (threshold {audit.threshold:.2f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()

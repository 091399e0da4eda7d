"""How near to real tissue each sampler comes, against how many evaluations of the network it takes.

    python benchmarks/sampler_curve.py RUN [-n 2048] [--methods unipc ddim] [--evaluations 5 10]
        [--pictures lpips-alex] [--out FOLDER] [--json]

Every sampler draws the same images: the same seeds, the same conditions (clusters of the chosen k, by their frequency),
the same batches. The distance is Frechet's, between Gaussians fitted to features of the drawn latents and of the run's
real training latents, in the space that the model works in. ``pooled``: mean and deviation of each channel; ``layout``:
mean products of neighbours 1, 2 and 4 positions apart. ``--pictures`` adds features of the decoded images, against the
run's real training patches. The floor is that of n real ones against the others.
Ratios are to DDPM with all steps (or --reference); +- is one standard error, by leaving out a tenth of the images at a
time. With ``--out`` what was drawn is kept, and a later call goes on. Evaluations are counted in pairs where there is
guidance. Legend of shapes: N drawn and M real images, C channels, D features.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.autoencoder.latents import LatentSet
from histoloom.autoencoder.vqgan import to_uint8
from histoloom.clustering.features.latents import pooled
from histoloom.config import RuntimeConfig, SamplerConfig
from histoloom.diffusion.generation.generator import BATCH_SIZE, Generator
from histoloom.diffusion.generation.sample_spec import SampleSpec
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.samplers import SAMPLERS
from histoloom.diffusion.sampling import draw_latents
from histoloom.evaluation.extractors import ExtractorSources, make_extractor
from histoloom.evaluation.set_metrics import frechet_distance
from histoloom.run.directory import Run, fingerprint, write_bytes
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet, Split
from histoloom.training.devices import autocast

EVALUATIONS = (5, 10, 15, 20, 30, 50)
METHODS = [method for method in SAMPLERS if method != "student"]  # a student has a network of its own
GROUPS = 10
LAGS = (1, 2, 4)
FLOORS = 10
DECODED = 32


@dataclass(frozen=True)
class Point:
    """What one sampler drew with so many evaluations: latents (N, C, h, w), and the seconds an image took."""

    method: str
    evaluations: int
    x_NChw: Tensor
    seconds: float


def features_of(x_NChw: Tensor) -> dict[str, np.ndarray]:
    """Features of the model's latents, (N, D) float64 by kind."""
    x_NChw = x_NChw.double().cpu()
    products = [(x_NChw[..., lag:] * x_NChw[..., :-lag]).mean(dim=(2, 3)) for lag in LAGS if lag < x_NChw.shape[3]]
    products += [(x_NChw[:, :, lag:] * x_NChw[:, :, :-lag]).mean(dim=(2, 3)) for lag in LAGS if lag < x_NChw.shape[2]]
    return {"pooled": pooled(x_NChw).numpy(), "layout": torch.cat(products, dim=1).numpy()}


class FeatureExtraction:
    """Features of drawn latents and of a run's real ones, all in one latent space: (N, D) by kind."""

    def __init__(self, run: Run, *, space: LatentSpace, device: torch.device, pictures: str | None) -> None:
        self.run, self.space = run, space
        sources = ExtractorSources(device, autoencoder=run.require("autoencoder"))
        self.extractor = make_extractor(pictures, sources=sources) if pictures else None

    def of_drawn(self, x_NChw: Tensor, *, generator: Generator, latents: bool = True) -> dict[str, np.ndarray]:
        """Features of latents as the generator's model draws them (if requested), and of the images that they are."""
        own, features = generator.spec.space, {}
        if latents:
            features = features_of(x_NChw if own is self.space else self.space.encode(own.decode(x_NChw)))
        if self.extractor is not None:
            images = [decoded(x_NChw[i : i + DECODED], generator=generator) for i in range(0, len(x_NChw), DECODED)]
            features[self.extractor.name] = self.extractor.features(np.concatenate(images))
        return features

    def of_real(self) -> dict[str, np.ndarray]:
        """Features of the training latents, and of the training patches."""
        latents = LatentSet.open(self.run.require("latents"))
        rows = latents.rows(split="train")
        parts = [features_of(self.space.encode(latents.raw(rows[i : i + 512]))) for i in range(0, len(rows), 512)]
        features = {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
        if self.extractor is not None:
            features[self.extractor.name] = self.of_patches("train")
        return features

    def of_patches(self, split: Split, *, turned: bool = False) -> np.ndarray:
        """Features of the patches of ``split``; ``turned``: each in one of its eight orientations, drawn at random."""
        assert self.extractor is not None, "made with pictures"
        patches, parts = PatchSet.open(self.run.require("patches")), []
        rows = patches.rows(split)
        choices = numpy_generator(0, "orientations").integers(DIHEDRAL if turned else 1, size=len(rows))
        for i in range(0, len(rows), 512):
            images_NCHW = torch.from_numpy(patches.images(rows[i : i + 512])).permute(0, 3, 1, 2)
            images_NCHW = dihedral(images_NCHW, torch.from_numpy(choices[i : i + 512]))
            parts.append(self.extractor.features(images_NCHW.permute(0, 2, 3, 1).contiguous().numpy()))
        return np.concatenate(parts)


@torch.no_grad()
def decoded(x_NChw: Tensor, *, generator: Generator) -> np.ndarray:
    """Latents as the generator's model draws them, as uint8 images (N, H, W, 3)."""
    z_NCHW = generator.spec.space.decode(x_NChw.to(generator.device))
    return to_uint8(generator.autoencoder.decode(z_NCHW)).cpu().numpy()


def attainable(method: str, evaluations: int) -> int:
    """The number itself, or one less where the sampler cannot make it."""
    return evaluations - 1 if method == "heun" and evaluations % 2 == 0 else evaluations


def draw_point(
    generator: Generator,
    specs: Sequence[SampleSpec],
    *,
    sampler: SamplerConfig,
    batch: int,
) -> Point:
    """Draw all samples with one sampler, in batches of one size."""
    spec, parts, start = generator.spec, [], time.perf_counter()
    for first in range(0, len(specs), batch):
        part = list(specs[first : first + batch])
        padded = part + [part[-1]] * (batch - len(part))
        with autocast(generator.runtime):
            x_NChw = draw_latents(
                generator.unet,
                config=spec.diffusion,
                sampler=sampler,
                shape=spec.shape,
                conditions=[spec.conditions.number(k=sample.k, cluster=sample.cluster) for sample in padded],
                null=spec.conditions.null,
                generators=[sample.noise_stream() for sample in padded],
                device=generator.device,
            )
        parts.append(x_NChw[: len(part)].float().cpu())
    return Point(sampler.method, sampler.steps, torch.cat(parts), (time.perf_counter() - start) / len(specs))


def kept_or_drawn(
    generator: Generator, specs: Sequence[SampleSpec], *, sampler: SamplerConfig, batch: int, out: Path | None
) -> Point:
    """What an earlier call left of the same point in ``out``, else drawn now and left there."""
    if out is None:
        return draw_point(generator, specs, sampler=sampler, batch=batch)
    first, device = specs[0], generator.device.type
    key = [generator.digest(), sampler.model_dump(mode="json"), len(specs), first.seed, first.k, batch, device]
    file = out / f"{sampler.method}-{sampler.steps}-{fingerprint(key)}.npz"
    if not file.is_file():
        point = draw_point(generator, specs, sampler=sampler, batch=batch)
        content = io.BytesIO()
        np.savez(content, seconds=point.seconds, latents=point.x_NChw.numpy())
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(file, content.getvalue())
    with np.load(file) as kept:
        return Point(sampler.method, sampler.steps, torch.from_numpy(kept["latents"]), float(kept["seconds"]))


def floor(real_MD: np.ndarray, *, n: int, seed: int) -> float:
    """The mean distance of ``n`` real ones, at most half of them, from the others."""
    distances = []
    for draw in range(FLOORS):
        order = numpy_generator(seed, "floor", draw).permutation(len(real_MD))
        n = min(n, len(real_MD) // 2)
        distances.append(frechet_distance(real_MD[order[:n]], real_MD[order[n:]]))
    return float(np.mean(distances))


def ratio_error(point_ND: np.ndarray, reference_ND: np.ndarray, *, real_MD: np.ndarray) -> float:
    """One standard error of the ratio of two distances, by the jackknife over the same tenths of the images in both."""
    group_N = np.arange(len(point_ND)) % GROUPS
    ratios = np.array(
        [
            frechet_distance(point_ND[group_N != g], real_MD) / frechet_distance(reference_ND[group_N != g], real_MD)
            for g in range(GROUPS)
        ]
    )
    return float(np.sqrt((GROUPS - 1) / GROUPS * ((ratios - ratios.mean()) ** 2).sum()))


def row_of(
    point: Point,
    *,
    features: dict[str, np.ndarray],
    reference: Point,
    reference_features: dict[str, np.ndarray],
    real: dict[str, np.ndarray],
) -> dict[str, float | int | str]:
    """A line of the table: the point with its features beside the reference with ``reference_features``."""
    row: dict[str, float | int | str] = {"method": point.method, "evaluations": point.evaluations}
    for kind, real_MD in real.items():
        distance = frechet_distance(features[kind], real_MD)
        row[kind], row[f"{kind}_ratio"] = distance, distance / frechet_distance(reference_features[kind], real_MD)
        row[f"{kind}_ratio_error"] = ratio_error(features[kind], reference_features[kind], real_MD=real_MD)
    row["less_work"] = reference.evaluations / point.evaluations
    row["seconds_an_image"] = point.seconds
    return row


def line_of(row: dict[str, float | int | str], *, kinds: Sequence[str]) -> str:
    parts = [f"{row['method']:13} {row['evaluations']:5}"]
    for kind in kinds:
        parts.append(f"{row[kind]:8.4f} {row[f'{kind}_ratio']:6.3f} +- {row[f'{kind}_ratio_error']:.3f}")
    return "  ".join([*parts, f"{row['less_work']:7.1f}x  {row['seconds_an_image']:.3f}"])


def requested_points(arguments: argparse.Namespace, *, all_steps: int) -> list[tuple[str, int]]:
    """The reference first, then every method with every number of evaluations, each once."""
    points = [("ddpm", arguments.reference or all_steps)]
    points += [(method, attainable(method, e)) for method in arguments.methods for e in arguments.evaluations]
    return list(dict.fromkeys(points))


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """The whole curve; prints each line as it is known unless JSON is wanted."""
    generator = Generator.load(arguments.run, runtime=RuntimeConfig(device=arguments.device, threads=arguments.threads))
    spec = generator.spec
    guidance = spec.sampler.guidance if arguments.guidance is None else arguments.guidance
    specs = generator.sample_specs(None, n=arguments.n, seed=arguments.seed)
    run = Run.open(arguments.run)
    extraction = FeatureExtraction(run, space=spec.space, device=generator.device, pictures=arguments.pictures)
    real = extraction.of_real()
    floors = {kind: floor(real_MD, n=arguments.n, seed=arguments.seed) for kind, real_MD in real.items()}
    say = (lambda _: None) if arguments.json else (lambda text: print(text, flush=True))
    count = len(real["pooled"])
    say(f"{arguments.n} images, guidance {guidance:g}, against {count} real ones")
    say("floor: " + ", ".join(f"{kind} {value:.4f}" for kind, value in floors.items()))
    say("method, evaluations, (" + ", ".join(real) + ", each with its ratio), less work, seconds an image")
    rows: list[dict[str, float | int | str]] = []
    reference: tuple[Point, dict[str, np.ndarray]] | None = None
    for method, evaluations in requested_points(arguments, all_steps=spec.diffusion.steps):
        sampler = SamplerConfig.model_validate({"method": method, "steps": evaluations, "guidance": guidance})
        batch = arguments.batch or BATCH_SIZE[generator.device.type]
        point = kept_or_drawn(generator, specs, sampler=sampler, batch=batch, out=arguments.out)
        features = extraction.of_drawn(point.x_NChw, generator=generator)
        reference = reference or (point, features)
        rows.append(
            row_of(point, features=features, reference=reference[0], reference_features=reference[1], real=real)
        )
        say(line_of(rows[-1], kinds=list(real)))
    return {"n": arguments.n, "n_real": count, "guidance": guidance, "floor": floors, "points": rows}


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("-n", type=int, default=2048, help="images for each point")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--evaluations", type=int, nargs="+", default=list(EVALUATIONS))
    parser.add_argument("--reference", type=int, help="evaluations of DDPM that the others are compared with; else all")
    parser.add_argument("--guidance", type=float, help="else the run's own")
    parser.add_argument("--pictures", metavar="FEATURES", help="of the decoded images, as in histoloom evaluate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, help="images at once; else the generator's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="where to keep what was drawn")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(words)


def main() -> None:
    arguments = parsed()
    result = measure(arguments)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()

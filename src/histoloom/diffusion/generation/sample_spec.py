"""Which images a request comes to: one ``SampleSpec`` an image, made by pure functions from the generator's spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.generation.source_images import EncodedPicture
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.sampling import PartialNoise
from histoloom.errors import UserError
from histoloom.names import Label, clusters_of_tissue, without_artefacts
from histoloom.run.directory import fingerprint
from histoloom.seeding import numpy_generator, torch_generator


@dataclass(frozen=True, slots=True)
class InitImage:
    """The picture that an image starts from: ``source``, noised to the step of ``strength``, in (0, 1].

    With ``other``, another picture: at the share ``fraction``, 0..1, of the way there.
    """

    source: str
    strength: float
    other: str | None = None
    fraction: float = 0.0

    @property
    def record(self) -> dict[str, object]:
        """Its columns of ``metadata.csv``."""
        return {"source": self.source, "strength": self.strength, "other": self.other or "", "fraction": self.fraction}


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """One image to draw: image ``index`` of ``cluster`` at ``k`` under ``seed``, from noise or from ``init``."""

    k: int
    cluster: int
    index: int
    seed: int
    init: InitImage | None = None

    @property
    def sample_id(self) -> str:
        """Tells apart all images that one generator draws with one sampler."""
        plain = f"s{self.seed}-k{self.k}-c{self.cluster:02d}-{self.index:06d}"
        return plain if self.init is None else f"{plain}-{fingerprint(self.init.record)[:8]}"

    def noise_stream(self) -> torch.Generator:
        """The random numbers of the image.

        Those of an image from a picture depend on the picture too: its own numbers, or those of a sample of the same
        seed, would lead back to a picture that is there already. All images between two pictures share theirs, so that
        only what they show changes.
        """
        if self.init is None:
            return torch_generator(self.seed, "samples", self.k, self.cluster, self.index)
        if self.init.other is not None:
            return torch_generator(self.seed, "between")
        return torch_generator(self.seed, "like", self.init.source, self.k, self.cluster, self.index)

    def record(self, *, label: Label, sampler: SamplerConfig) -> dict[str, object]:
        """The image's row of ``metadata.csv``, but for its file: enough to draw it again."""
        record: dict[str, object] = {
            "sample_id": self.sample_id,
            "k": self.k,
            "cluster": self.cluster,
            "tissue": label.name,
            "flag": label.flag,
            "colour": label.colour,
            "seed": self.seed,
            "index": self.index,
            "sampler": sampler.method,
            "steps": sampler.steps,
            "guidance": sampler.guidance,
        }
        return record if self.init is None else record | self.init.record


def specs_of_tissue(
    spec: GeneratorSpec,
    labels: Mapping[int, Label],
    *,
    tissue: str | None,
    n: int,
    seed: int,
    k: int,
    init: InitImage | None = None,
) -> list[SampleSpec]:
    """``n`` samples of the clusters that ``tissue`` names, each drawn by its frequency; None: of all but artefacts.

    ``labels``: of the clusters of ``k``, with their names; ``init``: the picture that they start from. Sample i does
    not depend on ``n``. ``UserError`` for an unknown tissue or k.
    """
    spec.conditions.offset(k)
    names = {cluster: label.name for cluster, label in labels.items()}
    clusters = without_artefacts(labels) if tissue is None else clusters_of_tissue(names, tissue, k=k)
    shares = np.array([spec.frequencies[k][cluster] for cluster in clusters], dtype=np.float64)
    shares = np.full(len(clusters), 1.0) if shares.sum() == 0 else shares
    specs = []
    for index in range(n):
        rng = numpy_generator(seed, "request", k, tissue or "all tissues", index)
        cluster = clusters[int(rng.choice(len(clusters), p=shares / shares.sum()))]
        specs.append(SampleSpec(k, cluster, index, seed, init))
    return specs


def specs_between(
    spec: GeneratorSpec, *, ends: tuple[EncodedPicture, EncodedPicture], strength: float, n: int, seed: int, k: int
) -> list[SampleSpec]:
    """``n`` samples at even distances from one picture to another, both included, each of the nearer one's cluster.

    ``UserError`` for fewer than two, for a strength that is not between 0 and 1, and where a cluster is not known.
    """
    check_interpolation(strength, n=n)
    spec.conditions.offset(k)
    source, other = ends
    clusters = [end.cluster(k) for end in ends]
    specs = []
    for index in range(n):
        fraction = index / (n - 1)
        init = InitImage(source.name, strength, other.name, fraction)
        specs.append(SampleSpec(k, clusters[round(fraction)], index, seed, init))
    return specs


def check_variation(strength: float) -> None:
    """``UserError`` for a strength that no variation of a picture can have."""
    if not 0 < strength <= 1:
        raise UserError(f"the strength has to be above 0 and at most 1, got {strength:g}")


def check_interpolation(strength: float, *, n: int) -> None:
    """``UserError`` for a strength or a number of images that no interpolation between two pictures can have."""
    if not 0 < strength < 1:
        raise UserError(f"the strength has to be above 0 and below 1, got {strength:g}")
    if n < 2:
        raise UserError(f"between two pictures there are at least the two ends; ask for 2 or more, not {n}")


def partial_noise(
    specs: Sequence[SampleSpec], *, sources: Sequence[EncodedPicture], space: LatentSpace
) -> PartialNoise | None:
    """What the samples start from; None for pure noise. All start from pure noise, or at one strength."""
    strengths = {spec.init and spec.init.strength for spec in specs}
    assert len(strengths) == 1, "one strength a batch"
    inits = [spec.init for spec in specs if spec.init is not None]
    if not inits:
        return None
    x_of = {source.name: space.encode(source.z_Chw[None])[0] for source in sources}
    return PartialNoise(
        strength=inits[0].strength,
        from_NCHW=torch.stack([x_of[init.source] for init in inits]),
        to_NCHW=torch.stack([x_of[init.other or init.source] for init in inits]),
        fraction_N=[init.fraction for init in inits],
    )

"""A trained generator: from (k, cluster) and a seed to patches.

Image i of a job depends on the generator, the seed, its (k, cluster), i and the sampler, never on how many images are
drawn, in what order or together with which others. Each image has its own random stream, and networks see batches of
one fixed size, because floating-point sums differ in the last bit between batch sizes. Compiled networks, which
``runtime.fast: on`` asks for, differ in the last bits from plain ones too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from histoloom.autoencoder.vqgan import Autoencoder, to_uint8
from histoloom.config import RuntimeConfig, SamplerConfig
from histoloom.diffusion.generation.generator_spec import (
    STUDENT,
    GeneratorSpec,
    Student,
    generator_home,
    model_folders,
    read_spec,
)
from histoloom.diffusion.generation.sample_spec import (
    InitImage,
    SampleSpec,
    check_variation,
    partial_noise,
    specs_between,
    specs_of_tissue,
)
from histoloom.diffusion.generation.source_images import EncodedPicture, Picture, encode_picture, find_picture
from histoloom.diffusion.model.unet import SweepUNet, open_unet
from histoloom.diffusion.sampling import StepCallback, draw_latents
from histoloom.errors import UserError
from histoloom.names import Label
from histoloom.run.directory import fingerprint
from histoloom.training.devices import accelerator, autocast, compile_modules, compiling
from histoloom.training.memory import in_fitting_parts

if TYPE_CHECKING:
    from histoloom.diffusion.painting.job import PaintedField, PaintSettings

BATCH_SIZE = {"cpu": 8, "mps": 16, "cuda": 64}
"""images that are drawn at once, by device"""

COMPILED_FROM = 2_000
"""images of a job for which networks are compiled with ``runtime.fast: on``: compiling may take a minute"""


@dataclass(frozen=True)
class Sample:
    """A synthetic patch, uint8 (size, size, 3), with its spec, the label of its cluster and its sampler."""

    image: np.ndarray
    spec: SampleSpec
    label: Label
    sampler: SamplerConfig

    @property
    def tissue(self) -> str:
        """The name of its cluster; ``cluster c`` where there is none."""
        return self.label.name

    @property
    def record(self) -> dict[str, object]:
        """Its row of ``metadata.csv``, but for its file: enough to draw it again."""
        return self.spec.record(label=self.label, sampler=self.sampler)


class Generator:
    """Autoencoder, U-Net and specification of one trained generator."""

    def __init__(
        self,
        spec: GeneratorSpec,
        *,
        unet: nn.Module,
        autoencoder: Autoencoder,
        home: Path,
        runtime: RuntimeConfig | None = None,
    ) -> None:
        self.spec = spec
        self.home = home
        self.runtime = runtime or RuntimeConfig()
        self.device = accelerator(self.runtime).device
        self.unet = unet.to(self.device).eval().requires_grad_(False)
        self.autoencoder = autoencoder.to(self.device).eval()
        self._student: Student | None = None
        self._is_compiled = False

    @staticmethod
    def load(path: str | Path, *, runtime: RuntimeConfig | None = None) -> Generator:
        """Load a run with a trained generator, an exported folder, or ``starter``, which comes with Histoloom.

        ``UserError`` where ``path`` is none of them.
        """
        home = generator_home(path)
        diffusion, autoencoder = model_folders(home)
        return Generator(
            read_spec(home),
            unet=open_unet(diffusion),
            autoencoder=Autoencoder.load(autoencoder),
            home=home,
            runtime=runtime,
        )

    @property
    def student(self) -> Student:
        """The distilled network, loaded at first use; ``UserError`` where there is none."""
        if self._student is None:
            self._student = Student.load(self.home, device=self.device)
        return self._student

    def digest(self) -> str:
        """Tells generators apart: a digest of the specification and of a few weights."""
        weight = next(iter(self.unet.parameters())).flatten()[:64].float().cpu().tolist()
        return fingerprint([self.spec.as_json(), weight])

    def decoder_digest(self) -> str:
        """Tells decoders apart that were trained for the same diffusion model."""
        return fingerprint([self.autoencoder.last_layer.flatten()[:64].float().cpu().tolist()])

    def names(self, k: int) -> dict[int, str]:
        """The name of each condition of ``k``; ``cluster c`` for a cluster without one."""
        return {cluster: label.name for cluster, label in self.labels(k).items()}

    def labels(self, k: int) -> dict[int, Label]:
        """Name, colour and flag of each cluster of ``k``, and of names of corrected patches that no cluster has."""
        return self.spec.labels(self.home, k=k)

    def sample(
        self,
        tissue: str | None = None,
        *,
        n: int,
        seed: int = 0,
        k: int | None = None,
        sampler: SamplerConfig | None = None,
    ) -> list[Sample]:
        """Draw ``n`` images of ``tissue`` (a name or a cluster's number), or of all tissues by their frequency.

        Clusters flagged as artefact are drawn only where ``tissue`` names them.

        All of them are held in memory; ``draw(sample_specs(...))`` yields them one after another.
        """
        specs = self.sample_specs(tissue, n=n, seed=seed, k=k)
        return list(self.draw(specs, sampler=sampler or self.spec.sampler))

    def vary(
        self,
        source: EncodedPicture | Picture | np.ndarray | str,
        *,
        strength: float,
        n: int,
        seed: int = 0,
        tissue: str | None = None,
        k: int | None = None,
        sampler: SamplerConfig | None = None,
    ) -> list[Sample]:
        """Draw ``n`` images more like ``source``: it is noised to the step of ``strength`` and denoised from there.

        At strength 1 nothing of it is left, towards 0 they are its reconstruction. ``tissue`` is by default the cluster
        of ``source``. Raises ``UserError``.
        """
        check_variation(strength)
        k = self.spec.chosen_k if k is None else k
        picture = self.encode(source)
        tissue = str(picture.cluster(k)) if tissue is None else tissue
        init = InitImage(picture.name, strength)
        specs = specs_of_tissue(self.spec, self.labels(k), tissue=tissue, n=n, seed=seed, k=k, init=init)
        return list(self.draw(specs, sampler=sampler or self.spec.sampler, sources=[picture]))

    def between(
        self,
        source: EncodedPicture | Picture | np.ndarray | str,
        other: EncodedPicture | Picture | np.ndarray | str,
        *,
        n: int,
        strength: float = 0.5,
        seed: int = 0,
        k: int | None = None,
        sampler: SamplerConfig | None = None,
    ) -> list[Sample]:
        """Draw ``n`` images on the way from ``source`` to ``other``, both ends included, each of the nearer's cluster.

        Both are noised to the step of ``strength`` with the same noise, interpolated along the arc and denoised from
        there. Raises ``UserError``.
        """
        ends = self.encode(source), self.encode(other)
        k = self.spec.chosen_k if k is None else k
        specs = specs_between(self.spec, ends=ends, strength=strength, n=n, seed=seed, k=k)
        return list(self.draw(specs, sampler=sampler or self.spec.sampler, sources=ends))

    def paint(
        self, labels_HW: np.ndarray, *, names: Sequence[str], settings: PaintSettings | None = None
    ) -> PaintedField:
        """Paint a large field: ``labels_HW`` says which of ``names`` each pixel shows (``painting.paint_array``)."""
        from histoloom.diffusion.painting.job import PaintSettings, paint_array  # it draws with a Generator

        return paint_array(self, labels_HW, names=names, settings=settings or PaintSettings())

    def sample_specs(self, tissue: str | None, *, n: int, seed: int, k: int | None = None) -> list[SampleSpec]:
        """The samples that ``sample`` draws, without drawing them."""
        k = self.spec.chosen_k if k is None else k
        return specs_of_tissue(self.spec, self.labels(k), tissue=tissue, n=n, seed=seed, k=k)

    def encode(self, picture: EncodedPicture | Picture | np.ndarray | str) -> EncodedPicture:
        """A picture to start from: a patch's id, a picture's file, or the picture, uint8 (size, size, 3).

        ``UserError`` where there is no such picture or it has another size.
        """
        if isinstance(picture, EncodedPicture):
            return picture
        if isinstance(picture, str):
            picture = find_picture(self.home, what=picture, size=self.spec.size)
        if isinstance(picture, np.ndarray):
            picture = Picture.of(picture)
        return encode_picture(
            picture, size=self.spec.size, ks=self.spec.ks, home=self.home, autoencoder=self.autoencoder
        )

    def draw(
        self,
        specs: Sequence[SampleSpec],
        *,
        sampler: SamplerConfig,
        sources: Sequence[EncodedPicture] = (),
        on_step: StepCallback | None = None,
    ) -> Iterator[Sample]:
        """Draw the images of ``specs``, one after another, in bounded memory.

        ``sources``: the pictures that they start from. ``on_step`` is called before each step of each batch.
        """
        labels = {k: self.labels(k) for k in {spec.k for spec in specs}}

        def draw_batch(some: Sequence[SampleSpec]) -> np.ndarray:
            with compiling() if self._is_compiled else nullcontext():
                return self._draw_batch(some, sampler=sampler, sources=sources, on_step=on_step)

        batch_size = BATCH_SIZE[self.device.type]
        self.compile_if_asked(images=len(specs))
        for start in range(0, len(specs), batch_size):
            batch = list(specs[start : start + batch_size])
            padded = batch + [batch[-1]] * (batch_size - len(batch))
            parts = in_fitting_parts(draw_batch, padded, name="drawing images")
            for image, spec in zip(chain.from_iterable(parts), batch, strict=False):
                yield Sample(image, spec, labels[spec.k][spec.cluster], sampler)

    def compile_if_asked(self, *, images: int) -> None:
        """Compile the networks, once, where ``runtime.fast`` is set to it and a job has enough ``images``."""
        if images >= COMPILED_FROM and self.runtime.fast in ("on", "graphs") and not self._is_compiled:
            networks = self.unet.networks.values() if isinstance(self.unet, SweepUNet) else [self.unet]
            compile_modules([*networks, self.autoencoder.decoder])
            self._is_compiled = True

    @torch.no_grad()
    def _draw_batch(
        self,
        specs: Sequence[SampleSpec],
        *,
        sampler: SamplerConfig,
        sources: Sequence[EncodedPicture],
        on_step: StepCallback | None,
    ) -> np.ndarray:
        """Images, uint8 (N, size, size, 3)."""
        spec, unet = self.spec, self.unet
        if isinstance(unet, SweepUNet) and sampler.guidance != 1:
            raise UserError(f"{self.home} has no null condition, and so no guidance: set guidance to 1")
        if sampler.method == STUDENT:
            steps = self.student.record.steps
            if sampler.steps != steps:
                raise UserError(f"the student of {self.home} draws in {steps} steps, not {sampler.steps}")
            # Its guidance is in its weights: it is evaluated once a step.
            unet, sampler = self.student.unet, sampler.model_copy(update={"guidance": 1.0})

        if isinstance(unet, SweepUNet):
            unet = unet.only(sample.k for sample in specs)

        with autocast(self.runtime):
            x_NDhw = draw_latents(
                unet,
                config=spec.diffusion,
                sampler=sampler,
                shape=spec.shape,
                conditions=[spec.conditions.number(k=sample.k, cluster=sample.cluster) for sample in specs],
                null=spec.conditions.null,
                generators=[sample.noise_stream() for sample in specs],
                device=self.device,
                partial_noise=partial_noise(specs, sources=sources, space=spec.space),
                on_step=on_step,
            )
        z_NChw = spec.space.decode(x_NDhw)
        with autocast(self.runtime):
            return to_uint8(self.autoencoder.decode(z_NChw)).cpu().numpy()

"""A trained generator: from (k, cluster) and a seed to patches.

Image i of a job depends on the generator, the seed, its (k, cluster), i and the sampler, never on how many images
are drawn, in what order or beside which others: each has its own random stream, and networks see batches of one
fixed size, because floating-point sums differ in the last bit between batch sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel

import histoloom
from histoloom.autoencoder.vqgan import Autoencoder, to_uint8
from histoloom.config import DiffusionConfig, RuntimeConfig, SamplerConfig
from histoloom.diffusion.generation.from_images import beginning, orders_between, orders_like
from histoloom.diffusion.generation.source_images import Picture, Source, as_source, find_picture
from histoloom.diffusion.generation.spec import SampleSpec, record, stream
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.unet import open_unet
from histoloom.diffusion.samplers.guided import Callback, draw_latents
from histoloom.errors import UserError
from histoloom.names import Label, clusters_of, current_labels
from histoloom.run.directory import Run, fingerprint, read_json
from histoloom.seeding import numpy_generator
from histoloom.training.devices import accelerator, autocast

STARTER = "starter"
STUDENT = "student"
FORMAT = 2
CHUNK = {"cpu": 8, "mps": 16, "cuda": 64}


@dataclass(frozen=True)
class GeneratorSpec:
    """What ``generator.json`` says: the process, the latent space, the sweep, how frequent each cluster is.

    ``frequencies`` are shares of the training patches for each k; ``shape`` is that of what the U-Net sees,
    (D, h, w); ``mpp`` um/px.
    """

    config: DiffusionConfig
    sampler: SamplerConfig
    space: LatentSpace
    shape: tuple[int, int, int]
    conditions: Conditions
    chosen_k: int
    frequencies: Mapping[int, tuple[float, ...]]
    size: int
    mpp: float

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``generator.json``."""
        return {
            "format": FORMAT,
            "diffusion": self.config.model_dump(mode="json"),
            "sampler": self.sampler.model_dump(mode="json"),
            "space": self.space.as_json(),
            "shape": list(self.shape),
            "ks": list(self.conditions.ks),
            "chosen_k": self.chosen_k,
            "frequencies": {str(k): list(shares) for k, shares in self.frequencies.items()},
            "size": self.size,
            "mpp": self.mpp,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> GeneratorSpec:
        """The inverse of ``as_json``; ``UserError`` where another version of Histoloom wrote it."""
        if values.get("format") != FORMAT:
            raise UserError(
                f"generator.json has format {values.get('format')}, this version of Histoloom reads {FORMAT}; "
                f"make it again with this version (histoloom run, or histoloom export from its run)"
            )
        channels, height, width = values["shape"]
        return GeneratorSpec(
            config=DiffusionConfig.model_validate(values["diffusion"]),
            sampler=SamplerConfig.model_validate(values["sampler"]),
            space=LatentSpace.from_json(values["space"]),
            shape=(channels, height, width),
            conditions=Conditions(tuple(values["ks"])),
            chosen_k=values["chosen_k"],
            frequencies={int(k): tuple(shares) for k, shares in values["frequencies"].items()},
            size=values["size"],
            mpp=values["mpp"],
        )


@dataclass(frozen=True)
class Drawn:
    """One image, uint8 (size, size, 3), with its order, its tissue and how it was drawn.

    ``tissue`` is the name, ``flag`` and ``colour`` (``#rrggbb``) what the expert said beside it; empty where nothing.
    """

    image: np.ndarray
    order: SampleSpec
    tissue: str
    sampler: SamplerConfig
    flag: str = ""
    colour: str = ""

    @property
    def record(self) -> dict[str, Any]:
        """What ``metadata.csv`` says of it: enough to draw it again."""
        label = Label(self.tissue, colour=self.colour, flag=self.flag)
        return record(self.order, label=label, sampler=self.sampler)


@dataclass(frozen=True)
class Student:
    """A network that draws in ``steps`` evaluations, with the ``guidance`` that it has learnt."""

    unet: UNet2DModel
    steps: int
    guidance: float
    digest: str

    @staticmethod
    def load(home: Path, *, device: torch.device) -> Student:
        """The student in a run or an export; ``UserError`` where there is none, or one of other weights."""
        folder = home / STUDENT
        if not (folder / "student.json").is_file():
            raise UserError(f"{home} has no student that draws in a few steps; make it: histoloom distil RUN")
        said = read_json(folder / "student.json")
        if (home / "config.yaml").is_file() and said["teacher"] != weights_digest(folders_of(home)[0]):
            raise UserError(
                f"the student in {folder} learnt from weights that were since replaced: histoloom distil {home}"
            )
        unet = open_unet(folder).to(device).eval().requires_grad_(False)
        return Student(unet, steps=said["steps"], guidance=said["guidance"], digest=weights_digest(folder))


class Generator:
    """Autoencoder, U-Net and facts of one trained generator."""

    def __init__(
        self,
        facts: GeneratorSpec,
        *,
        unet: UNet2DModel,
        autoencoder: Autoencoder,
        home: Path,
        runtime: RuntimeConfig | None = None,
    ) -> None:
        self.facts = facts
        self.home = home
        self.runtime = runtime or RuntimeConfig()
        self.device = accelerator(self.runtime).device
        self.unet = unet.to(self.device).eval().requires_grad_(False)
        self.autoencoder = autoencoder.to(self.device).eval()
        self._student: Student | None = None

    @property
    def student(self) -> Student:
        """The network that draws in a few steps, read when it is first asked for; ``UserError`` where there is none."""
        if self._student is None:
            self._student = Student.load(self.home, device=self.device)
        return self._student

    @staticmethod
    def load(path: str | Path, *, runtime: RuntimeConfig | None = None) -> Generator:
        """Load a run with a trained generator, an exported folder, or ``starter``, which comes with Histoloom.

        ``UserError`` where ``path`` is none of them.
        """
        home = home_of(path)
        diffusion, autoencoder = folders_of(home)
        return Generator(
            read_facts(home),
            unet=open_unet(diffusion),
            autoencoder=Autoencoder.load(autoencoder),
            home=home,
            runtime=runtime,
        )

    def digest(self) -> str:
        """Tells generators apart: a digest of the facts and of a few weights."""
        weight = next(iter(self.unet.parameters())).flatten()[:64].float().cpu().tolist()
        return fingerprint([self.facts.as_json(), weight])

    def names(self, k: int) -> dict[int, str]:
        """The expert's name of each cluster of ``k``; ``cluster c`` where there is none."""
        return {cluster: label.name for cluster, label in self.labels(k).items()}

    def labels(self, k: int) -> dict[int, Label]:
        """Name, colour and flag of each cluster of ``k``; ``cluster c`` where there is no name."""
        return current_labels(self.home, k=k)

    def sample(
        self,
        tissue: str | None = None,
        *,
        n: int,
        seed: int = 0,
        k: int | None = None,
        sampler: SamplerConfig | None = None,
    ) -> list[Drawn]:
        """Draw ``n`` images of ``tissue`` (a name or a cluster's number), or of all tissues by their frequency.

        All of them are held in memory; ``draw(orders(...))`` gives them one after another.
        """
        orders = self.orders(tissue, n=n, seed=seed, k=k)
        return list(self.draw(orders, sampler=sampler or self.facts.sampler))

    def orders(self, tissue: str | None, *, n: int, seed: int, k: int | None = None) -> list[SampleSpec]:
        """Which cluster each image of a request is of: by frequency among those that ``tissue`` names."""
        k = self.facts.chosen_k if k is None else k
        self.facts.conditions.offset(k)
        clusters = list(range(k)) if tissue is None else clusters_of(self.names(k), tissue, k=k)
        shares = np.array([self.facts.frequencies[k][cluster] for cluster in clusters], dtype=np.float64)
        shares = np.full(len(clusters), 1.0) if shares.sum() == 0 else shares
        request = tissue or "all tissues"
        orders = []
        for index in range(n):
            draw = numpy_generator(seed, "request", k, request, index)
            cluster = clusters[int(draw.choice(len(clusters), p=shares / shares.sum()))]
            orders.append(SampleSpec(k=k, cluster=cluster, index=index, seed=seed))
        return orders

    def source(self, what: Source | Picture | np.ndarray | str) -> Source:
        """A picture to begin from: a patch's id, a picture's file, or the picture, uint8 (size, size, 3).

        ``UserError`` where there is no such picture or its size is another.
        """
        if isinstance(what, Source):
            return what
        if isinstance(what, str):
            what = find_picture(self.home, what=what, size=self.facts.size)
        if isinstance(what, np.ndarray):
            what = Picture.of(what)
        facts = self.facts
        ks = facts.conditions.ks
        return as_source(what, size=facts.size, ks=ks, home=self.home, autoencoder=self.autoencoder)

    def vary(
        self,
        source: Source | Picture | np.ndarray | str,
        *,
        strength: float,
        n: int,
        seed: int = 0,
        tissue: str | None = None,
        k: int | None = None,
        sampler: SamplerConfig | None = None,
    ) -> list[Drawn]:
        """Draw ``n`` images more like ``source``: it is noised to the step of ``strength`` and drawn from there.

        At strength 1 they are those of ``sample``, towards 0 the reconstruction. ``tissue`` is by default the cluster
        of ``source``. Raises ``UserError``.
        """
        known = self.source(source)
        orders = orders_like(self, known, strength=strength, n=n, seed=seed, tissue=tissue, k=k)
        return list(self.draw(orders, sampler=sampler or self.facts.sampler, sources=[known]))

    def between(
        self,
        source: Source | Picture | np.ndarray | str,
        other: Source | Picture | np.ndarray | str,
        *,
        n: int,
        strength: float = 0.5,
        seed: int = 0,
        k: int | None = None,
        sampler: SamplerConfig | None = None,
    ) -> list[Drawn]:
        """Draw ``n`` images on the way from ``source`` to ``other``, both ends included, each of the nearer's cluster.

        Both are noised to the step of ``strength`` with the same noise, mixed along the arc and drawn from there.
        Raises ``UserError``.
        """
        ends = [self.source(source), self.source(other)]
        orders = orders_between(self, *ends, strength=strength, n=n, seed=seed, k=k)
        return list(self.draw(orders, sampler=sampler or self.facts.sampler, sources=ends))

    def draw(
        self,
        orders: Sequence[SampleSpec],
        *,
        sampler: SamplerConfig,
        sources: Sequence[Source] = (),
        watch: Callback | None = None,
    ) -> Iterator[Drawn]:
        """Draw the images of ``orders``, one after another, in bounded memory.

        ``sources``: the pictures that orders begin from. ``watch`` is told of each step of each batch.
        """
        labels = {k: self.labels(k) for k in {order.k for order in orders}}
        chunk = CHUNK[self.device.type]
        for start in range(0, len(orders), chunk):
            part = list(orders[start : start + chunk])
            padded = part + [part[-1]] * (chunk - len(part))
            images = self._images(padded, sampler=sampler, sources=sources, watch=watch)
            for image, order in zip(images, part, strict=False):
                label = labels[order.k][order.cluster]
                yield Drawn(image, order, label.name, sampler=sampler, flag=label.flag, colour=label.colour)

    def _network(self, sampler: SamplerConfig) -> tuple[UNet2DModel, SamplerConfig]:
        """The network that ``sampler`` asks, and how: a student is asked once a step, at the steps that it knows."""
        if sampler.method != STUDENT:
            return self.unet, sampler
        if sampler.steps != self.student.steps:
            raise UserError(f"the student of {self.home} draws in {self.student.steps} steps, not {sampler.steps}")
        return self.student.unet, sampler.model_copy(
            update={"guidance": 1.0, "guidance_interval": None, "spacing": 1.0}
        )

    @torch.no_grad()
    def _images(
        self, orders: Sequence[SampleSpec], *, sampler: SamplerConfig, sources: Sequence[Source], watch: Callback | None
    ) -> np.ndarray:
        facts = self.facts
        unet, asked = self._network(sampler)
        with autocast(self.runtime):
            x_NDHW = draw_latents(
                unet,
                config=facts.config,
                sampler=asked,
                shape=facts.shape,
                conditions=[facts.conditions.number(k=order.k, cluster=order.cluster) for order in orders],
                null=facts.conditions.null,
                generators=[stream(order) for order in orders],
                device=self.device,
                beginning=beginning(orders, sources=sources, space=facts.space),
                watch=watch,
            )
        z_NCHW = facts.space.decode(x_NDHW)
        with autocast(self.runtime):
            return to_uint8(self.autoencoder.decode(z_NCHW)).cpu().numpy()


def read_facts(home: Path) -> GeneratorSpec:
    """The facts of the generator in a run, whose sampler is the configuration's, or in an export; ``UserError``."""
    diffusion = folders_of(home)[0]
    facts = GeneratorSpec.from_json(read_json(diffusion / "generator.json"))
    return facts if diffusion == home else replace(facts, sampler=Run.open(home).config.samples.sampler)


def weights_digest(folder: Path) -> str:
    """16 hexadecimal digits of the weights in ``folder/unet``."""
    content = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def home_of(path: str | Path) -> Path:
    """``path``, or where the starter generator lies if ``path`` is ``starter`` and no such folder is here."""
    home = Path(path)
    if str(path) != STARTER or home.exists():
        return home
    package = Path(histoloom.__file__).resolve().parent
    places = [package / STARTER, package.parent.parent / STARTER]  # installed; a clone
    return next((place for place in places if (place / "generator.json").is_file()), home)


def folders_of(home: Path) -> tuple[Path, Path]:
    """Where the diffusion model and the autoencoder of a run or an export lie; ``UserError`` where it is neither."""
    if (home / "generator.json").is_file():
        return home, home / "autoencoder"
    if (home / "config.yaml").is_file():
        run = Run.open(home)
        return run.require("diffusion"), run.require("autoencoder")
    raise UserError(f"{home} is neither a run nor an exported generator (no config.yaml, no generator.json in it)")

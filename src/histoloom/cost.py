"""How long a run's trainings and samples take on this machine, before anything is trained.

The floating-point operations of each network's forward pass are counted on torch's meta device, where tensors have
shapes and no values. Then the forward pass is timed on the run's device. A network that trains costs three forward
passes: the pass itself, the gradients of its inputs and those of its weights. One that is frozen, and passes gradients
on, costs two.

Not counted: reading slides, features of pretrained and self-supervised encoders, validity indices and null models of
the clusters, checks during the training, evaluation and report; nor what compiled networks save on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from histoloom import paper
from histoloom.autoencoder.lpips import FeatureTrunk
from histoloom.autoencoder.vqgan import Autoencoder, Discriminator
from histoloom.clustering.clusterer import Architecture, build
from histoloom.clustering.features.base import BLOCK
from histoloom.clustering.features.efficientnet import EfficientNetLite0
from histoloom.clustering.features.perceptual import TURNS
from histoloom.config import LPIPS_MIN_SIZE, Config, PatchesConfig, RuntimeConfig
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.unet import make_unet
from histoloom.errors import UserError
from histoloom.slides.patches.surroundings import image_side
from histoloom.training.devices import autocast, resolve_device

TRAINED, FROZEN = 3, 2
"""forward passes that a training step costs: of a network that learns, and of one that only passes gradients on"""
TIMED_OPERATIONS = {"cpu": (4e9, 1.6e10), "mps": (1e11, 1e11), "cuda": (2e12, 2e12)}
"""of the batch that is timed, and of a single input, at most: half a second on two cores"""
TIMED_SECONDS = 0.1
"""least time of the forward passes that are timed, after one that warms up"""


@dataclass(frozen=True)
class Work:
    """Work on one image: floating-point operations (a multiplication and an addition are two), and seconds here."""

    operations: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.seconds + other.seconds)

    def __mul__(self, times: float) -> Work:
        return Work(self.operations * times, self.seconds * times)


@dataclass(frozen=True)
class StageCost:
    """A stage's cost: how many times an image is trained on, encoded or drawn, and the mean work each time.

    ``each_k``: the stage does this for each k of the sweep, by itself; ``images`` are those of all k.
    """

    stage: str
    images: int
    work: Work
    each_k: bool = False

    @property
    def hours(self) -> float:
        """Hours of the whole stage on this machine."""
        return self.images * self.work.seconds / 3600


@dataclass(frozen=True)
class Cost:
    """The cost of a run with a sweep of so many ``ks``, stage by stage."""

    stages: tuple[StageCost, ...]
    ks: int

    @property
    def hours(self) -> float:
        """Hours of all stages on this machine."""
        return sum(stage.hours for stage in self.stages)

    @property
    def hours_of_one_k(self) -> float:
        """The same for a sweep of a single k: its mean over the sweep."""
        return sum(stage.hours / (self.ks if stage.each_k else 1) for stage in self.stages)

    def __str__(self) -> str:
        """One line, in hours, or in minutes below two hours."""
        unit, times = ("hours", 1) if self.hours >= 2 else ("minutes", 60)
        parts = [f"{stage.stage} {_rounded(stage.hours * times)}" for stage in self.stages]
        days = f", or {_rounded(self.hours / 24)} days," if self.hours > 72 else ""
        line = f"about {_rounded(self.hours * times)} {unit}{days} on this machine ({', '.join(parts)}, "
        line += "evaluation not counted)"
        if self.ks > 1 and any(stage.each_k and stage.stage == "clusters" for stage in self.stages):
            line += f"; with one k in place of {self.ks}, about {_rounded(self.hours_of_one_k * times)} {unit}"
        return line


def _rounded(value: float) -> str:
    """Two digits: an estimate has no more."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 9.95 else f"{value:.1f}"


def describe(config: Config) -> str:
    """The estimate as one line, or why there is none on this machine."""
    try:
        return str(estimate(config))
    except (UserError, torch.OutOfMemoryError) as error:
        return f"no estimate of the time: {str(error).splitlines()[0]}"


def estimate(config: Config, *, clock: Callable[[], float] = time.perf_counter) -> Cost:
    """The cost of a run with ``config``; ``clock`` gives seconds.

    How many patches the slides give is not known before they are read: ``patches.count`` is taken, or its default where
    it is null. Raises ``UserError`` where the run's device is not there.
    """
    auto, diffusion, clusters, samples = config.autoencoder, config.diffusion, config.clusters, config.samples
    patches = config.patches.count or PatchesConfig().count or 1
    n = max(1, round(patches * (1 - config.patches.split.holdout)))
    size, side = config.patches.size, config.patches.size // auto.factor
    shape, ks = (auto.code_dim, side, side), clusters.k
    measure = _Measure(config.runtime, clock=clock)

    with torch.device("meta"):
        autoencoder = Autoencoder(auto)
        unet = make_unet(diffusion, shape=shape, conditions=max(ks) if clusters.joint else Conditions(ks).count)
    encoder = nn.Sequential(nn.PixelUnshuffle(auto.stem), autoencoder.encoder)
    decoder = nn.Sequential(autoencoder.decoder, autoencoder.head)
    batch_size = auto.training.batch_size
    encode = measure(encoder, shape=(3, size, size), multiple=auto.factor, batch_size=batch_size)
    decode = measure(decoder, shape=shape, multiple=1, batch_size=batch_size)
    denoise = measure(
        unet,
        shape=shape,
        multiple=2**diffusion.halvings,
        batch_size=diffusion.training.batch_size,
        forward=lambda x_B: unet(x_B, torch.tensor(0), class_labels=torch.zeros_like(x_B[:, 0, 0, 0]).long()),
    )

    stages = [
        StageCost(
            "autoencoder",
            auto.training.images(n=n),
            encode * (TRAINED if auto.trained == "all" else 1)
            + decode * TRAINED
            + _autoencoder_losses(config, measure=measure),
        ),
        StageCost("latents", patches * (config.latents.copies + config.latents.stain_views), encode),
    ]
    images = diffusion.training.images(n=n)
    if clusters.joint is not None:
        step = denoise * TRAINED + _joint_clusterer(config, n=n, encode=encode, measure=measure)
        stages.append(StageCost("clusters", images * len(ks), step, each_k=True))
    else:
        stages += [
            _clusters(config, n=n, patches=patches, measure=measure),
            StageCost("diffusion", images, denoise * TRAINED),
        ]

    all_k = samples.k == "all"
    evaluations = samples.sampler.steps * (1 if samples.sampler.guidance in (0.0, 1.0) else 2)
    drawn = samples.per_cluster * (sum(ks) if all_k else max(ks))
    stages.append(StageCost("samples", drawn, denoise * evaluations + decode, each_k=all_k))
    return Cost(tuple(stages), ks=len(ks))


def _autoencoder_losses(config: Config, *, measure: _Measure) -> Work:
    """The perceptual loss of a training step, and the discriminator, averaged over the training."""
    auto, shape = config.autoencoder, (3, config.patches.size, config.patches.size)
    batch_size, adversarial = auto.training.batch_size, auto.adversarial
    trunk, discriminator = Work(), Work()
    if auto.perceptual == "lpips" or (auto.perceptual == "auto" and shape[1] >= LPIPS_MIN_SIZE):
        with torch.device("meta"):
            network: nn.Module = FeatureTrunk(auto.perceptual_trunk)
        trunk = measure(network, shape=shape, multiple=LPIPS_MIN_SIZE, batch_size=batch_size)
    if adversarial.weight > 0:
        with torch.device("meta"):
            paper_widths = adversarial.widths[: adversarial.layers]
            network = paper.Discriminator(paper_widths) if auto.architecture == "paper" else Discriminator(adversarial)
        score = measure(network, shape=shape, multiple=shape[1], batch_size=batch_size)
        # Once for the autoencoder, then on a real and a reconstructed image to learn from.
        discriminator = score * (FROZEN + 2 * TRAINED)
        if adversarial.max_adaptive is not None:  # gradients of the last layer for the adaptive weight
            discriminator += trunk + score
    # The trunk sees the reconstruction and, without gradients, the image.
    return trunk * (FROZEN + 1) + discriminator * (1 - adversarial.start)


def _joint_clusterer(config: Config, *, n: int, encode: Work, measure: _Measure) -> Work:
    """The clusterer in a step of the joint training, averaged over the phases; in some it does not learn."""
    joint, training = config.clusters.joint, config.diffusion.training
    assert joint is not None, "the run trains both together"
    side = config.patches.size // config.autoencoder.factor
    shape = (config.autoencoder.code_dim, side, side)
    with torch.device("meta"):
        network = paper.Clusterer(shape[0], channels=config.clusters.channels, k=max(config.clusters.k), side=side)
    classify = measure(network, shape=shape, multiple=side, batch_size=training.batch_size)
    phases = zip(training.phases, joint.consistency_weights, strict=True)
    learning = sum(phase.length(n=n) for phase, weight in phases if weight is not None) / training.images(n=n)
    return (classify * (2 * TRAINED) + encode) * learning + classify * (1 - learning)


def _clusters(config: Config, *, n: int, patches: int, measure: _Measure) -> StageCost:
    """The features of all patches, and the clusterer's own training for all k at once on pairs of them.

    Features of a pretrained encoder or from files are not counted.
    """
    clusters, auto = config.clusters, config.autoencoder
    assert clusters.training is not None, "the clusters have a training of their own"
    side, vectors = config.patches.size // auto.factor, "latents" not in clusters.kinds
    linear = clusters.positives == "neighbours"
    shape = (2 * auto.code_dim,) if vectors else (auto.code_dim, side, side)
    images, describe = clusters.training.images(n=n) * clusters.restarts, Work()
    fields = clusters.surroundings > 0 and "encoder" not in clusters.kinds
    if "perceptual" in clusters.kinds or fields:
        with torch.device("meta"):
            trunk = EfficientNetLite0()
            widths = [tap_BCHW.shape[1] for tap_BCHW in trunk(torch.empty(1, 3, LPIPS_MIN_SIZE, LPIPS_MIN_SIZE))]
        views = 0 if linear else config.latents.stain_views
        sides = [config.patches.size] * (1 + views) if "perceptual" in clusters.kinds else []
        sides += [image_side(config.patches.size)] if fields else []
        for pixels in sides:
            one = measure(trunk, shape=(3, pixels, pixels), multiple=LPIPS_MIN_SIZE, batch_size=BLOCK)
            describe += one * (TURNS * patches / images)
        shape = (sum(widths) * (len(sides) - views),)
    with torch.device("meta"):
        network = build(Architecture(shape[0], clusters.channels, clusters.k, vectors=vectors, linear=linear)).network
    classify = measure(network, shape=shape, multiple=shape[-1], batch_size=clusters.training.batch_size)
    return StageCost("clusters", images, classify * (2 * TRAINED) + describe)


class _Measure:
    """Counts and times the forward passes of networks that are on the meta device."""

    def __init__(self, runtime: RuntimeConfig, *, clock: Callable[[], float]) -> None:
        self.runtime, self.clock = runtime, clock
        self.device = torch.device(resolve_device(runtime.device))
        if runtime.threads is not None:
            torch.set_num_threads(runtime.threads)

    @torch.no_grad()
    def __call__(
        self,
        network: nn.Module,
        *,
        shape: tuple[int, ...],
        multiple: int,
        batch_size: int,
        forward: Callable[[Tensor], object] | None = None,
    ) -> Work:
        """The forward pass of an input of ``shape``; ``forward`` calls the network, None: with the input alone.

        A batch of at most ``batch_size`` inputs is timed. The sides of an input with more than ``TIMED_OPERATIONS`` are
        halved, as long as they stay multiples of ``multiple``, and the seconds are scaled by the operations.
        """
        forward = forward or network
        network.eval()
        operations = timed = count(forward, torch.empty(1, *shape, device="meta"))
        most_of_batch, most = TIMED_OPERATIONS[self.device.type]
        while timed > most and shape[-1] % (2 * multiple) == 0:
            shape = (shape[0], *(side // 2 for side in shape[1:]))
            timed = count(forward, torch.empty(1, *shape, device="meta"))
        batch_size = max(1, min(batch_size, int(most_of_batch / timed)))

        network.to_empty(device=self.device)
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.zero_()
        x_B = torch.zeros(batch_size, *shape, device=self.device)
        times: list[float] = []
        with autocast(self.runtime):
            self._seconds(forward, x_B)
            while not times or sum(times) < TIMED_SECONDS:
                times.append(self._seconds(forward, x_B))
        network.to("meta")  # releases the memory
        return Work(operations, min(times) / batch_size * operations / timed)

    def _seconds(self, forward: Callable[[Tensor], object], x_B: Tensor) -> float:
        start = self.clock()
        forward(x_B)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return self.clock() - start


@torch.no_grad()
def count(forward: Callable[[Tensor], object], x_B: Tensor) -> float:
    """Floating-point operations of the convolutions and matrix products in ``forward``."""
    with FlopCounterMode(display=False) as counter:
        forward(x_B)
    return float(counter.get_total_flops())

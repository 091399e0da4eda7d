"""Phase 3 of a GPU day: images a second of the three trainings and of sampling, against plain loops.

Used by gpu_day.py. A plain loop is what one writes first, as diffusers' own training examples do: stock modules
(``UNet2DModel``, ``VQModel``, ``UniPCMultistepScheduler``) of the preset's widths, AdamW, autocast in the same
precision, pinned data, no compiled networks, and no wait for the device in a step. It has no averaged weights, no
clipped gradients and no log. The clusterer has no stock module: its plain loop calls the same loss.

Operations are those of the convolutions and matrix products (torch's FlopCounterMode, on the meta device); a network
that trains costs three forward passes. The share is of the peak that phase 1 measured in the same precision.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from cost import autoencoder_task, clusters_task, diffusion_task
from diffusers import DDPMScheduler, UNet2DModel, UniPCMultistepScheduler, VQModel
from gpu_day import Day, Result
from gpu_day_checks import configured, wait_for
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from histoloom.autoencoder.losses import VQGANLosses
from histoloom.autoencoder.stage import make_objectives
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.clustering.independence import IndependentLoss
from histoloom.clustering.neighbours import NEIGHBOURS, LinearNet, NeighbourLoss
from histoloom.config import AutoencoderConfig, Config, SamplerConfig, TrainingConfig
from histoloom.cost import TRAINED, count
from histoloom.diffusion.generation.generator import BATCH_SIZE, COMPILED_FROM, Generator
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.generation.sample_spec import SampleSpec
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.unet import HEAD_CHANNELS, make_unet
from histoloom.run.stage import EventLog
from histoloom.training.devices import autocast, resolve_device, resolve_precision
from histoloom.training.loop import Objective, StepContext, Task, train

N = 512
"""random images and latents"""
WARM_UP, STEPS, PROFILED = 10, 40, 3
"""steps before the ones that are timed, those, and those that are profiled after them"""
CPU_WARM_UP, CPU_STEPS, TINY_WARM_UP, TINY_STEPS = 2, 10, 1, 2
SAMPLER = SamplerConfig(method="unipc", steps=20, guidance=1.0)
SLIDES, VECTOR = 45, 1408
"""slides of the independent clusters; numbers of a feature vector, patch and surroundings"""
OPERATORS = 12

TINY = {
    "modern": (
        "patches.size=32",
        "autoencoder.channels=8",
        "autoencoder.multipliers=[1, 2]",
        "autoencoder.perceptual=pyramid",
        "autoencoder.adversarial.channels=8",
        "autoencoder.adversarial.layers=2",
        "autoencoder.training.batch_size=4",
        "clusters.k=[2, 3]",
        "clusters.training.batch_size=16",
        "diffusion.channels=[16, 32]",
        "diffusion.attention=[false, true]",
        "diffusion.training.batch_size=4",
    ),
    "paper": (
        "patches.size=32",
        "autoencoder.perceptual=pyramid",
        "autoencoder.channels=16",
        "autoencoder.training.batch_size=4",
        "clusters.k=[2, 3]",
        "clusters.channels=8",
        "diffusion.channels=[16, 32, 32, 32]",
        "diffusion.training.batch_size=4",
    ),
}
"""settings that make a preset's networks so small that a test trains them"""


@dataclass(frozen=True)
class Speed:
    """Images a second, peak memory in bytes (None: not on this device), and the table of a profile."""

    rate: float
    memory: int | None
    profile: str = ""


class Enough(Exception):
    """So many steps were made."""


class Stopwatch:
    """Counts steps as they start: times some of them after a warm-up, profiles the next few, then ends the training."""

    def __init__(self, day: Day, *, profiled: bool) -> None:
        self.device = resolve_device(day.device)
        self.warm_up, self.steps = (CPU_WARM_UP, CPU_STEPS) if self.device == "cpu" else (WARM_UP, STEPS)
        if day.tiny:
            self.warm_up, self.steps = TINY_WARM_UP, TINY_STEPS
        self.profiled = (1 if day.tiny else PROFILED) if profiled else 0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.startswith("cuda") else [])]
        self._profiler = profile(activities=activities)
        self._count = 0
        self.seconds, self.table = 0.0, ""
        self.memory: int | None = None
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()

    def step(self) -> None:
        """Called at the start of each step; raises ``Enough``."""
        last = self.warm_up + self.steps
        if self._count == self.warm_up:
            wait_for(self.device)
            self._started = time.perf_counter()
        if self._count == last:
            wait_for(self.device)
            self.seconds = (time.perf_counter() - self._started) / self.steps
            self.memory = torch.cuda.max_memory_allocated() if self.device.startswith("cuda") else None
            if self.profiled:
                self._profiler.start()
        if self._count == last + self.profiled:
            if self.profiled:
                wait_for(self.device)
                self._profiler.stop()
                key = "self_cuda_time_total" if self.device.startswith("cuda") else "self_cpu_time_total"
                self.table = self._profiler.key_averages().table(sort_by=key, row_limit=OPERATORS)
            raise Enough
        self._count += 1

    def speed(self, batch_size: int) -> Speed:
        """The result, for steps of so many images."""
        return Speed(batch_size / self.seconds, self.memory, self.table)


# -- both sides of a comparison ----------------------------------------------------------------------------------------
def ours(task: Task, *, config: Config, training: TrainingConfig, day: Day) -> Speed:
    """Steps of the training loop as a run has it; checkpoints are left out."""
    watch = Stopwatch(day, profiled=not day.tiny or task.name == "clusters")  # a profile takes longer than tiny steps
    first, *others = task.objectives

    def loss(batch: object, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        watch.step()
        return first.loss(batch, context)

    runtime = config.runtime.model_copy(update={"checkpoint_seconds": 3600.0})
    timed = replace(task, objectives=(replace(first, loss=loss), *others))
    with tempfile.TemporaryDirectory() as folder, suppress(Enough):
        log = EventLog(Path(folder) / "log.jsonl")
        train(timed, config=training, runtime=runtime, seed=0, out=Path(folder), log=log)
    return watch.speed(training.batch_size)


def plain(
    modules: Iterable[nn.Module],
    loss: Callable[..., Tensor],
    *,
    data: Sequence[Tensor],
    batch_size: int,
    config: Config,
    day: Day,
) -> Speed:
    """A loop over random batches."""
    watch = Stopwatch(day, profiled=False)
    device = watch.device
    networks = nn.ModuleList(modules).to(device).train()
    optimizer = torch.optim.AdamW(networks.parameters(), lr=1e-4)
    kept = [part.pin_memory() if device.startswith("cuda") else part for part in data]
    with suppress(Enough):
        while True:
            watch.step()
            rows = torch.randint(len(kept[0]), (batch_size,))
            batch = [part[rows].to(device, non_blocking=True) for part in kept]
            with autocast(config.runtime):
                value = loss(*batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return watch.speed(batch_size)


def compared(
    name: str, *, mine: Speed, theirs: Speed | None, operations: float, config: Config, day: Day
) -> tuple[tuple[str, ...], dict[str, float]]:
    """A row of the table, and its numbers; ``operations``: of an image on our side, 0: not counted."""
    precision = resolve_precision("auto", device=resolve_device(config.runtime.device))
    peak = Result.load(day.result("machine")).values.get(precision) if day.result("machine").is_file() else None
    share = mine.rate * operations / peak if peak and operations else None
    values = {f"{name}, images/s": mine.rate}
    if theirs is not None:
        values |= {f"{name}, plain images/s": theirs.rate, f"{name}, ratio": mine.rate / theirs.rate}
    if share is not None:
        values[f"{name}, share of the peak"] = share
    row = (
        name,
        f"{mine.rate:.4g}",
        f"{theirs.rate:.4g}" if theirs else "-",
        f"{mine.rate / theirs.rate:.2f}" if theirs else "-",
        f"{operations / 1e9:.3g}" if operations else "-",
        f"{share:.1%}" if share is not None else "-",
        _gib(mine),
        _gib(theirs) if theirs else "-",
    )
    return row, values


def _gib(speed: Speed) -> str:
    return "-" if speed.memory is None else f"{speed.memory / 2**30:.2f}"


COLUMNS = ("what", "images/s", "plain", "ratio", "GFLOP an image", "share of the peak", "GiB", "plain GiB")


def _result(found: Sequence[tuple[tuple[str, ...], dict[str, float]]], *, tables: dict[str, str]) -> Result:
    values = {name: value for _, some in found for name, value in some.items()}
    for name, table in tables.items():
        if not table:
            continue
        print(f"profile of {name}, the steps after those that are timed\n{table}", flush=True)
    return Result(COLUMNS, tuple(row for row, _ in found), (), values)


# -- the trainings -----------------------------------------------------------------------------------------------------
def sized(preset: str, day: Day) -> Config:
    """The preset, or its networks at a test's size."""
    return configured(preset, day, *(TINY[preset] if day.tiny else ()))


def vqgan(day: Day, preset: str) -> Result:
    """The VQ-GAN by reconstruction and commitment alone, against ``VQModel``; then with all its losses."""
    config = sized(preset, day)
    auto = config.autoencoder
    reconstruction = vqgan_reconstruction(day, preset)

    # As the preset trains it once the discriminator has joined; LPIPS has random weights.
    adversarial = auto.adversarial.model_copy(update={"start": 0.0, "warmup": 0.0})
    whole = config.model_copy(update={"autoencoder": auto.model_copy(update={"adversarial": adversarial})})
    task = autoencoder_task(whole, images_NHW3=_random_images(config))
    all_losses = ours(task, config=whole, training=auto.training, day=day)
    title = f"VQ-GAN {preset}, all losses, batch {auto.training.batch_size}"
    row = compared(title, mine=all_losses, theirs=None, operations=0, config=config, day=day)
    result = _result([row], tables={title: all_losses.profile})
    return replace(result, rows=reconstruction.rows + result.rows, values=reconstruction.values | result.values)


def vqgan_reconstruction(day: Day, preset: str) -> Result:
    """The VQ-GAN by reconstruction and commitment alone, against ``VQModel``, which sees pixels that are not folded."""
    config = sized(preset, day)
    auto, images = config.autoencoder, _random_images(config)
    mine = _reconstruction_alone(config, images=images, day=day)
    theirs = _plain_vqgan(config, images=images, day=day)
    operations = TRAINED * _autoencoder_operations(config)
    title = f"VQ-GAN {preset}, reconstruction, batch {auto.training.batch_size}"
    row = compared(title, mine=mine, theirs=theirs, operations=operations, config=config, day=day)
    return _result([row], tables={title: mine.profile})


def _random_images(config: Config) -> Tensor:
    """NHW3, uint8."""
    size = config.patches.size
    return torch.randint(256, (N, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def _reconstruction_alone(config: Config, *, images: Tensor, day: Day) -> Speed:
    """Without perceptual and adversarial terms, which VQModel's loop does not have."""
    weights = {"perceptual": "none", "perceptual_weight": 0.0, "l1_weight": 1.0, "mse_weight": 0.0}
    auto = config.autoencoder.model_copy(update=weights)
    config = config.model_copy(update={"autoencoder": auto})
    task = autoencoder_task(config, images_NHW3=images)
    autoencoder = task.modules["autoencoder"]
    assert isinstance(autoencoder, Autoencoder), "made by make_task"
    losses = VQGANLosses(auto, autoencoder=autoencoder, discriminator=None, perceptual=None)
    objectives = make_objectives(losses, n=N)
    modules = {"autoencoder": autoencoder}
    task = replace(task, modules=modules, objectives=objectives, whole_batch=False, compiled=losses.compiled)
    return ours(task, config=config, training=auto.training, day=day)


def _plain_vqgan(config: Config, *, images: Tensor, day: Day) -> Speed:
    auto, model = config.autoencoder, stock_vqgan(config.autoencoder)

    def loss(images_BHW3: Tensor) -> Tensor:
        x_B3HW = to_float(images_BHW3)
        out = model(x_B3HW)
        return F.l1_loss(out.sample.float(), x_B3HW) + auto.commitment * out.commit_loss.mean()

    return plain([model], loss, data=[images], batch_size=auto.training.batch_size, config=config, day=day)


def stock_vqgan(auto: AutoencoderConfig) -> VQModel:
    """diffusers' VQ-GAN of the same widths and factor: a level of the first width for each folding of pixels."""
    widths = (auto.widths[0],) * (auto.stem.bit_length() - 1) + auto.widths
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=auto.blocks,
        latent_channels=auto.code_dim,
        num_vq_embeddings=auto.codes,
        norm_num_groups=auto.groups,
        mid_block_add_attention=auto.attention,
    )


def _autoencoder_operations(config: Config, *, decoder_alone: bool = False) -> float:
    """Of a forward pass of an image."""
    auto, size = config.autoencoder, config.patches.size
    side = size // auto.factor
    with torch.device("meta"):
        autoencoder = Autoencoder(auto)
    encoder = nn.Sequential(nn.PixelUnshuffle(auto.stem), autoencoder.encoder)
    decoder = nn.Sequential(autoencoder.decoder, autoencoder.head)
    decoding = count(decoder, torch.empty(1, auto.code_dim, side, side, device="meta"))
    return decoding + (0 if decoder_alone else count(encoder, torch.empty(1, 3, size, size, device="meta")))


def clusterer(day: Day, preset: str) -> Result:
    """The clusterer as the preset trains it by itself, and that of latent maps; the same losses in plain loops.

    ``paper`` trains its clusterer with the U-Net: there only the latter is timed, with the training of ``modern``.
    """
    config = sized(preset, day)
    base = config if config.clusters.training is not None else sized("modern", day)
    training = base.clusters.training
    assert training is not None, "modern trains the clusters by themselves"
    values = {"features": "latents", "positives": "views", "surroundings": 0.0, "validity_features": "pooled"}
    channels = config.clusters.channels
    maps = base.clusters.model_copy(update=values | {"independence": 0.0, "channels": channels})
    base = base.model_copy(update={"clusters": maps})
    auto, side = config.autoencoder, config.patches.size // config.autoencoder.factor
    tasks = {"latent maps": clusters_task(base, shape=(auto.code_dim, side, side))}
    if config.clusters.positives == "neighbours":
        tasks["neighbours"] = _neighbours_task(config)

    found, tables = [], {}
    for name, task in tasks.items():
        mine = ours(task, config=base, training=training, day=day)
        theirs = _plain_clusterer(task, training=training, config=base, day=day)
        title = f"clusterer {preset}, {name}, batch {training.batch_size}"
        found.append(compared(title, mine=mine, theirs=theirs, operations=0, config=config, day=day))
        tables[title] = mine.profile
    return _result(found, tables=tables)


def _neighbours_task(config: Config) -> Task:
    """A linear clusterer of vectors of patches and their neighbours, independent of the slide."""
    clusters = config.clusters
    assert clusters.training is not None, "the preset trains the clusters by themselves"
    generator = torch.Generator().manual_seed(0)
    network = LinearNet(VECTOR, ks=clusters.k, of_patch=VECTOR // 2)
    x_ND = torch.randn(N, VECTOR, generator=generator)
    neighbours_NV = torch.randint(N, (N, 1 + NEIGHBOURS), generator=generator)
    slides_N = torch.randint(SLIDES, (N,), generator=generator)
    held = x_ND.to(resolve_device(config.runtime.device))  # as a training on a GPU has it
    loss = IndependentLoss(
        NeighbourLoss(network, vectors=held.__getitem__), weight=clusters.independence, slides=SLIDES
    )
    objective = Objective("network", ("network",), loss, clusters.training.phases)
    return Task(
        "clusters",
        {"network": network},
        (objective,),
        config.patches.count or N,
        batch=lambda rows: (neighbours_NV[rows % N], slides_N[rows % N]),
        whole_batch=True,
        compiled=loss.compiled,
    )


def _plain_clusterer(task: Task, *, training: TrainingConfig, config: Config, day: Day) -> Speed:
    device = torch.device(resolve_device(day.device))
    generator = torch.Generator().manual_seed(0)
    batch_size = training.batch_size
    read = task.batch(torch.arange(N).numpy())
    data = list(read) if isinstance(read, tuple) else [read]

    def loss(*batch: Tensor) -> Tensor:
        context = StepContext(
            images=1000 * batch_size,
            step=1000,
            progress=0.53,  # at no step where unused clusters are initialised again
            device=device,
            generator=generator,
            rows=slice(0, batch_size),
            batch_size=batch_size,
        )
        value, _ = task.objectives[0].loss(batch if len(batch) > 1 else batch[0], context)
        return value

    return plain(task.modules.values(), loss, data=data, batch_size=batch_size, config=config, day=day)


def unet(day: Day, preset: str) -> Result:
    """The U-Net on random latents, against ``UNet2DModel`` of the same widths that predicts noise."""
    config = sized(preset, day)
    side = config.patches.size // config.autoencoder.factor
    z_NChw = torch.randn(N, config.autoencoder.code_dim, side, side, generator=torch.Generator().manual_seed(0))
    training = config.diffusion.training
    mine = ours(diffusion_task(config, z_NChw=z_NChw), config=config, training=training, day=day)
    theirs = _plain_unet(config, z_NChw=z_NChw, day=day)
    operations = TRAINED * unet_operations(config, shape=(config.autoencoder.code_dim, side, side))
    title = f"U-Net {preset}, batch {training.batch_size}"
    row = compared(title, mine=mine, theirs=theirs, operations=operations, config=config, day=day)
    return _result([row], tables={title: mine.profile})


def _plain_unet(config: Config, *, z_NChw: Tensor, day: Day) -> Speed:
    diffusion, device = config.diffusion, resolve_device(day.device)
    channels, height, width = z_NChw.shape[1:]
    conditions = Conditions(config.clusters.k).count
    model = stock_unet(config, shape=(channels, height, width), conditions=conditions)
    scheduler = DDPMScheduler(diffusion.steps)

    def loss(z_BChw: Tensor, labels_B: Tensor) -> Tensor:
        noise = torch.randn_like(z_BChw)
        steps = torch.randint(diffusion.steps, (len(z_BChw),), device=device)
        predicted = model(scheduler.add_noise(z_BChw, noise, steps), steps, class_labels=labels_B).sample
        return F.mse_loss(predicted.float(), noise)

    labels_N = torch.randint(conditions, (len(z_NChw),))
    batch_size = diffusion.training.batch_size
    return plain([model], loss, data=[z_NChw, labels_N], batch_size=batch_size, config=config, day=day)


def stock_unet(config: Config, *, shape: tuple[int, int, int], conditions: int) -> UNet2DModel:
    """diffusers' U-Net of the preset's widths; for ``paper``, with self-attention at each level."""
    diffusion = config.diffusion
    if diffusion.architecture == "diffusers":
        made = make_unet(diffusion, shape=shape, conditions=conditions)
        assert isinstance(made, UNet2DModel), "of diffusers' blocks"
        return made
    levels = len(diffusion.channels) - 1
    return UNet2DModel(
        sample_size=shape[1:],
        in_channels=shape[0],
        out_channels=shape[0],
        down_block_types=("AttnDownBlock2D",) * levels,
        up_block_types=("AttnUpBlock2D",) * levels,
        block_out_channels=diffusion.channels[1:],
        layers_per_block=diffusion.blocks,
        attention_head_dim=min(HEAD_CHANNELS, *diffusion.channels),
        norm_num_groups=diffusion.groups,
        num_class_embeds=conditions,
    )


def unet_operations(config: Config, *, shape: tuple[int, int, int]) -> float:
    """Of a forward pass of an image."""
    with torch.device("meta"):
        network = make_unet(config.diffusion, shape=shape, conditions=Conditions(config.clusters.k).count)
    labels = torch.zeros(1, dtype=torch.int64, device="meta")
    forward = lambda x_1CHW: network(x_1CHW, torch.tensor(0), class_labels=labels)  # noqa: E731
    return count(forward, torch.empty(1, *shape, device="meta"))


def graphs(day: Day, preset: str) -> Result:
    """The small trainings whose kernels are launched as CUDA graphs (``runtime.fast: graphs``), against compiled ones.

    A launch takes the CPU some microseconds, and a step of a clusterer has hundreds of them. A sampling, which has no
    such graphs, is drawn by compiled networks against plain ones.
    """
    config = sized(preset, day)
    side = config.patches.size // config.autoencoder.factor
    shape = (config.autoencoder.code_dim, side, side)
    z_NChw = torch.randn(N, *shape, generator=torch.Generator().manual_seed(0))
    base = config if config.clusters.training is not None else sized("modern", day)
    clustering = base.clusters.training
    assert clustering is not None, "modern trains the clusters by themselves"
    trainings = {
        f"clusterer {preset}": (lambda: _neighbours_task(base), clustering),
        f"U-Net {preset}": (lambda: diffusion_task(config, z_NChw=z_NChw), config.diffusion.training),
    }
    found = []
    for name, (make, training) in trainings.items():
        graphed, compiled = (
            ours(make(), config=_fast(base, fast, day=day), training=training, day=day) for fast in ("graphs", "on")
        )
        title = f"{name}, graphs against compiled, batch {training.batch_size}"
        found.append(compared(title, mine=graphed, theirs=compiled, operations=0, config=config, day=day))

    sampler = SAMPLER.model_copy(update={"steps": 3}) if day.tiny else SAMPLER
    compiled, plainly = (
        _our_sampling(_fast(config, fast, day=day), shape=shape, sampler=sampler, day=day) for fast in ("on", "off")
    )
    title = f"sampling {preset}, compiled against plain, batch {_drawn_at_once(day)}"
    found.append(compared(title, mine=compiled, theirs=plainly, operations=0, config=config, day=day))
    return _result(found, tables={})


def _fast(config: Config, fast: str, *, day: Day) -> Config:
    fast = "off" if day.tiny else fast  # a test has no time to compile
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"fast": fast})})


# -- sampling ----------------------------------------------------------------------------------------------------------
def sampling(day: Day, preset: str) -> Result:
    """UniPC in 20 steps without guidance, and the decoder; plain: diffusers' scheduler and VQModel."""
    config = sized(preset, day)
    side = config.patches.size // config.autoencoder.factor
    shape = (config.autoencoder.code_dim, side, side)
    sampler = SAMPLER.model_copy(update={"steps": 3}) if day.tiny else SAMPLER
    mine = _our_sampling(config, shape=shape, sampler=sampler, day=day)
    theirs = _plain_sampling(config, shape=shape, sampler=sampler, day=day)
    operations = sampler.steps * unet_operations(config, shape=shape)
    operations += _autoencoder_operations(config, decoder_alone=True)
    title = f"sampling {preset}, UniPC {sampler.steps} steps, batch {_drawn_at_once(day)}"
    row = compared(title, mine=mine, theirs=theirs, operations=operations, config=config, day=day)
    return _result([row], tables={})


def _drawn_at_once(day: Day) -> int:
    return BATCH_SIZE[resolve_device(day.device).split(":")[0]]


def _our_sampling(config: Config, *, shape: tuple[int, int, int], sampler: SamplerConfig, day: Day) -> Speed:
    ks = config.clusters.k
    spec = GeneratorSpec(
        diffusion=config.diffusion,
        sampler=sampler,
        space=LatentSpace.unscaled(shape[0]),
        shape=shape,
        ks=ks,
        chosen_k=ks[-1],
        frequencies={k: (1 / k,) * k for k in ks},
        size=config.patches.size,
        mpp=config.patches.mpp,
    )
    network = make_unet(config.diffusion, shape=shape, conditions=Conditions(ks).count)
    with tempfile.TemporaryDirectory() as home:
        generator = Generator(
            spec, unet=network, autoencoder=Autoencoder(config.autoencoder), home=Path(home), runtime=config.runtime
        )

        def draw(count: int) -> None:
            generator.compile_if_asked(images=COMPILED_FROM)
            specs = [SampleSpec(k=ks[-1], cluster=i % ks[-1], index=i, seed=0) for i in range(count)]
            for _ in generator.draw(specs, sampler=sampler):
                pass

        return _drawn(draw, day=day)


def _plain_sampling(config: Config, *, shape: tuple[int, int, int], sampler: SamplerConfig, day: Day) -> Speed:
    device, ks, batch_size = resolve_device(day.device), config.clusters.k, _drawn_at_once(day)
    model = stock_unet(config, shape=shape, conditions=Conditions(ks).count).to(device).eval()
    decoder = stock_vqgan(config.autoencoder).to(device).eval()

    @torch.no_grad()
    def draw(count: int) -> None:
        for _ in range(count // batch_size):
            scheduler = UniPCMultistepScheduler(config.diffusion.steps)
            scheduler.set_timesteps(sampler.steps, device=device)
            x = torch.randn(batch_size, *shape, device=device)
            labels = torch.randint(ks[-1], (batch_size,), device=device)
            with autocast(config.runtime):
                for step in scheduler.timesteps:
                    x = scheduler.step(model(x, step, class_labels=labels).sample.float(), step, x).prev_sample
                images = decoder.decode(x).sample
            (images.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).cpu()

    return _drawn(draw, day=day)


def _drawn(draw: Callable[[int], None], *, day: Day) -> Speed:
    device, batch_size, batches = resolve_device(day.device), _drawn_at_once(day), 1 if day.tiny else 4
    draw(batch_size)  # warms up
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    wait_for(device)
    started = time.perf_counter()
    draw(batches * batch_size)
    wait_for(device)
    memory = torch.cuda.max_memory_allocated() if device.startswith("cuda") else None
    return Speed(batches * batch_size / (time.perf_counter() - started), memory)

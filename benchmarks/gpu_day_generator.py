"""Phases 4 and 5 of a GPU day: a generator of 256 px from fields of tissue, and its parts to carry back.

Used by gpu_day.py. The recipe is that of the preset ``starter`` (docs/explanation/starter.md) at twice the side, with a
wider U-Net; the learning rate does not fall, and the averaged weights are kept, so that the training may end at any
time. Patches are cut at random places; nothing but the pixels is used. The clusters are those of latent maps, for all k
of the sweep; k is set, not chosen.

``work/generator`` holds the parts: ``autoencoder``, ``latents.npy``, ``clusterer``, ``diffusion``. Each is made once. A
day that starts with the weights of an earlier one (``pack/weights``) takes its autoencoder, clusters and U-Net from
there; the optimizer's state, which is twice as large as the weights, is not carried.

Shapes: N patches, 8 dihedral copies, C x h x w latents.
"""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from gpu_day import RESERVE, Day, Result, join_parts, split_file, write
from gpu_day_checks import configured, wait_for
from PIL import Image
from torch import Tensor, nn

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.autoencoder.losses import VQGANLosses, perceptual_loss
from histoloom.autoencoder.lpips import find_weights
from histoloom.autoencoder.stage import make_objectives, make_task
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.clustering.clusterer import Architecture, Clusterer, build
from histoloom.clustering.infomax import Network
from histoloom.clustering.losses import InfoMaxLoss
from histoloom.config import Config, TrainingConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.generation.sample_spec import SampleSpec
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.process import DiffusionLoss
from histoloom.diffusion.model.unet import make_unet, open_unet, save_unet
from histoloom.run.stage import EventLog
from histoloom.seeding import derive, numpy_generator
from histoloom.training.devices import accelerator, full_precision, resolve_device
from histoloom.training.loop import Objective, Task, train

SETTINGS = (
    "patches.size=256",
    "patches.count=6000",
    "autoencoder.training.batch_size=16",
    "autoencoder.training.phases.0.images=48000",
    "clusters.features=latents",
    "clusters.positives=views",
    "clusters.surroundings=0",
    "clusters.independence=0",
    "clusters.validity_features=pooled",
    "clusters.training.batch_size=128",
    "clusters.training.phases.0.lr=0.002",
    "clusters.training.phases.0.images=32000",
    "diffusion.channels=[128, 192, 192, 224]",  # half precision and the rest of the day fit into 64 MiB
    "diffusion.training.batch_size=64",
    "diffusion.training.lr_decay=none",
    "diffusion.training.warmup_images=32000",
    "diffusion.training.ema=0.9995",
)
TINY = (
    *SETTINGS,
    "patches.size=32",
    "patches.count=24",
    "autoencoder.channels=8",
    "autoencoder.adversarial.channels=8",
    "autoencoder.training.batch_size=4",
    "autoencoder.training.warmup_images=0",
    "autoencoder.training.phases.0.images=16",
    "clusters.k=[2, 3]",
    "clusters.channels=8",
    "clusters.training.batch_size=16",
    "clusters.training.phases.0.images=64",
    "diffusion.channels=[8, 16]",
    "diffusion.norm_groups=4",
    "diffusion.attention=[false, true]",
    "diffusion.training.batch_size=4",
    "diffusion.training.warmup_images=0",
)
CHOSEN_K = 15
"""of the published starter; the largest of the sweep where that has none"""
CHUNK = 64
FIRST_BATCHES, SAFETY = 200, 0.9
"""steps of the stretch that measures the speed of the U-Net's training; share of the time left for the next one"""
TINY_SECONDS, CHECKPOINT_SECONDS = 1.0, 60.0
REAL, DRAWN = 3, 5
"""real patches and samples of each cluster on the contact sheet"""


# -- the patches -------------------------------------------------------------------------------------------------------
class Fields:
    """Random patches of a folder's fields, cut as they are read: the same places on every machine."""

    def __init__(self, folder: Path, *, size: int, count: int) -> None:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        self.fields = []
        for path in paths:
            with Image.open(path) as image:
                self.fields.append(np.asarray(image.convert("RGB")))
        self.size = size
        rng = numpy_generator(0, "gpu day", "places")
        self.places = []
        for number in range(count):
            field = number % len(self.fields)
            height, width = self.fields[field].shape[:2]
            top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
            self.places.append((field, int(top), int(left)))

    def __len__(self) -> int:
        return len(self.places)

    def images(self, rows_n: np.ndarray) -> Tensor:
        """uint8 (n, size, size, 3)."""
        patches = []
        for row in rows_n:
            field, top, left = self.places[int(row)]
            patches.append(self.fields[field][top : top + self.size, left : left + self.size])
        return torch.from_numpy(np.stack(patches))


def configuration(day: Day) -> Config:
    """The recipe; where there are no weights for LPIPS, the perceptual loss that needs none."""
    settings = TINY if day.tiny else SETTINGS
    if find_weights("squeeze", download=False) is None:
        settings = (*settings, "autoencoder.perceptual=pyramid", "autoencoder.perceptual_weight=0.5")
    return configured("starter", day, *settings)


# -- phase 4 -----------------------------------------------------------------------------------------------------------
def train_generator(day: Day) -> Result:
    """Autoencoder, latents and clusters once; then the U-Net, until the call's time is over."""
    config, home = configuration(day), day.work / "generator"
    home.mkdir(parents=True, exist_ok=True)
    carried = day.pack / "weights"
    if carried.is_dir() and not (home / "carried").is_dir():
        shutil.rmtree(home / "carried.new", ignore_errors=True)  # of a call that was ended
        join_parts(carried, home / "carried.new")
        (home / "carried.new").rename(home / "carried")
    fields = Fields(day.pack / "fields", size=config.patches.size, count=config.patches.count or 1)

    seconds: dict[str, float] = {}
    started = time.time()
    autoencoder = trained_autoencoder(config, home=home, fields=fields)
    seconds["autoencoder"], started = time.time() - started, time.time()
    latents = encoded(config, home=home, fields=fields, autoencoder=autoencoder)
    seconds["latents"], started = time.time() - started, time.time()
    labels = clustered(config, home=home, latents=latents)
    seconds["clusters"], started = time.time() - started, time.time()
    spec = specified(config, home=home, latents=latents, labels=labels)
    images, rate = train_unet(config, home=home, latents=latents, labels=labels, spec=spec, day=day)
    seconds["diffusion"] = time.time() - started

    rows = tuple((name, f"{value:.1f}") for name, value in seconds.items())
    remark = f"the U-Net has seen {images:,} images in all; {rate:.4g} images a second"
    values = {"images": float(images), "rate": rate}
    return Result(("part", "seconds in this call"), rows, (remark,), values, goes_on=not day.tiny)


def trained_autoencoder(config: Config, *, home: Path, fields: Fields) -> Autoencoder:
    """The VQ-GAN: an earlier day's, or trained here."""
    folder = home / "autoencoder"
    for place in (home / "carried" / "autoencoder", folder):
        if (place / "autoencoder.json").is_file():
            return Autoencoder.load(place)
    auto = config.autoencoder
    task = make_task(auto, seed=config.seed, n=len(fields))
    autoencoder = task.modules["autoencoder"]
    assert isinstance(autoencoder, Autoencoder), "made by make_task"
    perceptual = perceptual_loss(auto)
    losses = VQGANLosses(
        auto,
        autoencoder=autoencoder,
        discriminator=None,
        perceptual=None if perceptual is None else perceptual.to(accelerator(config.runtime).device),
    )
    task = replace(task, objectives=make_objectives(losses, n=len(fields)), batch=fields.images)
    model = _train(task, config=config, training=auto.training, out=folder)["autoencoder"]
    assert isinstance(model, Autoencoder), "the task's module keeps its kind"
    model.save(folder)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def encoded(config: Config, *, home: Path, fields: Fields, autoencoder: Autoencoder) -> np.ndarray:
    """Latents of all patches and their dihedral copies, float16 (N, 8, C, h, w), as a memory map."""
    path = home / "latents.npy"
    device = accelerator(config.runtime).device
    if not path.is_file():
        side = config.patches.size // config.autoencoder.factor
        shape = (len(fields), DIHEDRAL, config.autoencoder.code_dim, side, side)
        unfinished = home / "latents.new.npy"
        latents = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float16, shape=shape)
        autoencoder.to(device)
        for start in range(0, len(fields), CHUNK):
            rows_n = np.arange(start, min(start + CHUNK, len(fields)))
            x_n3HW = to_float(fields.images(rows_n).to(device))
            for copy in range(DIHEDRAL):
                numbers_n = torch.full((len(rows_n),), copy, device=device)
                with full_precision():
                    z_nChw = autoencoder.latents(dihedral(x_n3HW, numbers_n))
                latents[rows_n, copy] = z_nChw.half().cpu().numpy()
        latents.flush()
        unfinished.replace(path)
    return np.load(path, mmap_mode="r")


def clustered(config: Config, *, home: Path, latents: np.ndarray) -> np.ndarray:
    """Clusters of every patch for every k, int64 (N, S): by an earlier day's clusterer, or one trained here."""
    clusters, path = config.clusters, home / "labels.npy"
    if path.is_file():
        return np.load(path)
    mean_C, std_C = _moments(latents)
    z_NChw = torch.from_numpy(np.asarray(latents[:, 0], dtype=np.float32))
    z_NChw = (z_NChw - mean_C[:, None, None]) / std_C[:, None, None]
    folder = home / "clusterer"
    if (home / "carried" / "clusterer").is_dir():
        clusterer = Clusterer.load(home / "carried" / "clusterer")
    else:
        torch.manual_seed(derive(config.seed, "clusters", "weights"))
        clusterer = build(Architecture(z_NChw.shape[1], clusters.channels, clusters.k))
        network = clusterer.network
        assert isinstance(network, Network), "one network for all k"
        assert clusters.training is not None, "the clusters have a training of their own"
        loss = InfoMaxLoss(clusters, network=network)
        objective = Objective("network", ("network",), loss, clusters.training.phases)
        task = Task(
            "clusters",
            {"network": network},
            (objective,),
            len(z_NChw),
            batch=lambda rows: z_NChw[rows][:, None],
            whole_batch=True,
        )
        _train(task, config=config, training=clusters.training, out=folder)
        clusterer.eval()
        clusterer.sort_by_size({k: torch.from_numpy(x_NS) for k, x_NS in _sizes(clusterer, z_NChw).items()})
        folder.mkdir(exist_ok=True)
        clusterer.cpu().save(folder)
    labels = _labels(clusterer.to(accelerator(config.runtime).device), z_NChw)
    labels_NS = np.stack([labels[k] for k in clusters.k], axis=1)
    np.save(home / "labels.new.npy", labels_NS)
    (home / "labels.new.npy").replace(path)
    return labels_NS


def _moments(latents: np.ndarray) -> tuple[Tensor, Tensor]:
    some = np.asarray(latents[:, 0], dtype=np.float64)
    mean_C, std_C = some.mean(axis=(0, 2, 3)), some.std(axis=(0, 2, 3))
    return torch.from_numpy(mean_C).float(), torch.from_numpy(np.maximum(std_C, 1e-6)).float()


def _labels(clusterer: Clusterer, z_NChw: Tensor) -> dict[int, np.ndarray]:
    device = next(clusterer.parameters()).device
    parts = [clusterer.probabilities(part.to(device)) for part in z_NChw.split(1024)]
    return {k: torch.cat([part[k].argmax(1).cpu() for part in parts]).numpy() for k in clusterer.architecture.ks}


def _sizes(clusterer: Clusterer, z_NChw: Tensor) -> dict[int, np.ndarray]:
    return {k: np.bincount(labels_N, minlength=k) for k, labels_N in _labels(clusterer, z_NChw).items()}


def specified(config: Config, *, home: Path, latents: np.ndarray, labels: np.ndarray) -> GeneratorSpec:
    """The generator's specification: an earlier day's with the frequencies of these patches, or a new one."""
    ks = config.clusters.k
    if (home / "generator.json").is_file():
        return GeneratorSpec.load(home)
    frequencies = {k: tuple((np.bincount(labels[:, i], minlength=k) / len(labels)).tolist()) for i, k in enumerate(ks)}
    if (home / "carried").is_dir():
        spec = GeneratorSpec.load(home / "carried").model_copy(update={"frequencies": frequencies})
    else:
        space = LatentSpace.fit(latents[:, 0], rows=np.arange(len(latents)), whiten=config.diffusion.whiten)
        channels, height, width = latents.shape[2:]
        spec = GeneratorSpec(
            diffusion=config.diffusion,
            sampler=config.samples.sampler,
            space=space,
            shape=space.shape((channels, height, width)),
            ks=ks,
            chosen_k=CHOSEN_K if CHOSEN_K in ks else ks[-1],
            frequencies=frequencies,
            size=config.patches.size,
            mpp=config.patches.mpp,
        )
    spec.save(home)
    return spec


def train_unet(
    config: Config, *, home: Path, latents: np.ndarray, labels: np.ndarray, spec: GeneratorSpec, day: Day
) -> tuple[int, float]:
    """Train until the time is over; images seen in all days, and images a second of the last stretch.

    A stretch ends with a checkpoint. The first one of a call measures the speed, the next one takes the time left.
    """
    training, out = config.diffusion.training, home / "diffusion"
    torch.manual_seed(derive(config.seed, "diffusion", "weights"))
    unet = make_unet(spec.diffusion, shape=spec.shape, conditions=spec.conditions.count)
    before = 0
    if (home / "carried" / "unet").is_dir():
        unet.load_state_dict(open_unet(home / "carried").state_dict())
        before = int(json.loads((home / "carried" / "images.json").read_text(encoding="utf-8"))["images"])
    numbers_NS = torch.from_numpy(Conditions(spec.ks).numbers(labels))

    times: list[float] = []

    def batch(indices: np.ndarray) -> tuple[Tensor, Tensor]:
        times.append(time.time())
        copies, rows = np.divmod(indices, len(latents))
        z_BChw = torch.from_numpy(np.asarray(latents[rows, copies], dtype=np.float32))
        return spec.space.encode(z_BChw), numbers_NS[rows]

    loss = DiffusionLoss(spec.diffusion, unet=unet, conditions=spec.conditions)
    objective = Objective("unet", ("unet",), loss, training.phases)
    task = Task(
        "diffusion",
        {"unet": unet},
        (objective,),
        len(latents),
        batch,
        ema=("unet",),
        versions=DIHEDRAL,
        compiled=(unet,),
    )

    device, checkpoint = resolve_device(day.device), out / "checkpoints" / "last.pt"
    end = time.time() + TINY_SECONDS if day.tiny else day.until - RESERVE / 3
    first = batches = 4 if day.tiny else FIRST_BATCHES
    while True:
        times.clear()
        started, images = time.time(), images_in(checkpoint)
        _train(task, config=config, training=training, out=out, images=images + batches * training.batch_size)
        wait_for(device)
        images = images_in(checkpoint)
        write(home / "images.json", json.dumps({"images": before + images}))
        half = len(times) // 2  # in the first half networks are compiled
        rate = training.batch_size * (len(times) - half) / (time.time() - times[half])
        overhead = time.time() - started - batches * training.batch_size / rate
        left = end - time.time() - 1.5 * overhead
        batches = int(SAFETY * left * rate / training.batch_size)
        if batches < first:
            return before + images, rate


def images_in(checkpoint: Path) -> int:
    """Images seen at the checkpoint of the training loop; 0 where there is none."""
    if not checkpoint.is_file():
        return 0
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["images"])


def _train(
    task: Task, *, config: Config, training: TrainingConfig, out: Path, images: int | None = None
) -> dict[str, nn.Module]:
    """The training loop, up to so many ``images`` in all; it continues from its checkpoint."""
    if images is not None:
        phase = training.phases[0].model_copy(update={"images": images})
        training = training.model_copy(update={"phases": (phase,)})
        objectives = tuple(replace(objective, phases=(phase,)) for objective in task.objectives)
        task = replace(task, objectives=objectives)
    runtime = config.runtime.model_copy(update={"checkpoint_seconds": CHECKPOINT_SECONDS})
    out.mkdir(parents=True, exist_ok=True)
    log = EventLog(out / "log.jsonl")
    return dict(train(task, config=training, runtime=runtime, seed=config.seed, out=out, log=log).modules)


# -- phase 5 -----------------------------------------------------------------------------------------------------------
def pack_generator(day: Day) -> Result:
    """The generator, its U-Net in half precision, as parts; then a contact sheet of its samples."""
    home = day.work / "generator"
    checkpoint = home / "diffusion" / "checkpoints" / "last.pt"
    if not checkpoint.is_file() or not (home / "images.json").is_file():
        return Result(remarks=("no generator yet",))
    spec = GeneratorSpec.load(home)
    unet = make_unet(spec.diffusion, shape=spec.shape, conditions=spec.conditions.count)
    unet.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["averages"]["unet"])

    # What ``histoloom sample`` reads, with the clusterer and the count of images for the next day.
    folder = home / "packed"
    folder.mkdir(exist_ok=True)
    spec.save(folder)
    save_unet(unet.half(), folder / "unet")
    for name in ("autoencoder", "clusterer"):
        carried = home / "carried" / name
        place = carried if carried.is_dir() else home / name
        for path in place.iterdir():
            if path.suffix in (".json", ".safetensors"):
                (folder / name).mkdir(exist_ok=True)
                shutil.copy2(path, folder / name)
    shutil.copy2(home / "images.json", folder)
    archive = home / "generator.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                zipped.write(path, path.relative_to(folder))
    parts = split_file(archive, day.out)
    size, weights = archive.stat().st_size, sum(weight.numel() for weight in unet.parameters())

    draw_sheet(Generator.load(folder, runtime=configuration(day).runtime), home=home, day=day)
    row = (f"{weights / 1e6:.1f} million", f"{size / 2**20:.1f} MiB", str(len(parts)))
    return Result(("weights of the U-Net", "all files", "parts"), (row,), (), {"bytes": float(size)})


def draw_sheet(generator: Generator, *, home: Path, day: Day) -> None:
    """``sheet.jpg``: for each cluster of the chosen k real patches on the left, samples on the right."""
    config, spec = configuration(day), generator.spec
    fields = Fields(day.pack / "fields", size=spec.size, count=config.patches.count or 1)
    labels_N = np.load(home / "labels.npy")[:, spec.ks.index(spec.chosen_k)]
    specs = [
        SampleSpec(k=spec.chosen_k, cluster=cluster, index=index, seed=0)
        for cluster in range(spec.chosen_k)
        for index in range(DRAWN)
    ]
    samples = [sample.image for sample in generator.draw(specs, sampler=spec.sampler)]
    rows = []
    for cluster in range(spec.chosen_k):
        members = np.flatnonzero(labels_N == cluster)[:REAL]
        real = np.full((REAL, spec.size, spec.size, 3), 255, np.uint8)
        if len(members):
            real[: len(members)] = fields.images(members).numpy()
        rows.append(np.concatenate([*real, *samples[cluster * DRAWN : (cluster + 1) * DRAWN]], axis=1))
    Image.fromarray(np.concatenate(rows)).save(day.out / "sheet.jpg", quality=85)

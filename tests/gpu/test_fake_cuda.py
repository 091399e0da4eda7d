"""Whole tiny runs on the stand-in for a GPU, and how often a step waits for it and how much it copies."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import DeviceMismatch, Record, fake_cuda, is_pinned
from torch import nn

from histoloom import pipeline
from histoloom.autoencoder.lpips import LPIPS, FeatureTrunk, Trunk
from histoloom.clustering import cluster_reinit
from histoloom.diffusion import stage as diffusion_stage
from histoloom.diffusion.distillation import DistillConfig, distil
from histoloom.diffusion.generation import generator as generation
from histoloom.diffusion.generation.generator import Generator
from histoloom.errors import UserError
from histoloom.evaluation.results import Distribution, Similarity
from histoloom.run.directory import Run
from histoloom.run.stage import EventLog
from histoloom.setup import init_run
from histoloom.sharing.export import export_generator
from histoloom.training import loop
from histoloom.training.batches import Prefetcher
from histoloom.training.tasks import StepContext

SHORT = (
    "runtime.device=cuda",
    "runtime.fast=off",
    "autoencoder.training.phases.0.images=64",
    "clusters.training.phases.0.images=192",
    "diffusion.training.phases.0.images=64",
    "evaluation.originality=gate",
    "evaluation.extractors=[pixels, lpips-squeeze, encoder]",
)
MODERN = (
    "patches.mpp=1.0",
    "patches.tissue=all",
    "patches.split.by=slide",
    "autoencoder.multipliers=[1, 2]",
    "autoencoder.adversarial.channels=8",
    "autoencoder.adversarial.layers=2",
    "autoencoder.adversarial.start=0",
    "autoencoder.adversarial.warmup=0",
    "clusters.restarts=1",
    "latents.copies=8",
    "diffusion.alignment=0.5",
)
VIEWS = (
    "patches.tissue=all",
    "clusters.features=latents",
    "clusters.positives=views",
    "clusters.surroundings=0",
    "clusters.validity_features=pooled",
)
OF_THE_GENERATOR = ("patches.size", "autoencoder.channels", "diffusion.channels", "diffusion.attention")
PHASES = [{"optimizer": "adam", "lr": 0.003, "images": 32}, {"optimizer": "adadelta", "lr": 0.003, "images": 32}]
PAPER = (
    "patches.size=32",
    "patches.mpp=1.0",
    "patches.count=64",
    "autoencoder.channels=16",
    "autoencoder.perceptual=pyramid",
    "autoencoder.adversarial.channels=8",
    "autoencoder.adversarial.layers=2",
    "autoencoder.adversarial.start=0",
    "autoencoder.training.batch_size=8",
    "autoencoder.training.phases=[{optimizer: adam, lr: 0.003, images: 64}]",
    "autoencoder.code_dim=2",
    "clusters.k=[2, 3]",
    "clusters.channels=16",
    "clusters.null_draws=2",
    "diffusion.channels=[16, 16, 16]",
    "diffusion.attention=[true, true, true]",
    "diffusion.norm_groups=8",
    "diffusion.training.batch_size=8",
    f"diffusion.training.phases={json.dumps(PHASES)}",
    "diffusion.steps=10",
    "clusters.joint.consistency_weights=[0.04, null]",
    "samples.per_cluster=2",
    "samples.sampler.steps=10",
    "runtime.threads=1",
    "runtime.workers=1",
)


# -- the stand-in itself -------------------------------------------------------------------------------------------
@pytest.fixture
def record() -> Iterator[Record]:
    with fake_cuda() as record:
        yield record


@pytest.mark.usefixtures("record")
def test_what_cuda_refuses_is_refused() -> None:
    here, there = torch.arange(4.0), torch.arange(4.0, device="cuda")
    assert there.device == torch.device("cuda:0")
    with pytest.raises(DeviceMismatch, match="at least two devices"):
        here + there
    with pytest.raises(DeviceMismatch, match="at least two devices"):
        torch.cat([here, there])
    with pytest.raises(DeviceMismatch, match="indices"):
        here[there.long()]
    with pytest.raises(DeviceMismatch, match="generator"):
        there.normal_(generator=torch.Generator())
    with pytest.raises(DeviceMismatch, match="generator"):
        torch.randn(2, device="cuda", generator=torch.Generator())
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(there)
    assert (there + torch.tensor(1.0)).tolist() == [1, 2, 3, 4]  # a single number of the CPU is allowed


def test_waits_and_copies_are_counted(record: Record) -> None:
    x = torch.arange(4.0).cuda()
    assert record.totals() == (1, 1, 16)  # from memory that is not pinned
    y = torch.zeros(4).pin_memory().to("cuda", non_blocking=True)
    assert record.totals() == (1, 2, 32)
    (x + y).sum().sqrt().clamp(0, 1)
    assert record.totals() == (1, 2, 32)
    waiting: list[Callable[[], object]] = [
        x.sum().item,
        (x > 1).nonzero,
        lambda: x[x > 1],
        lambda: bool(x[0]),
        x.cpu,
        lambda: x[torch.tensor([1])],
    ]
    for number, wait in enumerate(waiting):
        wait()
        assert record.waits.total() == 2 + number


def test_pinned_memory_must_not_change_while_it_is_copied(record: Record) -> None:
    source = torch.randn(8, pin_memory=True)
    assert is_pinned(source[2:])
    copied = source[2:].to("cuda", non_blocking=True)
    source[3] += 1
    with pytest.raises(DeviceMismatch, match="changed while it was copied"):
        copied.sum().item()
    assert record.waits.total() == 1


def test_what_is_made_on_another_device_is_there_within_the_stand_in_and_afterwards() -> None:
    with fake_cuda(), torch.device("meta"):
        assert torch.empty(1).device.type == nn.Linear(2, 2).weight.device.type == "meta"
    with torch.device("meta"):
        assert torch.empty(1).device.type == nn.Linear(2, 2).weight.device.type == "meta"


@pytest.mark.usefixtures("record")
def test_a_copy_that_did_not_wait_is_not_there_yet() -> None:
    late = torch.ones(3, device="cuda").to("cpu", non_blocking=True)
    assert late.isnan().all()
    torch.cuda.synchronize()
    assert late.tolist() == [1, 1, 1]


@pytest.mark.usefixtures("record")
def test_autocast_rounds_and_overflows_as_half_precision_does() -> None:
    weight = nn.Parameter(torch.full((1, 1), 300.0, device="cuda"))
    x = torch.full((1, 1), 300.0, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        product = x @ weight
        assert (product.dtype, product.item()) == (torch.bfloat16, 90112)
    with torch.autocast("cuda"):
        product = x @ weight
        assert (product.dtype, product.item()) == (torch.float16, float("inf"))
        assert product.softmax(1).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert (x @ weight).item() == 90000
    scaler, optimizer = torch.amp.GradScaler("cuda"), torch.optim.Adam([weight], fused=True)
    scaler.scale(product.float().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.item() == 300  # the step is left out
    assert scaler.get_scale() == 2**15


# -- whole runs ----------------------------------------------------------------------------------------------------
@dataclass
class Watched:
    """A run on the stand-in, and waits, copies and copied bytes at the start of each step, by the training's name."""

    run: Run
    record: Record
    starts: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)

    def of_a_step(self, name: str) -> tuple[float, ...]:
        """What a step between two lines of the log takes: the median over the steps of a training."""
        starts = self.starts[name]
        steps = [[after - before for before, after in zip(*pair, strict=True)] for pair in itertools.pairwise(starts)]
        return tuple(statistics.median_low(numbers) for numbers in zip(*steps, strict=True))


def random_lpips(trunk: Trunk, *, download: bool = True) -> LPIPS:
    """LPIPS of the smallest trunk with random weights, for ``LPIPS.load``."""
    if trunk != "squeeze":
        raise UserError(f"no weights for LPIPS's {trunk} trunk, downloaded or not: {download}")
    with torch.random.fork_rng(devices=[]):
        return LPIPS(FeatureTrunk(trunk), heads=[torch.rand(c) for c in (64, 128, 256, 384, 384, 512, 512)])


class Stand:
    """Runs presets on the stand-in, with as few images as show what a step does."""

    def __init__(self, folder: Path, *, slides: Path, start: Path, tiny: tuple[str, ...]) -> None:
        self.folder, self.slides, self.start, self.tiny = folder, slides, start, tiny

    def run(self, preset: str, *settings: str, precision: str, until: str) -> Watched:
        start = self.start if preset == "tune" else None
        every = [*settings, f"runtime.precision={precision}"]
        run = init_run(self.folder / preset, slides=[self.slides], preset=preset, settings=every, start=start)
        starts: dict[str, list[tuple[int, int, int]]] = {}
        take = Prefetcher.take

        with fake_cuda(bf16=precision == "bf16") as record, pytest.MonkeyPatch.context() as patched:

            def counted_take(reader: Prefetcher, images: int, *, then: int) -> Any:
                starts.setdefault(reader._read.__self__.task.name, []).append(record.totals())  # type: ignore[attr-defined]
                return take(reader, images, then=then)

            patched.setattr(Prefetcher, "take", counted_take)
            patched.setattr(loop, "LOG_EVENTS", 2)
            patched.setattr(diffusion_stage, "CHECKS", 2)
            patched.setattr(cluster_reinit, "CHECKS", 2)
            patched.setattr(diffusion_stage, "CHECKED_IMAGES", 8)
            patched.setitem(generation.BATCH_SIZE, "cuda", 8)
            patched.setattr(LPIPS, "load", random_lpips)
            patched.setattr("histoloom.evaluation.originality.calibration.RATE", 0.2)
            patched.setattr("histoloom.evaluation.originality.calibration.MIN_PER_HALF", 4)
            pipeline.execute(run, until=until)
            if preset == "demo":
                distil(run, DistillConfig(steps=2, images=64))
        return Watched(run, record, starts)


@pytest.fixture(scope="module")
def stand(
    tmp_path_factory: pytest.TempPathFactory, tiny_slides: Path, tiny_run: Path, tiny_settings: tuple[str, ...]
) -> Stand:
    folder = tmp_path_factory.mktemp("fake-cuda")
    export_generator(Run.open(tiny_run), folder / "generator")
    return Stand(folder, slides=tiny_slides, start=folder / "generator", tiny=tiny_settings)


@pytest.fixture(scope="module")
def demo(stand: Stand) -> Watched:
    return stand.run("demo", *stand.tiny, *SHORT, precision="fp32", until="report")


@pytest.fixture(scope="module")
def modern(stand: Stand) -> Watched:
    return stand.run("modern", *stand.tiny, *MODERN, *SHORT, precision="fp16", until="samples")


@pytest.fixture(scope="module")
def paper(stand: Stand) -> Watched:
    return stand.run("paper", *PAPER, *SHORT[:2], precision="bf16", until="samples")


@pytest.fixture(scope="module")
def tune(stand: Stand) -> Watched:
    own = [setting for setting in stand.tiny if not setting.startswith(OF_THE_GENERATOR)]
    return stand.run("tune", *own, *VIEWS, *SHORT, precision="bf16", until="samples")


@pytest.mark.parametrize("preset", ["demo", "modern", "paper", "tune"])
def test_a_run_on_a_gpu_is_finished(preset: str, request: pytest.FixtureRequest) -> None:
    watched: Watched = request.getfixturevalue(preset)
    for name in ("autoencoder", "clusters"):
        events = list(EventLog(watched.run.require(name) / "log.jsonl").read())
        losses = [float(str(value)) for event in events for key, value in event.items() if key.endswith(".loss")]
        assert losses
        assert np.isfinite(losses).all()
    samples = list(watched.run.require("samples").rglob("*.png"))
    assert len(samples) >= 5


def test_metrics_of_samples_wait_once_a_comparison(demo: Watched) -> None:
    similarity = Similarity.load(demo.run.require("evaluation"))
    distribution = Distribution.load(demo.run.require("evaluation"))
    assert similarity is not None
    assert {entry.metric for entry in similarity.entries} == {"ssim", "ms_ssim", "lpips"}
    assert distribution is not None
    assert not distribution.missing
    compared = {(entry.k, entry.cluster, entry.comparison) for entry in similarity.entries if entry.cluster is not None}
    waits = {place: n for place, n in demo.record.waits.items() if place.startswith("evaluation/pair_metrics.py")}
    assert sum(n for place, n in waits.items() if place.endswith(" to cpu")) == len(compared)


def test_a_planted_mistake_is_found(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepContext, "_sliced", lambda context, whole: whole[context.rows])
    with pytest.raises(DeviceMismatch, match="at least two devices"):
        stand.run("cpu", *stand.tiny, *SHORT, precision="fp32", until="autoencoder")


BUDGET = {
    "demo autoencoder": (0, 3, 25_664),
    "demo clusters": (0, 7, 3_328),
    "demo diffusion": (0, 6, 33_120),
    "demo student": (0, 5, 65_792),
    "demo cluster classifier, real": (0, 3, 49_408),
    "modern autoencoder": (0, 3, 25_664),
    "modern clusters": (0, 7, 3_328),
    "modern diffusion": (0, 7, 196_960),
    "paper autoencoder": (0, 1, 24_576),
    "paper joint-k2": (0, 7, 33_056),
    "tune clusters": (0, 18, 273_152),
}


@pytest.mark.parametrize("what", BUDGET)
def test_a_step_waits_and_copies_no_more_than_its_budget(what: str, request: pytest.FixtureRequest) -> None:
    preset, training = what.split(maxsplit=1)
    watched: Watched = request.getfixturevalue(preset)
    assert watched.of_a_step(training) == BUDGET[what]


@pytest.mark.parametrize(
    ("preset", "method", "of_a_step"), [("demo", "unipc", (0, 0, 8)), ("paper", "ddpm", (0, 1, 4104))]
)
def test_sampling_waits_once_a_batch(
    preset: str, method: str, of_a_step: tuple[int, int, int], request: pytest.FixtureRequest
) -> None:
    watched: Watched = request.getfixturevalue(preset)
    with fake_cuda() as record, pytest.MonkeyPatch.context() as patched:
        patched.setitem(generation.BATCH_SIZE, "cuda", 8)
        generator = Generator.load(watched.run.path, runtime=watched.run.config.runtime)
        sampler = generator.spec.sampler.model_copy(update={"method": method, "guidance": 1.0})
        costs = []
        for steps in (2, 3, 4):  # the first copies what stays on the device
            before = record.totals()
            generator.sample(n=1, sampler=sampler.model_copy(update={"steps": steps}))
            costs.append([after - start for after, start in zip(record.totals(), before, strict=True)])
    assert tuple(after - before for after, before in zip(costs[2], costs[1], strict=True)) == of_a_step
    assert costs[2][0] == 1

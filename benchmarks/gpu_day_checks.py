"""Phases 1 and 2 of a GPU day: what the machine is and can, and whether trainings are right on it.

Used by gpu_day.py. Peaks are those of this card, measured: shares in phase 3 are of them.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
from cost import autoencoder_task, clusters_task, diffusion_task
from gpu_day import Day, Result, environment

from histoloom.config import Config, TrainingConfig, make_config, read_preset, with_settings
from histoloom.run.stage import EventLog
from histoloom.training.devices import full_precision, resolve_device, resolve_precision
from histoloom.training.loop import Task, Trained, train

MATRIX, COPIED = 8192, 2**32
"""side of the matrices of the peak, and bytes of the copy"""
REPEATS = 20
PACKAGES = ("torch", "triton", "numpy", "diffusers", "accelerate", "pydantic", "safetensors")
PIPELINE_NEEDS = ("h5py", "matplotlib", "openslide", "pandas", "pyarrow", "scipy", "shapely", "skimage", "sklearn")
PIPELINE_NEEDS_TOO = ("jinja2", "tifffile", "torchmetrics")

SMALL = (
    "patches.size=32",
    "autoencoder.channels=16",
    "autoencoder.perceptual=pyramid",
    "autoencoder.training.batch_size=8",
    "autoencoder.training.warmup_images=0",
    "clusters.features=latents",
    "clusters.positives=views",
    "clusters.surroundings=0",
    "clusters.independence=0",
    "clusters.validity_features=pooled",
    "clusters.k=[2, 3]",
    "clusters.channels=16",
    "clusters.training.batch_size=32",
    "diffusion.channels=[32, 64]",
    "diffusion.attention=[false, true]",
    "diffusion.training.batch_size=8",
    "diffusion.training.warmup_images=0",
)
"""the preset demo, made small: for checks of the numbers"""
PIPELINE = (
    *SMALL,
    "patches.size=64",
    "patches.count=300",
    "autoencoder.training.phases.0.images=1600",
    "clusters.null_draws=2",
    "clusters.training.phases.0.images=3200",
    "diffusion.training.phases.0.images=1600",
    "samples.per_cluster=8",
    "samples.sampler.steps=5",
    "evaluation.pairs=8",
    "evaluation.bootstrap=50",
    "evaluation.extractors=[pixels, encoder]",
    "report.map_slides=1",
)


def configured(preset: str, day: Day, *settings: str) -> Config:
    """A preset's configuration on the day's device."""
    values = read_preset(preset) | {"slides": {"paths": ["/unused"]}}
    return make_config(with_settings(values, [f"runtime.device={day.device}", *settings, *day.settings]))


def wait_for(device: str) -> None:
    """Return when the device has computed everything."""
    if device != "cpu":
        torch.accelerator.synchronize()


def median_seconds(work: Callable[[], object], *, device: str, repeats: int) -> float:
    """Of one call, after a few that warm up."""
    times = []
    for number in range(3 + repeats):
        wait_for(device)
        started = time.perf_counter()
        work()
        wait_for(device)
        if number >= 3:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


# -- phase 1 -----------------------------------------------------------------------------------------------------------
def machine(day: Day) -> Result:
    """Versions, the card, and its peaks: a matrix product of random numbers in each format, and a copy."""
    device = resolve_device(day.device)
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES if find_spec(name)]
    absent = [name for name in (*PIPELINE_NEEDS, *PIPELINE_NEEDS_TOO) if find_spec(name) is None]
    remarks = [
        f"Python {platform.python_version()}, {', '.join(versions)}",
        f"{os.cpu_count()} CPU cores; precision that `auto` chooses: {resolve_precision('auto', device=device)}",
        f"absent, and needed for a whole run: {', '.join(absent) or 'nothing'}",
    ]
    if device.startswith("cuda"):
        card = torch.cuda.get_device_properties(device)
        asked = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        remarks.append(
            f"{card.name}, {card.total_memory / 2**30:.1f} GiB, compute capability {card.major}.{card.minor}, "
            f"CUDA {torch.version.cuda}, driver and clocks: {driver or 'nvidia-smi does not answer'}"
        )

    side, copied = (64, 2**20) if day.tiny else (MATRIX, COPIED)
    repeats = 3 if day.tiny else REPEATS
    rows, values = [], {}
    formats = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
    for name, dtype in formats.items():
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        seconds = median_seconds(lambda a=a, b=b: a @ b, device=device, repeats=repeats)  # type: ignore[misc]
        values[name] = 2 * side**3 / seconds
        rows.append((f"matrix product of {side}, {name}", f"{values[name] / 1e12:.3g} TFLOP/s"))
    torch.set_float32_matmul_precision("highest")
    source = torch.randint(256, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device=device, repeats=repeats)
    values["bytes"] = 2 * copied / seconds
    rows.append(("copy within the memory, read and written", f"{values['bytes'] / 1e9:.4g} GB/s"))
    return Result(("measured", "peak"), tuple(rows), tuple(remarks), values)


# -- phase 2 -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Variant:
    """How a training is computed; ``exact``: without TensorFloat-32."""

    device: str
    precision: str
    fast: str

    @property
    def exact(self) -> bool:
        return self.precision == "fp32"

    def __str__(self) -> str:
        return f"{self.device}, {self.precision}, fast {self.fast}"


def small_trainings(config: Config) -> dict[str, Callable[[], tuple[Task, TrainingConfig]]]:
    """The three trainings on random data, always the same, each made anew by a call."""

    def seeded(make: Callable[[], Task], training: TrainingConfig) -> tuple[Task, TrainingConfig]:
        torch.manual_seed(0)
        return make(), training

    auto, size = config.autoencoder, config.patches.size
    shape = (auto.code_dim, size // auto.factor, size // auto.factor)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (256, size, size, 3), generator=generator, dtype=torch.uint8)
    z = torch.randn(256, *shape, generator=generator)
    clusters = config.clusters.training
    assert clusters is not None, "the preset trains the clusters by themselves"
    return {
        "autoencoder": lambda: seeded(lambda: autoencoder_task(config, images_NHW3=images), auto.training),
        "clusters": lambda: seeded(lambda: clusters_task(config, shape=shape), clusters),
        "diffusion": lambda: seeded(lambda: diffusion_task(config, z_NChw=z), config.diffusion.training),
    }


def trained(
    name: str, config: Config, *, variant: Variant, steps: int, out: Path, checkpoint_seconds: float = 3600
) -> Trained:
    """One of the three trainings for so many steps; its log is ``out/log.jsonl``."""
    task, training = small_trainings(config)[name]()
    phase = training.phases[0].model_copy(update={"images": steps * training.batch_size, "epochs": None})
    training = training.model_copy(update={"phases": (phase,)})
    values = {"device": variant.device, "precision": variant.precision, "fast": variant.fast}
    runtime = config.runtime.model_copy(update=values | {"checkpoint_seconds": checkpoint_seconds})
    out.mkdir(parents=True, exist_ok=True)
    with full_precision() if variant.exact else nullcontext():
        return train(task, config=training, runtime=runtime, seed=0, out=out, log=EventLog(out / "log.jsonl"))


def losses(day: Day) -> Result:
    """Each training's losses on the device, plain, fast and in mixed precision, against the CPU's, step by step."""
    config = configured("demo", day, *SMALL)
    device, steps = resolve_device(day.device), 4 if day.tiny else 20
    reference = Variant("cpu", "fp32", "off")
    variants = [Variant(device, "fp32", "off")]
    if not day.tiny:
        variants += [Variant(device, "fp32", fast) for fast in ("on", "graphs")]
        variants += [Variant(device, "auto", "off"), Variant(device, "auto", "on")]

    rows, values = [], {}
    for name in small_trainings(config):
        found = {}
        for number, variant in enumerate((reference, *variants)):
            out = day.work / "losses" / f"{name}-{number}"
            started = time.perf_counter()
            trained(name, config, variant=variant, steps=steps, out=out)
            seconds = time.perf_counter() - started
            events = [event for event in EventLog(out / "log.jsonl").read() if "images" in event]
            keys = [key for key in events[0] if key.endswith(".loss")]
            found[number] = [float(str(event[key])) for event in events[-steps:] for key in keys]
            pairs = list(zip(found[number], found[0], strict=True))
            largest = max(abs(a - b) / max(abs(b), 1e-6) for a, b in pairs)
            values[f"{name}, {variant}"] = largest
            rows.append(
                (name, str(variant), f"{pairs[0][0]:.5f}", f"{pairs[-1][0]:.5f}", f"{largest:.1e}", f"{seconds:.1f}")
            )
    columns = ("training", "variant", "first loss", "last loss", "largest relative difference", "seconds")
    remark = "Differences are from the first row of the training, over all steps; fp32 is computed without TF32."
    return Result(columns, tuple(rows), (remark,), values)


def resume(day: Day) -> Result:
    """A training is killed (SIGKILL) and continued, and compared with one that was not."""
    config, steps = configured("demo", day, *SMALL), 24 if day.tiny else 400
    variant = Variant(resolve_device(day.device), "fp32", "off")
    folder = day.work / "resume"
    shutil.rmtree(folder, ignore_errors=True)  # of a try that was cut off
    whole = trained("diffusion", config, variant=variant, steps=steps, out=folder / "whole")

    killed = folder / "killed"
    checkpoint = killed / "checkpoints" / "last.pt"
    # A process that has used a GPU cannot be forked; on the CPU a fork saves the imports.
    is_cpu = variant.device == "cpu"
    context = multiprocessing.get_context("fork") if is_cpu else multiprocessing.get_context("spawn")
    arguments = (str(killed), day.device, steps)
    child = context.Process(target=train_until_killed, args=arguments)
    child.start()
    while not checkpoint.is_file() and child.is_alive():
        time.sleep(0.005)
    child.kill()
    child.join()
    if child.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the training ended with status {child.exitcode} before it could be killed")

    images = int(torch.load(checkpoint, map_location="cpu", weights_only=True)["images"])
    again = trained("diffusion", config, variant=variant, steps=steps, out=killed)
    pairs = zip(whole.modules["unet"].parameters(), again.modules["unet"].parameters(), strict=True)
    largest = max(float((a - b).abs().max()) for a, b in pairs)
    values = {"images": float(images), "total": float(whole.images), "difference": largest}
    row = (f"{images:,}", f"{whole.images:,}", f"{largest:.1e}")
    return Result(("images before the kill", "images in all", "largest difference of a weight"), (row,), (), values)


def train_until_killed(out: str, device: str, steps: int) -> None:
    """The training of ``resume``, with a checkpoint after every step."""
    torch.set_num_threads(1)  # a fork has lost the threads of its parent
    nowhere = Path(out)
    day = Day(pack=nowhere, work=nowhere, out=nowhere, device=device, tiny=True, until=0.0)
    variant = Variant(resolve_device(device), "fp32", "off")
    config = configured("demo", day, *SMALL)
    trained("diffusion", config, variant=variant, steps=steps, out=nowhere, checkpoint_seconds=0)


def pipeline(day: Day) -> Result:
    """``histoloom init`` and ``run``, small and whole, on the fields; where the machine has the packages for it."""
    absent = [name for name in (*PIPELINE_NEEDS, *PIPELINE_NEEDS_TOO) if find_spec(name) is None]
    if absent:
        return Result(remarks=(f"not run: the machine lacks {', '.join(absent)}",))
    run = day.work / "run"
    settings = [f"--set={setting}" for setting in (*PIPELINE, f"runtime.device={day.device}")]
    histoloom = [sys.executable, "-m", "histoloom"]
    commands = [] if run.is_dir() else [[*histoloom, "init", str(run), "--slides", str(day.pack / "fields")]]
    for command in commands:
        command += ["--preset", "demo", *settings]
    seconds = {}
    for command in (*commands, [*histoloom, "run", str(run)], [*histoloom, "status", str(run)]):
        started = time.perf_counter()
        subprocess.run(command, env=environment(day), check=True)
        seconds[command[3]] = time.perf_counter() - started
    if not (run / "report.html").is_file():
        raise RuntimeError(f"{run} has no report.html")
    return Result(("command", "seconds"), tuple((name, f"{value:.1f}") for name, value in seconds.items()))

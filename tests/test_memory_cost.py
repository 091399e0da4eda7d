"""The estimate of a run's memory, beside the memory that its trainings take on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from histoloom import memory_cost
from histoloom.config import Config, make_config, read_preset, with_settings
from histoloom.memory_cost import GIB, Autocast, PeakMemory, StageMemory, estimate

LARGE = (
    "patches.size=128",
    "autoencoder.perceptual=pyramid",
    "autoencoder.training.batch_size=6",
    "autoencoder.adversarial={weight: 0.5, start: 0.0, warmup: 0, channels: 32, max_adaptive: null}",
    "diffusion.channels=[64, 128]",
    "diffusion.attention=[false, false]",
    "diffusion.training.batch_size=20",
    "diffusion.training.ema=0.99",
    "runtime.device=cpu",
    "runtime.precision=fp32",
    "runtime.fast=off",
    "runtime.threads=1",
)
"""Trainings that take some hundred megabytes."""

MEASURE = """
import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import psutil
import torch

from histoloom import memory_cost
from histoloom.config import make_config, read_preset, with_settings
from histoloom.run.stage import EventLog
from histoloom.training.loop import train

config = make_config(with_settings(read_preset("demo") | {"slides": {"paths": ["/unused"]}}, sys.argv[1:]))
memory_cost.META = torch.device("cpu")  # the same networks, with values


def peak(task, training, batch):
    phases = tuple(phase.model_copy(update={"images": 2 * training.batch_size}) for phase in training.phases)
    training = training.model_copy(update={"phases": phases})
    networks = sum(v.nbytes for m in task.modules.values() for v in (*m.parameters(), *m.buffers()))
    out = Path(mkdtemp())
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the largest so far is the present
    train(task=replace(task, batch=batch), config=training, runtime=config.runtime, seed=0, out=out,
          log=EventLog(out / "log.jsonl"))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 - before + networks


side, ks = config.patches.size, len(config.clusters.k)
task, shape = memory_cost.diffusion_task(config, n=1000)
peaks = {
    "autoencoder": peak(
        memory_cost.autoencoder_task(config, n=1000),
        config.autoencoder.training,
        lambda rows: torch.randint(256, (len(rows), side, side, 3), dtype=torch.uint8),
    ),
    "diffusion": peak(
        task,
        config.diffusion.training,
        lambda rows: (torch.randn(len(rows), *shape), torch.zeros(len(rows), ks).long()),
    ),
}
print("PEAKS" + json.dumps(peaks))
"""


def configured(*settings: str, preset: str = "demo") -> Config:
    return make_config(with_settings(read_preset(preset) | {"slides": {"paths": ["/unused"]}}, settings))


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from Linux's /proc")
def test_trainings_take_what_was_estimated() -> None:
    # Memory that is released goes back to the system, so that the process's peak is that of its tensors.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *LARGE], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout.split("PEAKS")[1])
    estimated = {part.stage: part.peak for part in estimate(configured(*LARGE)).stages}
    for stage, peak in peaks.items():
        assert 0.8 < estimated[stage] / peak < 1.2, (stage, estimated[stage], peak)


def test_tensors_count_from_their_birth_to_their_end() -> None:
    network = nn.Linear(256, 1024, bias=False, device="meta")  # 1 MiB
    with PeakMemory(network) as memory, torch.no_grad():
        x_BD = torch.empty(1024, 256, device="meta")  # 1 MiB
        y_BD = network(x_BD)  # 4 MiB
        view_BD = y_BD.view(-1)
        del y_BD
        assert memory.live == 6 * 2**20
        del view_BD
        torch.empty(10, device="meta")
    assert (memory.live, memory.peak) == (2 * 2**20, 6 * 2**20)


def test_mixed_precision_halves_activations_and_keeps_normalisations() -> None:
    x_NCHW = torch.empty(1, 8, 4, 4, device="meta")
    convolution, norm = nn.Conv2d(8, 8, 3, device="meta"), nn.GroupNorm(2, 8, device="meta")
    with Autocast(torch.bfloat16):
        assert convolution(x_NCHW).dtype == torch.bfloat16
        assert norm(convolution(x_NCHW)).dtype == torch.float32
    with Autocast(None):
        assert convolution(x_NCHW).dtype == torch.float32


@pytest.mark.parametrize(
    ("accumulate", "capacity", "line"),
    [
        ("1", 17, "all fit"),
        (
            "1",
            16,
            "autoencoder 17.2, latents 2.1, diffusion 8.6 GB, of 17 GB on this device; --set runtime.accumulate=2",
        ),
        ("1", 4, "--set runtime.accumulate=8 makes it fit"),
        ("4", 5, "all fit"),
        ("auto", 4, "runtime.accumulate=auto will need 8 micro-batches"),
        ("1", 2, "autoencoder does not fit; take a smaller network"),
    ],
)
def test_the_line_says_what_makes_a_training_fit(
    accumulate: str, capacity: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device of which 1 GiB is kept for other things; sizes are in GiB, the line is in GB."""
    trainings = [("diffusion", lambda parts: 8 * GIB // parts, 16), ("autoencoder", lambda parts: 16 * GIB // parts, 8)]
    monkeypatch.setattr(memory_cost, "_trainings", lambda _config: trainings)
    monkeypatch.setattr(memory_cost, "_evaluations", lambda _config, **_kind: [StageMemory("latents", 2 * GIB)])
    config = configured(f"runtime.accumulate={accumulate}", "runtime.device=cpu")
    assert line in str(estimate(config, capacity=capacity * GIB))


def test_only_a_run_on_a_gpu_gets_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_cost.describe(configured("runtime.device=cpu")) == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory_cost.describe(configured("runtime.device=cuda")) == ""

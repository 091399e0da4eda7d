"""The cost of a run that ``init`` and the demo print: operations by hand, every preset, and the line itself."""

from __future__ import annotations

import itertools
import logging
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from histoloom import cost, demo
from histoloom.autoencoder.losses import PyramidLoss, VQGANLosses
from histoloom.autoencoder.stage import make_task
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.cli.app import app
from histoloom.config import Config, make_config, read_preset, with_settings
from histoloom.cost import Cost, StageCost, Work, count, estimate
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.process import DiffusionLoss
from histoloom.diffusion.model.unet import make_unet
from histoloom.run.directory import Run
from histoloom.seeding import torch_generator
from histoloom.training.tasks import StepContext

PRESETS = ("cpu", "demo", "modern", "paper", "starter", "tune")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is small; the counts stay those of the whole networks."""
    monkeypatch.setattr(cost, "TIMED_OPERATIONS", {"cpu": (1e8, 1e8)})
    monkeypatch.setattr(cost, "TIMED_SECONDS", 0.0)


def configured(preset: str, *settings: str) -> Config:
    values = read_preset(preset) | {"slides": {"paths": ["/unused"]}}
    return make_config(with_settings(values, ["runtime.device=cpu", "runtime.threads=1", *settings]))


def ticking() -> Callable[[], float]:
    """A clock on which each forward pass takes a second."""
    return itertools.count().__next__


def by_stage(cost: Cost) -> dict[str, StageCost]:
    return {stage.stage: stage for stage in cost.stages}


def test_operations_of_a_convolution_a_linear_layer_and_attention() -> None:
    convolution = nn.Conv2d(3, 8, 5, stride=2, padding=2)
    assert count(convolution, torch.zeros(2, 3, 16, 16)) == 2 * (2 * 3 * 5 * 5 * 8 * 8 * 8)
    assert count(nn.Linear(7, 11), torch.zeros(3, 7)) == 2 * 3 * 7 * 11
    tokens = torch.zeros(2, 4, 10, 6, device="meta")  # batch, heads, positions, width
    attention = count(lambda x: F.scaled_dot_product_attention(x, x, x), tokens)
    assert attention == 2 * 4 * 2 * (2 * 10 * 10 * 6)  # queries with keys, weights with values


def context(*, images: int, batch_size: int) -> StepContext:
    return StepContext(
        images=images,
        step=0,
        progress=images / 100,
        device=torch.device("cpu"),
        generator=torch_generator(0, "test"),
        rows=slice(0, batch_size),
        batch_size=batch_size,
    )


@pytest.mark.parametrize("max_adaptive", ["null", "0.1"])
def test_a_training_step_of_the_autoencoder_is_counted_as_it_is_computed(max_adaptive: str) -> None:
    """Within 5 %: the first layer has no gradient of its input, and the codebook's look-up is not counted."""
    adversarial = "{weight: 0.5, start: 0.0, warmup: 0, channels: 16, max_adaptive: " + max_adaptive + "}"
    config = configured("demo", "autoencoder.perceptual=pyramid", f"autoencoder.adversarial={adversarial}")
    task = make_task(config.autoencoder, seed=0, n=100)
    autoencoder, discriminator = task.modules["autoencoder"], task.modules["discriminator"]
    assert isinstance(autoencoder, Autoencoder)
    losses = VQGANLosses(
        config.autoencoder, autoencoder=autoencoder, discriminator=discriminator, perceptual=PyramidLoss()
    )
    images_BHW3 = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    step = context(images=50, batch_size=2)
    with FlopCounterMode(display=False) as counter:
        discriminator.requires_grad_(False)
        losses.autoencoder_loss(images_BHW3, step)[0].backward()
        discriminator.requires_grad_(True)
        losses.discriminator_loss(images_BHW3, step)[0].backward()

    counted = by_stage(estimate(config, clock=ticking()))["autoencoder"].work.operations
    assert counted == pytest.approx(counter.get_total_flops() / 2, rel=0.05)


def test_a_training_step_of_the_diffusion_model_is_counted_as_it_is_computed() -> None:
    config = configured("demo", "diffusion.attention=[false, false, false]")
    conditions = Conditions(config.clusters.k)
    unet = make_unet(config.diffusion, shape=(16, 16, 16), conditions=conditions.count)
    loss = DiffusionLoss(config.diffusion, unet=unet, conditions=conditions)
    batch = torch.zeros(2, 16, 16, 16), torch.zeros(2, len(conditions.ks), dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        loss(batch, context(images=0, batch_size=2))[0].backward()

    counted = by_stage(estimate(config, clock=ticking()))["diffusion"].work.operations
    assert counted == pytest.approx(counter.get_total_flops() / 2, rel=0.05)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_an_estimate(preset: str) -> None:
    stages = by_stage(estimate(configured(preset), clock=time.process_time))
    trained = {"clusters"} if preset == "paper" else {"clusters", "diffusion"}
    assert set(stages) == {"autoencoder", "latents", "samples"} | trained
    for stage in stages.values():
        assert stage.images > 0
        assert stage.work.operations > 1e6
        assert 0 < stage.hours < 1e6


def test_the_preset_paper_has_the_operations_of_its_networks() -> None:
    stages = by_stage(estimate(configured("paper"), clock=ticking()))
    counted = {name: (stage.images, round(stage.work.operations / 1e9, 1)) for name, stage in stages.items()}
    assert counted == {
        "autoencoder": (200_000, 69.8),
        "latents": (10_000, 6.8),
        "clusters": (7 * 8_000_000, 52.3),
        "samples": (9_100, 15_433.6),
    }


def test_a_stage_takes_as_long_as_it_has_images() -> None:
    latents = (  # features of other kinds are computed once, whatever the restarts
        "clusters.features=latents",
        "clusters.positives=views",
        "clusters.surroundings=0",
        "clusters.validity_features=pooled",
    )
    short = by_stage(estimate(configured("demo", *latents), clock=ticking()))
    settings = ("diffusion.training.phases.0.images=24000", "samples.per_cluster=16", "clusters.restarts=2")
    long = by_stage(estimate(configured("demo", *latents, *settings), clock=ticking()))
    times = {name: long[name].hours / short[name].hours for name in short}
    assert times == pytest.approx({"autoencoder": 1, "latents": 1, "clusters": 2, "diffusion": 2, "samples": 2})


def test_an_epoch_has_as_many_images_as_are_not_held_out() -> None:
    settings = ("patches.count=1000", "patches.split.holdout=0.25")
    stages = by_stage(estimate(configured("paper", *settings), clock=ticking()))
    assert stages["autoencoder"].images == 20 * 750
    assert stages["clusters"].images == 7 * 800 * 750
    assert stages["latents"].images == 1000


@pytest.mark.parametrize(
    "settings",
    [
        ("patches.sampling=grid", "patches.count=null"),
        ("patches.size=16", "diffusion.channels=[64, 128]", "diffusion.attention=[false, true]"),
        ("clusters.features=pooled", "samples.k=chosen"),
        ("clusters.features=[perceptual, codes]", "clusters.surroundings=0"),
    ],
)
def test_other_settings_have_an_estimate(settings: tuple[str, ...]) -> None:
    assert 0 < estimate(configured("demo", *settings), clock=time.process_time).hours < 100


def test_surroundings_cost_as_much_as_the_patches_of_their_size() -> None:
    """At 128 px a field's image is as large as a patch; both pass the trunk once in each turn."""
    operations = [
        by_stage(estimate(configured("cpu", f"clusters.surroundings={weight}"), clock=ticking()))["clusters"]
        for weight in (0, 0.5)
    ]
    without, with_fields = (stage.images * stage.work.operations for stage in operations)
    assert with_fields / without == pytest.approx(2, rel=0.1)


def test_a_large_network_is_timed_on_a_part_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimate(configured("demo"), clock=ticking())
    monkeypatch.setattr(cost, "TIMED_OPERATIONS", {"cpu": (2e7, 2e7)})
    part = estimate(configured("demo"), clock=ticking())
    for before, after in zip(whole.stages, part.stages, strict=True):
        assert after.work.operations == before.work.operations
        assert after.work.seconds >= before.work.seconds  # a second for less work


def test_the_line() -> None:
    stages = (StageCost("autoencoder", 3600, Work(1e9, 6.0)), StageCost("clusters", 3600, Work(1e9, 0.24)))
    few = Cost(stages, ks=2)
    assert str(few) == "about 6.2 hours on this machine (autoencoder 6.0, clusters 0.2, evaluation not counted)"
    brief = Cost((StageCost("samples", 60, Work(1e9, 12.0)),), ks=2)
    assert str(brief) == "about 12 minutes on this machine (samples 12, evaluation not counted)"
    joint = Cost((stages[0], replace(stages[1], images=36_000_000, each_k=True)), ks=2)
    assert str(joint) == (
        "about 2,400 hours, or 100 days, on this machine (autoencoder 6.0, clusters 2,400, evaluation not counted); "
        "with one k in place of 2, about 1,200 hours"
    )


def test_an_estimate_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    estimate(configured("demo"))
    assert torch.equal(torch.rand(4), expected)


def test_the_demo_begins_with_the_estimate_and_does_not_repeat_it(
    tiny_settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(demo, "SLIDES", 3)
    monkeypatch.setattr(demo, "SLIDE_SIDE", 512)
    caplog.set_level(logging.INFO, logger="histoloom")
    for lines in (1, 0):
        caplog.clear()
        demo.run_demo(tmp_path, settings=tiny_settings, until="patches", from_scratch=True)
        estimates = [message.startswith("about ") for message in caplog.messages]
        assert sum(estimates) == lines
        assert estimates[0] == bool(lines)
        assert ("patches: started (stage 1 of 8)" in caplog.messages) == bool(lines)


def test_the_demo_begins_with_the_starter_and_continues_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(demo, "SLIDES", 3)
    monkeypatch.setattr(demo, "SLIDE_SIDE", 512)
    monkeypatch.setattr("histoloom.cost.describe", lambda config: f"about {config.diffusion.training.phases[0].images}")
    caplog.set_level(logging.INFO, logger="histoloom")
    few = ["patches.count=24", "runtime.workers=1"]
    for scratch in (False, True, False):  # what the first call began, a later one does not change
        demo.run_demo(tmp_path, settings=few, until="patches", from_scratch=scratch)
        config = Run.open(tmp_path / "run").config
        assert config.start is not None
        assert (config.preset, config.patches.size, config.patches.count) == ("tune", 64, 24)
    assert caplog.messages[0] == "about 16000"
    assert "begin with the weights of the starter generator" in caplog.messages[1]


def test_the_demo_ends_with_the_report_the_atlas_and_what_to_type(tmp_path: Path) -> None:
    """The commands are the command line's own."""
    run = tmp_path / "my demo" / "run"
    report, atlas, *_, init, execute, last = demo.next_steps(run / "report.html").splitlines()
    assert report == f"report: {run / 'report.html'}"
    assert shlex.split(atlas) == ["atlas:", "histoloom", "atlas", str(run)]
    for line, name in ((init, "init"), (execute, "run"), (last, "atlas")):
        histoloom, command, *words = shlex.split(line)
        assert (histoloom, command) == ("histoloom", name)
        help_text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        assert all(word in help_text for word in words if word.startswith("--"))

"""The benchmark of cheaper trainings: its variants are valid, and its denoising error is comparable."""

from __future__ import annotations

from pathlib import Path

import cheaper_training
import numpy as np
import pytest
import torch
from cheaper_training import VARIANTS, Real, denoising_error, loss_curves

from histoloom.config import make_config, read_preset, with_settings
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.model.unet import open_unet, save_unet
from histoloom.run.directory import Run
from histoloom.run.stage import EventLog


def test_every_variant_is_another_valid_change_of_the_preset() -> None:
    values = {**read_preset("starter"), "slides": {"paths": ["/slides"]}}
    configs = {name: make_config(with_settings(values, settings)) for name, settings in VARIANTS.items()}
    assert [name for name, config in configs.items() if config == make_config(values)] == ["base"]
    assert all(one != other for a, one in configs.items() for b, other in configs.items() if a != b)


def test_a_network_that_predicts_nothing_has_the_error_of_its_data(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero as v is wrong by v itself, whose mean square is 1; a trained network is nearer."""
    monkeypatch.setattr(cheaper_training, "SIGMAS", (0.5, 2.0))
    run = Run.open(tiny_run)
    real = Real.of(run, clusters=run.require("clusters"), cache=tmp_path)
    assert sum(real.quotas(40).values()) == 40
    assert set(real.quotas(40)) == set(np.unique(real.labels_N[real.patches.rows("holdout")]).tolist())
    device = torch.device("cpu")
    trained = denoising_error(run, folder=run.require("diffusion"), real=real, device=device)

    unet = open_unet(run.require("diffusion"))
    with torch.no_grad():
        for value in unet.get_submodule("conv_out").parameters():
            value.zero_()
    save_unet(unet, tmp_path / "unet")
    GeneratorSpec.load(run.require("diffusion")).save(tmp_path)
    untrained = denoising_error(run, folder=tmp_path, real=real, device=device)
    assert untrained == pytest.approx(1.0, abs=0.2)
    assert trained < untrained


def test_errors_are_compared_with_those_of_base_at_the_same_images(tmp_path: Path) -> None:
    for name, shift in (("base", 0.0), ("other", -0.25)):
        log = EventLog(tmp_path / f"{name}-0123" / "log.jsonl")
        log.path.parent.mkdir()
        log.write({"message": "latents"})
        for images in range(10, 81, 10):
            log.write({"images": images, "unet.mse": 1 - images / 100 + shift})
    base, other = loss_curves(tmp_path).splitlines()
    assert base.split()[0] == "base"
    assert "to 20: 0.850 (+0.0000 +- 0.0000)" in base
    assert "to 60: 0.200 (-0.2500 +- 0.0000)" in other

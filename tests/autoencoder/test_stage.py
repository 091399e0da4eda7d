"""The stage ``autoencoder`` with a discriminator: it measures whether the discriminator still does its work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from histoloom.autoencoder.quality import ReconstructionQuality, discriminator_accuracy
from histoloom.autoencoder.vqgan import Discriminator
from histoloom.config import AdversarialConfig, RuntimeConfig
from histoloom.pipeline import execute
from histoloom.setup import init_run


class Brightness(Discriminator):
    """Scores an image by its mean."""

    def __init__(self, sign: float) -> None:
        super().__init__(AdversarialConfig(channels=4, layers=1))
        self.sign = sign

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.sign * x_NCHW.mean(dim=1, keepdim=True)


def test_the_discriminator_is_right_where_an_image_scores_higher_than_its_reconstruction() -> None:
    cpu = RuntimeConfig(device="cpu", precision="fp32")
    real, fake = (
        np.full((3, 4, 4, 3), 1, np.uint8) * np.array(grey, np.uint8)[:, None, None, None]
        for grey in ((190, 150, 110), (140, 150, 160))
    )
    assert discriminator_accuracy(Brightness(1.0), real, fake, runtime=cpu) == pytest.approx(1 / 3)
    assert discriminator_accuracy(Brightness(-1.0), real, fake, runtime=cpu) == pytest.approx(1 / 3)
    assert discriminator_accuracy(Brightness(1.0), real, fake - 20, runtime=cpu) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("accuracy", "lost"), [(1.0, False), (0.0, True)])
def test_the_log_reports_a_discriminator_that_lost(
    accuracy: float,
    lost: bool,
    tiny_slides: Path,
    tiny_settings: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("histoloom.autoencoder.quality.discriminator_accuracy", lambda *_, **__: accuracy)
    discriminator = ["autoencoder.adversarial.weight=0.8", "autoencoder.adversarial.channels=4"]
    settings = [*tiny_settings, *discriminator, "autoencoder.training.phases.0.images=32"]
    run = init_run(tmp_path / "run", slides=[tiny_slides], preset="demo", settings=settings)
    execute(run, until="autoencoder")
    assert ReconstructionQuality.load(run.path / "autoencoder").discriminator_accuracy == accuracy
    log = (run.path / "autoencoder" / "log.jsonl").read_text()
    assert ("it is too weak" in log) == lost


def test_without_a_discriminator_there_is_no_accuracy(tiny_run: Path) -> None:
    assert ReconstructionQuality.load(tiny_run / "autoencoder").discriminator_accuracy is None
    assert "told_apart" not in (tiny_run / "autoencoder" / "quality.json").read_text()

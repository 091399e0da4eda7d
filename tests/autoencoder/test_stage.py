"""The stage ``autoencoder`` with a discriminator: it says whether that one still tells images from reconstructions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from histoloom.autoencoder.discriminator import Discriminator, told_apart
from histoloom.pipeline import execute
from histoloom.run.directory import read_json
from histoloom.setup import init_run


class Brightness(Discriminator):
    """Scores an image by its mean."""

    def __init__(self, sign: float) -> None:
        super().__init__(4, layers=1)
        self.sign = sign

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.sign * x_NCHW.mean(dim=1, keepdim=True)


def test_an_image_is_told_from_its_reconstruction_where_it_scores_higher() -> None:
    real = torch.tensor([0.5, 0.2, -0.1]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    fake = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    assert told_apart(Brightness(1.0), real, fake).tolist() == [True, False, False]
    assert told_apart(Brightness(-1.0), real, fake).tolist() == [False, False, True]


@pytest.mark.parametrize(("share", "said"), [(1.0, False), (0.0, True)])
def test_a_discriminator_that_lost_is_said(
    share: float,
    said: bool,
    tiny_slides: Path,
    tiny_settings: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scored(_discriminator: Discriminator, real_NCHW: torch.Tensor, _fake: torch.Tensor) -> torch.Tensor:
        return torch.full((len(real_NCHW),), bool(share))

    monkeypatch.setattr("histoloom.autoencoder.stage.told_apart", scored)
    settings = [*tiny_settings, "autoencoder.adversarial.weight=0.8", "autoencoder.adversarial.channels=4"]
    run = init_run(tmp_path / "run", slides=[tiny_slides], preset="demo", settings=settings)
    execute(run, until="autoencoder")
    assert read_json(run.path / "autoencoder" / "quality.json")["told_apart"] == share
    log = (run.path / "autoencoder" / "log.jsonl").read_text()
    assert ("it has lost" in log) == said


def test_without_a_discriminator_nothing_is_said_of_it(tiny_run: Path) -> None:
    assert "told_apart" not in read_json(tiny_run / "autoencoder" / "quality.json")

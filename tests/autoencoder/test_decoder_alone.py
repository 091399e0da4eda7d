from __future__ import annotations

from pathlib import Path

import numpy as np
from decoder_alone import decoder_config, reconstructions

from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.run.directory import Run
from histoloom.setup import init_run


def test_only_the_decoder_and_how_it_is_trained_differ_from_the_run_s(tiny_slides: Path, tmp_path: Path) -> None:
    """So that its encoder fits, and the latents stay."""
    run = init_run(tmp_path / "run", slides=[tiny_slides], preset="starter")
    mine, given = decoder_config(run, images=800), run.config.autoencoder
    assert mine.training.images(n=1) == 800
    assert mine.training.batch_size == given.training.batch_size
    encoders = [Autoencoder(config).encoder.state_dict() for config in (mine, given)]
    assert {name: value.shape for name, value in encoders[0].items()} == {
        name: value.shape for name, value in encoders[1].items()
    }
    assert (mine.trained, mine.head_blocks) == ("decoder", 1)


def test_images_come_back_in_their_order(tiny_run: Path) -> None:
    model = Autoencoder.load(Run.open(tiny_run).require("autoencoder"))
    side = model.config.factor * 8
    images = np.random.default_rng(0).integers(0, 256, (33, side, side, 3), dtype=np.uint8)
    again = reconstructions(model, images)
    assert again.shape == images.shape
    assert again.dtype == np.uint8
    np.testing.assert_allclose(again[32:], reconstructions(model, images[32:]), atol=1)

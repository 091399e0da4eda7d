"""Autoencoders without a codebook, and ready ones in diffusers' format in the VQ-GAN's place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin, VQModel
from safetensors.torch import save_file

from histoloom.autoencoder.diffusers_model import with_pretrained_autoencoder
from histoloom.autoencoder.latents import LatentSet
from histoloom.autoencoder.losses import kl_divergence
from histoloom.autoencoder.quality import ReconstructionQuality
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.config import AutoencoderConfig
from histoloom.errors import UserError
from histoloom.pipeline import execute
from histoloom.run.stage import EventLog
from histoloom.setup import init_run
from histoloom.sharing.export import copy_tensors
from histoloom.sharing.tissue_decoder import TissueDecoder
from histoloom.slides.patch_set import PatchSet

TRAINING = {"phases": [{"optimizer": "adam", "lr": 1e-3, "images": 8}]}
SMALL = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def tiny_model(name: str) -> ModelMixin:
    torch.manual_seed(0)
    if name == "AutoencoderKL":
        return AutoencoderKL(latent_channels=3, **SMALL, **BLOCKS)
    if name == "VQModel":
        return VQModel(latent_channels=6, vq_embed_dim=2, num_vq_embeddings=8, **SMALL, **BLOCKS)
    tiny = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    return AutoencoderTiny(latent_channels=5, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1), **tiny)


@pytest.mark.parametrize(
    ("name", "channels", "factor", "codes"),
    [("AutoencoderKL", 3, 2, 0), ("AutoencoderTiny", 5, 4, 0), ("VQModel", 2, 2, 8)],
)
def test_a_ready_autoencoder_is_taken_as_it_is(
    name: str,
    channels: int,
    factor: int,
    codes: int,
    tiny_slides: Path,
    tiny_settings: tuple[str, ...],
    tmp_path: Path,
) -> None:
    model, folder = tiny_model(name).eval(), tmp_path / "ready"
    model.save_pretrained(folder)
    settings = [*tiny_settings, f"autoencoder.pretrained={folder}", "patches.count=12"]
    run = init_run(tmp_path / "run", slides=[tiny_slides], preset="demo", settings=settings)
    config = run.config.autoencoder
    assert (config.code_dim, config.factor, config.codes) == (channels, factor, codes)
    execute(run, until="autoencoder")
    for file in folder.iterdir():
        file.unlink()  # the run has its own copy
    execute(run, until="latents")

    latents, patches = LatentSet.open(run.folder("latents")), PatchSet.open(run.folder("patches"))
    rows = patches.rows(split="train")[:2]
    x_NCHW = to_float(torch.from_numpy(patches.images(rows)))
    with torch.no_grad():
        encoded = model.encode(x_NCHW)
        expected = encoded.latent_dist.mode() if name == "AutoencoderKL" else encoded.latents
        assert torch.allclose(latents.raw(rows), expected, atol=2e-3)  # stored in half precision
        decoded = model.decode(expected).sample
        autoencoder = Autoencoder.load(run.folder("autoencoder"))
        assert torch.allclose(autoencoder.decode(expected), decoded, atol=1e-5)
        assert torch.allclose(autoencoder.reconstruct(x_NCHW), decoded, atol=1e-5)

        exported = tmp_path / "exported" / "autoencoder"
        exported.mkdir(parents=True)
        autoencoder.save(exported)
        assert torch.allclose(TissueDecoder.from_pretrained(str(exported))(expected), decoded, atol=1e-5)
    assert str(tmp_path) not in (exported / "autoencoder.json").read_text(encoding="utf-8")

    quality = ReconstructionQuality.load(run.folder("autoencoder"))
    assert (quality.codes, quality.perplexity > 0) == (codes, codes > 0)
    said = (run.folder("autoencoder") / "log.jsonl").read_text(encoding="utf-8")
    assert f"a ready {name} and is not trained" in said
    assert ("no codebook" in said) == (codes == 0)
    assert (run.folder("latents") / "histograms.npy").is_file() == (codes > 0)


def test_half_precision_keeps_the_configuration(tmp_path: Path) -> None:
    ready, folders = tmp_path / "ready", [tmp_path / name for name in ("whole", "half")]
    model = tiny_model("AutoencoderTiny")
    model.save_pretrained(ready)
    config = with_pretrained_autoencoder({"autoencoder": {"pretrained": str(ready), "training": TRAINING}})
    for folder in folders:
        folder.mkdir()
    Autoencoder.from_diffusers(AutoencoderConfig.model_validate(config["autoencoder"])).save(folders[0])
    copy_tensors(*(folder / "autoencoder.safetensors" for folder in folders), half=True)
    shutil.copy2(folders[0] / "autoencoder.json", folders[1])
    z_NChw = torch.randn(1, 5, 4, 4)
    with torch.no_grad():
        whole, half = (Autoencoder.load(folder).decode(z_NChw) for folder in folders)
    assert 0 < (whole - half).abs().max() < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DModel"}, "holds UNet2DModel; give one of AutoencoderKL"),
        ({"in_channels": 4}, "does not encode plain RGB images"),
        (None, "has no config.json"),
        ({}, "has no diffusion_pytorch_model.safetensors"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_made(
    change: dict[str, object] | None, message: str, tiny_slides: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    tiny_model("AutoencoderKL").save_pretrained(ready)
    if change:
        file = ready / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    else:
        (ready / ("config.json" if change is None else "diffusion_pytorch_model.safetensors")).unlink()
    with pytest.raises(UserError, match=message):
        init_run(tmp_path / "run", slides=[tiny_slides], preset="demo", settings=[f"autoencoder.pretrained={ready}"])
    assert not (tmp_path / "run").exists()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    tiny_model("AutoencoderKL").save_pretrained(ready)
    config = with_pretrained_autoencoder({"autoencoder": {"pretrained": str(ready), "training": TRAINING}})
    save_file({"x": torch.zeros(1)}, ready / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="are not those of its"):
        Autoencoder.from_diffusers(AutoencoderConfig.model_validate(config["autoencoder"]))


def test_an_autoencoder_without_codes_trains_and_says_so(
    tiny_slides: Path, tiny_settings: tuple[str, ...], tmp_path: Path
) -> None:
    short = ["autoencoder.codes=0", "autoencoder.kl_weight=0.01", "autoencoder.training.phases.0.images=64"]
    run = init_run(tmp_path / "run", slides=[tiny_slides], preset="demo", settings=[*tiny_settings, *short])
    execute(run, until="latents")
    curves = [event for event in EventLog(run.folder("autoencoder") / "log.jsonl").read() if "autoencoder.kl" in event]
    assert curves
    model = Autoencoder.load(run.folder("autoencoder"))
    z_NChw = torch.randn(2, model.config.code_dim, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.decode(z_NChw), model.decode_codes(z_NChw))
        x_NCHW = torch.zeros(1, 3, 32, 32)
        mean_NChw, logvar_NChw = model.moments(x_NCHW)
        assert torch.equal(model.latents(x_NCHW), mean_NChw)
        assert logvar_NChw is not None
        exported = TissueDecoder.from_pretrained(str(run.folder("autoencoder")))
        assert torch.allclose(exported(z_NChw), model.decode(z_NChw), atol=1e-5)
    assert "no codebook" in (run.folder("autoencoder") / "log.jsonl").read_text(encoding="utf-8")
    assert not (run.folder("latents") / "histograms.npy").exists()


def test_the_divergence_is_that_of_normal_distributions() -> None:
    mean, logvar = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    own = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    nats_N = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    assert torch.allclose(kl_divergence(mean, logvar), nats_N.mean(), rtol=1e-5)
    assert kl_divergence(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": 1}, "a codebook of one code"),
        ({"pretrained": "x", "trained": "decoder"}, "is used as it is"),
        ({"codes": 0, "quantize_latents": True}, "nothing to quantise"),
        ({"codes": 0, "architecture": "paper"}, "needs a codebook"),
    ],
)
def test_settings_that_need_codes_are_refused_without(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig.model_validate({"training": TRAINING, **change})


def test_histograms_of_codes_need_a_codebook(tiny_slides: Path, tmp_path: Path) -> None:
    settings = ["autoencoder.codes=0", "clusters.validity_features=codes"]
    with pytest.raises(UserError, match="the autoencoder has no codebook"):
        init_run(tmp_path / "run", slides=[tiny_slides], preset="demo", settings=settings)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.vae import Encoder
from torch.nn import functional as F

from histoloom.autoencoder.augment import dihedral
from histoloom.autoencoder.losses import (
    VQGANLosses,
    adaptive_weight,
    generator_loss,
    hinge_loss,
    last_layer_gradients,
)
from histoloom.autoencoder.stage import make_objectives, make_task
from histoloom.autoencoder.vqgan import Autoencoder, Discriminator, to_float, to_uint8
from histoloom.config import AdversarialConfig, AutoencoderConfig, RuntimeConfig
from histoloom.errors import UserError
from histoloom.run.stage import EventLog
from histoloom.sharing.tissue_decoder import TissueDecoder
from histoloom.training.loop import StepContext, train


def a_config(**changes: object) -> AutoencoderConfig:
    values = {
        "channels": 8,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention": False,
        "codes": 16,
        "code_dim": 4,
        "perceptual": "pyramid",
        "training": {"phases": [{"optimizer": "adam", "lr": 1e-3, "images": 100}]},
        "adversarial": {"channels": 8, "layers": 1, "start": 0.5, "warmup": 0.25, "weight": 0.8},
    }
    return AutoencoderConfig.model_validate(values | changes)


def a_step(progress: float = 0.0, *, batch: int = 4) -> StepContext:
    return StepContext(
        images=0,
        step=0,
        progress=progress,
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(0),
        rows=slice(0, batch),
        batch_size=batch,
    )


def images(n: int = 4, *, side: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (n, side, side, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("stem", [1, 2, 4])
@pytest.mark.parametrize("multipliers", [(1, 2), (1, 2, 2)])
def test_shapes_follow_the_factor(stem: int, multipliers: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Autoencoder(a_config(stem=stem, multipliers=multipliers))
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    z = model.encode(x)
    side = 32 // model.config.factor
    assert z.shape == (2, 4, side, side)
    assert model.decode(z).shape == x.shape


@pytest.mark.parametrize("stem", [2, 4])
def test_a_head_with_blocks_starts_without_a_grid(stem: int) -> None:
    """Flat latents give flat images inside, whatever the weights; near the edges zeros are seen."""
    torch.manual_seed(0)
    model = Autoencoder(a_config(stem=stem, head_blocks=2)).eval()
    assert model.last_layer is model.head[-1].weight
    z = torch.randn(1, 4, 1, 1).expand(1, 4, 32, 32)
    with torch.no_grad():
        y = model.decode_codes(z)
    side = 32 * model.config.factor
    assert y.shape == (1, 3, side, side)
    inner = y[..., side // 2 - 8 : side // 2 + 8, side // 2 - 8 : side // 2 + 8]
    assert (inner - inner.mean(dim=(2, 3), keepdim=True)).abs().max() < 1e-4


@pytest.mark.parametrize("blocks", [0, 2])
def test_diffusers_alone_decodes_with_the_same_head(blocks: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Autoencoder(a_config(stem=4, head_blocks=blocks, codes=0)).eval()
    model.save(tmp_path)
    z = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(TissueDecoder.from_pretrained(str(tmp_path))(z), model.decode(z))


def test_head_blocks_need_pixels_folded_into_channels() -> None:
    with pytest.raises(ValueError, match="head_blocks has an effect only with stem: 2 or 4"):
        a_config(stem=1, head_blocks=1)


@pytest.mark.parametrize("channels", [8, 24])
def test_a_discriminator_of_pixels_begins_at_the_image_s_resolution(channels: int) -> None:
    """It halves the image as often as the other, and a shift by one pixel changes its first map by one pixel."""
    plain, pixels = (
        Discriminator(AdversarialConfig(channels=channels, layers=2, pixels=pixels)) for pixels in (False, True)
    )
    x = torch.rand(2, 3, 32, 32)
    assert plain(x).shape == pixels(x).shape
    first = pixels.layers[0]
    torch.testing.assert_close(first(x.roll(1, dims=-1))[..., 3:-2], first(x)[..., 2:-3])


def test_networks_with_strides_see_the_images_from_every_offset() -> None:
    """Within shift x shift steps; each time they see every pixel, the last row and column too."""
    torch.manual_seed(0)
    config = a_config(loss_shift=3, codes=0)
    seen: list[torch.Tensor] = []

    class Judge(torch.nn.Module):
        def forward(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return (y - x).abs().mean(dim=(1, 2, 3))

    model, discriminator = Autoencoder(config), Discriminator(config.adversarial)
    losses = VQGANLosses(config, autoencoder=model, discriminator=discriminator, perceptual=Judge())
    x = to_float(images())
    for step in range(9):
        context = replace(a_step(0.9), step=step)
        losses.autoencoder_loss(images(), context)
        assert torch.equal(context.scratch["real"], seen[-1])
        assert context.scratch["fake"].shape == (4, 3, 19, 19)
    wanted = {(top, left) for top in range(3) for left in range(3)}
    found = {place for place in wanted for s in seen if torch.equal(s[..., place[0] :, place[1] :][..., :16, :16], x)}
    assert found == wanted


def test_bytes_survive_the_round_trip() -> None:
    assert torch.equal(to_uint8(to_float(images())), images())
    assert to_float(images()).min() >= -1
    assert to_float(images()).max() <= 1


def test_decode_quantises_first() -> None:
    torch.manual_seed(0)
    model = Autoencoder(a_config()).eval()
    z = torch.randn(4, 4, 8, 8)
    assert model.quantizer is not None
    model.quantizer.update(z, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.decode(z), model.decode_codes(model.codes(z)))


def test_saved_weights_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Autoencoder(a_config())
    model.save(tmp_path)
    loaded = Autoencoder.load(tmp_path)
    assert loaded.config == model.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["autoencoder.json", "autoencoder.safetensors"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    Autoencoder(a_config()).save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{tmp_path} has no {name}; restore it from a copy"):
        Autoencoder.load(tmp_path)


def test_hinge_losses_have_their_values() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (0.5 + 1.0))
    assert generator_loss(fake).item() == pytest.approx(0.5)


def test_adaptive_weight_balances_gradients_and_is_bounded() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    gradients = last_layer_gradients(3 * w.sum(), w.sum(), last_layer=w)
    assert adaptive_weight(gradients, max_weight=10).item() == pytest.approx(3, rel=1e-3)
    assert adaptive_weight(gradients, max_weight=2).item() == 2


def test_the_discriminator_joins_late_and_slowly() -> None:
    torch.manual_seed(0)
    config = a_config()
    model, discriminator = Autoencoder(config), Discriminator(config.adversarial)
    losses = VQGANLosses(config, autoencoder=model, discriminator=discriminator, perceptual=None)
    before, metrics_before = losses.autoencoder_loss(images(), a_step(0.4))
    _, metrics_after = losses.autoencoder_loss(images(), a_step(0.625))
    assert "adversarial" not in metrics_before
    assert metrics_after["adaptive"] > 0
    assert losses._adversarial_weight(0.625) == pytest.approx(0.4)
    assert losses._adversarial_weight(1.0) == 0.8
    expected = metrics_before["mse"] + config.commitment * metrics_before["commitment"]
    assert before.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_discriminator_learns_from_the_reconstruction_of_the_same_step() -> None:
    torch.manual_seed(0)
    config = a_config()
    model, discriminator = Autoencoder(config), Discriminator(config.adversarial)
    losses = VQGANLosses(config, autoencoder=model, discriminator=discriminator, perceptual=None)
    context = a_step(0.9)
    losses.autoencoder_loss(images(), context)
    loss, _ = losses.discriminator_loss(images(), context)
    loss.backward()
    assert all(p.grad is not None for p in discriminator.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_the_discriminator_has_its_own_optimizer_settings() -> None:
    config = a_config(adversarial={"lr": 4e-4, "betas": [0.5, 0.9], "start": 0.25})
    model = Autoencoder(config)
    losses = VQGANLosses(
        config, autoencoder=model, discriminator=Discriminator(AdversarialConfig(channels=4, layers=1)), perceptual=None
    )
    autoencoder, discriminator = make_objectives(losses, n=8)
    assert (discriminator.phases[0].lr, discriminator.betas) == (4e-4, (0.5, 0.9))
    assert discriminator.starts_at == config.training.images(n=8) / 4
    assert autoencoder.betas is None  # those of the training


def test_dihedral_copies_are_the_eight() -> None:
    x = torch.arange(9.0).view(1, 1, 3, 3)
    copies = dihedral(x.expand(8, 1, 3, 3), torch.arange(8))
    assert len({tuple(copy.flatten().tolist()) for copy in copies}) == 8
    assert torch.equal(copies[0], x[0])
    assert all(torch.equal(copy.flatten().sort().values, x.flatten()) for copy in copies)


def test_a_training_returns_averaged_weights(tmp_path: Path) -> None:
    """The codebook, an average of its own, is the latest one."""
    average = {"ema": 0.9, "batch_size": 4}
    config = a_config(adversarial={"weight": 0.0})
    training = config.training.model_copy(update=average | {"phases": (config.training.phases[0],)})
    torch.manual_seed(0)
    task = make_task(config.model_copy(update={"training": training}), seed=0, n=8)
    model = task.modules["autoencoder"]
    assert isinstance(model, Autoencoder)
    losses = VQGANLosses(model.config, autoencoder=model, discriminator=None, perceptual=None)
    data = images(8)
    task = replace(task, objectives=make_objectives(losses, n=8), batch=lambda rows: data[rows])
    runtime = RuntimeConfig(device="cpu", precision="fp32")
    log = EventLog(tmp_path / "log.jsonl")
    averaged = train(task, config=training, runtime=runtime, seed=0, out=tmp_path, log=log).modules["autoencoder"]
    assert averaged is not model
    same = {name for name, value in averaged.state_dict().items() if torch.equal(value, model.state_dict()[name])}
    assert same == {name for name, _ in model.named_buffers()}
    assert make_task(config, seed=0, n=8).ema == ()


def test_a_few_steps_reduce_the_error() -> None:
    torch.manual_seed(0)
    config = a_config(adversarial={"weight": 0.0})
    model = Autoencoder(config)
    smooth = F.interpolate(torch.rand(8, 3, 4, 4), size=16, mode="bilinear").mul(255).to(torch.uint8)
    batch = smooth.permute(0, 2, 3, 1)
    losses = VQGANLosses(config, autoencoder=model, discriminator=None, perceptual=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    values = []
    for _ in range(40):
        loss, metrics = losses.autoencoder_loss(batch, a_step(batch=8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(metrics["mse"].item())
    assert values[-1] < 0.3 * values[0]


@pytest.mark.parametrize("quantize_decoded", [True, False])
def test_a_decoder_trained_alone_leaves_encoder_and_codebook_as_they_are(
    quantize_decoded: bool, tmp_path: Path
) -> None:
    """In micro-batches too, with a discriminator, and the optimizer's weight decay."""
    config = a_config(
        trained="decoder",
        quantize_decoded=quantize_decoded,
        latent_noise=0.1,
        adversarial={"channels": 8, "layers": 1, "start": 0.0, "warmup": 0},
        training={"batch_size": 4, "phases": [{"optimizer": "adamw", "lr": 1e-2, "images": 24}]},
    )
    task = make_task(config, seed=0, n=8)
    model = task.modules["autoencoder"]
    assert isinstance(model, Autoencoder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = VQGANLosses(config, autoencoder=model, discriminator=task.modules["discriminator"], perceptual=None)
    data = images(8)
    task = replace(task, objectives=make_objectives(losses, n=8), batch=lambda rows: data[rows])
    runtime = RuntimeConfig(device="cpu", precision="fp32", accumulate=2)
    log = EventLog(tmp_path / "log.jsonl")
    train(task, config=config.training, runtime=runtime, seed=0, out=tmp_path, log=log)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"decoder"}
    assert "decoder.conv_in.weight" in changed


def test_a_decoder_trained_alone_learns_from_what_it_will_decode() -> None:
    """Latents or codes, as samples are decoded, with noise of the covariance of the latents."""
    torch.manual_seed(0)
    model = Autoencoder(a_config())
    assert model.quantizer is not None
    model.quantizer.update(model.encode(to_float(images())), generator=torch.Generator().manual_seed(0))
    given: list[torch.Tensor] = []

    def decoded(**changes: object) -> torch.Tensor:
        """What the decoder is given for the same images."""
        model.config = a_config(trained="decoder", **changes)
        losses = VQGANLosses(model.config, autoencoder=model, discriminator=None, perceptual=None)
        losses.autoencoder_loss(images(), a_step())
        return given[-1].detach()

    hook = model.decoder.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]))
    z = model.encode(to_float(images())).detach()
    torch.testing.assert_close(decoded(quantize_decoded=False), z)
    torch.testing.assert_close(decoded(quantize_decoded=True), model.codes(z))
    noise = decoded(quantize_decoded=False, latent_noise=0.5) - z
    hook.remove()
    wanted, found = (torch.cov(x.movedim(1, 0).flatten(1)) for x in (0.5 * z, noise))
    torch.testing.assert_close(found, wanted, atol=0.2 * wanted.max().item(), rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(model.reconstruct(to_float(images())), model.decode(z))


def test_continuous_latents_are_decoded_with_noise_of_the_same_size_in_every_direction() -> None:
    """Its level differs between images, up to the setting's share of the latents' deviation."""
    torch.manual_seed(0)
    config = a_config(codes=0, kl_weight=0.0, latent_noise=0.5)
    model = Autoencoder(config)
    assert isinstance(model.encoder, Encoder)
    with torch.no_grad():
        for values in (model.encoder.conv_out.weight[4:], model.encoder.conv_out.bias[4:]):
            values.zero_()
        model.encoder.conv_out.bias[4:] -= 30  # latents without noise of their own
    given: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0].detach()))
    x_NHWC, step = images(32), replace(a_step(), rows=slice(0, 32), batch_size=32)
    VQGANLosses(config, autoencoder=model, discriminator=None, perceptual=None).autoencoder_loss(x_NHWC, step)
    z_NCHW = model.encode(to_float(x_NHWC)).detach()
    level_N = (given[0] - z_NCHW).flatten(1).std(dim=1) / z_NCHW.std()
    assert 0.4 < level_N.max() < 0.6
    assert level_N.min() < 0.1
    deviation_C = (given[0] - z_NCHW).std(dim=(0, 2, 3))
    assert deviation_C.max() < 1.2 * deviation_C.min(), "every channel alike, whatever its own deviation"


def test_noise_on_latents_needs_continuous_ones_or_a_decoder_trained_alone() -> None:
    with pytest.raises(ValueError, match="latent_noise has an effect only with codes: 0"):
        a_config(latent_noise=0.5)

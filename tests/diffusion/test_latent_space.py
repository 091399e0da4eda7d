"""The space of the diffusion model: measured moments, components kept, there and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.model.latent_space import LatentSpace, covariance
from histoloom.errors import UserError
from histoloom.sharing.pipeline import decoder_latents


def latents(*, variances: tuple[float, ...], n: int = 3000, seed: int = 0) -> np.ndarray:
    """(n, C, 2, 2) with these variances along axes that are not the channels, and a mean that is not zero."""
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.standard_normal((len(variances), len(variances))))
    along = random.standard_normal((n, 2, 2, len(variances))) * np.sqrt(variances)
    return np.moveaxis(along @ axes.T + 3.0, -1, 1).astype(np.float32)


def test_covariance_in_blocks_is_that_of_all_positions_at_once() -> None:
    z = latents(variances=(4.0, 1.0, 0.1))
    rows = np.arange(10, 2990)
    mean, cov = covariance(z, rows=rows)
    flat = np.moveaxis(z[rows], 1, 0).reshape(3, -1).astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(flat, bias=True), rtol=1e-10)


@pytest.mark.parametrize("whiten", [None, 1.0])
def test_all_directions_kept_go_there_and_back(whiten: float | None) -> None:
    z = latents(variances=(4.0, 1.0, 0.1))
    space = LatentSpace.fit(z, rows=np.arange(len(z)), whiten=whiten)
    x = space.encode(torch.from_numpy(z))
    assert x.shape[1:] == space.shape(z.shape[1:]) == (3, 2, 2)
    torch.testing.assert_close(space.decode(x), torch.from_numpy(z), rtol=0, atol=1e-4)
    by_component = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(by_component.mean(1), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(by_component.std(1), torch.ones(3), rtol=1e-3, atol=0)


def test_whitened_channels_are_uncorrelated_and_the_least_directions_are_left_out() -> None:
    z = latents(variances=(10.0, 3.5, 0.8, 0.02, 0.01, 0.005))
    space = LatentSpace.fit(z, rows=np.arange(len(z)), whiten=0.99)
    x = space.encode(torch.from_numpy(z))
    assert x.shape == (len(z), 3, 2, 2)
    flat = x.permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(flat @ flat.T / flat.shape[1], torch.eye(3), rtol=0, atol=1e-3)
    lost = (space.decode(x) - torch.from_numpy(z)).var(dim=(0, 2, 3), correction=0).sum()
    assert float(lost) == pytest.approx(0.035, rel=0.1)


def test_channel_by_channel_leaves_correlated_channels_as_they_are() -> None:
    z = np.repeat(latents(variances=(2.0,)), 4, axis=1)
    space = LatentSpace.fit(z, rows=np.arange(len(z)), whiten=None)
    assert space.shape(z.shape[1:]) == (4, 2, 2)
    x = space.encode(torch.from_numpy(z))
    torch.testing.assert_close(x[:, 0], x[:, 3])


def test_only_the_given_rows_are_measured() -> None:
    z = latents(variances=(4.0, 1.0))
    z[100:] += 50
    space = LatentSpace.fit(z, rows=np.arange(100), whiten=0.99)
    np.testing.assert_allclose(space.mean, z[:100].mean(axis=(0, 2, 3)), rtol=1e-5)


def test_a_constant_channel_does_no_harm() -> None:
    z = latents(variances=(4.0, 1.0))
    z[:, 1] = 7
    for whiten in (None, 1.0):
        x = LatentSpace.fit(z, rows=np.arange(len(z)), whiten=whiten).encode(torch.from_numpy(z))
        assert torch.isfinite(x).all()
        assert float(x.abs().max()) < 10


def test_json_keeps_every_bit() -> None:
    space = LatentSpace.fit(latents(variances=(4.0, 1.0, 0.1)), rows=np.arange(50), whiten=0.9)
    again = LatentSpace.model_validate(json.loads(space.model_dump_json()))
    for name in ("mean", "enter", "leave"):
        np.testing.assert_array_equal(getattr(again, name), getattr(space, name))
        assert getattr(again, name).dtype == np.float32


def test_spaces_of_earlier_versions_are_read_unless_they_fold_positions() -> None:
    values = {"mean": [0.5], "enter": [[2.0]], "leave": [[0.5]]}
    assert LatentSpace.model_validate(values | {"fold": 1}).shape((1, 4, 4)) == (1, 4, 4)
    with pytest.raises(ValueError, match="fold was removed"):
        LatentSpace.model_validate(values | {"fold": 2})


def test_an_exported_pipeline_leaves_the_space_in_the_same_way() -> None:
    z = latents(variances=(4.0, 1.0, 0.1))
    space = LatentSpace.fit(z, rows=np.arange(len(z)), whiten=0.9)
    x = space.encode(torch.from_numpy(z[:5]))
    values = json.loads(space.model_dump_json(include={"mean", "leave"}))
    torch.testing.assert_close(decoder_latents(x, **values), space.decode(x))


def test_a_generator_of_another_format_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "generator.json").write_text(json.dumps({"format": 1, "mean": [0.0], "std": [1.0]}))
    with pytest.raises(UserError, match=r"has format 1, .* make it again"):
        GeneratorSpec.load(tmp_path)


def test_a_generator_with_settings_that_were_removed_is_refused_in_one_line(tiny_run: Path, tmp_path: Path) -> None:
    """Where they had an effect; the starter generator has them all, without effect."""
    values = json.loads((tiny_run / "diffusion" / "generator.json").read_text())
    values["diffusion"] |= {"min_snr": 5.0}
    (tmp_path / "generator.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="min_snr was removed") as caught:
        GeneratorSpec.load(tmp_path)
    assert "\n" not in str(caught.value)

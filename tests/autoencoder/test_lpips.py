"""LPIPS against its published values, torchmetrics' implementation and its own properties.

How its weights are found, verified and downloaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.data import immunohistochemistry
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import lpips as reference
from typer.testing import CliRunner

from histoloom import doctor
from histoloom.autoencoder import lpips
from histoloom.autoencoder.lpips import (
    FILES,
    LPIPS,
    MIN_SIZE,
    FeatureTrunk,
    Trunk,
    WeightsFile,
    fetch,
    find_weights,
    hub_hash,
    read_heads,
    unit_length,
)
from histoloom.autoencoder.vqgan import to_float
from histoloom.cli.app import app
from histoloom.errors import UserError

TRUNKS: tuple[Trunk, ...] = ("alex", "squeeze", "vgg")
DATA = Path(os.environ.get("HISTOLOOM_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the published weights, as HISTOLOOM_WEIGHTS."""
    folder = Path(os.environ.get("HISTOLOOM_WEIGHTS", DATA / "weights"))
    if not folder.is_dir():
        pytest.skip(f"no weights: set HISTOLOOM_WEIGHTS (looked in {folder})")
    monkeypatch.setenv("HISTOLOOM_WEIGHTS", str(folder))
    return folder


@pytest.fixture
def empty_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as HISTOLOOM_WEIGHTS, and an empty torch hub cache."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("HISTOLOOM_WEIGHTS", str(folder))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return folder


@pytest.fixture(autouse=True)
def global_stream_kept() -> Iterator[None]:
    """Loading a network draws nothing from torch's global stream."""
    with torch.random.fork_rng():
        yield


def load(trunk: Trunk) -> LPIPS:
    if find_weights(trunk, download=False) is None:
        pytest.skip(f"{FILES[trunk].npz} is not on this machine")
    return LPIPS.load(trunk, download=False)


def random_lpips(trunk: Trunk) -> LPIPS:
    """A randomly initialised trunk under the published heads."""
    torch.manual_seed(5)
    network = FeatureTrunk(trunk)
    heads = [head.flatten() for head in read_heads(trunk).values()]
    return LPIPS(network, heads=heads)


def noise(n: int, *, size: int, seed: int) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.usefixtures("published")
def test_squeeze_gives_torchmetrics_documented_mean() -> None:
    network = load("squeeze")
    torch.manual_seed(123)
    x = torch.rand(10, 3, 100, 100) * 2 - 1
    y = torch.rand(10, 3, 100, 100) * 2 - 1
    assert round(network(x, y).mean().item(), 4) == 0.1008


@pytest.mark.usefixtures("published")
def test_squeeze_gives_torchmetrics_documented_pairs() -> None:
    generator = torch.Generator().manual_seed(42)
    x = torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1
    y = torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1
    assert load("squeeze")(x, y).tolist() == pytest.approx([0.1024, 0.0938], abs=5e-5)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(("trunk", "parameters"), [("alex", 2_470_848), ("squeeze", 724_736)])
def test_the_loaded_network_is_frozen_and_loading_keeps_the_global_random_state(trunk: Trunk, parameters: int) -> None:
    before = torch.get_rng_state()
    network = load(trunk)
    assert torch.equal(torch.get_rng_state(), before)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert not any(p.requires_grad for p in network.parameters())
    assert all((head >= 0).all() for head in network.heads)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("trunk", ["alex", "squeeze"])
def test_shipped_heads_agree_with_those_of_the_archive(trunk: Trunk) -> None:
    shipped = read_heads(trunk)
    for name, head in zip(shipped, load(trunk).heads, strict=True):
        assert torch.allclose(shipped[name].flatten(), head, rtol=1e-6)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(("trunk", "golden"), [("alex", 0.60829), ("squeeze", 0.53944)])
def test_published_weights_agree_with_torchmetrics_on_tissue(
    trunk: Trunk, golden: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load(trunk)
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_: ours.trunk.features)
    theirs = reference._LPIPS(pretrained=True, pnet_rand=True, net=trunk, use_dropout=True)
    tissue = to_float(torch.from_numpy(immunohistochemistry()[None]))
    x, y = tissue[:, :, :128, :128], tissue[:, :, 256:384, 128:256]
    assert torch.allclose(ours(x, y), theirs(x, y).flatten(), rtol=1e-5, atol=1e-8)
    assert ours(x, y).mean().item() == pytest.approx(golden, abs=1e-5)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_agrees_with_torchmetrics_on_the_same_trunk(trunk: Trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = random_lpips(trunk)
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_: ours.trunk.features)
    theirs = reference._LPIPS(pretrained=True, pnet_rand=True, net=trunk, use_dropout=True)
    x, y = noise(2, size=64, seed=0), noise(2, size=64, seed=1)
    assert torch.allclose(ours(x, y), theirs(x, y).flatten(), rtol=1e-5, atol=1e-8)


def test_features_are_normalised_as_by_torch_along_channels() -> None:
    """The paper's own code calls ``F.normalize``; its default axis is that of the channels."""
    features_NCHW = torch.randn(2, 64, 5, 5, generator=torch.Generator().manual_seed(0)).relu()
    features_NCHW[:, :, 0, 0] = 0  # nothing is active there
    torch.testing.assert_close(unit_length(features_NCHW), F.normalize(features_NCHW))


@pytest.mark.parametrize("trunk", TRUNKS)
def test_is_a_symmetric_distance(trunk: Trunk) -> None:
    network = random_lpips(trunk)
    x, y = noise(3, size=64, seed=0), noise(3, size=64, seed=1)
    distance = network(x, y)
    assert distance.shape == (3,)
    assert (distance > 0).all()
    assert torch.equal(network(x, x), torch.zeros(3))
    assert torch.equal(distance, network(y, x))
    assert torch.allclose(network(x[1:2], y[1:2]), distance[1:2], rtol=1e-5)


def test_gradient_reaches_the_image_and_not_the_weights() -> None:
    network = random_lpips("squeeze").train()
    x = noise(1, size=64, seed=0).requires_grad_()
    network(x, noise(1, size=64, seed=1)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())


def test_half_precision_stays_near_full_precision() -> None:
    network = random_lpips("squeeze")
    x, y = noise(2, size=64, seed=0), noise(2, size=64, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(x, y)
    assert half.dtype == torch.float32
    assert torch.allclose(half, network(x, y), rtol=0.05)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_smallest_image(trunk: Trunk) -> None:
    network = random_lpips(trunk)
    x, y = noise(1, size=MIN_SIZE, seed=0), noise(1, size=MIN_SIZE, seed=1)
    assert torch.isfinite(network(x, y)).all()
    with pytest.raises(ValueError, match="at least 32 px"):
        network(x[..., 1:], y[..., 1:])


@pytest.mark.usefixtures("empty_weights")
@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_error_for_missing_weights_names_the_places_and_the_remedy(trunk: Trunk) -> None:
    assert find_weights(trunk, download=False) is None
    with pytest.raises(UserError) as caught:
        LPIPS.load(trunk, download=False)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("checkpoints", "HISTOLOOM_WEIGHTS", FILES[trunk].npz, "perceptual=pyramid"):
        assert part in message


def test_a_weights_folder_that_does_not_exist_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOLOOM_WEIGHTS", str(tmp_path / "typo"))
    with pytest.raises(UserError, match="is no folder"):
        find_weights("alex", download=False)


def test_tampered_archive_is_refused(published: Path, empty_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = published / FILES["squeeze"].npz
    if not source.is_file():
        pytest.skip(f"{source.name} is not on this machine")
    monkeypatch.setenv("HISTOLOOM_WEIGHTS", str(empty_weights))
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 1
    (empty_weights / source.name).write_bytes(data)
    with pytest.raises(UserError, match="is not the published file: its SHA-256"):
        LPIPS.load("squeeze", download=False)


def test_tampered_torchvision_file_is_refused(empty_weights: Path) -> None:
    name = FILES["alex"].pth
    torch.save({"features.0.weight": torch.zeros(1)}, empty_weights / name)
    with pytest.raises(UserError, match=r"7be5be79.pth is not the published file"):
        LPIPS.load("alex", download=False)


def test_torchvision_file_without_heads_gets_the_shipped_ones(empty_weights: Path) -> None:
    network = random_lpips("squeeze")
    path = empty_weights / "trunk.pth"
    torch.save(dict(network.trunk.state_dict()) | {"classifier.1.weight": torch.zeros(2)}, path)
    trunk, heads = WeightsFile(path, "squeeze", None).read()
    assert set(trunk) == set(network.trunk.state_dict())
    assert [head.numel() for head in heads.values()] == [64, 128, 256, 384, 384, 512, 512]


def test_archive_of_another_network_is_refused(empty_weights: Path) -> None:
    weights: dict[str, Any] = {"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)}
    np.savez(empty_weights / FILES["vgg"].npz, **weights)
    with pytest.raises(UserError, match="does not hold the weights of LPIPS's vgg trunk"):
        LPIPS.load("vgg", download=False)


def test_truncated_archive_is_refused(empty_weights: Path) -> None:
    np.savez(empty_weights / "whole.npz", features=np.zeros(100))
    data = (empty_weights / "whole.npz").read_bytes()
    (empty_weights / FILES["vgg"].npz).write_bytes(data[:60])
    with pytest.raises(UserError, match="cannot be read as weights"):
        LPIPS.load("vgg", download=False)


def test_the_weights_folder_has_priority_over_the_cache(empty_weights: Path, tmp_path: Path) -> None:
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / FILES["alex"].pth).touch()
    file = find_weights("alex", download=False)
    assert file == WeightsFile(cache / FILES["alex"].pth, "alex", "7be5be79")
    (empty_weights / FILES["alex"].npz).touch()
    file = find_weights("alex", download=False)
    assert file is not None
    assert file.path.parent == empty_weights


@pytest.mark.usefixtures("empty_weights")
def test_a_download_is_verified_and_stored_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "served"
    source.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    name = f"net-{digest[:8]}.pth"
    shutil.copy(source, tmp_path / name)
    monkeypatch.setattr(lpips, "_ADDRESS", tmp_path.as_uri())
    monkeypatch.setitem(FILES, "vgg", lpips.TrunkFiles("absent.npz", None, name))
    file = find_weights("vgg", download=True)
    assert file is not None
    assert file.sha256 == digest[:8]
    assert file.path.read_bytes() == b"weights"
    assert file.path.is_relative_to(tmp_path / "torch")
    assert [p.name for p in file.path.parent.iterdir()] == [name]


def test_a_download_with_another_digest_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(b"<html>please log in</html>")
    target = tmp_path / "cache" / "net-12345678.pth"
    with pytest.raises(UserError, match="is not the published file"):
        fetch((tmp_path / "page").as_uri(), target=target, sha256=hub_hash(target.name))
    assert list(target.parent.iterdir()) == []


@pytest.mark.usefixtures("empty_weights")
def test_a_failed_download_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "_ADDRESS", (tmp_path / "nothing here").as_uri())
    with pytest.raises(UserError, match="could not be downloaded; set HISTOLOOM_WEIGHTS"):
        LPIPS.load("alex", download=True)


def test_doctor_fetches_what_is_missing_and_checks_it(
    empty_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into the folder that the environment names, which another machine can be given."""
    page = tmp_path / "page.pth"
    torch.save(FeatureTrunk("squeeze").state_dict(), page)
    name = f"net-{hashlib.sha256(page.read_bytes()).hexdigest()[:8]}.pth"
    page.rename(tmp_path / name)
    monkeypatch.setattr(lpips, "_ADDRESS", tmp_path.as_uri())
    monkeypatch.setattr(doctor, "TRUNKS", ("squeeze", "alex"))
    monkeypatch.setitem(FILES, "squeeze", lpips.TrunkFiles("absent.npz", None, name))
    fetched = CliRunner().invoke(app, ["doctor", "--fetch"])
    assert fetched.exit_code == 2, fetched.output
    good, bad, advice = fetched.output.splitlines()
    assert good.startswith("ok  LPIPS weights, squeeze")
    assert [file.name for file in empty_weights.iterdir()] == [name]
    assert bad.startswith("no  LPIPS weights, alex")
    assert "could not be downloaded" in bad
    assert "HISTOLOOM_WEIGHTS" in advice

    # What is there is checked as well.
    (empty_weights / name).write_bytes(b"damaged")
    damaged, *_ = CliRunner().invoke(app, ["doctor", "--fetch"]).output.splitlines()
    assert damaged.startswith("no  LPIPS weights, squeeze")
    assert "is not the published file" in damaged

"""Metrics of images on the stand-in for a GPU: in batches, with one wait, and with the values of the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda

from histoloom.autoencoder.lpips import LPIPS, FeatureTrunk
from histoloom.evaluation import extractors, pair_metrics
from histoloom.evaluation.extractors import LpipsTrunk
from histoloom.evaluation.pair_metrics import PairMetric, lpips_of, measure, ms_ssim_of, ssim_of
from histoloom.evaluation.paper_similarity import RepeatedLPIPS, colour_volume_ssim_of
from histoloom.training import memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIDE = 48


@pytest.fixture(scope="module")
def network() -> LPIPS:
    """LPIPS with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LPIPS(FeatureTrunk("squeeze"), heads=[torch.rand(c) for c in (64, 128, 256, 384, 384, 512, 512)])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Blurred noise, so that neighbouring pixels and images are alike."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (10, SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
    return small.repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "BLOCK", 2)
    monkeypatch.setattr(extractors, "GPU_BLOCK", 4)
    monkeypatch.setattr(pair_metrics, "_GPU_CHUNK_PIXELS", 4 * SIDE**2)
    monkeypatch.setattr(memory, "_largest", {})


def full(network: LPIPS, monkeypatch: pytest.MonkeyPatch, *, fits: int) -> list[int]:
    """Let the network take at most ``fits`` images; the numbers of images that it was given."""
    given: list[int] = []
    features = network.features

    def limited(x_NCHW: torch.Tensor) -> list[torch.Tensor]:
        given.append(len(x_NCHW))
        if len(x_NCHW) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return features(x_NCHW)

    monkeypatch.setattr(network, "features", limited)
    return given


@pytest.mark.parametrize(("fits", "batches"), [(4, [4, 4, 4]), (2, [4, *[2] * 6])])
def test_features_wait_once(
    fits: int, batches: list[int], network: LPIPS, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = LpipsTrunk("squeeze", network=network, device=CPU).features(images)
    with fake_cuda() as record:
        extractor = LpipsTrunk("squeeze", network=copy.deepcopy(network), device=CUDA)
        given = full(extractor.network, monkeypatch, fits=fits)
        before = record.totals()
        features = extractor.features(images)
        waits, copies, _ = np.subtract(record.totals(), before)
    assert given == batches
    assert (waits, copies) == (1, len(batches))
    assert features == pytest.approx(expected, rel=1e-4, abs=1e-6)


def metrics_on(device: torch.device, network: LPIPS) -> list[PairMetric]:
    """All metrics of pairs; ``network`` lies on ``device``."""
    functions = {"ssim": ssim_of, "ms_ssim": ms_ssim_of, "paper's ssim": colour_volume_ssim_of}
    metrics = [PairMetric(name, "", function, device) for name, function in functions.items()]
    metrics.append(PairMetric("lpips", "", lambda pairs: lpips_of(pairs, network=network), device))
    return [*metrics, PairMetric("paper's lpips", "", RepeatedLPIPS(network), device)]


@pytest.mark.parametrize(("fits", "chunks"), [(8, 3), (4, 6)])  # of 4 pairs; or one that does not fit, and 5 of 2
def test_metrics_of_pairs_wait_once_but_for_the_weights_of_torchmetrics(
    fits: int, chunks: int, network: LPIPS, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = np.stack([np.arange(10), (np.arange(10) + 1) % 10], axis=1)

    def read(rows: np.ndarray) -> np.ndarray:
        return images[rows]

    expected = measure(metrics_on(CPU, network), left=read, right=read, pairs=pairs)
    with fake_cuda() as record:
        on_gpu = copy.deepcopy(network).to(CUDA)
        given = full(on_gpu, monkeypatch, fits=fits)
        before = record.totals()
        values = measure(metrics_on(CUDA, on_gpu), left=read, right=read, pairs=pairs)
        waits, copies, _ = np.subtract(record.totals(), before)
    assert max(given) == 5  # the images of 4 pairs in a row
    # A chunk's images are copied without a wait; torchmetrics copies the five weights of MS-SSIM's scales with one.
    assert (waits, copies) == (chunks + 1, 3 * chunks)
    for name, values_P in values.items():
        assert values_P == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name

"""Metrics of pairs of images: SSIM, MS-SSIM and LPIPS.

A new metric is a function of pairs, a name in ``PAIR_METRICS`` and a branch of ``make_metric``. Shapes: P pairs, images
uint8 0..255 RGB (P, H, W, 3). Values are float64 (P,). Inside, images are float32 in 0..1 with the data range fixed at
1.0 (the same as 255 for uint8), never taken from the images. Functions of ``PairImages`` leave their values on the
device, so that the CPU does not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from histoloom.autoencoder.lpips import LPIPS, MIN_SIZE, Trunk
from histoloom.errors import UserError
from histoloom.evaluation.images import Images, Reader
from histoloom.training.devices import full_precision
from histoloom.training.memory import in_fitting_parts
from histoloom.training.transfers import put_array

Values = NDArray[np.float64]

WINDOW = 11
"""px; the Gaussian window of SSIM has this side and a standard deviation of 1.5 px"""
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""weights of MS-SSIM's five scales, finest first (Wang et al. 2003, section 3.2)"""

# Of torchmetrics: the least side of an image for 1, 2, ... scales is WINDOW times this.
_MIN_WINDOWS = tuple(max(2**scale, scale**2) for scale in range(len(BETAS)))
# px of one side of a chunk. On a CPU: what stays in its cache, where SSIM's filters run several times faster. On a GPU:
# what occupies it, of which VGG-16 takes about 4 GB.
_CHUNK_PIXELS = 2**16
_GPU_CHUNK_PIXELS = 2**21


@dataclass(frozen=True)
class PairImages:
    """The two sides of P pairs: on the CPU, and as uint8 (P, H, W, 3) on the device."""

    left: Images
    right: Images
    a_PHWC: Tensor
    b_PHWC: Tensor

    @classmethod
    def put(cls, left: Images, right: Images, *, device: torch.device) -> Self:
        """Copy the images to the device."""
        return cls(left, right, put_array(left.copy(), device), put_array(right.copy(), device))


def ssim(a_PHWC: Images, b_PHWC: Images, *, device: torch.device) -> Values:
    """``ssim_of`` these images."""
    return to_values(ssim_of(PairImages.put(a_PHWC, b_PHWC, device=device)))


def ssim_of(pairs: PairImages) -> Tensor:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13(4), 600), mean over the three channels.

    As in the authors' code and in scikit-image, only windows that lie whole in the image count; in single precision
    the values are scikit-image's to 1e-4. Raises ``UserError`` for images smaller than the window.
    """
    _require_size(min(pairs.left.shape[1:3]), least=WINDOW)
    _, map_PCHW = structural_similarity_index_measure(
        _to_unit(pairs.a_PHWC),
        _to_unit(pairs.b_PHWC),
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    margin = WINDOW // 2
    return map_PCHW[..., margin:-margin, margin:-margin].mean(dim=(1, 2, 3))


def ms_ssim_scales(size: int) -> int:
    """How many of MS-SSIM's five scales an image whose shorter side is ``size`` px holds: 5 from 176 px up.

    A scale counts where a whole window fits and where torchmetrics accepts it: 4 scales from 99 px, 3 from 44, 2
    from 22, 1 from 11, none below.
    """
    return sum(size >= WINDOW * windows for windows in _MIN_WINDOWS)


def ms_ssim_betas(size: int) -> tuple[float, ...]:
    """The weights of the finest scales that fit into ``size`` px, with the same sum as all five."""
    betas = BETAS[: ms_ssim_scales(size)]
    return tuple(beta / sum(betas) * sum(BETAS) for beta in betas)


def ms_ssim(a_PHWC: Images, b_PHWC: Images, *, device: torch.device) -> Values:
    """``ms_ssim_of`` these images."""
    return to_values(ms_ssim_of(PairImages.put(a_PHWC, b_PHWC, device=device)))


def ms_ssim_of(pairs: PairImages) -> Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli & Bovik, Asilomar 2003, equation 7).

    Images below 176 px use as many of the finest scales as fit (``ms_ssim_scales``), with the weights renormalised:
    such values compare with one another, not with those of five scales. Negative terms count as 0.
    """
    side = min(pairs.left.shape[1:3])
    _require_size(side, least=WINDOW)
    return multiscale_structural_similarity_index_measure(
        _to_unit(pairs.a_PHWC),
        _to_unit(pairs.b_PHWC),
        data_range=1.0,
        reduction="none",
        betas=ms_ssim_betas(side),
        normalize="relu",
    ).reshape(-1)


def lpips_of(pairs: PairImages, *, network: LPIPS) -> Tensor:
    """Learned perceptual distance (Zhang et al. 2018), 0 for equal images; ``network`` lies on the images' device."""
    with torch.inference_mode():
        return network(_to_unit(pairs.a_PHWC) * 2 - 1, _to_unit(pairs.b_PHWC) * 2 - 1)


def _require_size(side: int, *, least: int) -> None:
    if side < least:
        raise UserError(f"images of {side} px are too small for this metric; it needs at least {least} px")


def _to_unit(images_NHWC: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in 0..1."""
    return images_NHWC.permute(0, 3, 1, 2).float() / 255


def to_values(values_P: Tensor) -> Values:
    """The values on the CPU, which waits for the device."""
    return values_P.cpu().double().numpy()


# --- by name

PAIR_METRICS = ("ssim", "ms_ssim", "lpips")


class PairFunction(Protocol):
    """Values (P,) of P image pairs, on their device."""

    def __call__(self, pairs: PairImages, /) -> Tensor: ...


@dataclass(frozen=True)
class PairMetric:
    """A metric ready to compute on ``device``; ``extractor`` says in words what it compares."""

    name: str
    extractor: str
    function: PairFunction
    device: torch.device

    def values(self, a_PHWC: Images, b_PHWC: Images) -> Values:
        """The values of the pairs of these images."""
        return to_values(self.function(PairImages.put(a_PHWC, b_PHWC, device=self.device)))


@dataclass(frozen=True)
class PairMetricSettings:
    """What a metric may depend on."""

    size: int
    """shorter side of the images, px"""
    trunk: Trunk
    device: torch.device
    download: bool


def make_metric(name: str, settings: PairMetricSettings) -> PairMetric:
    """One of ``PAIR_METRICS``; ``UserError`` for images that are too small, and without LPIPS's weights."""
    size, device = settings.size, settings.device
    _require_size(size, least=MIN_SIZE if name == "lpips" else WINDOW)
    if name == "ssim":
        return PairMetric(name, "RGB pixels", ssim_of, device)
    if name == "ms_ssim":
        extractor = f"RGB pixels, {ms_ssim_scales(size)} of {len(BETAS)} scales"
        return PairMetric(name, extractor, ms_ssim_of, device)
    assert name == "lpips", f"no metric of pairs is called {name!r}"
    network = LPIPS.load(settings.trunk, download=settings.download).to(device)
    return PairMetric(name, f"LPIPS v0.1, {settings.trunk} trunk", partial(lpips_of, network=network), device)


def make_metrics(settings: PairMetricSettings) -> tuple[list[PairMetric], dict[str, str]]:
    """All metrics that can be computed here, and for each other one the reason why not."""
    metrics, missing = [], {}
    for name in PAIR_METRICS:
        try:
            metrics.append(make_metric(name, settings))
        except UserError as error:
            missing[name] = str(error)
    return metrics, missing


def measure(
    metrics: Sequence[PairMetric],
    *,
    left: Reader,
    right: Reader,
    pairs: np.ndarray,
    chunk: int | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, Values]:
    """Each metric's values (P,) of the ``pairs`` (P, 2) of indices that ``left`` and ``right`` read.

    Memory is bounded by ``chunk`` pairs (chosen by the device and the images' size where None); the values do not
    depend on it. The CPU waits for a GPU's values once, at the end. ``advance`` is called with the number of pairs
    after each chunk.
    """
    device = metrics[0].device if metrics else torch.device("cpu")
    if chunk is None and len(pairs):
        height, width = left(pairs[:1, 0]).shape[1:3]
        chunk = max(1, (_CHUNK_PIXELS if device.type == "cpu" else _GPU_CHUNK_PIXELS) // (height * width))

    def compute(some_P2: np.ndarray) -> list[Tensor]:
        images = PairImages.put(left(some_P2[:, 0]), right(some_P2[:, 1]), device=device)
        return [metric.function(images) for metric in metrics]

    chunks: list[list[Tensor]] = []
    with full_precision():
        for start in range(0, len(pairs), chunk or 1):
            some_P2 = pairs[start : start + (chunk or 1)]
            chunks += in_fitting_parts(compute, some_P2, name="metrics of pairs of images")
            advance(len(some_P2))
    nothing = torch.empty((len(metrics), 0), device=device)
    values_MP = to_values(torch.cat([nothing, *(torch.stack(values) for values in chunks)], dim=1))
    return dict(zip((metric.name for metric in metrics), values_MP, strict=True))

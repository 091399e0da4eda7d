"""Resampling by a Lanczos filter as wide as the reduction, faster than Pillow's and the same on every machine.

Each pass is a band of weights times the image: a few small matrix products. Weights and what lies between the passes
are whole multiples of powers of two, so small that every sum is exact in float32: in whatever order a processor adds,
and with whatever instructions, the same bytes come out.

Legend: H, W input height and width; h, w output height and width; 3 colours. Pixels are RGB uint8 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SUPPORT = 3  # lobes of the filter to each side, in output pixels where it reduces, in input pixels where it enlarges

Box = tuple[float, float, float, float]

# 255 x 1.4 (the weights' absolute sum) < 2 ** 9 grey levels; in steps of 1 / 4 times weights of 1 / 4096: 2 ** 23.
_WEIGHT_STEP = 2.0**-12
_BETWEEN_STEP = 2.0**-2
# Multiplications up to which OpenBLAS starts no threads. Threads cost more than they save here, and where several
# processes read slides at the same time, their threads wait for each other in busy loops.
_ON_ONE_THREAD = 2**18
_ROWS, _COLUMNS = 16, 8  # outputs of one product: more multiply more zeros, fewer cost more calls


@dataclass(frozen=True, eq=False)
class _Band:
    """Outputs from ``start`` on are ``weights_oi`` times the inputs ``first`` to ``last``."""

    start: int
    first: int
    last: int
    weights_oi: np.ndarray


def resample(pixels_HW3: np.ndarray, *, box: Box, shape: tuple[int, int]) -> np.ndarray:
    """``box`` (left, top, right, bottom; px, fractions allowed) of an image at ``shape`` (w, h): uint8 (h, w, 3).

    The filter takes its neighbours from outside the box as far as the image goes. The result is the exact Lanczos
    filter's to one grey level. Pillow's ``resize(shape, LANCZOS, box=box)`` differs more, since it rounds to whole
    levels and clips to 0..255 between its two passes: by 2 levels on tissue, by up to 65 where noise of full contrast
    overshoots that range.
    """
    height, width = pixels_HW3.shape[:2]
    (left, top, right, bottom), (w, h) = box, shape
    # Whole pixels at their own size are copied.
    if (left, top) == (int(left), int(top)) and (right - left, bottom - top) == (w, h):
        return np.ascontiguousarray(pixels_HW3[int(top) : int(top) + h, int(left) : int(left) + w])
    flat = pixels_HW3.reshape(height, -1).astype(np.float32)
    between = np.empty((h, 3 * width), np.float32)
    for band in _bands(height, low=top, high=bottom, count=h, size=_ROWS):
        rows = slice(band.start, band.start + len(band.weights_oi))
        _product(band.weights_oi, flat[band.first : band.last], out=between[rows])
    between *= 1 / _BETWEEN_STEP
    np.rint(between, out=between)
    between *= _BETWEEN_STEP
    result = np.empty((h, 3 * w), np.float32)
    for band in _bands(width, low=left, high=right, count=w, size=_COLUMNS, colours=3):
        columns = slice(3 * band.start, 3 * band.start + len(band.weights_oi))
        _product(between[:, 3 * band.first : 3 * band.last], band.weights_oi.T, out=result[:, columns])
    np.rint(result, out=result)
    return result.clip(0, 255, out=result).astype(np.uint8).reshape(h, w, 3)


def _product(left: np.ndarray, right: np.ndarray, *, out: np.ndarray) -> None:
    """``left @ right`` in parts of the longer side, so small that each stays on this thread."""
    (rows, inner), columns = left.shape, right.shape[1]
    if rows >= columns:
        step = max(1, _ON_ONE_THREAD // (inner * columns))
        for start in range(0, rows, step):
            np.matmul(left[start : start + step], right, out=out[start : start + step])
    else:
        step = max(1, _ON_ONE_THREAD // (inner * rows))
        for start in range(0, columns, step):
            part = slice(start, start + step)
            np.matmul(left, right[:, part], out=out[:, part])


@lru_cache(maxsize=64)
def _bands(length: int, *, low: float, high: float, count: int, size: int, colours: int = 1) -> tuple[_Band, ...]:
    """The weights of ``count`` outputs over low..high of ``length`` inputs, ``size`` outputs a band.

    Each output and input stands for ``colours`` neighbouring numbers, which do not mix.
    """
    first_o, last_o, weights_ot = _taps(length, low=low, high=high, count=count)
    bands = []
    for start in range(0, count, size):
        outputs = range(start, min(start + size, count))
        first, last = int(first_o[outputs].min()), int(last_o[outputs].max())
        weights_oi = np.zeros((len(outputs), last - first), np.float32)
        for row, output in enumerate(outputs):
            used = slice(first_o[output] - first, last_o[output] - first)
            weights_oi[row, used] = weights_ot[output, : last_o[output] - first_o[output]]
        bands.append(_Band(start, first, last, np.kron(weights_oi, np.eye(colours, dtype=np.float32))))
    return tuple(bands)


def _taps(length: int, *, low: float, high: float, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and last + 1 input of each output, and their weights from the first on; each row sums to 1 exactly."""
    scale = (high - low) / count
    width = max(scale, 1.0)
    centres_o = low + (np.arange(count) + 0.5) * scale
    first_o = np.maximum(0, (centres_o - SUPPORT * width + 0.5).astype(np.int64))
    last_o = np.minimum(length, (centres_o + SUPPORT * width + 0.5).astype(np.int64))
    taps_ot = first_o[:, None] + np.arange(int((last_o - first_o).max()))
    at_ot = (taps_ot + 0.5 - centres_o[:, None]) / width
    weights_ot = np.where(taps_ot < last_o[:, None], np.sinc(at_ot) * np.sinc(at_ot / SUPPORT), 0)
    weights_ot /= weights_ot.sum(axis=1, keepdims=True)
    # Steps from rounding the running sum: the whole row keeps its sum, and no tap is off by more than one step.
    steps_ot = np.diff(np.rint(np.cumsum(weights_ot, axis=1) / _WEIGHT_STEP), axis=1, prepend=0)
    return first_o, last_o, steps_ot * _WEIGHT_STEP

"""From samples as a file stores them to RGB of 8 bits: their true range, and transparency.

A file of 16 bits may hold the 8, 10, 12 or 14 bits of a camera. What counts is the range that is used: such a slide
would be black if it were taken for 16 bits.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

Alpha = Literal["straight", "premultiplied"]

_DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras


def used_range(samples: np.ndarray) -> int:
    """The largest value of the fewest bits, 8 to 16, that hold all samples."""
    seen = int(samples.max(initial=0))
    return next(2**bits - 1 for bits in _DEPTHS if seen < 2**bits)


def to_8_bits(samples: np.ndarray, *, largest: int) -> np.ndarray:
    """Samples 0 to ``largest`` as uint8 0..255; larger ones are 255."""
    if samples.dtype == np.uint8 and largest == 255:
        return samples
    values = np.arange(np.iinfo(samples.dtype).max + 1, dtype=np.int64)
    # The upper 8 bits, or all the steps that there are.
    table = values * 256 // (largest + 1) if largest >= 255 else values * 255 // largest
    return np.asarray(table.clip(max=255).astype(np.uint8)[samples])


def rgb_on_white(samples_hwc: np.ndarray, *, largest: int, alpha: Alpha | None) -> Image.Image:
    """Grey or RGB samples, with ``alpha`` their last one, as an RGB image over white."""
    if alpha is None:
        return _rgb(to_8_bits(samples_hwc, largest=largest))
    colours, opacity = samples_hwc[..., :-1], samples_hwc[..., -1:]
    # Opacity may have the full range beside colours of fewer bits.
    full = largest if samples_hwc.dtype == np.uint8 else max(largest, used_range(opacity))
    colours, opacity = to_8_bits(colours, largest=largest), to_8_bits(opacity, largest=full)
    if alpha == "premultiplied":
        return _rgb(np.minimum(colours.astype(np.uint16) + (255 - opacity), 255).astype(np.uint8))
    image = Image.new("RGB", (samples_hwc.shape[1], samples_hwc.shape[0]), "white")
    image.paste(_rgb(colours), mask=Image.fromarray(np.ascontiguousarray(opacity[..., 0])))
    return image


def _rgb(samples_hwc: np.ndarray) -> Image.Image:
    samples = np.ascontiguousarray(samples_hwc)
    return Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples).convert("RGB")

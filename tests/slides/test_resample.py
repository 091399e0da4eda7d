"""Resampling: the exact Lanczos filter to one grey level, and what any filter must keep."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from histoloom import seeding
from histoloom.slides.readers.resample import _BETWEEN_STEP, _WEIGHT_STEP, _bands, _taps, resample

BOXES = [(0, 0, 130, 97), (8.3, 5.1, 101.4, 80.9), (0, 3, 60, 63), (40, 40, 50, 50), (0.0, 0.0, 12.5, 97.0)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shape", [(32, 24), (64, 64), (7, 90)])
def test_agrees_with_pillow(picture, box, shape):
    image = picture(130, 97)
    expected = Image.fromarray(image).resize(shape, Image.Resampling.LANCZOS, box=box)
    result = resample(image, box=box, shape=shape)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    assert np.abs(result.astype(int) - np.asarray(expected)).max() <= 2
    assert (result != np.asarray(expected)).mean() < 0.4


def exact_lanczos(image: np.ndarray, *, box: tuple[float, ...], shape: tuple[int, int]) -> np.ndarray:
    """The filter in double precision, with exact weights and one rounding at the end."""
    weights = []
    for length, low, high, count in (
        (image.shape[0], box[1], box[3], shape[1]),
        (image.shape[1], box[0], box[2], shape[0]),
    ):
        scale = (high - low) / count
        width = max(scale, 1.0)
        centres = low + (np.arange(count)[:, None] + 0.5) * scale
        first, last = (np.trunc(centres + side * 3 * width + 0.5).clip(0, length) for side in (-1, 1))
        taps = np.arange(length)
        at = (taps + 0.5 - centres) / width
        kernel = np.where((taps >= first) & (taps < last), np.sinc(at) * np.sinc(at / 3), 0)
        weights.append(kernel / kernel.sum(axis=1, keepdims=True))
    return np.rint(np.einsum("oh,hwc,pw->opc", weights[0], image.astype(float), weights[1])).clip(0, 255).astype(int)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shape", [(32, 24), (64, 64), (7, 90)])
def test_noise_is_exact_to_one_level_where_pillow_clips_between_its_passes(box, shape):
    """Noise of full contrast overshoots 0..255 after the first pass; Pillow clips it there and is up to 50 off."""
    noise = seeding.numpy_generator(0, "noise").integers(0, 256, (97, 130, 3), dtype=np.uint8)
    result = resample(noise, box=box, shape=shape).astype(int)
    assert np.abs(result - exact_lanczos(noise, box=box, shape=shape)).max() <= 1
    pillow = np.asarray(Image.fromarray(noise).resize(shape, Image.Resampling.LANCZOS, box=box))
    assert np.abs(result - pillow).max() <= 50


def test_whole_pixels_are_copied():
    image = seeding.numpy_generator(0, "noise").integers(0, 256, (40, 50, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resample(image, box=(7, 3, 39, 35), shape=(32, 32)), image[3:35, 7:39])


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_an_even_colour_stays(value):
    image = np.full((50, 60, 3), value, np.uint8)
    assert (resample(image, box=(1.7, 2.2, 55.1, 44.4), shape=(32, 32)) == value).all()


def test_fractions_of_a_pixel_count():
    """A slope, sampled a third of a pixel further, is a third of a step higher."""
    image = np.broadcast_to(np.arange(0, 240, 3, dtype=np.uint8)[None, :, None], (80, 80, 3))
    one = resample(image, box=(20.0, 20.0, 60.0, 60.0), shape=(20, 20)).astype(float)
    other = resample(image, box=(20 + 1 / 3, 20.0, 60 + 1 / 3, 60.0), shape=(20, 20)).astype(float)
    np.testing.assert_allclose(other - one, 1, atol=1)
    assert abs((other - one).mean() - 1) < 0.15


def test_turning_the_image_turns_the_result(picture):
    image = picture(64, 48)
    transposed = resample(np.ascontiguousarray(image.transpose(1, 0, 2)), box=(2, 5, 40, 60), shape=(16, 24))
    straight = resample(image, box=(5, 2, 60, 40), shape=(24, 16))
    assert np.abs(transposed.transpose(1, 0, 2).astype(int) - straight).max() <= 1


@pytest.mark.parametrize(
    ("length", "low", "high", "count"), [(400, 3.3, 380.1, 256), (60, 5.0, 30.0, 100), (99, 0, 99, 7)]
)
def test_every_sum_is_exact(length, low, high, count):
    """Whole multiples of a step that add up to 1, and whose products with any picture stay below float32's 2 ** 24."""
    _, _, weights = _taps(length, low=low, high=high, count=count)
    steps = weights / _WEIGHT_STEP
    np.testing.assert_array_equal(steps, np.rint(steps))
    np.testing.assert_array_equal(weights.sum(axis=1), 1)
    largest = 255 * np.abs(weights).sum(axis=1).max()
    assert np.abs(weights).sum(axis=1).max() * largest / (_WEIGHT_STEP * _BETWEEN_STEP) < 2**24


def test_the_order_of_the_sums_changes_nothing(picture):
    """The same with whole matrices in double precision, where no product is shared out as it is in float32."""
    image, box, shape = picture(130, 97), (8.3, 5.1, 101.4, 80.9), (64, 60)
    down, across = (
        np.concatenate([np.pad(b.weights_oi, ((0, 0), (b.first, length - b.last))) for b in bands]).astype(float)
        for length, bands in (
            (97, _bands(97, low=5.1, high=80.9, count=60, size=16)),
            (130, _bands(130, low=8.3, high=101.4, count=64, size=8)),
        )
    )
    between = np.rint(np.einsum("oh,hwc->owc", down, image.astype(float)) / _BETWEEN_STEP) * _BETWEEN_STEP
    expected = np.rint(np.einsum("ow,hwc->hoc", across, between)).clip(0, 255)
    np.testing.assert_array_equal(resample(image, box=box, shape=shape), expected)


@pytest.mark.parametrize("box", [(13.0, 13.0, 525.0, 400.0), (0.3, 2.0, 200.5, 410.1)])
def test_products_in_parts_give_the_same_bytes(picture, monkeypatch, box):
    image = picture(540, 412)
    whole, parts = [], []
    for shape in ((256, 190), (96, 300)):
        monkeypatch.setattr("histoloom.slides.readers.resample._ON_ONE_THREAD", 2**60)
        whole.append(resample(image, box=box, shape=shape))
        monkeypatch.setattr("histoloom.slides.readers.resample._ON_ONE_THREAD", 2**12)
        parts.append(resample(image, box=box, shape=shape))
    for expected, result in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(result, expected)

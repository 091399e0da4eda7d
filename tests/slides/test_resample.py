"""Resampling: Pillow's Lanczos to the last digit but one, and what any filter must keep."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from histoloom import seeding
from histoloom.slides.resample import resample

BOXES = [(0, 0, 130, 97), (8.3, 5.1, 101.4, 80.9), (0, 3, 60, 63), (40, 40, 50, 50), (0.0, 0.0, 12.5, 97.0)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("shape", [(32, 24), (64, 64), (7, 90)])
def test_agrees_with_pillow(picture, box, shape):
    image = picture(130, 97)
    expected = Image.fromarray(image).resize(shape, Image.Resampling.LANCZOS, box=box)
    result = resample(image, box=box, shape=shape)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    # Pillow rounds and clips between its two passes; here that happens once.
    assert np.abs(result.astype(int) - np.asarray(expected)).max() <= 2
    assert (result != np.asarray(expected)).mean() < 0.4


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
    turned = resample(np.ascontiguousarray(image.transpose(1, 0, 2)), box=(2, 5, 40, 60), shape=(16, 24))
    straight = resample(image, box=(5, 2, 60, 40), shape=(24, 16))
    assert np.abs(turned.transpose(1, 0, 2).astype(int) - straight).max() <= 1

"""Colours that everybody can tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from histoloom.atlas.maps.palette import colours, hexadecimal, separation


@pytest.mark.parametrize(("n", "least"), [(16, 0.07), (24, 0.055)])
def test_colours_stay_apart_for_all_four_viewers(n: int, least: float) -> None:
    chosen = np.array(colours(n))
    nearest = min(separation(chosen[:i], chosen[i]).min() for i in range(1, n))
    assert nearest > least


def test_red_and_green_of_equal_lightness_are_near_for_a_dichromat_only() -> None:
    red, green = np.array([[200, 80, 60]]), np.array([110, 125, 40])
    assert separation(red, green)[0] < 0.12
    assert separation(np.array([[0, 0, 0]]), np.array([255, 255, 255]))[0] == pytest.approx(1, abs=1e-3)


def test_more_colours_begin_with_the_same_ones() -> None:
    assert colours(40)[:16] == colours(16)
    assert len(set(colours(64))) == 64
    assert colours(0) == []
    assert hexadecimal(colours(1)[0]) == "#e69f00"

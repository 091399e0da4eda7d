"""Colours that show on stained tissue and that everybody can tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from histoloom.atlas.maps.palette import STAIN, Rgb, cluster_colours, colours, hexadecimal, rgb, separation
from histoloom.names import Label

NORMAL, RED_GREEN, ALL = 1, 3, 4
"""Viewers: normal vision; also protanopia and deuteranopia; also tritanopia."""


def contrasts(chosen: list[Rgb]) -> tuple[float, float, float, float]:
    """The smallest CIEDE2000 to stained tissue (normal, red-green) and between two of the colours (normal, all)."""
    chosen_M3 = np.array(chosen)
    pairs = ~np.eye(len(chosen), dtype=bool)
    return (
        float(separation(chosen_M3, np.array(STAIN), viewers=NORMAL).min()),
        float(separation(chosen_M3, np.array(STAIN), viewers=RED_GREEN).min()),
        float(separation(chosen_M3, chosen_M3, viewers=NORMAL)[pairs].min()),
        float(separation(chosen_M3, chosen_M3, viewers=ALL)[pairs].min()),
    )


@pytest.mark.parametrize(("n", "least"), [(8, (20, 11, 21, 13)), (12, (16, 8.9, 19, 10)), (24, (12, 5, 12, 6.9))])
def test_the_contrast_that_the_docs_state_is_reached(n: int, least: tuple[float, ...]) -> None:
    reached = contrasts(colours(n))
    assert all(value >= wanted for value, wanted in zip(reached, least, strict=True)), reached


def test_a_tint_shows_on_the_tissue_below() -> None:
    """CIEDE2000 between tissue and a tint of 40 % on it, for normal vision; salmon differs from every tissue, too."""
    change = {
        colour: min(
            float(separation(np.rint(0.4 * np.array([colour]) + 0.6 * tissue_3), tissue_3[None], viewers=NORMAL)[0, 0])
            for tissue_3 in np.array(STAIN[1:])
        )
        for colour in (*colours(12), (221, 153, 136))
    }
    salmon = change.pop((221, 153, 136))
    assert salmon < 6 < min(change.values())


def test_colours_that_are_made_for_paper_are_lost_on_tissue() -> None:
    okabe_ito = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (0, 114, 178), (213, 94, 0), (204, 121, 167)]
    on_tissue, for_red_green, *_ = contrasts(okabe_ito)
    assert on_tissue < 5
    assert for_red_green < 2


def test_the_distance_is_the_published_one() -> None:
    """Black to white is 100; red and green of equal lightness are near for a dichromat only."""
    black, white, red, green = (
        np.array([colour]) for colour in ((0, 0, 0), (255, 255, 255), (200, 80, 60), (110, 125, 40))
    )
    assert separation(black, white)[0, 0] == pytest.approx(100, abs=0.1)
    assert separation(red, green, viewers=NORMAL)[0, 0] > 3 * separation(red, green, viewers=RED_GREEN)[0, 0]


def test_more_colours_begin_with_the_same_ones() -> None:
    assert colours(40)[:16] == colours(16)
    assert len(set(colours(64))) == 64
    assert colours(0) == []
    assert hexadecimal(colours(1)[0]) == "#33bb00"
    assert rgb("#33bb00") == colours(1)[0]


def test_clusters_of_one_name_have_one_colour() -> None:
    labels = {
        0: Label("fat"),
        1: Label("cluster 1"),
        2: Label("Fat "),
        3: Label("bone", colour="#102030"),
        4: Label("bone", colour="#102030"),
    }
    first, second, *_ = colours(5)
    assert cluster_colours(labels, k=5) == [first, second, first, (16, 32, 48), (16, 32, 48)]

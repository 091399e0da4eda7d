"""Numbers in words and drawings of the report."""

from __future__ import annotations

import numpy as np
import pytest

from histoloom.atlas.report.figures import curves, curves_svg
from histoloom.atlas.report.text import duration, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2142.54026, "2,142.5"),
        (24.5, "24.50"),
        (0.12234, "0.1223"),
        (0.00441, "0.00441"),
        (-0.5, "-0.5000"),
        (0, "0.0000"),
        (3e-7, "3.00e-07"),
    ],
)
def test_numbers_keep_the_digits_that_mean_something(value: float, text: str) -> None:
    assert number(value) == text


def test_durations() -> None:
    assert [duration(s) for s in (0.51, 42.2, 59.7, 200, 7500)] == [
        "0.5 s",
        "42 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]


def test_curves_are_the_numbers_of_the_log() -> None:
    events: list[dict[str, object]] = [
        {"message": "x"},
        {"images": 10, "a.loss": 2.0},
        {"images": 20, "a.loss": 1.0, "b.loss": 5},
    ]
    first, second = curves([*events, {"images": 10, "b.loss": 4.0}])
    assert (first.name, first.images, first.values) == ("a.loss", [10.0, 20.0], [2.0, 1.0])
    assert second.last == 4.0
    assert np.isnan(second.values[1])


def test_a_drawing_is_inert_and_takes_the_text_colour_of_the_page() -> None:
    svg = curves_svg(curves([{"images": 1, "<script>$x$": 1.0}, {"images": 2, "<script>$x$": 2.0}]), salt="x")
    assert svg.startswith("<svg")
    assert "&lt;script&gt;$x$" in svg
    assert "<script" not in svg
    assert "http" not in svg
    assert "currentColor" in svg
    assert curves_svg([], salt="x") == ""

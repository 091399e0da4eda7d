"""Numbers in words and drawings of the report."""

from __future__ import annotations

import csv
import io
from xml.etree import ElementTree

import numpy as np
import pytest

from histoloom.atlas.report.figures import curves, scale_bar
from histoloom.atlas.report.plots import INK
from histoloom.atlas.report.run_plots import training
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


def test_a_plot_is_inert_and_takes_the_text_colour_of_the_page() -> None:
    events: list[dict[str, object]] = [{"images": 1, "<script>$x$": 1.0}, {"images": 2, "<script>$x$": 2.0}]
    plot = training("diffusion", metrics=curves(events))
    assert plot is not None
    assert plot.inline.startswith("<svg")
    assert "&lt;script&gt;$x$" in plot.inline
    assert "<script" not in plot.inline
    assert "http" not in plot.inline
    assert "currentColor" in plot.inline
    assert training("diffusion", metrics=[]) is None


def test_a_plot_is_a_drawing_for_print_and_a_table_of_its_numbers() -> None:
    plot = training("clusters", metrics=curves([{"images": 10, "=1+1": 0.5}, {"images": 20, "network.loss": 0.25}]))
    assert plot is not None
    root = ElementTree.fromstring(plot.document)
    millimetres = float(root.attrib["width"].removesuffix("pt")) / 72 * 25.4
    assert millimetres == pytest.approx(183, abs=1)
    texts = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"training images seen", "Loss", "loss"} <= texts
    assert "Arial" in plot.document
    assert INK not in plot.document
    assert list(csv.reader(io.StringIO(plot.csv))) == [
        ["number", "name in the log", "training images seen", "value"],
        ["'=1+1", "'=1+1", "10.0", "0.5"],
        ["Loss", "network.loss", "20.0", "0.25"],
    ]


@pytest.mark.parametrize(
    ("width", "text", "share"), [(64, "20 µm", 20 / 64), (128, "50 µm", 50 / 128), (2500, "1 mm", 0.4)]
)
def test_a_scale_bar_is_round_and_of_its_length(width: float, text: str, share: float) -> None:
    bar = scale_bar(width)
    assert (bar.text, bar.share) == (text, pytest.approx(share))

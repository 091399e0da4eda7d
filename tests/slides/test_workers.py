"""Worker processes: order, errors, and sudden ends."""

from __future__ import annotations

import os

import pytest

from histoloom.errors import UserError
from histoloom.slides.workers import Workers


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_the_order_of_the_jobs(count):
    with Workers(count) as workers:
        assert workers.run(abs, jobs=[-3, 1, -2], label="a") == [3, 1, 2]
        assert workers.run(len, jobs=["ab", ""], label="b") == [2, 0]


@pytest.mark.parametrize("count", [1, 2])
def test_errors_reach_the_caller(count):
    with Workers(count) as workers, pytest.raises(TypeError):
        workers.run(abs, jobs=[1, "x", 2], label="a")


def test_a_process_that_dies_is_told_in_one_line():
    with Workers(2) as workers, pytest.raises(UserError, match=r"runtime\.workers=1"):
        workers.run(os._exit, jobs=[1, 1], label="a")

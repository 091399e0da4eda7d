from __future__ import annotations

import numpy as np
import torch

from histoloom.seeding import derive, numpy_generator, permutation, torch_generator


def test_streams_are_golden() -> None:
    # A change here changes every result that anyone has: it must be meant.
    assert derive(0, "patches", "slide") == 1804846335065022204
    assert derive(1, "patches", "slide") != derive(0, "patches", "slide")


def test_paths_do_not_run_together() -> None:
    seeds = {derive(0, *path) for path in [("a", "b"), ("ab",), ("a", 1), ("a", "1"), ("a",), ("b", "a")]}
    assert len(seeds) == 6


def test_same_path_same_numbers() -> None:
    assert torch.equal(
        torch.randn(5, generator=torch_generator(3, "x", 1)), torch.randn(5, generator=torch_generator(3, "x", 1))
    )
    assert numpy_generator(3, "x").integers(1 << 60) == numpy_generator(3, "x").integers(1 << 60)


def test_permutation_is_one() -> None:
    assert np.array_equal(np.sort(permutation(0, "order", 7, n=100)), np.arange(100))

"""The thread that reads ahead."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from histoloom.training.batches import Prefetcher


def test_it_reads_ahead_and_follows_other_requests() -> None:
    seen: list[int] = []

    def read(images: int) -> list[Any]:
        seen.append(images)
        return [images]

    with Prefetcher(read) as prefetcher:
        assert prefetcher.take(0, then=8) == [0]
        assert prefetcher.take(8, then=16) == [8]
        assert prefetcher.take(40, then=48) == [40]
    assert seen[:3] == [0, 8, 16]


def test_an_error_of_the_reader_is_the_trainings() -> None:
    def read(images: int) -> list[Any]:
        raise OSError(f"cannot read at {images}")

    with Prefetcher(read) as prefetcher, pytest.raises(OSError, match="cannot read at 0"):
        prefetcher.take(0, then=8)


def test_only_its_own_thread_computes_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Prefetcher(lambda _: [torch.get_num_threads()]) as prefetcher:
            assert prefetcher.take(0, then=8) == [1]
            assert torch.get_num_threads() == 3
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)

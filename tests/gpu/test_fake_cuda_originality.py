"""The search for copies on the stand-in for a GPU: few waits a batch, smaller batches where memory is full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import Record, fake_cuda
from scipy.ndimage import gaussian_filter

from histoloom.evaluation.images import ImageRows
from histoloom.evaluation.originality import nearest as search
from histoloom.evaluation.originality import shortlist
from histoloom.evaluation.originality.audit import AuditSets, audit_pixels
from histoloom.evaluation.originality.greys import to_greys
from histoloom.evaluation.originality.nearest import Gallery, best_score, best_score_of_weakest_half, nearest
from histoloom.training import memory

CUDA = torch.device("cuda")


def blobs(n: int, *, seed: int) -> np.ndarray:
    """Images, uint8 (n, 64, 64, 3), with blobs of the size of nuclei."""
    blurred = gaussian_filter(np.random.default_rng(seed).normal(size=(n, 64, 64, 3)), (0, 2, 2, 0))
    return np.clip(160 + 300 * blurred, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def greys() -> tuple[np.ndarray, np.ndarray]:
    """Images, of which the first three are turned copies of the first patches, and the patches."""
    patches = blobs(20, seed=1)
    copies = np.stack([np.rot90(patches[number], number) for number in range(3)])
    return to_greys(np.concatenate([copies, blobs(5, seed=2)])), to_greys(patches)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "LARGE_BATCH", 4)
    monkeypatch.setattr(search, "MORE_COPIES", 4)
    monkeypatch.setattr(shortlist, "PATCHES", 10)
    monkeypatch.setattr(memory, "_largest", {})


def costs(record: Record, compute: Callable[[], object]) -> tuple[int, int]:
    """Waits and copies."""
    before = record.totals()
    compute()
    waits, copies, _ = np.subtract(record.totals(), before)
    return int(waits), int(copies)


def test_a_search_waits_and_copies_no_more_than_its_budget(greys: tuple[np.ndarray, np.ndarray]) -> None:
    images, patches = greys
    expected = nearest(images, Gallery(patches))
    with fake_cuda() as record:
        gallery = Gallery(patches, device=CUDA)
        found = nearest(images, gallery)
        one = costs(record, lambda: nearest(images[:4], gallery))
        two = costs(record, lambda: nearest(images, gallery))
    np.testing.assert_array_equal(found.number_N, expected.number_N)
    np.testing.assert_allclose(found.score_N, expected.score_N, atol=1.5e-4)
    assert (found.number_N[:3] == np.arange(3)).all()
    # Two waits for each of 3 kinds of blocks and 2 parts of the gallery, and two for the batch of images.
    assert one == (14, 23)
    assert np.subtract(two, one).tolist() == [2, 3]  # of each further batch: all candidates, then the best ones


def test_scores_of_copies_wait_once(greys: tuple[np.ndarray, np.ndarray]) -> None:
    images, _ = greys
    expected = best_score_of_weakest_half(images)
    with fake_cuda() as record:
        best_score(images, device=CUDA)
        cost = costs(record, lambda: best_score(images, device=CUDA))
        np.testing.assert_allclose(best_score_of_weakest_half(images, device=CUDA), expected, atol=1e-6)
    assert cost == (1, 2)  # two batches


def limited(compute: Callable[..., Any], *, sizes: list[int], fits: int) -> Callable[..., Any]:
    """``compute`` where memory suffices for ``fits`` images; ``sizes`` collects how many it was given."""

    def within_memory(greys_NGG: torch.Tensor, *rest: Any, **options: Any) -> Any:
        sizes.append(len(greys_NGG))
        if len(greys_NGG) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return compute(greys_NGG, *rest, **options)

    return within_memory


def test_where_memory_is_full_batches_are_halved(
    greys: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, patches = greys
    expected, best_N = nearest(images, Gallery(patches)), best_score(images)
    close: list[int] = []
    copies: list[int] = []
    monkeypatch.setattr(search, "image_bands", limited(search.image_bands, sizes=close, fits=2))
    monkeypatch.setattr(search, "scores_of_copies", limited(search.scores_of_copies, sizes=copies, fits=1))
    with fake_cuda():
        found = nearest(images, Gallery(patches, device=CUDA))
        np.testing.assert_allclose(best_score(images, device=CUDA), best_N, atol=1e-6)
    np.testing.assert_array_equal(found.number_N, expected.number_N)
    np.testing.assert_allclose(found.score_N, expected.score_N, atol=1.5e-4)
    assert close == [4, 2, 2, 2, 2]
    assert copies == [4, 2, *[1] * 8]


def test_an_audit_gives_what_it_gives_on_the_cpu() -> None:
    def source(n: int, *, seed: int) -> ImageRows:
        images = blobs(n, seed=seed)
        return ImageRows(lambda rows: images[rows], np.arange(n))

    sets = AuditSets(source(4, seed=3), source(8, seed=1), source(4, seed=2), ["slide"] * 4)
    expected = audit_pixels(sets)
    with fake_cuda():
        audit = audit_pixels(sets, device=CUDA)
    np.testing.assert_array_equal(audit.nearest.number_N, expected.nearest.number_N)
    np.testing.assert_allclose(audit.nearest.score_N, expected.nearest.score_N, atol=1.5e-4)
    np.testing.assert_allclose(audit.half_N, expected.half_N, atol=1e-6)
    assert audit.membership is not None

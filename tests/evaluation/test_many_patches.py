"""What the search for copies holds in memory of each training patch: little, and the same results."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clustering_set import Clustering
from histoloom.evaluation import feature_cache
from histoloom.evaluation.extractors import Pixels
from histoloom.evaluation.feature_cache import cached_features, feature_rows
from histoloom.evaluation.originality import audit, by_features, shortlist
from histoloom.evaluation.originality.audit import AuditSets, audit_pixels
from histoloom.evaluation.originality.by_features import nearest_features
from histoloom.evaluation.originality.greys import read_greys
from histoloom.evaluation.originality.nearest import Gallery, Nearest, nearest
from histoloom.evaluation.originality.shortlist import BlockKind, CoarsePatches, PatchBlocks
from histoloom.run import row_file
from histoloom.slides.patch_set import PatchSet

A_PATCH = 64
"""bytes; far below a grey (4 KB) and a feature vector"""


class Noise:
    """Different images of noise, made when they are read."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def key(self, index: int) -> bytes:
        return index.to_bytes(32, "little")

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8) for number in indices])


def bytes_a_patch(work: Callable[[int], object], *, sizes: tuple[int, int]) -> float:
    """How much the largest memory of ``work`` grows with each patch."""
    work(sizes[0])  # what is made once
    peaks = []
    for size in sizes:
        tracemalloc.start()
        work(size)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])


def test_greys_of_training_patches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = read_greys(Noise(1))[:]
    small = {"PATCHES": 64, "KEPT_BYTES": 0}
    in_memory = nearest(images, Gallery(read_greys(Noise(300))))
    monkeypatch.setattr(row_file, "IN_MEMORY", 2**16)
    for name, value in small.items():
        monkeypatch.setattr(shortlist, name, value)

    def search(n: int) -> Nearest:
        return nearest(images, Gallery(read_greys(Noise(n), folder=tmp_path)))

    assert bytes_a_patch(search, sizes=(300, 900)) < A_PATCH
    found = search(300)
    assert (found.number_N.tolist(), found.score_N.tolist()) == ([0], in_memory.score_N.tolist())
    assert found.score_N[0] > 0.99


def test_training_patches_are_prepared_once_for_samples_and_held_out_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    blocks = CoarsePatches.blocks

    def counted(self: CoarsePatches, kind: BlockKind, *, first: int) -> PatchBlocks:
        prepared.extend([first] if len(self) == 130 else [])
        return blocks(self, kind, first=first)

    monkeypatch.setattr(CoarsePatches, "blocks", counted)
    monkeypatch.setattr(shortlist, "PATCHES", 65)
    monkeypatch.setattr(shortlist, "KEPT_BYTES", 0)
    monkeypatch.setattr(audit, "can_calibrate", lambda _: True)  # a handful is enough here
    monkeypatch.setattr(audit, "calibrate", lambda *_: None)
    result = audit_pixels(AuditSets(Noise(3), Noise(130), Noise(8), ["a"] * 8))
    assert prepared == [0, 65] * len(shortlist.KINDS)
    assert result.nearest.number_N.tolist() == [0, 1, 2]
    assert len(result.held_out_H) == 8
    assert result.held_out_H[:3].tolist() == result.nearest.score_N.tolist()


def test_features_of_training_patches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    x_ND = np.random.default_rng(1).normal(size=(20, 64)).astype(np.float32)
    monkeypatch.setattr(row_file, "IN_MEMORY", 2**16)
    monkeypatch.setattr(by_features, "ROWS", 256)

    def search(n: int) -> tuple[np.ndarray, np.ndarray]:
        train_MD = row_file.scratch_rows((n, 64), np.float32, folder=tmp_path)
        for start in range(0, n, 500):
            train_MD[start : start + 500] = np.random.default_rng(start).normal(size=(500, 64)).astype(np.float32)
        return nearest_features(x_ND, train_MD)

    assert bytes_a_patch(search, sizes=(2000, 8000)) < A_PATCH
    number_N, distance_N = search(2000)
    monkeypatch.setattr(row_file, "IN_MEMORY", 2**28)
    monkeypatch.setattr(by_features, "ROWS", 8192)
    for found, expected in zip((number_N, distance_N), search(2000), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_features_in_a_file_are_those_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CHUNK", "GROUP"):
        monkeypatch.setattr(feature_cache, name, {"CHUNK": 4, "GROUP": 8}[name])
    images, cache = Noise(21), tmp_path / "cache"
    whole = cached_features(images, extractor=Pixels(), cache=None, what="all")
    monkeypatch.setattr(row_file, "IN_MEMORY", 0)
    for _ in range(2):  # computed, then from the cache
        rows = feature_rows(images, extractor=Pixels(), cache=cache, what="all", folder=tmp_path)
        assert not isinstance(rows, np.ndarray)
        np.testing.assert_array_equal(rows[:], whole)
    assert len(list(cache.glob("*/*.npz"))) == 6  # of 4 images, but for the last one


def test_labels_and_columns_are_those_of_the_tables(tiny_run: Path, tmp_path: Path) -> None:
    patches, clustering = PatchSet.open(tiny_run / "patches"), Clustering.open(tiny_run / "clusters")
    rows = np.array([5, 0, 7, 5])
    columns = patches.columns("slide", "x", rows=rows)
    assert columns.equals(patches.table[["slide", "x"]].iloc[rows].reset_index(drop=True))
    assert len(patches.columns("x", rows=rows[:0])) == 0

    order = np.random.default_rng(0).permutation(len(patches))
    patches.table.iloc[order].to_parquet(tmp_path / "index.parquet", index=False)
    in_order, shuffled = (clustering.labels_of(folder / "index.parquet") for folder in (tiny_run / "patches", tmp_path))
    assert list(in_order) == clustering.ks
    for k, labels_N in in_order.items():
        np.testing.assert_array_equal(labels_N, clustering.labels(k)[patches.table["patch_id"]])
        np.testing.assert_array_equal(shuffled[k], labels_N[order])


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the list of memory maps is Linux's")
def test_latents_are_not_mapped_into_memory(tiny_run: Path) -> None:
    latents = LatentSet.open(tiny_run / "latents")
    rows = np.arange(len(latents))
    assert torch.equal(latents.raw(rows[3:5]), latents.raw(rows)[3:5])
    assert len(latents.with_stain_views(rows)) == len(latents.histograms[rows])
    assert str(latents.folder) not in Path("/proc/self/maps").read_text(encoding="utf-8")

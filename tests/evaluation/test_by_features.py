"""Nearest training patches by features: agreement with all distances, rotated copies, authenticity by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from histoloom.evaluation.extractors import ExtractorSources, make_extractor
from histoloom.evaluation.originality import by_features
from histoloom.evaluation.originality.audit import AuditSets
from histoloom.evaluation.originality.by_features import (
    COPIES,
    DihedralCopies,
    audit_features,
    authentic_share,
    nearest_features,
)


class InMemory:
    """Images in memory."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def key(self, number: int) -> bytes:
        return self.images[number].tobytes()[:64]

    def read(self, numbers: np.ndarray) -> np.ndarray:
        return self.images[numbers]


@pytest.fixture
def features() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(3, 1, (60, 40)).astype(np.float32), rng.normal(3, 1, (90, 40)).astype(np.float32)


def test_the_nearest_is_that_of_all_distances(features: tuple[np.ndarray, np.ndarray]) -> None:
    x_ND, train_MD = features
    number_N, distance_N = nearest_features(x_ND, train_MD)
    all_NM = cdist(x_ND, train_MD)
    np.testing.assert_array_equal(number_N, all_NM.argmin(axis=1))
    np.testing.assert_allclose(distance_N, all_NM.min(axis=1), atol=1e-6)
    own = np.arange(60)
    number_N, _ = nearest_features(train_MD[:60], train_MD, own=own)
    assert (number_N != own).all()


def test_neither_order_nor_batches_change_a_distance(
    features: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    x_ND, train_MD = features
    number_N, distance_N = nearest_features(x_ND, train_MD)
    order, other = np.random.default_rng(1).permutation(60), np.random.default_rng(2).permutation(90)
    monkeypatch.setattr(by_features, "BLOCK", 7)
    again_N, same_N = nearest_features(x_ND[order], train_MD[other])
    np.testing.assert_array_equal(other[again_N], number_N[order])
    np.testing.assert_array_equal(same_N, distance_N[order])


def test_authenticity_by_hand() -> None:
    train_MD = np.array([[0.0], [1.0], [10.0]], np.float32)
    pictures_ND = np.array([[0.4], [3.0], [9.5], [20.0]], np.float32)
    # 0.4 lies 0.4 from 0, whose own neighbour is 1 away; 3 lies 2 from 1 (1); 9.5 lies 0.5 from 10 (9); 20, 10 (9).
    assert authentic_share(*nearest_features(pictures_ND, train_MD), train_MD=train_MD).count == 2


def test_the_eight_copies_are_all_different_and_begin_with_the_picture(crops) -> None:
    images = crops(2, 32)
    copies = DihedralCopies(InMemory(images), rows=np.array([1]))
    read = copies.read(np.arange(COPIES))
    assert len({copy.tobytes() for copy in read}) == len({copies.key(number) for number in range(COPIES)}) == COPIES
    np.testing.assert_array_equal(read[0], images[1])
    assert copies.key(0) == InMemory(images).key(1)


def test_rotated_copies_are_the_least_authentic(crops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histoloom.evaluation.originality.calibration.RATE", 0.1)
    monkeypatch.setattr("histoloom.evaluation.originality.calibration.MIN_PER_HALF", 9)
    train, holdout = crops(30, 48, seed=0), crops(24, 48, seed=1)
    samples = np.concatenate([np.rot90(train[:3], axes=(1, 2)), crops(3, 48, seed=2)])
    slides = [f"slide {number % 4}" for number in range(24)]
    sets = AuditSets(InMemory(samples), InMemory(train), InMemory(holdout), slides)
    extractor = make_extractor("pixels", sources=ExtractorSources(torch.device("cpu")))
    audit = audit_features(sets, extractor=extractor, cache=tmp_path, seed=0)
    assert audit.number_N[:3].tolist() == [0, 1, 2]
    np.testing.assert_allclose(audit.distance_N[:3], 0, atol=1e-5)
    assert audit.alarm_N[:3].all()
    assert audit.record.copies == audit.copies.count >= 3
    assert "By pixels: " in audit.record.sentence
    assert "authentic" in audit.record.sentence

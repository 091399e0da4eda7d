"""The cluster classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histoloom.config import ClusterClassifierConfig, RuntimeConfig
from histoloom.evaluation.cluster_classifier import LabelledSet, predict_clusters, train_classifier
from histoloom.training import checkpoints

RUNTIME = RuntimeConfig(device="cpu", precision="fp32", threads=1)
SHORT = ClusterClassifierConfig.model_validate(
    {
        "channels": 8,
        "training": {"batch_size": 16, "phases": [{"optimizer": "adamw", "lr": 5e-3, "images": 800}]},
    }
)


def stripes(n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Plain, fine and coarse texture of any colour: (n, 32, 32, 3) uint8, labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    wave = np.stack([np.zeros(32), np.arange(32) % 2, np.arange(32) // 4 % 2])[labels]
    images = rng.integers(60, 140, (n, 1, 1, 3)) + 80 * wave[:, None, :, None] + rng.normal(0, 8, (n, 32, 32, 3))
    return images.clip(0, 255).astype(np.uint8), labels


def labelled_set(*, seed: int = 0) -> LabelledSet:
    images, labels = stripes(96, seed=seed)
    return LabelledSet(labels, lambda rows: images[rows])


def test_a_classifier_learns_its_clusters_and_classifies_each_image_alone(tmp_path: Path) -> None:
    classifier = train_classifier(
        labelled_set(), name="stripes", config=SHORT, clusters=3, runtime=RUNTIME, seed=0, out=tmp_path
    )
    images, labels = stripes(70, seed=1)
    predicted = predict_clusters(classifier, lambda rows: images[rows], n=70, runtime=RUNTIME)
    assert (predicted == labels).mean() > 0.9
    backwards = predict_clusters(classifier, lambda rows: images[::-1][rows], n=70, runtime=RUNTIME)
    np.testing.assert_array_equal(backwards[::-1], predicted)
    assert predict_clusters(classifier, lambda rows: images[rows], n=0, runtime=RUNTIME).shape == (0,)


def test_a_killed_training_goes_on_to_the_same_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = RUNTIME.model_copy(update={"checkpoint_seconds": 0})
    how = {"name": "stripes", "config": SHORT, "clusters": 3, "runtime": runtime, "seed": 0}
    whole = train_classifier(labelled_set(), out=tmp_path / "whole", **how).state_dict()  # type: ignore[arg-type]
    write, saves = checkpoints.write_bytes, 0

    def killed(*arguments: object) -> None:
        nonlocal saves
        write(*arguments)  # type: ignore[arg-type]
        saves += 1
        if saves == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(labelled_set(), out=tmp_path / "torn", **how)  # type: ignore[arg-type]
    monkeypatch.setattr(checkpoints, "write_bytes", write)
    resumed = train_classifier(labelled_set(), out=tmp_path / "torn", **how).state_dict()  # type: ignore[arg-type]
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_two_labelled_sets_together_keep_their_images_and_labels() -> None:
    images, labels = stripes(10, seed=2)
    first = LabelledSet(labels[:4], lambda rows: images[:4][rows])
    second = LabelledSet(labels[4:], lambda rows: images[4:][rows])
    both = first + second
    indices = np.array([9, 0, 4, 3, 5, 0])
    np.testing.assert_array_equal(both.labels_N, labels)
    np.testing.assert_array_equal(both.read(indices), images[indices])
    np.testing.assert_array_equal(both.read(np.array([5, 4])), images[[5, 4]])

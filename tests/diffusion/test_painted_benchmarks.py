"""The measures of the benchmarks of painted fields: each finds what it is for, and nothing where there is nothing."""

import numpy as np
import pytest
import torch
from painted_fields import repetition, seams
from painted_segmentation import IGNORED, LabelledField, Segmenter, segment, train_segmenter
from painted_tools import Part, confusions, iou, mean_iou
from PIL import Image


def noise(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(128, 20, shape).astype(np.float32)


def test_seams_finds_a_step_at_window_borders_and_none_in_noise() -> None:
    side, factor = 8, 4
    plain = noise((256, 256))
    stepped = plain.copy()
    for line in range(side // 2 * factor, 256, side // 2 * factor):
        stepped[:, line:] += 15
        stepped[line:] += 15
    rng = np.random.default_rng(0)

    found, none = (seams(image, side=side, factor=factor, rng=rng) for image in (stepped, plain))

    assert found.p < 0.01
    assert found.at_borders > found.elsewhere
    assert none.p > 0.05


def test_repetition_finds_repeated_texture() -> None:
    plain = noise((192, 192))
    repeated = np.tile(plain[:48, :48], (4, 4))

    assert repetition(plain, side=32) < 0.2
    assert repetition(repeated, side=32) == pytest.approx(1, abs=0.05)


def test_iou_by_tissue() -> None:
    asked, seen = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 2])
    counts = confusions([(asked, seen)], tissues=4)

    assert iou(counts[0])[:3] == pytest.approx([2 / 3, 2 / 3, 1])
    assert np.isnan(iou(counts[0])[3])  # a tissue that neither map has counts in no mean
    mean, low, high = mean_iou(np.repeat(counts, 3, axis=0), rng=np.random.default_rng(0))
    assert mean == pytest.approx(7 / 9)
    assert low == pytest.approx(mean)  # equal fields: no spread
    assert high == pytest.approx(mean)


def test_the_mask_of_a_field_says_the_clusters_of_its_layout(tmp_path) -> None:
    part = Part(tmp_path, "slide-01-0")
    part.field.parent.mkdir()
    Image.fromarray(np.array([[7, 2], [2, 9]], np.uint8)).save(part.layout)
    Image.fromarray(np.array([[1, 0], [0, 2]], np.uint8)).save(part.field.with_name("mask.png"))

    assert part.mask().tolist() == [[7, 2], [2, 9]]
    assert part.source == "slide-01"


def test_the_segmenter_learns_two_colours_and_keeps_the_size() -> None:
    torch.manual_seed(0)
    label = np.zeros((128, 160), np.uint8)
    label[:, 80:] = 1
    image = np.where(label[..., None] == 1, np.uint8(200), np.uint8(60)).repeat(3, axis=2)
    label[:4] = IGNORED

    network = train_segmenter([LabelledField(image, label)], classes=2, steps=12, seed=0)

    seen = segment(network, image)
    assert seen.shape == label.shape
    assert (seen == (image[..., 0] > 128)).mean() > 0.95
    assert Segmenter(5)(torch.zeros(1, 3, 64, 64)).shape == (1, 5, 64, 64)

"""Copies are recognised however they were changed; others are not; numbers do not depend on order or batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from histoloom.cli.app import app
from histoloom.errors import UserError
from histoloom.evaluation.originality import nearest as search
from histoloom.evaluation.originality import shortlist
from histoloom.evaluation.originality.calibration import Share, conformal_threshold, halves, membership, min_scores
from histoloom.evaluation.originality.greys import dihedral_copies, to_greys
from histoloom.evaluation.originality.nearest import Gallery, best_score, nearest
from histoloom.evaluation.originality.report import audit_folders
from histoloom.slides.procedural.slides import draw_slide

SIZE, STEP, SIDE = 64, 40, 512
PER_SLIDE = 20


def patches(slide: np.ndarray, *, n: int, seed: int) -> np.ndarray:
    """Patches with tissue at random places."""
    rng = np.random.default_rng(seed)
    cuts: list[np.ndarray] = []
    while len(cuts) < n:
        y, x = rng.integers(0, SIDE - SIZE, 2)
        cut = slide[y : y + SIZE, x : x + SIZE]
        if best_score(to_greys(cut[None]))[0] > 0.9:
            cuts.append(cut)
    return np.stack(cuts)


@pytest.fixture(scope="module")
def slides() -> list[np.ndarray]:
    return [draw_slide(3, number=number, size=SIDE, mpp=1.0)[0] for number in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def train(slides: list[np.ndarray]) -> np.ndarray:
    grid = range(0, SIDE - SIZE - 16, STEP)
    cut = [slide[y : y + SIZE, x : x + SIZE] for slide in slides[:2] for y in grid for x in grid]
    rich = best_score(to_greys(np.stack(cut))) > 0.9
    return np.stack(cut)[rich]


@pytest.fixture(scope="module")
def limit(slides: list[np.ndarray], train: np.ndarray) -> float:
    """What no patch of another slide exceeds."""
    others = patches(slides[2], n=25, seed=1)
    return float(nearest(to_greys(others), Gallery(to_greys(train))).score_N.max())


def enlarged(image: np.ndarray) -> np.ndarray:
    edge = round(SIZE * (1 - 1 / 1.1) / 2)
    return np.asarray(Image.fromarray(image[edge:-edge, edge:-edge]).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def stained(image: np.ndarray) -> np.ndarray:
    density = -np.log((image.astype(float) + 1) / 256) @ np.array([[0.9, 0.1, 0.1], [0.1, 0.8, 0], [0, 0.2, 1.1]])
    return np.clip(256 * np.exp(-0.7 * density) - 1, 0, 255).astype(np.uint8)


def half_of(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.concatenate([image[: SIZE // 2], other[SIZE // 2 :]])


def shifted(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    result = other.copy()
    result[12:, 9:] = image[:-12, :-9]
    return result


@pytest.mark.parametrize("kind", ["exact", "rotated", "mirrored", "shifted", "stained", "enlarged", "collage"])
def test_a_planted_copy_is_found(kind: str, slides: list[np.ndarray], train: np.ndarray, limit: float) -> None:
    upper = np.concatenate([train[:, : SIZE // 2], np.full_like(train[:, : SIZE // 2], 200)], axis=1)
    rich = np.flatnonzero(best_score(to_greys(upper)) > 0.9)
    sources = rich[:: max(1, len(rich) // 4)][:4]
    others = patches(slides[3], n=len(sources), seed=2)
    change = {
        "exact": lambda image, _: image,
        "rotated": lambda image, _: np.rot90(image),
        "mirrored": lambda image, _: image[:, ::-1],
        "shifted": shifted,
        "stained": lambda image, _: stained(image),
        "enlarged": lambda image, _: enlarged(image),
        "collage": half_of,
    }[kind]
    copies = np.stack([change(train[source], other) for source, other in zip(sources, others, strict=True)])
    result = nearest(to_greys(copies), Gallery(to_greys(train)))
    assert (result.score_N > limit).all()
    if kind not in ("shifted", "collage"):  # there neighbours hold as much of the picture
        assert (result.number_N == sources).all()


def test_the_edge_between_two_halves_hides_neither(train: np.ndarray) -> None:
    greys = to_greys(train)
    right = greys.copy()
    right[:, :, :32] = right[:, :, 32:].mean(axis=(1, 2), keepdims=True)
    source = int(np.argmax(best_score(right)))
    scores = []
    for other in (0, 255):
        half = greys[source : source + 1].copy()
        half[:, :, :32] = other
        scores.append(nearest(half, Gallery(greys)).score_N[0])
    np.testing.assert_allclose(scores, best_score(right)[source], atol=0.05)


def test_an_exact_copy_scores_what_the_picture_can(train: np.ndarray) -> None:
    greys = to_greys(train[:5])
    np.testing.assert_allclose(nearest(greys, Gallery(to_greys(train))).score_N, best_score(greys), atol=1e-3)


def test_other_slides_give_no_more_alarms_than_stated(
    slides: list[np.ndarray], train: np.ndarray, limit: float
) -> None:
    others = patches(slides[3], n=20, seed=5)
    assert (nearest(to_greys(others), Gallery(to_greys(train))).score_N > limit).mean() <= 0.05


def test_neither_order_nor_batches_change_a_score(
    slides: list[np.ndarray], train: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, gallery = to_greys(patches(slides[2], n=9, seed=7)), to_greys(train)
    whole = nearest(samples, Gallery(gallery))
    order, other = np.random.default_rng(0).permutation(9), np.random.default_rng(1).permutation(len(gallery))
    reordered = nearest(samples[order], Gallery(gallery[other]))
    np.testing.assert_array_equal(reordered.score_N, whole.score_N[order])
    np.testing.assert_array_equal(other[reordered.number_N], whole.number_N[order])
    monkeypatch.setattr(search, "IMAGES", 2)
    monkeypatch.setattr(shortlist, "PATCHES", 7)
    monkeypatch.setattr(shortlist, "IMAGES", {"cpu": 3})
    in_parts = search.nearest(samples, Gallery(gallery))
    np.testing.assert_array_equal(in_parts.score_N, whole.score_N)
    np.testing.assert_array_equal(in_parts.number_N, whole.number_N)


def test_empty_pictures_are_no_copies_of_one_another() -> None:
    empty = np.full((4, SIZE, SIZE, 3), 240, np.uint8)
    result = nearest(to_greys(empty), Gallery(to_greys(empty)))
    assert result.score_N.max() == 0
    assert best_score(to_greys(empty)).max() == 0


def test_the_eight_copies_are_all_different() -> None:
    images = np.arange(9).reshape(1, 3, 3)
    assert len({copy.tobytes() for copy in dihedral_copies(images)[0]}) == 8


def test_the_threshold_is_the_conformal_one() -> None:
    scores = np.arange(199) / 199
    assert conformal_threshold(scores, rate=0.01) == scores[-2]
    assert conformal_threshold(scores, rate=0.005) == scores[-1]
    assert (min_scores(0.01), min_scores(0.005)) == (99, 199)


def test_shares_have_exact_intervals() -> None:
    low, high = Share(0, 200).interval
    assert (low, high) == (0, pytest.approx(1 - 0.025 ** (1 / 200)))
    low, high = Share(200, 200).interval
    assert (low, high) == (pytest.approx(0.025 ** (1 / 200)), 1)


def test_halves_share_no_slide() -> None:
    slides = ["b"] * 50 + ["a"] * 30 + ["c"] * 25 + ["d"] * 3
    first, second = halves(slides)
    assert not {slides[row] for row in first} & {slides[row] for row in second}
    assert sorted([*first, *second]) == list(range(108))
    assert abs(len(first) - len(second)) <= 10
    assert [len(part) for part in halves(["one"] * 7)] == [3, 4]


def test_auc_by_hand() -> None:
    result = membership(np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0]))
    assert result.auc == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 1) / 6)
    assert membership(np.array([1.0, 2.0]), np.array([1.0, 2.0])).auc == 0.5


def write(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, slides: list[np.ndarray], train: np.ndarray) -> Path:
    root = tmp_path_factory.mktemp("audit")
    write(root / "train", train)
    write(root / "holdout" / "slide-3", patches(slides[2], n=PER_SLIDE, seed=3))
    write(root / "holdout" / "slide-4", patches(slides[3], n=PER_SLIDE, seed=4))
    write(root / "synthetic", np.concatenate([np.rot90(train[5])[None], patches(slides[2], n=3, seed=11)]))
    return root


@pytest.fixture
def alarms_of_five_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer patches suffice for a threshold."""
    monkeypatch.setattr("histoloom.evaluation.originality.calibration.RATE", 0.05)
    monkeypatch.setattr("histoloom.evaluation.originality.calibration.MIN_PER_HALF", 19)


@pytest.mark.usefixtures("alarms_of_five_percent")
def test_the_command_keeps_its_contract(folders: Path, tmp_path: Path) -> None:
    options = ["--train", str(folders / "train"), "--holdout", str(folders / "holdout"), "--out", str(tmp_path / "out")]
    options += ["--extractor", "pixels"]
    done = CliRunner().invoke(app, ["audit", str(folders / "synthetic"), *options, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["n"] == 4
    assert result["copy_rate"] == result["copies"] / 4 > 0
    assert result["interval"][0] < result["copy_rate"] < result["interval"][1]
    assert 0 <= result["false_alarm_rate"] <= 0.2
    assert (result["n_calibration"], result["n_test"], result["slides"]) == (20, 20, [1, 1])
    held_out = result["held_out_scores"]
    assert len(held_out) == 40
    assert held_out == sorted(held_out, reverse=True)
    alarms = sum(score > result["threshold"] - 1e-4 for score in held_out)  # they are rounded
    assert alarms >= round(20 * result["false_alarm_rate"])
    first = result["samples"][0]
    assert (first["file"], first["nearest"], first["copy"]) == ("000.png", "005.png", True)
    assert first["score"] > 0.9
    assert len(result["samples"]) == 4
    (by,) = result["by_features"]
    assert (by["extractor"], by["n_test"]) == ("pixels", 20)
    assert by["authenticity"]["value"] <= 0.75  # the copy is not
    assert first["by"]["pixels"] == {"nearest": "005.png", "distance": 0.0, "copy": True}
    assert any("slide(s)" in note for note in result["notes"])
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == result
    with Image.open(tmp_path / "out" / "suspicious.png") as sheet:
        assert sheet.width > 8 * SIZE
    table = pd.read_csv(tmp_path / "out" / "audit.csv")
    assert table["file"].tolist() == [entry["file"] for entry in result["samples"]]
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "000.png" in page
    assert 'src="data:image/png;base64,' in page


def damaged(root: Path) -> Path:
    folder = write(root / "damaged", np.zeros((1, SIZE, SIZE, 3), np.uint8))
    (folder / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda root: root / "typo", "is not a folder"),
        (lambda root: write(root / "few", np.zeros((5, SIZE, SIZE, 3), np.uint8)), "holds 5 images in 1 slide"),
        (lambda root: write(root / "odd", np.zeros((2, 48, 48, 3), np.uint8)), "must share one size"),
        (lambda root: root / "train", "are or hold the same images"),
        (lambda root: write(root / "none", np.zeros((0, SIZE, SIZE, 3), np.uint8)), "holds no images"),
        (lambda root: write(root / "grey", np.zeros((1, SIZE, SIZE), np.uint8)), r"000\.png is a grey image"),
        (lambda root: write(root / "alpha", np.zeros((1, SIZE, SIZE, 4), np.uint8)), "has an alpha channel"),
        (lambda root: write(root / "deep", np.zeros((1, SIZE, SIZE), np.uint16)), "is a 16-bit image"),
        (damaged, r"000\.png is damaged"),
    ],
)
def test_hostile_folders_get_one_line(folders: Path, tmp_path: Path, change, word: str) -> None:
    for name in ("train", "synthetic"):
        (tmp_path / name).symlink_to(folders / name)
    with pytest.raises(UserError, match=word) as caught:
        audit_folders(tmp_path / "synthetic", train=tmp_path / "train", holdout=change(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("alarms_of_five_percent")
def test_one_training_picture_is_enough(folders: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "one", np.asarray(Image.open(folders / "train" / "005.png"))[None])
    result = audit_folders(folders / "synthetic", train=one, holdout=folders / "holdout", extractors=("pixels",))
    assert result.samples[0].is_copy
    assert result.by_features[0].authenticity is None


def test_oblong_pictures_are_refused() -> None:
    with pytest.raises(UserError, match="square"):
        to_greys(np.zeros((1, 48, 64, 3), np.uint8))

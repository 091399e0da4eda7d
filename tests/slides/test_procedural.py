from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from histoloom.errors import UserError
from histoloom.seeding import numpy_generator
from histoloom.slides.procedural.slides import CLASSES, MAP_SCALE, TissueMap, draw_layout, label_patches, make_slides
from histoloom.slides.procedural.textures import Canvas, objects

SIZE = 1024


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_slides(tmp_path_factory.mktemp("slides"), seed=3, count=2, size=SIZE)


def image_of(path: Path) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")).astype(float)


def truth_at_full_size(path: Path) -> np.ndarray:
    tissue_map = TissueMap.load(path)
    assert tissue_map is not None
    return tissue_map.class_hw.repeat(MAP_SCALE, axis=0).repeat(MAP_SCALE, axis=1)


def test_openslide_reads_levels_and_resolution(slides: list[Path]) -> None:
    for path in slides:
        with openslide.OpenSlide(path) as slide:
            assert slide.level_dimensions == ((SIZE, SIZE), (SIZE // 2, SIZE // 2), (SIZE // 4, SIZE // 4))
            assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(1.0)
            assert float(slide.properties[openslide.PROPERTY_NAME_MPP_Y]) == pytest.approx(1.0)
        with tifffile.TiffFile(path) as tiff:
            assert all(page.tile == (256, 256) for page in tiff.pages)
            assert all(page.compression == tifffile.COMPRESSION.JPEG for page in tiff.pages)


def test_levels_show_the_same_picture(slides: list[Path]) -> None:
    with openslide.OpenSlide(slides[0]) as slide:
        small = np.asarray(slide.read_region((0, 0), 2, slide.level_dimensions[2]).convert("RGB")).astype(float)
    averaged = image_of(slides[0]).reshape(SIZE // 4, 4, SIZE // 4, 4, 3).mean(axis=(1, 3))
    assert np.abs((small - averaged).mean(axis=(0, 1))).max() < 1
    assert np.corrcoef(small.ravel(), averaged.ravel())[0, 1] > 0.98


def test_resolution_other_than_one(tmp_path: Path) -> None:
    (path,) = make_slides(tmp_path, count=1, size=512, mpp=1.25)
    with openslide.OpenSlide(path) as slide:
        assert float(slide.properties[openslide.PROPERTY_NAME_MPP_X]) == pytest.approx(1.25)
        assert slide.level_count == 3


def test_a_seed_gives_the_same_bytes_and_count_changes_nothing(tmp_path: Path) -> None:
    (first,) = make_slides(tmp_path / "a", seed=1, count=1, size=512)
    again, _ = make_slides(tmp_path / "b", seed=1, count=2, size=512)
    (other,) = make_slides(tmp_path / "c", seed=2, count=1, size=512)
    for suffix in (".tif", ".truth.png", ".truth.json"):
        assert first.with_suffix(suffix).read_bytes() == again.with_suffix(suffix).read_bytes()
    assert first.read_bytes() != other.read_bytes()
    assert first.with_suffix(".truth.png").read_bytes() != other.with_suffix(".truth.png").read_bytes()


def test_slides_that_are_there_are_kept_and_others_made_anew(tmp_path: Path) -> None:
    one, two = make_slides(tmp_path, seed=1, count=2, size=512)
    before, kept = one.read_bytes(), two.stat().st_mtime_ns
    one.unlink()
    make_slides(tmp_path, seed=1, count=2, size=512)
    assert one.read_bytes() == before
    assert two.stat().st_mtime_ns == kept
    make_slides(tmp_path, seed=2, count=1, size=512)
    assert one.read_bytes() != before
    assert not list(tmp_path.glob(".*"))


def test_a_file_of_another_program_is_not_overwritten(tmp_path: Path) -> None:
    other = tmp_path / "slide-01.tif"
    other.write_bytes(b"mine")
    with pytest.raises(UserError, match="not a procedural slide"):
        make_slides(tmp_path, count=1, size=512)
    assert other.read_bytes() == b"mine"


@pytest.mark.parametrize(("size", "count", "mpp"), [(500, 1, 1.0), (1000, 1, 1.0), (512, 0, 1.0), (512, 1, 0.25)])
def test_impossible_requests_are_refused(tmp_path: Path, size: int, count: int, mpp: float) -> None:
    with pytest.raises(UserError):
        make_slides(tmp_path, size=size, count=count, mpp=mpp)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(5))
def test_every_class_has_a_share_of_every_slide(seed: int) -> None:
    for number, side in ((1, 1024), (2, 2048)):
        rng = numpy_generator(seed, "procedural", number, "layout")
        truth = draw_layout(Canvas(rng, side // MAP_SCALE, side // MAP_SCALE, 1 / MAP_SCALE)).truth_hw
        assert np.bincount(truth.ravel(), minlength=len(CLASSES)).min() >= 0.03 * truth.size


def test_truth_fits_its_slide(slides: list[Path]) -> None:
    for path in slides:
        tissue_map = TissueMap.load(path)
        assert tissue_map is not None
        assert tissue_map.classes == CLASSES
        assert tissue_map.class_hw.dtype == np.uint8
        assert tissue_map.class_hw.shape == (SIZE // MAP_SCALE, SIZE // MAP_SCALE)
    assert TissueMap.load(slides[0].with_name("elsewhere.tif")) is None


def test_each_class_looks_as_it_should(slides: list[Path]) -> None:
    for path in slides:
        rgb, truth = image_of(path), truth_at_full_size(path)
        white = (rgb.min(axis=2) > 225).astype(float)
        mean = {name: rgb[truth == kind].mean(axis=0) for kind, name in enumerate(CLASSES)}
        empty = {name: white[truth == kind].mean() for kind, name in enumerate(CLASSES)}
        redness = {name: value[0] - value[2] for name, value in mean.items()}
        assert empty["empty space"] > 0.99
        assert min(empty["fat"], empty["voids"], empty["edge of tissue"]) > 0.2
        assert max(empty["dense cells"], empty["sparse cells"], empty["red blood cells"]) < 0.1
        assert max(redness, key=redness.__getitem__) == "red blood cells"
        assert min(mean, key=lambda name: mean[name][0]) == "dense cells"


def test_truth_lies_where_the_picture_does(slides: list[Path]) -> None:
    rgb, truth = image_of(slides[0]), truth_at_full_size(slides[0])
    blood = truth == CLASSES.index("red blood cells")
    red = rgb[..., 0] - rgb[..., 2]
    aligned = red[blood].mean()
    assert aligned > red[np.roll(blood, 48, axis=0)].mean() + 5
    assert aligned > red[np.roll(blood, -48, axis=1)].mean() + 5
    glass = truth == 0
    assert rgb[glass].min() > 200 > rgb[np.roll(glass, 60, axis=0)].min()


def test_two_stains_differ(slides: list[Path]) -> None:
    densities = []
    for path in slides:
        rgb, truth = image_of(path), truth_at_full_size(path)
        tissue = rgb[truth == CLASSES.index("dense cells")]
        densities.append(-np.log(np.maximum(tissue, 1) / 250).mean(axis=0))
    strong, pale = densities
    cosine = strong @ pale / np.linalg.norm(strong) / np.linalg.norm(pale)
    assert strong.sum() > 1.15 * pale.sum()
    assert np.degrees(np.arccos(cosine)) > 5


def test_objects_have_the_size_and_darkness_asked_for() -> None:
    canvas = Canvas(numpy_generator(0, "objects"), 200, 200, 2.0)
    centres = np.array([[50.0, 50.0], [50.0, 150.0], [150.0, 50.0], [150.0, 150.0]])
    field = objects(canvas, centres, length=(10, 10), aspect=(0.5, 0.5), dark=(1, 1), rim=0.0)
    area = (field > 0.5).sum() / len(centres)
    assert area == pytest.approx(np.pi * 20 * 10, rel=0.1)
    assert field.max() == pytest.approx(1.0)
    assert field[50, 50] > 0.99 > 0.01 > field[100, 100]


def test_labels_agree_with_counting() -> None:
    rng = numpy_generator(0, "labels")
    truth = rng.integers(0, 4, (24, 32), dtype=np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    width, height = truth.shape[1] * 5, truth.shape[0] * 5
    extent = rng.uniform(1, 90, 300)
    x, y = rng.uniform(0, width - extent), rng.uniform(0, height - extent)
    labels = label_patches(truth, slide_size=(width, height), x=x, y=y, extent=extent)
    centres_y, centres_x = (np.arange(side) * 5 + 2.5 for side in truth.shape)
    for label, left, top, side in zip(labels, x, y, extent, strict=True):
        columns = (centres_x >= left) & (centres_x < left + side)
        rows = (centres_y >= top) & (centres_y < top + side)
        if not (columns.any() and rows.any()):
            continue
        assert label == np.bincount(truth[np.ix_(rows, columns)].ravel()).argmax()


def test_a_patch_smaller_than_a_map_pixel_takes_the_nearest() -> None:
    truth = np.arange(6, dtype=np.uint8).reshape(2, 3)
    x, y = np.array([0.0, 8.0, 29.0, 29.0]), np.array([0.0, 1.0, 0.0, 19.0])
    labels = label_patches(truth, slide_size=(30, 20), x=x, y=y, extent=np.ones(4))
    assert labels.tolist() == [0, 0, 2, 5]
    assert labels.dtype == np.int64

"""Two folders of images: the numbers, and a clear word for images that cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from histoloom.cli.app import app
from histoloom.errors import UserError
from histoloom.evaluation.folders import evaluate_folders
from histoloom.evaluation.images import ImageFolder
from histoloom.evaluation.results import FolderSetComparison


def write(folder: Path, images: np.ndarray, *, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}{suffix}")
    return folder


@pytest.fixture
def real(tmp_path: Path, crops) -> Path:
    folder = write(tmp_path / "real" / "a", crops(4, 48, seed=0))
    write(tmp_path / "real" / "b", crops(4, 48, seed=1), suffix=".tif")
    (folder / "notes.txt").write_text("no image")
    return tmp_path / "real"


@pytest.fixture
def synthetic(tmp_path: Path, crops) -> Path:
    images = crops(5, 48, seed=2)
    noise = np.random.default_rng(0).normal(0, 40, images.shape)
    return write(tmp_path / "synthetic", np.clip(images + noise, 0, 255).astype(np.uint8))


@pytest.mark.usefixtures("no_weights")
def test_layout_and_floor(real: Path, synthetic: Path) -> None:
    result = evaluate_folders(real, synthetic, pairs=20)
    assert (result.n_real, result.n_synthetic) == (8, 5)
    assert (result.pairs, result.floor_pairs) == (20, 4)
    assert set(result.metrics) == {"ssim", "ms_ssim"}
    assert "HISTOLOOM_WEIGHTS" in result.missing["lpips"]
    for entry in result.metrics.values():
        low, high = entry.interval
        assert low <= entry.value <= high
        assert entry.extractor.startswith("RGB pixels")
    assert result.metrics["ssim"].value < result.metrics["ssim"].floor
    assert json.loads(json.dumps(result.as_json(), allow_nan=False)) == result.as_json()


@pytest.mark.usefixtures("squeeze_weights")
def test_lpips_sees_the_noise(real: Path, synthetic: Path) -> None:
    result = evaluate_folders(real, synthetic, pairs=10, trunk="squeeze", download=False)
    assert set(result.missing) == {"distribution"}
    entry = result.metrics["lpips"]
    assert entry.extractor == "LPIPS v0.1, squeeze trunk"
    assert entry.value > entry.floor > 0


@pytest.mark.usefixtures("no_weights")
def test_same_seed_same_numbers(real: Path, synthetic: Path) -> None:
    first, again, other = (evaluate_folders(real, synthetic, pairs=10, seed=seed) for seed in (4, 4, 5))
    assert first == again
    assert first.metrics["ssim"].value != other.metrics["ssim"].value


@pytest.mark.usefixtures("no_weights")
def test_copies_have_the_value_of_identical_images(tmp_path: Path, crops) -> None:
    flat = np.repeat(crops(1, 48), 3, axis=0)
    result = evaluate_folders(write(tmp_path / "r", flat), write(tmp_path / "s", flat), pairs=9)
    for entry in result.metrics.values():
        assert entry.value == pytest.approx(1.0, abs=1e-6)
        assert entry.floor == pytest.approx(1.0, abs=1e-6)


@pytest.mark.usefixtures("no_weights")
def test_files_in_both_folders_are_counted(real: Path, synthetic: Path, tmp_path: Path) -> None:
    shutil.copy(real / "a" / "001.png", synthetic / "leaked.png")
    shutil.copytree(real / "b", tmp_path / "others")
    notes = evaluate_folders(real, synthetic, pairs=2, floor=tmp_path / "others").notes
    assert notes == (
        "1 of the synthetic images are among the real images too (equal files): take them out",
        "4 of the other real images are among the real images too (equal files): take them out",
    )


@pytest.mark.usefixtures("no_weights")
def test_lossy_against_lossless_is_noted(real: Path, tmp_path: Path, crops) -> None:
    jpeg = write(tmp_path / "jpeg", crops(3, 48), suffix=".jpg")
    (note,) = evaluate_folders(real, jpeg, pairs=4).notes
    assert note.startswith("the synthetic images hold lossily compressed files")


def save_16_bit(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((48, 48, 3), np.uint16), photometric="rgb")


def save_damaged(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")


def saver(mode: str, side: int = 48):
    return lambda path: Image.new(mode, (side, side)).save(path)


@pytest.mark.parametrize(
    ("name", "save", "word"),
    [
        ("grey.png", saver("L"), "is a grey image"),
        ("alpha.png", saver("RGBA"), "has an alpha channel"),
        ("palette.png", saver("P"), "has a colour palette"),
        ("two-colours.png", saver("1"), "is a black-and-white image"),
        ("print.jpg", saver("CMYK"), "is a CMYK image"),
        ("empty.png", lambda path: path.write_bytes(b""), "is damaged"),
        ("deep-grey.png", saver("I;16"), "is a 16-bit image"),
        ("deep.tif", save_16_bit, "is a 16-bit image"),
        ("odd.png", saver("RGB", 47), "is 47 x 47 px, but .* is 48 x 48 px; all images must share one size"),
        ("broken.png", save_damaged, "is damaged"),
    ],
)
def test_wrong_image_is_named(real: Path, synthetic: Path, name: str, save, word: str) -> None:
    save(synthetic / name)
    with pytest.raises(UserError, match=f"{name} {word}") as caught:
        evaluate_folders(real, synthetic)
    assert "\n" not in str(caught.value)


def test_truncated_image_is_named_when_read(synthetic: Path) -> None:
    path = synthetic / "000.png"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"000\.png is damaged"):
        ImageFolder(synthetic).read([0])


def test_sizes_of_the_two_folders_must_agree(real: Path, tmp_path: Path, crops) -> None:
    other = write(tmp_path / "other", crops(2, 64))
    with pytest.raises(UserError, match=r"is 64 x 64 px, but .* is 48 x 48 px"):
        evaluate_folders(real, other)


def test_folders_without_images(real: Path, tmp_path: Path, crops) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        evaluate_folders(real, tmp_path / "empty")
    with pytest.raises(UserError, match="is not a folder"):
        evaluate_folders(tmp_path / "typo", real)
    with pytest.raises(UserError, match="are or hold the same images; name folders apart"):
        evaluate_folders(real, real)
    for one, other in ((real, real / "b"), (real / "a", real)):
        with pytest.raises(UserError, match="are or hold the same images; name folders apart"):
            evaluate_folders(one, other)
    with pytest.raises(UserError, match="at least two"):
        evaluate_folders(write(tmp_path / "one", crops(1, 48)), real)


@pytest.fixture
def many(tmp_path: Path, crops) -> tuple[Path, Path]:
    """Two folders of twenty and fourteen images, the second one noisy."""
    noise = np.random.default_rng(0).normal(0, 60, (14, 48, 48, 3))
    noisy = np.clip(crops(14, 48, seed=2) + noise, 0, 255).astype(np.uint8)
    return write(tmp_path / "reals", crops(20, 48, seed=0)), write(tmp_path / "noisy", noisy)


@pytest.mark.usefixtures("squeeze_weights")
def test_distributions_have_their_floor_and_see_the_noise(many: tuple[Path, Path], tmp_path: Path) -> None:
    def evaluated(**named: Any):
        extractors = ("pixels", "lpips-squeeze")
        return evaluate_folders(
            *many, pairs=2, trunk="squeeze", download=False, extractors=extractors, cache=tmp_path / "cache", **named
        )

    result = evaluated()
    assert result.missing == {}
    entry = result.metrics["frechet/lpips-squeeze"]
    assert isinstance(entry, FolderSetComparison)
    assert (entry.n_real, entry.n_synthetic, entry.n_floor) == (20, 14, (10, 10))
    assert entry.interval[0] > entry.floor_interval[1]
    assert "too few for 2,240 features" in " ".join(entry.notes)
    assert entry.floor_from == "random halves of the real images"
    assert json.loads(json.dumps(result.as_json(), allow_nan=False)) == result.as_json()
    assert evaluated() == result  # from the cache


@pytest.mark.usefixtures("no_weights")
def test_other_real_images_are_the_floor(many: tuple[Path, Path], tmp_path: Path, crops) -> None:
    others = write(tmp_path / "others", crops(30, 48, seed=5))
    result = evaluate_folders(*many, floor=others, pairs=8, extractors=("pixels",), cache=tmp_path / "cache")
    entry = result.metrics["kid/pixels"]
    assert isinstance(entry, FolderSetComparison)
    assert (entry.n_floor, entry.floor_from) == ((20, 14), "other real images")
    assert result.floor_pairs == 8
    assert result.metrics["ssim"].floor > result.metrics["ssim"].value
    with pytest.raises(UserError, match="are or hold the same images; name folders apart"):
        evaluate_folders(*many, floor=many[1])


@pytest.mark.usefixtures("no_weights")
def test_json_a_table_and_a_page_are_written(many: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["evaluate", *map(str, many), "--extractor", "pixels", "--out", str(out), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads((out / "evaluate.json").read_text()) == json.loads(done.stdout)
    table = pd.read_csv(out / "evaluate.csv").set_index(["metric", "extractor"])
    assert table.loc[("kid", "pixels"), "value"] == pytest.approx(
        json.loads(done.stdout)["metrics"]["kid/pixels"]["value"]
    )
    page = (out / "evaluate.html").read_text()
    assert "frechet" in page
    assert "lpips was not measured" in page
    (tmp_path / "a file").write_text("")
    assert CliRunner().invoke(app, [*arguments[:3], "--out", str(tmp_path / "a file")]).exit_code != 0


@pytest.mark.usefixtures("no_weights")
def test_names_and_order_of_files_change_no_distribution(many: tuple[Path, Path], tmp_path: Path) -> None:
    first = evaluate_folders(*many, pairs=2, extractors=("pixels",), cache=tmp_path / "cache")
    for folder in many:
        for number, path in enumerate(sorted(folder.iterdir())):
            path.rename(folder / f"{97 * (number + 1) % 89:03d}-renamed.png")
    again = evaluate_folders(*many, pairs=2, extractors=("pixels",), cache=tmp_path / "other")
    names = [name for name in first.metrics if "/" in name]
    assert len(names) == 7
    assert {name: again.metrics[name] for name in names} == {name: first.metrics[name] for name in names}


@pytest.mark.usefixtures("no_weights")
def test_noise_is_called_different_whatever_the_files_are_called(tmp_path: Path, crops) -> None:
    reals = write(tmp_path / "reals", crops(80, 48, seed=0))
    noise = np.random.default_rng(0).normal(0, 20, (40, 48, 48, 3))
    noisy = write(tmp_path / "noisy", np.clip(crops(40, 48, seed=2) + noise, 0, 255).astype(np.uint8))
    first = evaluate_folders(reals, noisy, pairs=2, extractors=(), cache=tmp_path / "cache")
    assert first.verdict is not None
    assert first.verdict.word == "different"
    assert "by texture, a classifier tells 40 samples from 40 real patches" in first.verdict.checks[0].sentence
    assert "name a folder of such images with --floor" in " ".join(first.notes)
    for number, path in enumerate(sorted(noisy.iterdir())):
        path.rename(noisy / f"{97 * (number + 1) % 89:03d}-renamed.png")
    again = evaluate_folders(reals, noisy, pairs=2, extractors=(), cache=tmp_path / "cache")
    assert again.verdict == first.verdict

    few = write(tmp_path / "few", crops(10, 48, seed=3))
    too_few = evaluate_folders(reals, few, pairs=2, extractors=(), cache=tmp_path / "cache").verdict
    assert too_few is not None
    assert too_few.word == "not measured"
    assert too_few.sentence == "The two-sample test: it needs 40 real and 20 of all other images."


@pytest.mark.usefixtures("no_weights")
def test_an_image_damaged_behind_its_header_is_named(many: tuple[Path, Path], tmp_path: Path) -> None:
    victim = sorted(many[1].iterdir())[7]
    victim.write_bytes(victim.read_bytes()[:600])
    with pytest.raises(UserError, match=rf"{victim.name} is damaged"):
        evaluate_folders(*many, pairs=2, extractors=("pixels",), cache=tmp_path / "cache")


def test_an_image_of_absurd_size_is_named(many: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"000\.png is damaged \(Image size \(2304 pixels\) exceeds limit"):
        ImageFolder(many[0])

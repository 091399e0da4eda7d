"""Pictures of the user's own: scaled to the generator's um/px, or refused in one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histoloom.atlas.jobs.own_pictures import MOST_PIXELS, OwnPictures, read_image
from histoloom.errors import UserError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: a pixel says where it lies."""
    x_HW, y_HW = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x_HW, y_HW, 0 * x_HW], axis=2).astype(np.uint8))


def test_the_middle_is_scaled_to_the_generator(tmp_path: Path) -> None:
    own = OwnPictures(tmp_path)
    added = own.add(encoded(ramp(200, 100)), title="my\nscan.png", mpp=0.5, size=32, target_mpp=1.0, tissue=(4, 2))
    assert (added.title, added.note) == ("my scan.png", "the middle 32 x 32 um of 100 x 50 um")
    found, file = own.find(added.picture_id)
    assert (found, found.k, found.cluster) == (added, 4, 2)
    image_HW3 = np.asarray(Image.open(file)).astype(float)
    assert image_HW3.shape == (32, 32, 3)
    # Pixel (16, 16) lies in the middle of the file; neighbours are two of its pixels apart.
    assert image_HW3[16, 16, :2] == pytest.approx([100.5, 50.5], abs=1)
    assert (image_HW3[16, 26, 0] - image_HW3[16, 6, 0]) / 20 == pytest.approx(2, abs=0.1)

    again = own.add(encoded(ramp(200, 100)), title="same.png", mpp=0.5, size=32, target_mpp=1.0, tissue=None)
    other = own.add(encoded(ramp(32, 32)), title="b.png", mpp=1.0, size=32, target_mpp=1.0, tissue=None)
    assert [one.title for one in own.all()] == ["b.png", "same.png"]
    assert np.array_equal(np.asarray(Image.open(own.find(other.picture_id)[1])), np.asarray(ramp(32, 32)))
    own.delete(again.picture_id)
    assert [one.title for one in OwnPictures(tmp_path).all()] == ["b.png"]
    with pytest.raises(KeyError):
        own.find(again.picture_id)


def test_pixels_are_upright_opaque_and_nothing_else_is_kept() -> None:
    turned = ramp(40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    exif[0x010E] = "Patient: Jane Doe"
    image = read_image(encoded(turned, "JPEG", exif=exif), title="a.jpg")
    assert image.size == (20, 40)
    clear = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    assert np.asarray(read_image(encoded(clear), title="a.png")).min() == 255
    grey = read_image(encoded(Image.new("L", (8, 8), 77)), title="a.png")
    assert np.asarray(grey).tolist() == [[[77] * 3] * 8] * 8


def test_a_kept_picture_has_no_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "Patient: Jane Doe"
    own = OwnPictures(tmp_path)
    own.add(encoded(ramp(64, 64), "JPEG", exif=exif), title="a.jpg", mpp=1.0, size=32, target_mpp=1.0, tissue=None)
    assert not any(b"Jane" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("content", "mpp", "message"),
    [
        (b"", 1.0, "cannot be read as a PNG or JPEG"),
        (b"no picture", 1.0, "cannot be read as a PNG or JPEG"),
        (encoded(ramp(64, 64))[:100], 1.0, "cannot be read as a PNG or JPEG"),
        (encoded(ramp(64, 64), "GIF"), 1.0, "cannot be read as a PNG or JPEG"),
        (encoded(Image.new("I;16", (64, 64))), 1.0, "more than 8 bits"),
        (encoded(Image.new("1", (10_000, MOST_PIXELS // 10_000 + 1))), 1.0, "more than 80 million px"),
        (encoded(Image.new("1", (20_000, 20_000))), 1.0, "more than 80 million px"),
        (encoded(ramp(64, 31)), 1.0, "needs a square of 32 um: give at least 32 px a side"),
        (encoded(ramp(64, 64)), 0.25, r"shows 16 x 16 um .* give at least 128 px a side"),
        (encoded(ramp(64, 64)), 4.0, "too coarse: the generator works at 1 um/px"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, content: bytes, mpp: float, message: str) -> None:
    own = OwnPictures(tmp_path)
    with pytest.raises(UserError, match=message) as refused:
        own.add(content, title="a.png", mpp=mpp, size=32, target_mpp=1.0, tissue=None)
    assert "\n" not in str(refused.value)
    assert own.all() == []
    assert list(tmp_path.rglob("*.png")) == []

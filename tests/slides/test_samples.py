"""Colours by what a file's tags say: depth, transparency, kinds of grey, and tiles that are not stored."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from histoloom.slides.entries import SlideError
from histoloom.slides.readers.open import open_slide
from histoloom.slides.readers.samples import to_8_bits, used_range

OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
    'DimensionOrder="XYCZT" Type="uint8" SizeX="128" SizeY="96" SizeZ="1" SizeC="1" SizeT="1"><Channel '
    'ID="Channel:0:0" SamplesPerPixel="1"/><TiffData/></Pixels></Image></OME>'
)


def shown(path, *, width=128, height=96):
    with open_slide(path) as slide:
        assert slide.dimensions == (width, height)
        return slide.pixels(0, 0, level=0, width=width, height=height).astype(int)


def test_samples_become_8_bits_by_their_range():
    assert [used_range(np.array([seen])) for seen in (0, 255, 256, 1024, 4095, 4096, 65_535)] == [
        *(255, 255, 1023, 4095, 4095, 16_383, 65_535)
    ]
    assert to_8_bits(np.array([0, 16, 4095, 5000], np.uint16), largest=4095).tolist() == [0, 1, 255, 255]
    assert to_8_bits(np.array([0, 257, 65_535], np.uint16), largest=65_535).tolist() == [0, 1, 255]
    assert to_8_bits(np.array([0, 7, 15], np.uint8), largest=15).tolist() == [0, 119, 255]


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("options", [{}, {"tile": (64, 64)}, {"compression": "zlib", "rowsperstrip": 16}], ids=str)
def test_sixteen_bits_are_scaled_by_what_is_used(tmp_path, picture, bits, options):
    """As one slide of 8 bits, with glass near white."""
    image = picture(128, 96)
    deep = image.astype(np.uint16) << (bits - 8)
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", metadata=None, **options)
    np.testing.assert_array_equal(shown(tmp_path / "a.tif"), image)


@pytest.mark.parametrize("said", ["tag", "xml"])
def test_the_range_that_a_file_states_goes_before_the_one_it_uses(tmp_path, picture, said):
    """Dark samples of 12 bits stay dark."""
    image = picture(128, 96)
    deep = image.astype(np.uint16)  # an eighth of the 12 bits would be enough
    tags = [(281, 3, 3, (4095,) * 3, True)] if said == "tag" else []
    xml = OME.replace('Type="uint8"', 'Type="uint16" SignificantBits="12"')
    xml = xml.replace('SizeC="1"', 'SizeC="3"').replace('SamplesPerPixel="1"', 'SamplesPerPixel="3"')
    description = xml if said == "xml" else None
    options = {"photometric": "rgb", "metadata": None, "extratags": tags, "description": description}
    tifffile.imwrite(tmp_path / "a.ome.tif", deep, tile=(64, 64), **options)
    np.testing.assert_array_equal(shown(tmp_path / "a.ome.tif"), image // 16)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("kind", ["grey", "colour", "opaque"])
def test_deep_pngs_show_what_shallow_ones_show(tmp_path, picture, bits, kind):
    image = picture(128, 96)
    samples = image[..., 1] if kind == "grey" else image
    if kind == "opaque":
        samples = np.dstack([samples, np.full(samples.shape[:2], 255, np.uint8)])
    deep = samples.astype(np.uint16) << (bits - 8)
    if kind == "opaque":
        deep[..., 3] = 65_535
        deep[:10, :, 3] = 0
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep))
    expected = np.repeat(image[..., 1:2], 3, axis=2) if kind == "grey" else image.copy()
    if kind == "opaque":
        expected[:10] = 255
    np.testing.assert_array_equal(shown(tmp_path / "a.png"), expected)


def test_a_grey_jpeg_2000_of_16_bits_is_not_white(tmp_path, picture):
    grey = picture(128, 96)[..., 1]
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(grey.astype(np.uint16) * 257, reversible=True))
    assert np.abs(shown(tmp_path / "a.jp2")[..., 0] - grey).max() <= 1


def test_four_bits_of_grey_reach_white(tmp_path):
    """Packed by hand: tifffile writes no such file."""
    values = (np.arange(128 * 96).reshape(96, 128) // 96 % 16).astype(np.uint8)
    packed = (values[:, ::2] << 4 | values[:, 1::2]).tobytes()
    tags = (("256", 128), ("257", 96), ("258", 4), ("259", 1), ("262", 1), ("273", 8), ("277", 1), ("278", 96))
    entries = [(int(tag), 4, 1, value) for tag, value in tags] + [(279, 4, 1, len(packed))]
    directory = len(entries).to_bytes(2, "little")
    for tag, kind, count, value in entries:
        directory += tag.to_bytes(2, "little") + kind.to_bytes(2, "little")
        directory += count.to_bytes(4, "little") + value.to_bytes(4, "little")
    header = b"II*\0" + (8 + len(packed)).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(header + packed + directory + bytes(4))
    np.testing.assert_array_equal(shown(tmp_path / "a.tif")[..., 0], values * 17)


@pytest.mark.parametrize("layout", [{}, {"tile": (64, 64)}], ids=["strips", "tiles"])
@pytest.mark.parametrize("kind", ["unspecified", "assocalpha", "unassalpha"])
def test_transparency_is_read_alike_in_strips_and_tiles(tmp_path, picture, kind, layout):
    """Half the image is clear; in the other half the colours are at half strength over white."""
    image = picture(128, 96) // 2
    rgba = np.dstack([image, np.full(image.shape[:2], 128, np.uint8)])
    rgba[:48] = 0
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=[kind], metadata=None, **layout)
    read = shown(tmp_path / "a.tif")
    assert (read[:48] == 255).all()
    over = image[48:] * (128 / 255 if kind == "unassalpha" else 1) + 127
    assert np.abs(read[48:] - over.clip(max=255)).max() <= 2


@pytest.mark.parametrize("layout", [{}, {"tile": (64, 64)}], ids=["strips", "tiles"])
@pytest.mark.parametrize(("name", "photometric", "samples"), [("CIELAB", "cielab", 3), ("MASK", "mask", 1)])
def test_colours_of_other_kinds_are_refused(tmp_path, picture, name, photometric, samples, layout):
    image = picture(64, 64)
    image = image if samples == 3 else image[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", image, photometric=photometric, metadata=None, **layout)
    with pytest.raises(SlideError, match=f"of the kind {name}, which is not read; convert it to RGB"):
        open_slide(tmp_path / "a.tif")


def test_white_that_is_zero_is_turned_and_its_opacity_is_not(tmp_path, picture):
    grey = picture(128, 96)[..., 1]
    stored = np.dstack([255 - grey, np.full_like(grey, 255)])
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", extrasamples=["unassalpha"], metadata=None)
    np.testing.assert_array_equal(shown(tmp_path / "a.tif")[..., 0], grey)


@pytest.mark.parametrize("photometric", ["miniswhite", "minisblack", "palette"])
def test_a_tile_that_is_not_stored_is_white(tmp_path, picture, photometric):
    grey = picture(128, 96)[..., 1]
    samples, options = grey, {}
    if photometric == "palette":
        ramp = np.roll(np.arange(256, dtype=np.uint16) * 257, 1)  # white is the first colour
        samples, options = grey + np.uint8(1), {"colormap": np.stack([ramp] * 3)}
    elif photometric == "miniswhite":
        samples = 255 - grey
    path = tmp_path / "a.ome.tif"
    layout = {"tile": (64, 64), "compression": "zlib", "description": OME, "metadata": None}
    tifffile.imwrite(path, samples, photometric=photometric, **layout, **options)
    with tifffile.TiffFile(path) as tiff:
        places = [tiff.pages[0].tags[code].valueoffset for code in (324, 325)]
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(bytes(4))
    read = shown(path)
    assert (read[:64, :64] == 255).all()
    np.testing.assert_array_equal(read[64:, :, 0], grey[64:])


def test_a_missing_tile_of_ycbcr_is_white(tmp_path, picture):
    ycbcr = np.asarray(Image.fromarray(picture(128, 96)).convert("YCbCr"))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, ycbcr, photometric="ycbcr", subsampling=(1, 1), compression="zlib", rowsperstrip=48)
    with tifffile.TiffFile(path) as tiff:
        places = [tiff.pages[0].tags[code].valueoffset for code in (273, 279)]
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(bytes(4))
    assert (shown(path)[:48] == 255).all()

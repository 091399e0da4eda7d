"""Formats beyond plain pyramids, against level 0: OME pyramids, large flat TIFFs, DICOM folders, odd colour spaces."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import tifffile
from PIL import Image

from histoloom.config import SlidesConfig
from histoloom.errors import UserError
from histoloom.slides.inventory import dicom
from histoloom.slides.inventory.find import find_slides
from histoloom.slides.readers.open import open_slide
from histoloom.slides.readers.pyramid import PyramidSlide
from histoloom.slides.readers.tiff import TiffSlide

LANCZOS = Image.Resampling.LANCZOS


def write_ome(path, image, *, levels=3, label=False):
    """An OME-TIFF of 64-px tiles whose smaller levels lie in SubIFDs, as Bio-Formats writes them."""
    with tifffile.TiffWriter(path, ome=True) as tiff:
        if label:
            tiff.write(np.zeros((40, 40, 3), np.uint8), photometric="rgb", metadata={"Name": "label image"})
        metadata = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Name": "slide"}
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
        tiff.write(image, subifds=levels - 1, metadata=metadata, **options)
        for _ in range(levels - 1):
            image = np.asarray(Image.fromarray(image).reduce(2))
            tiff.write(image, subfiletype=1, **options)
    return path


def test_ome_pyramids_are_read_at_their_levels(tmp_path, picture):
    image = picture(500, 420)
    with open_slide(write_ome(tmp_path / "a.ome.tif", image)) as slide:
        assert isinstance(slide, TiffSlide)
        assert slide.levels == [(500, 420), (250, 210), (125, 105)]
        assert (slide.mpp, slide.mpp_source) == (0.5, "OME-XML")
        np.testing.assert_array_equal(slide.read(37, 91, extent=64, size=64), image[91:155, 37:101])
        patch = slide.read(101, 83, extent=256, size=64).astype(float)
        assert {key[0] for key in slide._cache._tiles if isinstance(key, tuple)} == {0, 2}
    reference = np.asarray(Image.fromarray(image).resize((64, 64), LANCZOS, box=(101, 83, 357, 339))).astype(float)
    assert np.abs(patch - reference).mean() < 3
    assert np.abs(np.roll(patch, 1, axis=1) - reference).mean() > 3 * np.abs(patch - reference).mean()


def test_the_label_of_an_ome_file_is_passed_over(tmp_path, picture):
    image = picture(200, 160)
    with open_slide(write_ome(tmp_path / "a.ome.tif", image, label=True)) as slide:
        assert slide.dimensions == (200, 160)
        np.testing.assert_array_equal(slide.read(0, 0, extent=160, size=160), image[:, :160])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 7, "compression": "zlib"},
        {"rowsperstrip": 100, "compression": "lzw", "predictor": True},
        {"tile": (32, 48), "compression": "zlib", "ome": True, "metadata": {"axes": "YXS"}},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "zlib", "rowsperstrip": 20},
        {"byteorder": ">", "compression": "zlib", "rowsperstrip": 50},
        {"bigtiff": True},
    ],
    ids=str,
)
def test_tiffs_of_any_layout_give_their_pixels(tmp_path, picture, options):
    image = picture(150, 130)
    options = {"photometric": "rgb"} | options
    stored = np.moveaxis(image, -1, 0) if options.get("planarconfig") == "separate" else image
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    with open_slide(tmp_path / "a.tif") as slide:
        assert isinstance(slide, TiffSlide)
        np.testing.assert_array_equal(slide.read(20, 31, extent=90, size=90), image[31:121, 20:110])
        beyond = slide.read(120, 100, extent=60, size=60)
        np.testing.assert_array_equal(beyond[:30, :30], image[100:, 120:])
        assert (beyond[31:, :] == 255).all()


@pytest.mark.parametrize("kind", ["L", "P", "CMYK", "1", "RGBA", "I;16"])
def test_colours_agree_with_pillow(tmp_path, picture, kind):
    image = Image.fromarray(picture(60, 50))
    path = tmp_path / "a.tif"
    if kind == "I;16":
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        tifffile.imwrite(path, grey)
    else:
        image = image.convert(kind)
        image.save(path)
    with open_slide(path) as slide:
        read = slide.read(0, 0, extent=50, size=50).astype(int)
    expected = np.asarray((image.convert("L") if kind == "I;16" else image).convert("RGB"))[:, :50].astype(int)
    assert np.abs(read - expected).max() <= 1


def test_a_large_flat_tiff_takes_little_memory(tmp_path):
    """400 megapixels, 1.2 GB of pixels: sparse on disk, read through a map."""
    path = tmp_path / "a.tif"
    mapped = tifffile.memmap(path, shape=(20_000, 20_000, 3), dtype=np.uint8, photometric="rgb", bigtiff=True)
    mapped[15_000:15_100, 9_000:9_100] = (200, 80, 160)
    mapped.flush()
    del mapped
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_slide(path) as slide:
        assert slide.dimensions == (20_000, 20_000)
        patch = slide.read(15_000 - 6_050, 14_950, extent=200, size=100)
        assert patch.shape == (100, 100, 3)
        np.testing.assert_array_equal(slide.read(9_010, 15_010, extent=64, size=64)[32, 32], (200, 80, 160))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def zone_plate(side):
    """Rings that get finer to the edges, up to half a ring a pixel."""
    y, x = np.mgrid[:side, :side] - side / 2
    grey = 127.5 + 127.5 * np.cos(np.pi * (x**2 + y**2) / side)
    return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("kind", ["pyramid", "one level", "ome", "png"])
def test_resampling_has_no_aliases(tmp_path, pyramid, kind):
    """Rings finer than the wanted pixels become grey; taking every so manieth pixel would show false rings."""
    image = zone_plate(512)
    path = tmp_path / "a.png"
    if kind == "png":
        Image.fromarray(image).save(path)
    elif kind == "ome":
        path = write_ome(tmp_path / "a.ome.tif", image)
    else:
        path = pyramid(tmp_path / "a.tif", image, mpp=0.5, levels=3 if kind == "pyramid" else 1)
    factor = 3.3
    with open_slide(path) as slide:
        assert isinstance(slide, PyramidSlide) or kind in ("ome", "png")
        patch = slide.read(8, 8, extent=495, size=150).astype(float)[..., 0]
    averaged = Image.fromarray(image).resize((150, 150), Image.Resampling.BOX, box=(8, 8, 503, 503))
    area = np.asarray(averaged).astype(float)[..., 0]
    y, x = np.mgrid[:150, :150] - 75.0 + (256 - 8 - 495 / 2) / factor
    fineness = np.hypot(x, y) * factor / 512 * factor  # rings a wanted pixel; one half is the limit
    too_fine, coarse = fineness > 0.8, fineness < 0.15
    assert np.abs(patch[too_fine] - 127.5).std() < 12
    assert np.abs(patch - area)[coarse].mean() < 6
    picked = image[8:503, 8:503][np.ix_(*[(np.arange(150) * factor).astype(int)] * 2)][..., 0].astype(float)
    assert np.abs(picked[too_fine] - 127.5).std() > 30


def element(group, number, kind, value):
    value += b" " * (len(value) % 2) if kind not in (b"UI", b"OB") else b"\0" * (len(value) % 2)
    tag = group.to_bytes(2, "little") + number.to_bytes(2, "little")
    if kind in (b"SQ", b"OB"):
        return tag + kind + b"\0\0" + len(value).to_bytes(4, "little") + value
    return tag + kind + len(value).to_bytes(2, "little") + value


def write_dicom_header(path, series):
    """A DICOM file up to its series, with a sequence of undefined length before it."""
    meta = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1")
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + element(0x20, 0xE, b"UI", b"9.9.9") + b"\xfe\xff\x0d\xe0\0\0\0\0"
    sequence = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0\0\0\0\0"
    body = element(8, 0x60, b"CS", b"SM") + sequence + element(0x10, 0x10, b"PN", b"Mustermann^Max")
    path.write_bytes(bytes(128) + b"DICM" + meta + body + element(0x20, 0xE, b"UI", series.encode()))


def test_dicom_files_are_gathered_by_series(tmp_path):
    for name, series in (("3", "1.2.3"), ("1", "1.2.3"), ("2", "1.2.4"), ("4", "1.2.3")):
        write_dicom_header(tmp_path / f"{name}.dcm", series)
    (tmp_path / "5.dcm").write_bytes(b"nothing")
    assert dicom.series_uid(tmp_path / "1.dcm") == "1.2.3"
    assert [[file.stem for file in files] for files in dicom.series_in(tmp_path)] == [["1", "3", "4"], ["2"], ["5"]]


def test_a_dicom_folder_is_one_slide_named_after_it(tmp_path, picture):
    folder = tmp_path / "in" / "case-7"
    folder.mkdir(parents=True)
    for name in "abc":
        write_dicom_header(folder / f"{name}.dcm", "1.2.3")
    Image.fromarray(picture(64, 64)).save(tmp_path / "in" / "good.png", dpi=(50_800, 50_800))
    (tmp_path / "in" / "slides.csv").write_text("file,patient\ncase-7,P7\n", encoding="utf-8")
    for paths in ((tmp_path / "in",), (folder / "b.dcm", folder / "c.dcm", tmp_path / "in")):
        entries = find_slides(SlidesConfig(paths=tuple(map(str, paths))))
        (slide,) = (entry for entry in entries if entry.file.suffix == ".dcm")
        assert (slide.slide_id, slide.file.name) == ("case-7", "a.dcm")
        assert not slide.usable
    (slide,) = (e for e in find_slides(SlidesConfig(paths=(str(tmp_path / "in"),))) if e.file.suffix == ".dcm")
    assert slide.patient == "P7"


def test_a_dicom_slide_is_read_at_its_levels(tmp_path, picture, dicom_level):
    """Two levels, a file each: one slide, named after their folder, whichever of the files comes first."""
    folder = tmp_path / "case-8"
    folder.mkdir()
    image = picture(200, 150)
    half = np.asarray(Image.fromarray(image).reduce(2))
    dicom_level(folder / "a.dcm", half, series="1.2.3", instance="1.2.3.2", mpp=1.0)
    dicom_level(folder / "b.dcm", image, series="1.2.3", instance="1.2.3.1", mpp=0.5)
    for path in (tmp_path, folder, folder / "b.dcm"):
        (entry,) = find_slides(SlidesConfig(paths=(str(path),)))
        assert (entry.slide_id, entry.status, entry.mpp) == ("case-8", "ok", 0.5)
    with open_slide(entry) as slide:
        assert slide.levels == [(200, 150), (100, 75)]
        np.testing.assert_array_equal(slide.read(30, 41, extent=64, size=64), image[41:105, 30:94])


def test_a_slide_that_says_nothing_of_its_scale(real_data):
    """An Aperio JPEG 2000 slide with neither mpp nor objective power: never a guess."""
    path = str(real_data / "slides" / "tcga-cr-7395.svs")
    with pytest.raises(UserError, match=r"tcga-cr-7395\.svs does not say its mpp.*--mpp 0\.5"):
        find_slides(SlidesConfig(paths=(path,)))
    (entry,) = find_slides(SlidesConfig(paths=(path,), mpp=0.25))
    assert (entry.mpp, entry.mpp_source) == (0.25, "slides.mpp")
    with open_slide(entry) as slide:
        patch = slide.read(2000, 1500, extent=512, size=128)
    assert 20 < patch.std() < 120

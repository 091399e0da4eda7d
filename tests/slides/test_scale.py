"""The one order in which a slide gets its um/px, and what each format says of the very image that is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from histoloom.config import SlidesConfig
from histoloom.errors import UserError
from histoloom.slides.entries import SlideError
from histoloom.slides.inventory.find import find_slides
from histoloom.slides.readers.open import open_slide
from histoloom.slides.readers.scale import Scale, decide
from histoloom.slides.readers.tiff import TiffSlide

APERIO = "Aperio Image Library v12\r\n{0}x{1} [0,0 {0}x{1}] (64x64) JPEG/RGB Q=70|AppMag = 20"


def write_aperio(path: Path, image: np.ndarray, *, description: str = APERIO, **options: object) -> Path:
    """An SVS with the power of its objective alone."""
    text = description.format(image.shape[1], image.shape[0])
    layout = {"tile": (64, 64), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    tifffile.imwrite(path, image, description=text, **layout, **options)
    return path


def ome_of(*images: tuple[int, int, float, str]) -> str:
    """OME-XML of images (width, height, um/px, name), one page each."""
    parts = [
        f'<Image ID="Image:{n}" Name="{name}"><Pixels ID="Pixels:{n}" DimensionOrder="XYCZT" Type="uint8" '
        f'SizeX="{width}" SizeY="{height}" SizeZ="1" SizeC="3" SizeT="1" PhysicalSizeX="{mpp}" PhysicalSizeY="{mpp}">'
        f'<Channel ID="Channel:{n}:0" SamplesPerPixel="3"/><TiffData IFD="{n}" PlaneCount="1"/></Pixels></Image>'
        for n, (width, height, mpp, name) in enumerate(images)
    ]
    return f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{"".join(parts)}</OME>'


TABLE, EXACT, GUESS = Scale(0.2, "table"), Scale(0.25, "OME-XML"), Scale(0.5, "guess: objective power 20x")


@pytest.mark.parametrize(
    ("own", "given", "default", "expected"),
    [
        (EXACT, TABLE, 1.0, TABLE),
        (EXACT, None, 1.0, EXACT),
        (GUESS, None, 1.0, Scale(1.0, "slides.mpp")),
        (GUESS, TABLE, None, TABLE),
        (GUESS, None, None, GUESS),
        (None, None, 1.0, Scale(1.0, "slides.mpp")),
        (None, None, None, None),
    ],
)
def test_the_order_of_scales(
    own: Scale | None, given: Scale | None, default: float | None, expected: Scale | None
) -> None:
    assert decide(own, given=given, default=default) == expected


def test_a_guess_gives_way_to_what_is_stated_and_is_said(tmp_path, picture, caplog):
    image = picture(128, 96)
    write_aperio(tmp_path / "plain.svs", image)
    write_aperio(tmp_path / "tagged.svs", image, resolution=(1e4 / 0.2325, 1e4 / 0.2325), resolutionunit="CENTIMETER")
    paths = (str(tmp_path),)
    found = {entry.slide_id: entry for entry in find_slides(SlidesConfig(paths=paths))}
    assert (found["plain"].mpp, found["plain"].mpp_source) == (0.5, "guess: objective power 20x")
    assert (found["tagged"].mpp, found["tagged"].mpp_source) == (pytest.approx(0.2325), "TIFF resolution")
    assert "1 of 2 slides do not say their mpp" in caplog.text
    assert "plain.svs 0.5; to replace the guess give --mpp" in caplog.text
    caplog.clear()
    (entry,) = find_slides(SlidesConfig(paths=(str(tmp_path / "plain.svs"),), mpp=0.2325))
    assert (entry.mpp, entry.mpp_source, caplog.text) == (0.2325, "slides.mpp", "")


@pytest.mark.parametrize("slide", [0, 1])
def test_the_scale_is_that_of_the_image_that_is_read(tmp_path, picture, slide):
    """A macro of 15 um/px beside the slide, before it or after it; and one whose name says nothing."""
    images = [(picture(200, 160), (200, 160, 0.5, "scan")), (picture(100, 80), (100, 80, 15.0, "scene 2"))]
    if slide == 1:
        images.reverse()
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tiff:
        for number, (image, _) in enumerate(images):
            xml = ome_of(*(of for _, of in images)) if number == 0 else None
            tiff.write(image, tile=(64, 64), photometric="rgb", metadata=None, description=xml)
    with open_slide(tmp_path / "a.ome.tif") as opened:
        assert (opened.dimensions, opened.mpp, opened.mpp_source) == ((200, 160), 0.5, "OME-XML")


@pytest.mark.parametrize(
    ("size", "unit"), [("250", "nm"), ("0.25", "\u00b5m"), ("0.25", "\u03bcm"), ("0.00025", "mm"), ("0.000025", "cm")]
)
def test_units_of_ome(tmp_path, picture, size, unit):
    xml = ome_of((64, 64, 1.0, "slide")).replace('PhysicalSizeX="1.0"', f'PhysicalSizeX="{size}"')
    xml = xml.replace('PhysicalSizeY="1.0"', f'PhysicalSizeXUnit="{unit}"')
    tifffile.imwrite(
        tmp_path / "a.ome.tif", picture(64, 64), photometric="rgb", metadata=None, description=xml.encode()
    )
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert slide.mpp == pytest.approx(0.25)


def test_images_of_one_size_are_told_apart_by_their_pages(tmp_path, picture):
    image = picture(128, 96)
    xml = ome_of((128, 96, 15.0, "macro"), (128, 96, 0.5, "slide"))
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tiff:
        for text in (xml, None):
            tiff.write(image, tile=(64, 64), photometric="rgb", metadata=None, description=text)
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert slide.mpp == 0.5


def test_resolution_tags_are_those_of_the_page_that_is_read(tmp_path, picture):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for side, mpp in ((64, 8.0), (192, 0.5)):
            resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
            tiff.write(picture(side, side), photometric="rgb", metadata=None, rowsperstrip=side, **resolution)
    with open_slide(tmp_path / "a.tif") as slide:
        assert (slide.dimensions, slide.mpp) == ((192, 192), pytest.approx(0.5))


@pytest.mark.parametrize("name", ["strips.tif", "tiles.tif", "flat.png"])
def test_pixels_that_are_not_square_are_refused_in_every_format(tmp_path, picture, name):
    path, image = tmp_path / name, picture(128, 96)
    if name == "flat.png":
        Image.fromarray(image).save(path, dpi=(50_800, 25_400))
    else:
        tile = {"tile": (64, 64)} if name == "tiles.tif" else {}
        tifffile.imwrite(path, image, photometric="rgb", resolution=(20_000, 10_000), resolutionunit=3, **tile)
    with pytest.raises(SlideError, match=r"not square \(0.5 x 1 um\); resample it"):
        open_slide(path)


def test_a_print_resolution_along_one_side_is_no_scale(tmp_path, picture):
    path = tmp_path / "a.png"
    Image.fromarray(picture(64, 64)).save(path, dpi=(96, 96))
    with pytest.raises(UserError, match="does not say its mpp"):
        find_slides(SlidesConfig(paths=(str(path),)))


def test_our_reader_knows_aperios_mpp(tmp_path: Path) -> None:
    """Where OpenSlide cannot open an SVS, as one whose macro is stored in tiles, our own reader takes its place."""
    for name, words, expected in (("a", "|MPP = 0.2517", 0.2517), ("b", "|MPP = -1", None), ("c", "|Left = 0.5", None)):
        path = write_aperio(tmp_path / f"{name}.svs", np.zeros((128, 192, 3), np.uint8), description=APERIO + words)
        with TiffSlide(path) as slide:
            assert slide.mpp == expected
            assert expected is None or slide.mpp_source == "Aperio MPP"

"""The um/px of a slide: ``decide`` is the one place that chooses it, for every format and every command.

The order: what the user says of this very slide (a row of a table, ``map --mpp``); what the file says of the very image
that is read; what the user says of all slides (``slides.mpp``); a guess from the objective's power. Pixels must be
square: a file that gives two sides is refused where they differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from histoloom.slides.entries import SlideError

NO_MPP = "does not say its mpp (um/px): give it with --mpp, for example --mpp 0.5, or in a column mpp of a CSV"
TABLE, SETTING = "table", "slides.mpp"
"""Sources of a scale beside those in a file."""

GUESS = "guess: "
"""Start of the source of a scale that no one stated."""

PLAUSIBLE_MPP = (0.02, 20.0)
"""Files from cameras and drawing programs carry print resolutions (72 to 1200 dots an inch, 353 to 21 um/px). No
microscope image is that coarse, so values outside count as absent."""

_MAX_SIDE_RATIO = 1.05  # of a pixel's two sides; above it the pixels are not square
_UM_PER_TIFF_UNIT = {2: 25_400.0, 3: 10_000.0}  # TIFF's ResolutionUnit: inch, centimetre
# Writers take the sign for micro or the Greek letter.
_UM_PER_OME_UNIT = {"nm": 1e-3, "\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "in": 25_400.0}
_IMAGEJ_MICRONS = {"micron", "microns", "um", "\u00b5m", "\u03bcm", "\\u00B5m"}


@dataclass(frozen=True)
class Scale:
    """um/px at level 0, and where it comes from."""

    mpp: float
    source: str

    @property
    def guessed(self) -> bool:
        """Whether it is derived from the objective's power, and stated by no one."""
        return self.source.startswith(GUESS)


def decide(own: Scale | None, *, given: Scale | None, default: float | None) -> Scale | None:
    """The scale of a slide whose file says ``own``; None where it is not known.

    ``given`` is what the user, or the run, says of this slide; ``default`` (um/px) is what the user says of all slides.
    """
    if given is not None:
        return given
    if default is not None and (own is None or own.guessed):
        return Scale(default, SETTING)
    return own


def scale_from_openslide(properties: Mapping[str, str]) -> Scale | None:
    """The scale that OpenSlide states as its mpp."""
    sides = [_leading_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    return _of_sides(*sides, source="openslide.mpp-x")


def guess_from_power(properties: Mapping[str, str]) -> Scale | None:
    """10 um over the objective's power in OpenSlide's properties: 0.5 um/px at 20x.

    Cameras differ, so this is a guess: scanners of 20x make 0.23 to 0.5 um/px.
    """
    power = _leading_number(properties.get("openslide.objective-power"))
    return _of_sides(10 / power, None, source=f"{GUESS}objective power {power:g}x") if power else None


def scale_from_dpi(dpi: object) -> Scale | None:
    """The scale in an image's dots per inch (Pillow's ``info["dpi"]``: a number or a pair)."""
    values = [_leading_number(value) for value in (dpi if isinstance(dpi, tuple) else (dpi, None))]
    sides = [25_400 / value if value else None for value in values]
    return _of_sides(*sides[:2], source="image resolution")


def scale_from_tiff(tiff: Any, *, page: Any) -> Scale | None:
    """The scale of the image that starts with ``page`` of an open ``tifffile.TiffFile``.

    It is that of its OME-XML, Aperio's MPP, ImageJ's calibration, or the page's resolution tags.
    """
    if (scale := _ome_scale(tiff.ome_metadata, page=page)) is not None:
        return scale
    description = page.keyframe.description
    stated = re.search(r"\|\s*MPP\s*=\s*(\S+)", description) if description.startswith("Aperio") else None
    if stated and (scale := _of_sides(_leading_number(stated[1]), None, source="Aperio MPP")) is not None:
        return scale
    tags = page.keyframe.tags
    ratios = [tags[name].value if name in tags else None for name in ("XResolution", "YResolution")]
    px_sides = [ratio[1] / ratio[0] if ratio and ratio[0] and ratio[1] else None for ratio in ratios]
    if (tiff.imagej_metadata or {}).get("unit") in _IMAGEJ_MICRONS:
        scale = _of_sides(*px_sides, source="ImageJ calibration")
    if scale is not None:
        return scale
    unit = _UM_PER_TIFF_UNIT.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 0, 0.0)
    return _of_sides(*(side and unit * side for side in px_sides), source="TIFF resolution")


def _ome_scale(xml: str | None, *, page: Any) -> Scale | None:
    """The scale of the OME image that starts with ``page``; None where several fit and differ."""
    try:
        images = list(ElementTree.fromstring(xml).iterfind(".//{*}Pixels")) if xml else []
    except ElementTree.ParseError:
        return None
    size = (str(page.imagewidth), str(page.imagelength))
    if len(images) > 1:
        images = [pixels for pixels in images if (pixels.get("SizeX"), pixels.get("SizeY")) == size]
    if len(images) > 1:
        index = str(page.index)
        starting = [pixels for pixels in images if index in {d.get("IFD", "0") for d in pixels.iterfind("{*}TiffData")}]
        images = starting or images
    scales = {_scale_of_pixels(pixels) for pixels in images}
    return scales.pop() if len(scales) == 1 else None


def _scale_of_pixels(pixels: ElementTree.Element) -> Scale | None:
    sides = []
    for axis in "XY":
        size = _leading_number(pixels.get(f"PhysicalSize{axis}"))
        factor = _UM_PER_OME_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "um"))
        sides.append(size * factor if size and factor else None)
    return _of_sides(*sides, source="OME-XML")


def _of_sides(across: float | None, down: float | None, *, source: str) -> Scale | None:
    """The scale of a pixel's sides (um), where a microscope could have made them; ``SlideError`` if they differ."""
    sides = [side for side in (across, down) if side is not None and PLAUSIBLE_MPP[0] <= side <= PLAUSIBLE_MPP[1]]
    if not sides:
        return None
    if max(sides) > _MAX_SIDE_RATIO * min(sides):
        raise SlideError(f"says that its pixels are not square ({sides[0]:g} x {sides[1]:g} um); resample it")
    return Scale(sides[0], source)


def _leading_number(value: object) -> float | None:
    """The number at the start of ``value``; vendors append units ("20x")."""
    match = re.match(r"\s*[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", str(value)) if value is not None else None
    return float(match.group()) if match else None

"""The scale of a slide, um/px, from what its file says.

Files from cameras and drawing programs carry print resolutions (72 to 1200 dots an inch, 353 to 21 um/px); no
microscope image is that coarse, so values outside ``PLAUSIBLE`` count as absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

from histoloom.slides.entries import SlideError

PLAUSIBLE = (0.02, 20.0)

_SQUARE = 1.05  # sides may differ by that factor

_UM_PER_UNIT = {2: 25_400.0, 3: 10_000.0}
_UM_PER_OME_UNIT = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3}
_MICRON_NAMES = {"micron", "microns", "um", "µm", "\\u00B5m"}

Scale = tuple[float, str]


def plausible(mpp: float | None) -> float | None:
    """``mpp`` (um/px) where a microscope could have made it, else None."""
    return mpp if mpp is not None and PLAUSIBLE[0] <= mpp <= PLAUSIBLE[1] else None


def from_openslide(properties: Mapping[str, str]) -> Scale | None:
    """The scale in OpenSlide's properties: its mpp, else 10 um / objective power (0.5 um/px at 20x, the usual
    camera pitch), else None.
    """
    mpp = plausible(_number(properties.get("openslide.mpp-x")))
    if mpp is not None:
        _check_square(mpp, _number(properties.get("openslide.mpp-y")))
        return mpp, "openslide.mpp-x"
    power = _number(properties.get("openslide.objective-power"))
    mpp = plausible(10 / power) if power else None
    return (mpp, f"objective power {power:g}x") if mpp is not None else None


def from_dpi(dpi: Any) -> Scale | None:
    """The scale in an image's dots per inch (Pillow's ``info["dpi"]``: a number or a pair)."""
    value = _number(dpi[0] if isinstance(dpi, tuple) else dpi)
    mpp = plausible(25_400 / value) if value else None
    return (mpp, "image resolution") if mpp is not None else None


def from_tiff(tiff: Any) -> Scale | None:
    """The scale in an open ``tifffile.TiffFile``: OME-XML, ImageJ's calibration, or the resolution tags."""
    candidates = (
        (_ome(tiff.ome_metadata), "OME-XML"),
        (_imagej(tiff), "ImageJ calibration"),
        (_resolution_tags(tiff), "TIFF resolution"),
    )
    return next(((mpp, source) for mpp, source in candidates if mpp is not None), None)


def _resolution_tags(tiff: Any) -> float | None:
    unit = _tag(tiff, "ResolutionUnit")
    return _tag_mpp(tiff, _UM_PER_UNIT.get(int(unit), 0.0)) if unit is not None else None


def _imagej(tiff: Any) -> float | None:
    unit = (tiff.imagej_metadata or {}).get("unit")
    return _tag_mpp(tiff, 1.0) if unit in _MICRON_NAMES else None


def _ome(xml: str | None) -> float | None:
    if not xml:
        return None
    try:
        pixels = ElementTree.fromstring(xml).find(".//{*}Pixels")
    except ElementTree.ParseError:
        return None
    if pixels is None:
        return None
    across, down = (_ome_size(pixels, axis) for axis in "XY")
    if across is not None:
        _check_square(across, down)
    return across


def _ome_size(pixels: ElementTree.Element, axis: str) -> float | None:
    size = _number(pixels.get(f"PhysicalSize{axis}"))
    factor = _UM_PER_OME_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    return plausible(size * factor) if size and factor else None


def _check_square(across: float, down: float | None) -> None:
    down = plausible(down)
    if down is not None and max(across, down) > _SQUARE * min(across, down):
        raise SlideError(f"says that its pixels are not square ({across:g} x {down:g} um); resample it")


def _tag_mpp(tiff: Any, um_per_unit: float) -> float | None:
    ratio = _tag(tiff, "XResolution")
    if not ratio or not ratio[0] or not ratio[1]:
        return None
    return plausible(um_per_unit * ratio[1] / ratio[0])


def _tag(tiff: Any, name: str) -> Any:
    tag = tiff.pages[0].tags.get(name)
    return tag.value if tag is not None else None


def _number(value: Any) -> float | None:
    """The number at the start of ``value``; vendors append units ("20x")."""
    match = re.match(r"\s*[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", str(value)) if value is not None else None
    return float(match.group()) if match else None

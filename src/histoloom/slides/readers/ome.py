"""What OME-XML must not ask for before tifffile follows it."""

from __future__ import annotations

from xml.etree import ElementTree

from histoloom.slides.entries import SlideError

_MAX_PLANES = 4096
_MAX_XML = 64 * 2**20


def check_ome(xml: str | None) -> None:
    """Raise ``SlideError`` where OME-XML promises absurdly many planes, or names other files for them.

    tifffile would make room for every plane, and would open the other files. XML that does not parse is left to it.
    """
    if not xml:
        return
    if len(xml) > _MAX_XML:
        raise SlideError("cannot be read: its OME-XML is absurdly long")
    if "<!ENTITY" in xml or "<!DOCTYPE" in xml:
        raise SlideError("cannot be read: its OME-XML defines entities, which OME-XML never does")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return
    own = root.get("UUID")
    for pixels in root.iterfind(".//{*}Pixels"):
        planes = 1
        for axis in "ZCT":
            planes *= max(1, _whole(pixels.get(f"Size{axis}")))
        if planes > _MAX_PLANES:
            raise SlideError(f"is a stack of {planes} planes, not a grey or RGB image")
        for uuid in pixels.iterfind(".//{*}TiffData/{*}UUID"):
            if own is not None and uuid.text != own:
                raise SlideError("is one file of an OME data set of several; convert it to one OME-TIFF")


def _whole(text: str | None) -> int:
    try:
        return int(text or "1")
    except ValueError:
        return 1

"""Bad inputs, one small builder each: NAME -> (how to write it, what its reason must say)."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

Build = Callable[[Path], object]
PIXELS = np.full((96, 96, 3), 180, np.uint8)
MPP = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
TILED: dict[str, Any] = {"tile": (32, 32), "photometric": "rgb", "compression": "zlib", "metadata": None}
OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {root}>'
    '<Image ID="Image:0"><Pixels {at}/></Image></OME>'
)


def data(content: bytes) -> Build:
    return lambda path: path.write_bytes(content)


def tiff(*, pixels: np.ndarray = PIXELS, tags: dict[str, object] | None = None, **options: Any) -> Build:
    """A TIFF, some of whose tags are then overwritten."""

    def build(path: Path) -> None:
        named = ".ome." in path.name and "metadata" in options
        tifffile.imwrite(path, pixels, ome=named, **({"metadata": None} | MPP | options))
        with tifffile.TiffFile(path, mode="r+b") as file:
            for name, value in (tags or {}).items():
                file.pages[0].tags[name].overwrite(value)

    return build


def ome(*, xml: str) -> Build:
    return tiff(description=xml)


def ome_xml(*, root: str = "", more: str = "", planes: str = 'SizeZ="1"') -> str:
    at = f'DimensionOrder="XYCZT" Type="uint8" SizeX="96" SizeY="96" SizeC="3" SizeT="1" {planes} {more}'
    return OME.format(root=root, at=at)


def aperio(words: str) -> Build:
    options = TILED | {"compression": "jpeg", "metadata": None}
    text = f"Aperio Image Library v11.2.1\r\n96x96 (32x32) JPEG/RGB Q=70|{words}"
    return lambda path: tifffile.imwrite(path, PIXELS, description=text, **options)


def cut(build: Build, *, share: float) -> Build:
    def shorten(path: Path) -> None:
        build(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])

    return shorten


def image(kind: str) -> Build:
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    return lambda path: Image.fromarray(noise).save(path, format=kind, dpi=(25_400, 25_400))


def png_bomb(path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(10_000_000), 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def jpeg_bomb_bytes(side: int) -> bytes:
    """A JPEG of 96 px that says it has ``side``."""
    buffer = BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="JPEG")
    whole = buffer.getvalue()
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", side, side) + whole[at + 4 :]


def tile_bomb(path: Path) -> None:
    """An OME-TIFF with a tile of 96 px that says it has 10,000."""
    tifffile.imwrite(path, PIXELS, tile=(96, 96), compression="jpeg", description=ome_xml(), metadata=None, **MPP)
    bomb = jpeg_bomb_bytes(10_000)
    with tifffile.TiffFile(path, mode="r+b") as file:
        page = file.pages[0]
        file.filehandle.seek(0, 2)
        end = file.filehandle.tell()
        file.filehandle.write(bomb)
        page.tags["TileOffsets"].overwrite(end)
        page.tags["TileByteCounts"].overwrite(len(bomb))


def loop_of_pages(path: Path) -> None:
    """The directory that follows the first one is the first one."""
    tifffile.imwrite(path, np.zeros((96, 96), np.float32), metadata=None)
    whole = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", whole, 4)
    (count,) = struct.unpack_from("<H", whole, first)
    struct.pack_into("<I", whole, first + 2 + 12 * count, first)
    path.write_bytes(whole)


def mirax(path: Path, *, text: str) -> None:
    image("JPEG")(path)
    folder = path.with_suffix("")
    folder.mkdir()
    (folder / "Slidedat.ini").write_text(text, encoding="utf-8")


def deep_dicom(path: Path) -> None:
    """Sequences of undefined length, each opening the next."""
    opened = b"\x08\x00\x15\x11SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
    path.write_bytes(bytes(128) + b"DICM" + opened * 5000)


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    + "]><OME><Image><Pixels>&a11;</Pixels></Image></OME>"
)
SCN = '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection>'
ELSEWHERE = '<TiffData><UUID FileName="../../secret.tif">urn:uuid:2</UUID></TiffData>'
UNREADABLE, NO_SLIDE, NO_MPP = "cannot be read", "is not a slide or image", "does not say its mpp"
NO_SCAN = "slide that OpenSlide can open, or lacks"

BAD: dict[str, tuple[Build, str]] = {
    "empty.tif": (data(b""), NO_SLIDE),
    "text.svs": (data(b"not a slide\n" * 50), NO_SLIDE),
    "page.jpg": (data(b"<html><body>404 Not Found</body></html>"), NO_SLIDE),
    "noise.ndpi": (data(bytes(np.random.default_rng(1).integers(0, 255, 5000, dtype=np.uint8))), NO_SCAN),
    "zeros.czi": (data(bytes(4096)), NO_SCAN),
    "magic-only.tif": (data(b"II*\0"), ""),
    "header-only.tif": (data(b"II*\0\x08\0\0\0"), NO_SLIDE),
    "points-nowhere.tif": (data(b"II*\0\xff\xff\xff\x7f"), NO_SLIDE),
    "script.png": (data(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"), NO_SLIDE),
    "animation.png": (image("GIF"), NO_SLIDE),
    "cut.tif": (cut(tiff(**TILED), share=0.5), UNREADABLE),
    "cut-strips.tif": (cut(tiff(), share=0.5), "cut short"),
    "cut-directory.tif": (cut(tiff(**TILED), share=0.1), ""),
    "cut.jpg": (cut(image("JPEG"), share=0.5), UNREADABLE),
    "cut.png": (cut(image("PNG"), share=0.5), UNREADABLE),
    "cut.webp": (cut(image("WEBP"), share=0.5), ""),
    "cut.bmp": (cut(image("BMP"), share=0.5), UNREADABLE),
    "bomb.png": (png_bomb, "too large to decode in one piece"),
    "bomb.jpg": (data(jpeg_bomb_bytes(65_500)), "too large to decode in one piece"),
    "tile-bomb.tif": (tile_bomb, "cannot be read: a tile of 96 x 96 px says"),
    "vast.tif": (tiff(**TILED, tags={"ImageWidth": 2**31 - 1, "ImageLength": 2**31 - 1}), ""),
    "vast-strips.tif": (tiff(tags={"ImageWidth": 2**31 - 1, "ImageLength": 2**31 - 1}), ""),
    "large-lie.tif": (tiff(**TILED, tags={"ImageWidth": 3_000_000, "ImageLength": 3_000_000}), ""),
    "no-width.tif": (tiff(**TILED, tags={"ImageWidth": 0}), ""),
    "no-height.tif": (tiff(tags={"ImageLength": 0}), ""),
    "vast-tiles.tif": (tiff(**TILED, tags={"TileWidth": 2**30, "TileLength": 2**30}), ""),
    "no-tiles.tif": (tiff(**TILED, tags={"TileWidth": 0, "TileLength": 0}), ""),
    "tiles-beyond.tif": (tiff(**TILED, tags={"TileOffsets": (2**31,) * 9}), ""),
    "long-tiles.tif": (tiff(**TILED, tags={"TileByteCounts": (2**16 - 1,) * 9}), UNREADABLE),
    "strip-of-gigabytes.tif": (tiff(tags={"StripByteCounts": 2**32 - 1}), "cut short"),
    "loop.tif": (loop_of_pages, "pixels of type float32"),
    "laughs.ome.tif": (ome(xml=LAUGHS), "defines entities"),
    "planes.ome.tif": (ome(xml=ome_xml(planes='SizeZ="2000000000"')), "is a stack of 6000000000 planes"),
    "elsewhere.ome.tif": (
        ome(xml=ome_xml(root='UUID="urn:uuid:1"').replace("/></Image>", f">{ELSEWHERE}</Pixels></Image>")),
        "is one file of an OME data set of several",
    ),
    "negative.ome.tif": (tiff(resolution=(1, 1), description=ome_xml(more='PhysicalSizeX="-0.5"')), NO_MPP),
    "nan.ome.tif": (tiff(resolution=(1, 1), description=ome_xml(more='PhysicalSizeX="NaN"')), NO_MPP),
    "endless.ome.tif": (tiff(resolution=(1, 1), description=ome_xml(more='PhysicalSizeX="1e999"')), NO_MPP),
    "label.ome.tif": (tiff(metadata={"Name": "label image"}), "holds only a label"),
    "oblong.ome.tif": (
        tiff(description=ome_xml(more='PhysicalSizeX="0.5" PhysicalSizeY="1.5"')),
        "pixels are not square",
    ),
    "no-resolution.tif": (tiff(**TILED, tags={"XResolution": (0, 0), "YResolution": (0, 0)}), NO_MPP),
    "endless-resolution.tif": (tiff(tags={"XResolution": (1, 0), "YResolution": (1, 0)}), NO_MPP),
    "print.tif": (tiff(resolution=(300, 300), resolutionunit="INCH"), NO_MPP),
    "silent.png": (lambda path: Image.fromarray(PIXELS).save(path), NO_MPP),
    "negative.svs": (aperio("AppMag = -20|MPP = -0.5"), NO_MPP),
    "nan.svs": (aperio("AppMag = nan|MPP = nan"), NO_MPP),
    "endless.svs": (aperio("MPP = 1e999"), NO_MPP),
    "stack.tif": (tiff(pixels=np.zeros((7, 96, 96), np.uint8), photometric="minisblack"), "not a grey or RGB image"),
    "float.tif": (tiff(pixels=np.zeros((96, 96), np.float32)), "pixels of type float32"),
    "samples.tif": (
        tiff(pixels=np.zeros((96, 96, 6), np.uint8), photometric="rgb", planarconfig="contig"),
        "not a grey or RGB image",
    ),
    "compressed.tif": (tiff(tags={"Compression": 65_000}), ""),
    "one-pixel.tif": (tiff(pixels=PIXELS[:1, :1]), "smaller than one patch"),
    "thread.tif": (tiff(pixels=np.zeros((3, 60_000, 3), np.uint8)), "smaller than one patch"),
    "text.dcm": (data(b"not DICOM\n" * 50), NO_SCAN),
    "cut.dcm": (data(bytes(128) + b"DICM\x02\x00\x10\x00UI\xff\xff1.2"), ""),
    "deep.dcm": (deep_dicom, ""),
    "alone.mrxs": (image("JPEG"), NO_SCAN),
    "climbing.mrxs": (lambda path: mirax(path, text="[GENERAL]\nSLIDE_ID = ../../../etc/passwd\n"), ""),
    "climbing.vms": (data(b"[Virtual Microscope Specimen]\nImageFile=../../../etc/passwd\nNoLayers=1\n"), ""),
    "open.scn": (tiff(**TILED, description=SCN), NO_SCAN),
    "out.tif": (lambda path: path.symlink_to("/etc/hostname"), "is a link to a place outside"),
    "nowhere.tif": (lambda path: path.symlink_to("nowhere-at-all"), "is a link that leads to no file"),
    "circle.tif": (lambda path: path.symlink_to(path.name), "is a link that leads to no file"),
    "pipe.svs": (lambda path: os.mkfifo(path), "is not a regular file"),
    os.fsdecode(b"latin-\xe9.tif"): (tiff(**TILED), "has a name that is not Unicode"),
}

GOOD_NAMES = (
    "new\nline.tif",
    "<img src=x onerror=alert(1)>.tif",
    "$(reboot) `id`; --help.tif",
    "n" * 240 + ".tif",
    "'\".tif",
)
"""Names that must do no harm; the slides are good."""

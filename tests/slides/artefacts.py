"""Artefacts to plant on pictures of slides: each gives the picture, uint8 (h, w, 3), and where it lies, bool."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

PENS = {
    "blue": (45, 75, 175),
    "navy": (25, 35, 100),
    "green": (35, 135, 80),
    "red": (200, 30, 40),
    "black": (30, 28, 32),
}


def pen(picture: np.ndarray, *, colour: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A felt pen's ring and a stroke, absorbing light over whatever lies below, denser here and there."""
    height, width = picture.shape[:2]
    layer = Image.new("L", (width, height))
    draw = ImageDraw.Draw(layer)
    thick = max(4, width // 60)
    x, y = rng.uniform(0.3, 0.7) * width, rng.uniform(0.3, 0.7) * height
    across, down = rng.uniform(0.15, 0.28) * width, rng.uniform(0.15, 0.28) * height
    draw.ellipse((x - across, y - down, x + across, y + down), outline=255, width=thick)
    ends = rng.uniform(0, 1, 4) * (width, height, width, height)
    draw.line(tuple(ends), fill=255, width=2 * thick)
    return _tinted(picture, np.asarray(layer) > 0, colour=PENS[colour], rng=rng)


def _tinted(
    picture: np.ndarray, where: np.ndarray, *, colour: tuple[int, int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    density = -np.log((np.array(colour) + 1) / 246)
    thickness = 0.85 + 0.15 * np.tanh(2 * ndimage.gaussian_filter(rng.normal(size=where.shape), 6) * 20)
    cover = ndimage.gaussian_filter(where.astype(float), 0.8) * thickness
    under = picture.astype(float) + 1
    return (under * np.exp(-cover[..., None] * density) - 1).clip(0, 255).round().astype(np.uint8), where


def black_border(picture: np.ndarray, *, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The slide holder's black at two sides, with a sensor's noise."""
    height, width = picture.shape[:2]
    where = np.zeros((height, width), bool)
    where[: round(share * height)] = True
    where[:, -round(share * width) :] = True
    dark = rng.normal(8, 3, picture.shape).clip(0, 255)
    cover = ndimage.gaussian_filter(where.astype(float), 0.7)[..., None]
    return ((1 - cover) * picture + cover * dark).round().astype(np.uint8), where


def coverslip(picture: np.ndarray, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two long straight edges: a dark line, with a reddish fringe on one side and a bluish one on the other."""
    height, width = picture.shape[:2]
    result, where = picture.astype(float), np.zeros((height, width), bool)
    for start, end in (((0, 0.9), (1, 0.97)), ((0.04, 0), (0.01, 1))):
        lean = rng.uniform(-0.01, 0.01)
        for offset, colour in ((-1.5, (215, 180, 180)), (0, (95, 95, 100)), (1.5, (185, 190, 220))):
            line = Image.new("L", (width, height))
            points = (start[0] * width + offset, (start[1] + lean) * height + offset, end[0] * width, end[1] * height)
            ImageDraw.Draw(line).line((*points[:2], points[2] + offset, points[3] + offset), fill=255, width=2)
            cover = ndimage.gaussian_filter(np.asarray(line) / 255.0, 0.6)[..., None]
            result = result * (1 - cover * (1 - np.array(colour) / 255))
            where |= cover[..., 0] > 0.1
    return result.clip(0, 255).round().astype(np.uint8), where


def dust(picture: np.ndarray, *, rng: np.random.Generator, specks: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Grey specks, sharp and out of focus, some brownish, and two fibres."""
    height, width = picture.shape[:2]
    result, where = picture.astype(float), np.zeros((height, width), bool)
    for blur, dark in ((0.6, (120, 118, 115)), (1.0, (150, 125, 95)), (2.0, (120, 118, 115)), (3.0, (90, 90, 92))):
        layer = Image.new("L", (width, height))
        draw = ImageDraw.Draw(layer)
        for _ in range(specks // 4):
            x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(1, 5)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        if blur == 0.6:
            draw.line(tuple(rng.uniform(0, 1, 6) * ((width, height) * 3)), fill=255, width=1)
        cover = ndimage.gaussian_filter(np.asarray(layer) / 255.0, blur)[..., None]
        result = result * (1 - cover * (1 - np.array(dark) / 255))
        where |= cover[..., 0] > 0.15
    return result.clip(0, 255).round().astype(np.uint8), where


def paler(picture: np.ndarray, *, factor: float) -> np.ndarray:
    """The same stained less: its optical densities times ``factor``."""
    return (255 * (picture / 255.0) ** factor).round().astype(np.uint8)


def puddle(picture: np.ndarray, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Eosin that bled into the mounting medium: a smooth pink cloud."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[:height, :width] / width
    cloud = np.exp(-((x - rng.uniform(0.2, 0.8)) ** 2 + (y - rng.uniform(0.2, 0.8)) ** 2) / 2 / 0.12**2)
    density = np.array([0.01, 0.14, 0.06]) * cloud[..., None]
    return (picture * np.exp(-density)).round().astype(np.uint8), cloud > 0.5

"""Procedural textures of tissue kinds, as concentrations of stain.

A texture is a function of a ``Canvas`` (a blank crop with its own random stream). It returns ``c_3HW``, float32,
non-negative: how much haematoxylin (nuclei), eosin (cytoplasm, fibres) and haemoglobin (red cells, which take up
eosin to an orange red) lies in each pixel, where 1 is a well-stained object. Lengths are in um throughout; the canvas
turns them into pixels. Shape letters: 3 stains, H height, W width, N objects, K window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

Array = np.ndarray
Range = tuple[float, float]


@dataclass(frozen=True)
class Canvas:
    """A blank crop of ``height`` x ``width`` pixels, ``px`` of them a um, and the random stream that fills it."""

    rng: np.random.Generator
    height: int
    width: int
    px: float

    def uniform(self, low: float, high: float) -> float:
        """One uniform number."""
        return float(self.rng.uniform(low, high))

    def noise(self, sigma: float) -> Array:
        """Gaussian noise smoothed over ``sigma`` um, float32 ``(H, W)``, mean 0 and deviation 1."""
        width_px = sigma * self.px
        factor = max(1, int(width_px / 4))
        shape = (-(-self.height // factor), -(-self.width // factor))
        field = self.rng.standard_normal(shape, dtype=np.float32)
        field = ndimage.gaussian_filter(field, width_px / factor, mode="wrap", truncate=3.0)
        if factor > 1:
            field = ndimage.zoom(field, factor, order=1)[: self.height, : self.width]
        return (field - field.mean()) / max(float(field.std()), 1e-6)

    def hexagonal_points(self, spacing: float, *, jitter: float) -> Array:
        """Points ``(N, 2)`` (row, column; px) on a hexagonal grid, moved at random by ``jitter`` spacings."""
        step = spacing * self.px
        rows = np.arange(-step, self.height + step, step * np.sqrt(0.75))
        columns = np.arange(-step, self.width + step, step)
        y_RC, x_RC = np.meshgrid(rows, columns, indexing="ij")
        x_RC = x_RC + (np.arange(len(rows))[:, None] % 2) * step / 2
        sites_N2 = np.stack([y_RC.ravel(), x_RC.ravel()], axis=1)
        return sites_N2 + self.rng.normal(0, jitter * step, sites_N2.shape)

    def at(self, field_HW: Array, sites_N2: Array) -> Array:
        """The field's values ``(N,)`` at places, which may lie a little outside."""
        y_N = np.clip(sites_N2[:, 0].astype(int), 0, self.height - 1)
        x_N = np.clip(sites_N2[:, 1].astype(int), 0, self.width - 1)
        return field_HW[y_N, x_N]

    def cells(self, sites_N2: Array) -> tuple[Array, Array]:
        """Distance to the nearest place and to the next one, um, each ``(H, W)`` (Worley 1996)."""
        y_HW, x_HW = np.mgrid[: self.height, : self.width]
        pixels = np.stack([y_HW.ravel(), x_HW.ravel()], axis=1)
        distance, _ = cKDTree(sites_N2).query(pixels, k=2)
        near, far = (distance / self.px).astype(np.float32).T.reshape(2, self.height, self.width)
        return near, far


def objects(
    canvas: Canvas,
    sites_N2: Array,
    *,
    length: Range,
    aspect: Range,
    dark: Range,
    rim: float,
    angle_N: Array | None = None,
) -> Array:
    """Round or elongated objects, float32 ``(H, W)``; where two overlap, the darker one shows.

    ``length`` is the range of their long half axes (um), ``aspect`` short over long axis, ``dark`` their
    concentration, ``rim`` how much darker the border is than the centre; without ``angle_N`` (radians, of the long
    axis against the rows) they lie at random.
    """
    n = len(sites_N2)
    rng = canvas.rng
    long_N = rng.uniform(*length, n) * canvas.px
    short_N = long_N * rng.uniform(*aspect, n)
    dark_N = rng.uniform(*dark, n)
    angle_N = rng.uniform(0, np.pi, n) if angle_N is None else angle_N
    reach = int(np.ceil(long_N.max(initial=1) * 1.2)) + 1
    offset_K = np.arange(-reach, reach + 1)
    y_NK = np.rint(sites_N2[:, :1]).astype(int) + offset_K
    x_NK = np.rint(sites_N2[:, 1:]).astype(int) + offset_K
    dy_NK1 = (y_NK - sites_N2[:, :1])[:, :, None]
    dx_N1K = (x_NK - sites_N2[:, 1:])[:, None, :]
    cos_N, sin_N = np.cos(angle_N)[:, None, None], np.sin(angle_N)[:, None, None]
    along_NKK = (dx_N1K * cos_N + dy_NK1 * sin_N) / long_N[:, None, None]
    across_NKK = (dy_NK1 * cos_N - dx_N1K * sin_N) / short_N[:, None, None]
    inside_NKK = ((y_NK >= 0) & (y_NK < canvas.height))[:, :, None] & ((x_NK >= 0) & (x_NK < canvas.width))[:, None, :]
    place = (y_NK[:, :, None] * canvas.width + x_NK[:, None, :])[inside_NKK]
    wobble = 1 + 0.12 * canvas.noise(1.6).ravel()[place]
    radius = np.hypot(along_NKK, across_NKK)[inside_NKK] * wobble
    sharp = np.broadcast_to(short_N[:, None, None], inside_NKK.shape)[inside_NKK]
    strength = np.broadcast_to(dark_N[:, None, None], inside_NKK.shape)[inside_NKK]
    value = strength * np.clip((1 - radius) * sharp + 0.5, 0, 1) * (1 + rim * (radius**2 - 0.6))
    flat = np.zeros(canvas.height * canvas.width, np.float32)
    np.maximum.at(flat, place, value.astype(np.float32))
    return flat.reshape(canvas.height, canvas.width)


def nuclei(
    canvas: Canvas, sites_N2: Array, *, length: Range, aspect: Range, dark: Range, angle_N: Array | None = None
) -> Array:
    """Nuclei with a membrane and clumps of chromatin: haematoxylin ``(H, W)``."""
    bodies = objects(canvas, sites_N2, length=length, aspect=aspect, dark=dark, rim=0.35, angle_N=angle_N)
    return bodies * np.clip(1 + 0.3 * canvas.noise(0.9), 0.4, 1.7)


def stains(*, haematoxylin: Array, eosin: Array, haemoglobin: Array | None = None) -> Array:
    """The three concentrations as one non-negative float32 ``(3, H, W)``."""
    blood = np.zeros_like(eosin) if haemoglobin is None else haemoglobin
    return np.maximum(np.stack([haematoxylin, eosin, blood]), 0).astype(np.float32)


def tangents(canvas: Canvas, field_HW: Array, sites_N2: Array) -> Array:
    """Direction ``(N,)`` (radians) of the field's level lines at places."""
    dy_HW, dx_HW = np.gradient(ndimage.gaussian_filter(field_HW, 2 * canvas.px))
    return np.arctan2(canvas.at(dx_HW, sites_N2), -canvas.at(dy_HW, sites_N2))


def thinned(canvas: Canvas, sites_N2: Array, *, share: float | Array) -> Array:
    """The points that survive a draw with probability ``share`` (one number, or one a place)."""
    return sites_N2[canvas.rng.random(len(sites_N2)) < share]


def dense_cells(canvas: Canvas) -> Array:
    """Tumour: crowded, large, dark, uneven nuclei in a little bluish cytoplasm."""
    sites = canvas.hexagonal_points(canvas.uniform(9.0, 11.0), jitter=0.17)
    crowding = np.clip(0.93 + 0.12 * canvas.at(canvas.noise(30), sites), 0, 1)
    size = canvas.uniform(0.92, 1.1)
    h = nuclei(
        canvas,
        thinned(canvas, sites, share=crowding),
        length=(3.5 * size, 5.2 * size),
        aspect=(0.62, 1.0),
        dark=(0.75, 1.45),
    )
    body = 1 + 0.2 * canvas.noise(5) + 0.12 * canvas.noise(1.2)
    return stains(haematoxylin=h + 0.16 * body, eosin=0.34 * body - 0.1 * np.minimum(h, 1))


def sparse_cells(canvas: Canvas) -> Array:
    """Parenchyma: polygonal cells with much granular pink cytoplasm, each with a regular round nucleus."""
    sites = canvas.hexagonal_points(canvas.uniform(19, 23), jitter=0.13)
    near, far = canvas.cells(sites + canvas.rng.normal(0, 1.5 * canvas.px, sites.shape))
    border = np.exp(-(((far - near) / 1.6) ** 2))
    h = nuclei(canvas, thinned(canvas, sites, share=0.94), length=(3.1, 4.1), aspect=(0.85, 1.0), dark=(0.6, 1.05))
    nucleoli = objects(canvas, sites, length=(0.7, 1.1), aspect=(0.9, 1.0), dark=(0.25, 0.5), rim=0.0)
    grain = 1 + 0.14 * canvas.noise(0.9) + 0.1 * canvas.noise(3) + 0.1 * canvas.noise(25)
    eosin = canvas.uniform(0.58, 0.72) * grain * (1 - 0.45 * border)
    return stains(haematoxylin=h + nucleoli * (h > 0.3) + 0.07 * grain, eosin=eosin * (1 - 0.5 * np.minimum(h, 1)))


def stroma(canvas: Canvas) -> Array:
    """Bundles of wavy collagen, with slender nuclei along them."""
    y_HW, x_HW = np.mgrid[: canvas.height, : canvas.width].astype(np.float32)
    angle = canvas.uniform(0, np.pi)
    wave = (canvas.uniform(8, 14) * canvas.noise(26) + 1.6 * canvas.noise(9)) * canvas.px
    across_HW = y_HW * np.cos(angle) - x_HW * np.sin(angle) + wave
    along_HW = x_HW * np.cos(angle) + y_HW * np.sin(angle)
    fibre = _streaks(canvas, along_HW, across_HW, length=26, thickness=1.1)
    bundle = _streaks(canvas, along_HW, across_HW, length=60, thickness=4.5)
    cleft = np.clip(-bundle - 1.15, 0, 1)
    eosin = (0.62 + 0.17 * fibre + 0.13 * bundle) * (1 - 0.85 * cleft) + 0.05 * canvas.noise(20)
    sites = canvas.hexagonal_points(canvas.uniform(17, 22), jitter=0.3)
    h = nuclei(
        canvas,
        sites,
        length=(5.5, 8.5),
        aspect=(0.2, 0.32),
        dark=(0.8, 1.25),
        angle_N=tangents(canvas, across_HW, sites),
    )
    return stains(haematoxylin=h + 0.03, eosin=eosin * (1 - 0.5 * np.minimum(h, 1)))


def _streaks(canvas: Canvas, along_HW: Array, across_HW: Array, *, length: float, thickness: float) -> Array:
    """Noise that is long along one coordinate and thin across it (px), bent as the coordinates are."""
    side = int(np.hypot(canvas.height, canvas.width)) + 1
    flat = canvas.rng.standard_normal((side, -(-side // 4)), dtype=np.float32)
    flat = ndimage.gaussian_filter(flat, (thickness * canvas.px, length * canvas.px / 4), mode="wrap")
    flat /= max(float(flat.std()), 1e-6)
    return ndimage.map_coordinates(flat, [across_HW, along_HW / 4], order=1, mode="grid-wrap")


def fat(canvas: Canvas) -> Array:
    """Large round empty vacuoles in thin pink walls, their nuclei pressed flat against the wall."""
    spacing = canvas.uniform(40, 52)
    near, far = canvas.cells(canvas.hexagonal_points(spacing, jitter=0.16))
    wall = canvas.uniform(1.2, 1.9) + 0.4 * canvas.noise(12)
    # Depth in the wall: the smaller of two fields, its creases rounded over 2.5 um.
    depth = -2.5 * np.logaddexp(-((far - near) / 2 - wall) / 2.5, -(0.53 * spacing - near) / 2.5)
    tissue = 1 / (1 + np.exp(np.clip(2.2 * depth, -30, 30)))
    sites = canvas.hexagonal_points(9, jitter=0.3)
    on_wall = np.abs(canvas.at(depth, sites)) < 1.0
    sites = thinned(canvas, sites[on_wall], share=0.3)
    h = nuclei(
        canvas, sites, length=(4, 5.5), aspect=(0.28, 0.42), dark=(0.7, 1.2), angle_N=tangents(canvas, depth, sites)
    )
    return stains(haematoxylin=h + 0.04 * tissue, eosin=tissue * (0.55 + 0.12 * canvas.noise(4)) + 0.012)


def voids(canvas: Canvas) -> Array:
    """Parenchyma torn by irregular holes, which flat nuclei line."""
    field = canvas.noise(canvas.uniform(6.5, 8.5)) + 0.25 * canvas.noise(2.5) - canvas.uniform(0.1, 0.35)
    tissue = 1 / (1 + np.exp(np.clip(9 * field, -30, 30)))
    sites = canvas.hexagonal_points(7.5, jitter=0.3)
    lining = sites[np.abs(canvas.at(field, sites) + 0.12) < 0.16]
    lining = thinned(canvas, lining, share=0.5)
    h = nuclei(
        canvas, lining, length=(3.2, 4.6), aspect=(0.35, 0.5), dark=(0.8, 1.2), angle_N=tangents(canvas, field, lining)
    )
    c_3HW = sparse_cells(canvas) * tissue
    c_3HW[0] = np.maximum(c_3HW[0], h)
    return c_3HW


def red_blood_cells(canvas: Canvas) -> Array:
    """A pool of packed red discs, paler in their middle; no nuclei."""
    sites = canvas.hexagonal_points(canvas.uniform(6.2, 7.0), jitter=0.16)
    packing = np.clip(0.95 + 0.15 * canvas.at(canvas.noise(22), sites), 0.3, 1)
    discs = objects(
        canvas, thinned(canvas, sites, share=packing), length=(3.1, 3.9), aspect=(0.75, 1.0), dark=(0.8, 1.25), rim=0.45
    )
    plasma = 0.16 + 0.04 * canvas.noise(8)
    return stains(haematoxylin=0.02 * discs, eosin=0.15 * discs + plasma, haemoglobin=discs)


def necrosis(canvas: Canvas) -> Array:
    """Dead tissue: pale, smudged, granular, with ghosts of nuclei and dark dust."""
    smudge = 0.22 * canvas.noise(7) + 0.16 * canvas.noise(2.2) + 0.14 * canvas.noise(0.8) + 0.1 * canvas.noise(30)
    eosin = canvas.uniform(0.3, 0.38) * (1 + 1.2 * smudge)
    sites = canvas.hexagonal_points(15, jitter=0.3)
    ghosts = objects(canvas, sites, length=(3, 5), aspect=(0.6, 1.0), dark=(0.1, 0.3), rim=0.0)
    grains = canvas.hexagonal_points(5, jitter=0.35)
    clumped = np.clip(0.1 + 0.16 * canvas.at(canvas.noise(9), grains), 0, 1)
    dust = objects(
        canvas, thinned(canvas, grains, share=clumped), length=(0.7, 1.6), aspect=(0.5, 1.0), dark=(0.5, 1.2), rim=0.0
    )
    pale = ndimage.gaussian_filter(ghosts, 1.3 * canvas.px)
    return stains(haematoxylin=np.maximum(pale, dust) + 0.09 * (1 + smudge), eosin=eosin)


def capsule(canvas: Canvas, depth_HW: Array) -> tuple[Array, Array]:
    """The organ's skin: fibres and flat nuclei along the outline; ``depth_HW`` is the distance inside it, um.

    Returns the concentrations and how much they cover what lies below (``(H, W)``, 0..1).
    """
    bent = depth_HW + 1.2 * canvas.noise(10)
    thickness = 17 + 3 * canvas.noise(60)
    cover = 1 / (1 + np.exp(np.clip(0.6 * (bent - thickness), -30, 30)))
    layers = np.sin(bent * 1.5 + 1.5 * canvas.noise(14))
    sites = canvas.hexagonal_points(12, jitter=0.3)
    inside = (canvas.at(bent, sites) > 1.5) & (canvas.at(bent - thickness, sites) < -1)
    sites = sites[inside]
    h = nuclei(
        canvas,
        sites,
        length=(4.5, 6.5),
        aspect=(0.22, 0.34),
        dark=(0.8, 1.2),
        angle_N=tangents(canvas, depth_HW, sites),
    )
    eosin = (0.72 + 0.17 * layers + 0.08 * canvas.noise(12)) * (1 - 0.5 * np.minimum(h, 1))
    return stains(haematoxylin=h + 0.04, eosin=eosin), cover


TEXTURES: dict[str, Callable[[Canvas], Array]] = {
    "dense cells": dense_cells,
    "sparse cells": sparse_cells,
    "stroma": stroma,
    "fat": fat,
    "voids": voids,
    "red blood cells": red_blood_cells,
    "necrosis": necrosis,
}

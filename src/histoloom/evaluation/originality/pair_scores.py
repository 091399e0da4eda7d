"""The score of an image and a training patch: how alike they are at one of the few alignments that are tried.

Both are band-passed greys of 64 px; the image in five sizes, shifted about a rough alignment. The normalised
correlation counts the pixels that both have (Padfield 2012, IEEE TIP 21(5), 2706), over the whole or one half,
whichever is statistically strongest: a correlation of few pixels (one cell on empty glass) is chance more often than
one of many, and counts less.

The image stays upright and the patch is turned, so that what is computed of an image alone serves all its patches: its
bands, its sizes, and its energies at every shift. The patch's pixels that any shift needs are its window. A quarter of
the image, moved down by each step inside the window's rows, times the window, moved sideways: one matrix product gives
all sums of products.

Shape suffixes: N images, C patches of each image, U different patches, G = ``SIDE``, H = G / 2, B = ``BANDS``, Z sizes,
T parts of the image (the whole, the left, right, upper and lower half), E = 3 energies, S shifts along one side, R all
shifts that the image may have, along one side, W side of a window, Q = 2 halves along one side, X and Y several of
these as one axis, P pixels as one axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from histoloom.evaluation.originality.greys import (
    BANDS,
    COARSEST,
    FINEST,
    SIDE,
    dihedral_copies,
    gaussian_in_pieces,
    interpolation,
)

SIZES = (0.9, 0.95, 1.0, 1.05, 1.1)
REACH = 4
"""px of G; how far about a rough alignment shifts are tried"""
FURTHEST = 20
"""px of G; shifts that a rough alignment may have"""
NOISE = 4.0  # squared grey levels a pixel: what is fainter does not count as structure
NEIGHBOURHOOD = 2.5
"""px; over which structure is spread when its pixels are counted"""
FULL = SIDE**2 // 4
"""pixels with structure that count as a whole image of it"""
MIN_WHOLE, MIN_HALF = 0.5, 0.8
"""share of the whole, or of a half, that has to lie on the training patch"""

HALF = SIDE // 2
_MOST = FURTHEST + REACH


# --- what is computed of an image alone, and of a patch alone


@dataclass(frozen=True)
class ImageBands:
    """Images in some of ``SIZES``, 0 where one does not reach, and their energies where they lie on a patch.

    The energies: squares, the same spread out over their neighbourhood, and the squares of that; sums over each part,
    for every shift (y, x).
    """

    sizes: tuple[float, ...]
    views_NBZGG: Tensor
    own_NTEZRR: Tensor

    def only(self, size: float) -> ImageBands:
        """In one size."""
        place = self.sizes.index(size)
        one = slice(place, place + 1)
        return ImageBands((size,), self.views_NBZGG[:, :, one], self.own_NTEZRR[:, :, :, one])


def image_bands(greys_NGG: Tensor, *, sizes: tuple[float, ...] = SIZES) -> ImageBands:
    """Each of ``BANDS`` of the images, float32 (N, G, G), enlarged by each of ``sizes``."""
    enlarge_ZGG = _enlargements(sizes, device=greys_NGG.device)[0]
    views_NBZGG = enlarge_ZGG @ bands(greys_NGG)[:, :, None] @ enlarge_ZGG.mT
    energies_NBEZGG = _energies(views_NBZGG).transpose(1, 2)

    # The pixels of the image that lie on the patch are a rectangle: those of a row or column, at every shift.
    whole_NEZGG, sides_NEZGG, ends_NEZGG = energies_NBEZGG.unbind(1)
    inside_RG = _inside(device=greys_NGG.device)
    halves_QRH = inside_RG.unflatten(1, (2, HALF)).transpose(0, 1)
    own_NEZRR = inside_RG @ whole_NEZGG @ inside_RG.mT
    rows_NEZRG, columns_NEZGR = inside_RG @ sides_NEZGG, ends_NEZGG @ inside_RG.mT
    sides = [rows_NEZRG[..., part] @ half_RH.mT for part, half_RH in zip(_HALVES, halves_QRH, strict=True)]
    ends = [half_RH @ columns_NEZGR[..., part, :] for part, half_RH in zip(_HALVES, halves_QRH, strict=True)]
    return ImageBands(sizes, views_NBZGG, torch.stack([own_NEZRR, *sides, *ends], dim=1))


def patch_bands(greys_UGG: Tensor) -> Tensor:
    """The band of whole patches, and its squares spread out over their neighbourhood, (U, 2, G, G)."""
    band_U1GG = bands(greys_UGG, BANDS[:1])
    rows_1GG, columns_1GG = _gaussians(NEIGHBOURHOOD, BANDS[:1], device=greys_UGG.device)
    return torch.cat([band_U1GG, rows_1GG @ band_U1GG.square() @ columns_1GG.mT], dim=1)


def bands(greys_NGG: Tensor, pieces: tuple[tuple[int, int], ...] = BANDS) -> Tensor:
    """Greys without their slow changes (shade, stain, light) and finest grain, (N, B, G, G), for each of ``pieces``.

    A half is filtered by itself, as if the image ended there: in a collage the edge between two halves would else be
    the strongest structure of either, and hide what the half shows.
    """
    gaussians = [_gaussians(sigma, pieces, device=greys_NGG.device) for sigma in (FINEST, COARSEST)]
    fine, slow = (rows_BGG @ greys_NGG[:, None] @ columns_BGG.mT for rows_BGG, columns_BGG in gaussians)
    return fine - slow


def _energies(views_NBZGG: Tensor) -> Tensor:
    """Squares, the same spread out over their neighbourhood, and the squares of that, (N, E, B, Z, G, G)."""
    rows_BGG, columns_BGG = _gaussians(NEIGHBOURHOOD, BANDS, device=views_NBZGG.device)
    squares_NBZGG = views_NBZGG.square()
    spread_NBZGG = rows_BGG[:, None] @ squares_NBZGG @ columns_BGG[:, None].mT
    return torch.stack([squares_NBZGG, spread_NBZGG, spread_NBZGG.square()], dim=1)


# --- patches as they lie under an image


def windows(patches_U2GG: Tensor, ways_NC4: Tensor, *, reach: int) -> Tensor:
    """What of each patch may lie below the image, (N, C, 2, W, W), W = G + 2 ``reach``; 0 outside the patch.

    ``ways_NC4``: which of the patches (``patch_bands``), which dihedral copy of the image fits it, and the shift (y, x)
    of the upright image on the turned patch.
    """
    first_8, down_8, right_8 = _rotated_pixels(device=ways_NC4.device)
    patch_NC, dihedral_NC, y_NC, x_NC = ways_NC4.unbind(2)
    window_W = torch.arange(-reach, SIDE + reach, device=ways_NC4.device)
    y_NCW, x_NCW = y_NC[..., None] + window_W, x_NC[..., None] + window_W
    rows_NCW = y_NCW.clamp(0, SIDE - 1) * down_8[dihedral_NC][..., None]
    rows_NCW += (first_8[dihedral_NC] + 2 * SIDE**2 * patch_NC)[..., None]
    columns_NCW = x_NCW.clamp(0, SIDE - 1) * right_8[dihedral_NC][..., None]
    pixels_NCWW = rows_NCW[..., None] + columns_NCW[..., None, :]
    pixels_NC2WW = torch.stack([pixels_NCWW, pixels_NCWW + SIDE**2], dim=2)
    windows_NC2WW = patches_U2GG.flatten().index_select(0, pixels_NC2WW.flatten()).view(pixels_NC2WW.shape)
    inside_y, inside_x = ((place_NCW >= 0) & (place_NCW < SIDE) for place_NCW in (y_NCW, x_NCW))
    return windows_NC2WW * (inside_y[..., None] & inside_x[..., None, :])[:, :, None].float()


# --- the score of a pair


def scores(image: ImageBands, windows_NC2WW: Tensor, shift_NC2: Tensor, *, step: int) -> Tensor:
    """The score of each image with each of its patches, (N, C), 0..1: low where there is little.

    The image's pixel p lies on the patch's pixel p + shift; shifts up to the windows' reach about ``shift_NC2`` are
    tried, ``step`` px apart.
    """
    device, sizes = windows_NC2WW.device, image.sizes
    N, C = shift_NC2.shape[:2]
    reach, Z = (windows_NC2WW.shape[-1] - SIDE) // 2, len(sizes)
    S, height = 2 * reach // step + 1, HALF + 2 * reach
    band_NCWW, spread_NCWW = windows_NC2WW.unbind(2)

    # Sums of products of each quarter of the image and the patch's pixels below it: the quarter moves down inside the
    # rows that it may lie on, the window's columns move sideways.
    quarters_NBZQHQH = image.views_NBZGG.unflatten(4, (2, HALF)).unflatten(3, (2, HALF))
    padded_QQNBZWH = F.pad(quarters_NBZQHQH.permute(3, 5, 0, 1, 2, 4, 6), (0, 0, 2 * reach, 2 * reach))
    moved_QQNBZSHW = padded_QQNBZWH.unfold(5, height, step)
    moved_XYP = moved_QQNBZSHW.transpose(6, 7).reshape(4 * N, len(BANDS) * Z * S, height * HALF)
    below_QQNCWSH = [
        band_NCWW[:, :, top : top + height, left : left + height].unfold(3, HALF, step).transpose(2, 3)
        for top in (0, HALF)
        for left in (0, HALF)
    ]
    below_XYP = torch.stack(below_QQNCWSH).view(4 * N, C * S, height * HALF)
    # The first move leaves room above.
    products_QQNBZSCS = (moved_XYP @ below_XYP.mT).view(2, 2, N, len(BANDS), Z, S, C, S).flip(5)
    products = _parts(*products_QQNBZSCS.unbind(3)).transpose(3, 4)

    # The image's energies where it lies on the patch, and how many pixels that are.
    moves_S = torch.arange(-reach, reach + 1, step, device=device) + _MOST
    places_NCSS = (shift_NC2[..., :1, None] + moves_S[:, None]) * (2 * _MOST + 1) + shift_NC2[..., 1:, None] + moves_S
    n_planes = image.own_NTEZRR.shape[1:4].numel()
    own_NXR = image.own_NTEZRR.flatten(1, 3).flatten(2)
    own_NTEZCSS = own_NXR.gather(2, places_NCSS.view(N, 1, -1).expand(-1, n_planes, -1)).view(N, 5, 3, Z, C, S, S)
    count_TZR = _counts(sizes, device=device).flatten(2)
    count = count_TZR[:, :, places_NCSS.flatten()].view(5, Z, N, C, S, S).transpose(1, 2)

    # The patch's energies where the image lies on it.
    below_ZXW = _below(sizes, reach, step, device=device)
    energies_NCEWW = torch.stack([band_NCWW.square(), spread_NCWW, spread_NCWW.square()], dim=2)
    rows_XZXW = (below_ZXW.flatten(0, 1) @ energies_NCEWW.flatten(0, 2)).view(3 * N * C, Z, 2 * S, -1)
    sums_ZXX = rows_XZXW.transpose(0, 1).reshape(Z, 6 * N * C * S, -1) @ below_ZXW.mT
    sums_QQENZCSS = sums_ZXX.view(Z, N, C, 3, 2, S, 2, S).permute(4, 6, 3, 1, 0, 2, 5, 7)
    other = _parts(sums_QQENZCSS, sums_QQENZCSS, sums_QQENZCSS)

    value_TNZCSS = _value(products, own=own_NTEZCSS.transpose(0, 1).unbind(2), other=other.unbind(1), count=count)
    return value_TNZCSS.amax(dim=(0, 2, 4, 5))


def scores_of_copies(greys_NGG: Tensor) -> Tensor:
    """What an exact copy of each image would score, (N,): in its own size, without a shift."""
    views_NBGG = bands(greys_NGG)
    energies_NEBGG = _energies(views_NBGG[:, :, None])[:, :, :, 0]

    def over_parts(images_BNGG: Tensor) -> Tensor:
        """Sums over parts, each of its band, (T, N, ...)."""
        quarters = images_BNGG.unflatten(-1, (2, HALF)).unflatten(-3, (2, HALF)).sum(dim=(-3, -1))
        return _parts(*quarters.movedim((-2, -1), (1, 2)))

    products = over_parts((views_NBGG * views_NBGG[:, :1]).transpose(0, 1))
    own, other = (
        over_parts(some_NEBGG.movedim(2, 0)).unbind(2)
        for some_NEBGG in (energies_NEBGG, energies_NEBGG[:, :, :1].expand_as(energies_NEBGG))
    )
    count_T1 = _pixels_of_parts(device=greys_NGG.device)[:, None]
    return _value(products, own=own, other=other, count=count_T1).amax(dim=0)


def _value(products: Tensor, *, own: tuple[Tensor, ...], other: tuple[Tensor, ...], count: Tensor) -> Tensor:
    """From sums over parts, (T, ...): of products, of the energies of both, and the number of pixels."""
    energy = (own[0] + NOISE * count) * (other[0] + NOISE * count)
    correlation = (products / (energy + 1e-6).sqrt()).clamp(0, 1)
    # How many pixels hold structure, as if all of these held the same: the participation number of the energies.
    pixels = torch.minimum(*(sums[1].square() / (sums[2] + 1e-6) for sums in (own, other)))
    # The correlation of equal likelihood ratio if ``FULL`` pixels held structure, 0..1: the likelihood ratio of
    # a correlation c among n independent pixels is (1 - c^2)^(-n/2).
    value = (1 - (1 - correlation.square()) ** (pixels / FULL).clamp(max=1)).sqrt()
    min_T = _least_pixels(device=count.device)
    return torch.where(count >= min_T.view(-1, *[1] * (count.dim() - 1)), value, 0)


def _parts(whole_QQ: Tensor, sides_QQ: Tensor, ends_QQ: Tensor) -> Tensor:
    """Sums over quarters (2, 2, ...) as sums over parts (T, ...), from the band of each kind of part."""
    left, right = sides_QQ.sum(dim=0)
    upper, lower = ends_QQ.sum(dim=1)
    return torch.stack([whole_QQ.sum(dim=(0, 1)), left, right, upper, lower])


# --- constants

_HALVES = (slice(0, HALF), slice(HALF, SIDE))


@cache
def _gaussians(sigma: float, pieces: tuple[tuple[int, int], ...], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """For the rows and for the columns of each of ``pieces``, (B, G, G)."""
    rows_BGG, columns_BGG = (
        torch.from_numpy(np.stack([gaussian_in_pieces(sigma, one[axis]) for one in pieces])) for axis in (0, 1)
    )
    return rows_BGG.to(device), columns_BGG.to(device)


@cache
def _enlargements(sizes: tuple[float, ...], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices (Z, G, G) that enlarge an image about its middle, and which pixels of a side each reaches, (Z, G)."""
    middle = (SIDE - 1) / 2
    matrices, reached = [], []
    for size in sizes:
        places_G = (np.arange(SIDE) - middle) / size + middle
        reached.append(((places_G >= 0) & (places_G <= SIDE - 1)).astype(np.float32))
        matrices.append(interpolation(SIDE, SIDE, places_G) * reached[-1][:, None])
    return torch.from_numpy(np.stack(matrices)).to(device), torch.from_numpy(np.stack(reached)).to(device)


@cache
def _pixels_of_parts(*, device: torch.device) -> Tensor:
    """The pixels of each part, (T,)."""
    return torch.tensor([SIDE**2, *[SIDE**2 / 2] * 4], device=device)


@cache
def _least_pixels(*, device: torch.device) -> Tensor:
    """How many pixels of each part have to lie on the patch, (T,)."""
    return (torch.tensor([MIN_WHOLE, *[MIN_HALF / 2] * 4]) * SIDE**2).to(device)


@cache
def _inside(*, device: torch.device) -> Tensor:
    """Which of an image's pixels along a side lie on the patch at each shift, (R, G)."""
    shift_R1, pixel_G = torch.arange(-_MOST, _MOST + 1)[:, None], torch.arange(SIDE)
    return ((pixel_G + shift_R1 >= 0) & (pixel_G + shift_R1 < SIDE)).float().to(device)


@cache
def _counts(sizes: tuple[float, ...], *, device: torch.device) -> Tensor:
    """How many pixels of each part the image in each size shares with the patch, (T, Z, R, R)."""
    both_ZRG = _enlargements(sizes, device=torch.device("cpu"))[1][:, None] * _inside(device=torch.device("cpu"))
    along_QZR = torch.stack([both_ZRG[..., half].sum(dim=2) for half in _HALVES])
    counts_QQZRR = along_QZR[:, None, :, :, None] * along_QZR[None, :, :, None, :]
    return _parts(counts_QQZRR, counts_QQZRR, counts_QQZRR).to(device)


@cache
def _below(sizes: tuple[float, ...], reach: int, step: int, *, device: torch.device) -> Tensor:
    """Which pixels along a window's side lie below each half of the image, at each move, (Z, 2 S, W)."""
    reached_ZG = _enlargements(sizes, device=torch.device("cpu"))[1]
    moves = range(0, 2 * reach + 1, step)
    below = [
        F.pad(reached_ZG[:, half], (half.start + move, SIDE - half.stop + 2 * reach - move))
        for half in _HALVES
        for move in moves
    ]
    return torch.stack(below, dim=1).to(device)


@cache
def turns() -> tuple[np.ndarray, np.ndarray]:
    """What undoes each of the eight ``dihedral_copies``: of pixels, (8, G * G), and of a shift (y, x), (8, 2, 2)."""
    copies_8GG = dihedral_copies(np.arange(SIDE**2).reshape(1, SIDE, SIDE))[0]
    quarter, mirror = np.array([[0, 1], [-1, 0]]), np.array([[1, 0], [0, -1]])
    turned = [np.linalg.matrix_power(quarter, number) for number in range(4)]
    return copies_8GG.reshape(8, -1).argsort(axis=1), np.stack([*turned, *(mirror @ turn for turn in turned)])


@cache
def _rotated_pixels(*, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The first pixel of a turned patch, and how far its next row and its next column are, (8,) each."""
    pixels_8G = torch.from_numpy(turns()[0])
    first_8 = pixels_8G[:, 0]
    return first_8.to(device), (pixels_8G[:, SIDE] - first_8).to(device), (pixels_8G[:, 1] - first_8).to(device)

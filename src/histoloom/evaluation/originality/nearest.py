"""The training patch that is nearest to an image, and how near it is: the score that identifies copies.

The few candidates of the coarse search are compared closely: band-passed greys of 64 px, the image in five sizes,
shifted about a rough alignment. The normalised correlation counts the pixels that both have (Padfield 2012, IEEE TIP
21(5), 2706), over the whole or one half, whichever is statistically strongest: a correlation of few pixels (one cell on
empty glass) is chance more often than one of many, and counts less.

The image stays upright and each candidate is turned, so that the image's bands, its sizes and their energies are
computed once for all candidates. A batch always has the same shape, so that a score does not depend on the other
images.

Shape suffixes: N images, M training patches, C candidates of each image, U different patches, G = ``SIDE``, H = G / 2,
B = ``BANDS``, Z sizes, E = 3 energies, S shifts along one side, Q quarters of the image, T parts of it (the whole, the
left, right, upper and lower half), W side of a window on a patch, K, X and Y several of these as one axis.
"""

from __future__ import annotations

from collections.abc import Callable
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
from histoloom.evaluation.originality.shortlist import Candidates, coarse, shortlist
from histoloom.training.devices import full_precision

CLOSE = 6
"""candidates that are compared in every size"""
DIGITS = 4
"""of a score"""
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

IMAGES, CHUNK = 1024, 256
"""images that are searched for at once, and of which all candidates are in memory at once"""
BATCH = {"cpu": 1}
"""images that are compared closely at once, by the kind of device: on a CPU, what fits its cache"""
LARGE_BATCH = 32
"""elsewhere"""

_HALF = SIDE // 2
_HALVES = (slice(0, _HALF), slice(_HALF, SIDE))
_PARTS = ((0, (0, 1, 2, 3)), (1, (0, 2)), (1, (1, 3)), (2, (0, 1)), (2, (2, 3)))
"""the band of each part and its quarters of the image: upper left, upper right, lower left, lower right"""


@dataclass(frozen=True)
class Nearest:
    """Each image's nearest training patch: its number (-1: there is none), and the score of both, 0..1.

    The score is 1 for a copy, rounded to ``DIGITS``.
    """

    number_N: np.ndarray
    score_N: np.ndarray


def nearest(
    greys_NGG: np.ndarray,
    patches_MGG: np.ndarray,
    *,
    device: torch.device | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Nearest:
    """The nearest of the patches for each image; both are greys (``read_greys``).

    Neither the order nor the number of images changes an image's result; of equally near patches the first is named.
    """
    device = device or torch.device("cpu")
    n = len(greys_NGG)
    number_N, score_N = np.full(n, -1, np.int64), np.zeros(n)
    if not len(patches_MGG):
        return Nearest(number_N, score_N)
    patches_MLL = coarse(patches_MGG)
    for first in range(0, n, IMAGES):
        some = slice(first, min(first + IMAGES, n))
        with full_precision():
            candidates = shortlist(coarse(greys_NGG[some]), patches_MLL, device=device)
            for start in range(some.start, some.stop, CHUNK):
                part = slice(start, min(start + CHUNK, some.stop))
                number_N[part], score_N[part] = _nearest_candidates(
                    greys_NGG[part],
                    patches_MGG,
                    candidates=candidates.rows(slice(part.start - first, part.stop - first)),
                    device=device,
                )
                advance(part.stop - part.start)
    return Nearest(number_N, score_N)


def _nearest_candidates(
    greys_NGG: np.ndarray, patches_MGG: np.ndarray, *, candidates: Candidates, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest candidate of each image: all at their rough alignment first, then the best ones in every size."""
    # Each way (patch, dihedral copy, shift) of an image once, in rising order; -1 where there are fewer.
    ways_NC4 = np.concatenate(
        [candidates.patch_NC[..., None], candidates.dihedral_NC[..., None], candidates.shift_NC2], axis=2
    )
    ways_NC4 = np.stack([ways_C4[np.lexsort(ways_C4.T[::-1])] for ways_C4 in ways_NC4])
    ways_NC4[:, 1:][(ways_NC4[:, 1:] == ways_NC4[:, :-1]).all(axis=2)] = -1
    patch_NC, dihedral_NC, shift_NC2 = ways_NC4[..., 0], ways_NC4[..., 1], ways_NC4[..., 2:]
    known_NC = patch_NC >= 0
    dihedral_NC = np.where(known_NC, dihedral_NC, 0)
    shift_NC2 = (_turns()[1][dihedral_NC] @ shift_NC2[..., None])[..., 0].clip(-FURTHEST, FURTHEST)

    # The candidates' bands, each computed once.
    patch_U, place_NC = np.unique(np.where(known_NC, patch_NC, 0), return_inverse=True)
    patches_U2GG = patch_bands(patches_MGG[patch_U], device=device)
    place_NC = place_NC.reshape(patch_NC.shape)

    number_N, score_N = np.full(len(greys_NGG), -1, np.int64), np.zeros(len(greys_NGG))
    batch = BATCH.get(device.type, LARGE_BATCH)
    for start in range(0, len(greys_NGG), batch):
        # The last batch is filled up.
        row_n = np.minimum(np.arange(start, start + batch), len(greys_NGG) - 1)
        row_n1 = row_n[:, None]
        image = image_bands(greys_NGG[row_n], device=device)

        def compare(column_nC: np.ndarray, *, image: ImageBands, step: int, row_n1: np.ndarray = row_n1) -> np.ndarray:
            way = (row_n1, column_nC)
            patches_nC2GG = _upright_patches(patches_U2GG, place_NC=place_NC[way], dihedral_NC=dihedral_NC[way])
            score_nC = scores(image, patches_nC2GG, shift_NC2=shift_NC2[way], reach=REACH, step=step)
            return np.where(known_NC[way], score_nC.cpu().double().numpy().round(DIGITS), -1.0)

        every_nC = np.broadcast_to(np.arange(patch_NC.shape[1]), (batch, patch_NC.shape[1]))
        rough_nC = compare(every_nC, image=image.only(1.0), step=2)
        best_nC = np.lexsort((patch_NC[row_n], -rough_nC), axis=1)[:, :CLOSE]
        close_nC = compare(best_nC, image=image, step=1)
        patch_nC = patch_NC[row_n1, best_nC]
        winner_n1 = np.lexsort((patch_nC, -close_nC), axis=1)[:, :1]
        number_N[row_n] = np.take_along_axis(patch_nC, winner_n1, axis=1)[:, 0]
        score_N[row_n] = np.take_along_axis(close_nC, winner_n1, axis=1)[:, 0].clip(0)
    return number_N, score_N


def best_score(greys_NGG: np.ndarray) -> np.ndarray:
    """What exact copies of the images would score, float64 (N,): low where an image shows little."""
    cpu, no_shift_112 = torch.device("cpu"), np.zeros((1, 1, 2), np.int64)
    score_N = np.empty(len(greys_NGG))
    for row, grey_GG in enumerate(greys_NGG):
        image = image_bands(grey_GG[None], sizes=(1.0,), device=cpu)
        copy_112GG = patch_bands(grey_GG[None], device=cpu)[None]
        score_N[row] = float(scores(image, copy_112GG, shift_NC2=no_shift_112, reach=0, step=1))
    return score_N


def best_score_of_weakest_half(greys_NGG: np.ndarray) -> np.ndarray:
    """What an exact copy of the half that shows least would score, float64 (N,)."""
    by_half = []
    for half in (np.s_[:, :, :_HALF], np.s_[:, :, _HALF:], np.s_[:, :_HALF], np.s_[:, _HALF:]):
        alone = np.broadcast_to(greys_NGG.mean(axis=(1, 2), keepdims=True), greys_NGG.shape).astype(np.uint8)
        alone[half] = greys_NGG[half]
        by_half.append(best_score(alone))
    return np.min(by_half, axis=0)


# --- what is computed of an image alone, and of a patch alone


@dataclass(frozen=True)
class ImageBands:
    """Images in some of ``SIZES``, 0 where one does not reach, and their energies.

    The energies: squares, the same spread out over their neighbourhood, and the squares of that.
    """

    sizes: tuple[float, ...]
    views_NBZGG: Tensor
    energies_NEBZGG: Tensor

    def only(self, size: float) -> ImageBands:
        """In one size."""
        place = [self.sizes.index(size)]
        return ImageBands((size,), self.views_NBZGG[:, :, place], self.energies_NEBZGG[:, :, :, place])


def image_bands(greys_NGG: np.ndarray, *, sizes: tuple[float, ...] = SIZES, device: torch.device) -> ImageBands:
    """Each of ``BANDS`` of the images, enlarged by each of ``sizes``."""
    x_N1GG = torch.from_numpy(greys_NGG).to(device).float()[:, None]
    enlarge_ZGG = torch.from_numpy(np.stack([_enlargement(size)[0] for size in sizes])).to(device)
    views_NBZGG = enlarge_ZGG @ _band(x_N1GG, BANDS)[:, :, None] @ enlarge_ZGG.mT
    rows_B1GG, columns_B1GG = (pieces_BGG[:, None] for pieces_BGG in _gaussians(NEIGHBOURHOOD, BANDS, device=device))
    squares_NBZGG = views_NBZGG.square()
    spread_NBZGG = rows_B1GG @ squares_NBZGG @ columns_B1GG.mT
    return ImageBands(sizes, views_NBZGG, torch.stack([squares_NBZGG, spread_NBZGG, spread_NBZGG.square()], dim=1))


def patch_bands(greys_UGG: np.ndarray, *, device: torch.device) -> Tensor:
    """The band of whole patches, and its squares spread out over their neighbourhood, (U, 2, G, G)."""
    band_U1GG = _band(torch.from_numpy(greys_UGG).to(device).float()[:, None], BANDS[:1])
    rows_1GG, columns_1GG = _gaussians(NEIGHBOURHOOD, BANDS[:1], device=device)
    return torch.cat([band_U1GG, rows_1GG @ band_U1GG.square() @ columns_1GG.mT], dim=1)


def _band(greys_N1GG: Tensor, pieces: tuple[tuple[int, int], ...]) -> Tensor:
    """Greys without their slow changes (shade, stain, light) and finest grain, (N, B, G, G), for each of ``pieces``.

    A half is filtered by itself, as if the image ended there: in a collage the edge between two halves would else be
    the strongest structure of either, and hide what the half shows.
    """
    gaussians = [_gaussians(sigma, pieces, device=greys_N1GG.device) for sigma in (FINEST, COARSEST)]
    fine, slow = (rows_BGG @ greys_N1GG @ columns_BGG.mT for rows_BGG, columns_BGG in gaussians)
    return fine - slow


@cache
def _gaussians(sigma: float, pieces: tuple[tuple[int, int], ...], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """For the rows and for the columns of each of ``pieces``, (B, G, G)."""
    rows_BGG, columns_BGG = (
        torch.from_numpy(np.stack([gaussian_in_pieces(sigma, one[axis]) for one in pieces])) for axis in (0, 1)
    )
    return rows_BGG.to(device), columns_BGG.to(device)


@cache
def _enlargement(size: float) -> tuple[np.ndarray, tuple[int, int]]:
    """The matrix (G, G) that enlarges an image about its middle, and the pixels of a side that the result reaches."""
    middle = (SIDE - 1) / 2
    places_G = (np.arange(SIDE) - middle) / size + middle
    reached_G = (places_G >= 0) & (places_G <= SIDE - 1)
    first, last = np.flatnonzero(reached_G)[[0, -1]]
    return interpolation(SIDE, SIDE, places_G) * reached_G.astype(np.float32)[:, None], (int(first), int(last) + 1)


# --- the image stays as it is, and the patch is turned


@cache
def _turns() -> tuple[np.ndarray, np.ndarray]:
    """What undoes each of the eight ``dihedral_copies``: of pixels, (8, G * G), and of a shift (y, x), (8, 2, 2)."""
    copies_8GG = dihedral_copies(np.arange(SIDE**2).reshape(1, SIDE, SIDE))[0]
    quarter, mirror = np.array([[0, 1], [-1, 0]]), np.array([[1, 0], [0, -1]])
    turns = [np.linalg.matrix_power(quarter, number) for number in range(4)]
    return copies_8GG.reshape(8, -1).argsort(axis=1), np.stack([*turns, *(mirror @ turn for turn in turns)])


def _upright_patches(patches_U2GG: Tensor, *, place_NC: np.ndarray, dihedral_NC: np.ndarray) -> Tensor:
    """The patches of these places, each turned so that the image fits upright, (N, C, 2, G, G)."""
    device = patches_U2GG.device
    pixels_NCG = torch.from_numpy(_turns()[0][dihedral_NC]).to(device)
    flat_NC2G = patches_U2GG.flatten(2)[torch.from_numpy(place_NC).to(device)]
    return flat_NC2G.gather(3, pixels_NCG[:, :, None].expand_as(flat_NC2G)).unflatten(3, (SIDE, SIDE))


# --- the score of a pair


def scores(image: ImageBands, patches_NC2GG: Tensor, *, shift_NC2: np.ndarray, reach: int, step: int) -> Tensor:
    """The score of each image with each of its patches (``patch_bands``), (N, C), 0..1: low where there is little.

    The image's pixel p lies on the patch's pixel p + shift; shifts up to ``reach`` px about ``shift_NC2`` are tried,
    ``step`` px apart.
    """
    device, sizes = patches_NC2GG.device, image.sizes
    N, C = shift_NC2.shape[:2]
    Z, K = len(sizes), image.energies_NEBZGG.shape[1:4].numel()
    band_NCGG, spread_NCGG = patches_NC2GG.unbind(2)
    moves_S = torch.arange(-reach, reach + 1, step, device=device)
    S = len(moves_S)
    shift_NC2S = torch.from_numpy(shift_NC2).to(device)[..., None] + moves_S

    # The patch's pixels below each quarter of the image at every shift, and sums of products with them.
    pad, side = FURTHEST + reach, SIDE + 2 * reach
    padded_NCWW = F.pad(band_NCGG, (pad, pad, pad, pad))
    window_W = torch.arange(side, device=device)
    rows_NCW, columns_NCW = (pad + shift_NC2S[:, :, axis, :1] + window_W for axis in (0, 1))
    n_N111, c_C11 = torch.arange(N, device=device)[:, None, None, None], torch.arange(C, device=device)[:, None, None]
    window_NCWW = padded_NCWW[n_N111, c_C11, rows_NCW[..., None], columns_NCW[:, :, None]]
    below_QNCSSHH = torch.stack(
        [
            window_NCWW[:, :, top : top + side - _HALF, left : left + side - _HALF]
            .unfold(2, _HALF, step)
            .unfold(3, _HALF, step)
            for top in (0, _HALF)
            for left in (0, _HALF)
        ]
    )
    views_NKGG = image.views_NBZGG.flatten(1, 2)
    views_QNKHH = views_NKGG.unflatten(3, (2, _HALF)).unflatten(2, (2, _HALF)).permute(2, 4, 0, 1, 3, 5).flatten(0, 1)
    products_QNKX = views_QNKHH.flatten(3) @ below_QNCSSHH.flatten(5).flatten(2, 4).mT
    products = _parts(products_QNKX.view(4, N, len(BANDS), Z, C, S, S).permute(0, 1, 4, 5, 6, 2, 3))

    # The image's energies where it lies on the patch.
    pixel_G = torch.arange(SIDE, device=device)
    inside_NC2SG = ((pixel_G + shift_NC2S[..., None] >= 0) & (pixel_G + shift_NC2S[..., None] < SIDE)).float()
    down_NXG, right_YSG = inside_NC2SG[:, :, 0].flatten(1, 2), inside_NC2SG[:, :, 1].flatten(0, 1)
    energies_NGX = image.energies_NEBZGG.permute(0, 4, 1, 2, 3, 5).flatten(2)
    quarters = []
    for upper_or_lower in _HALVES:
        rows_YXG = (down_NXG[..., upper_or_lower] @ energies_NGX[:, upper_or_lower]).view(N * C, S * K, SIDE)
        quarters += [rows_YXG[..., side] @ right_YSG[..., side].mT for side in _HALVES]
    own_QNCSEBZS = torch.stack(quarters).view(4, N, C, S, 3, len(BANDS), Z, S)
    own = _parts(own_QNCSEBZS.permute(4, 0, 1, 2, 3, 7, 5, 6))

    # The patch's energies where the image lies on it, and how many pixels that are.
    spans_Z2 = torch.tensor([_enlargement(size)[1] for size in sizes], device=device)
    half_2 = torch.tensor([0, _HALF], device=device)[:, None]
    first_2Z11 = torch.maximum(half_2, spans_Z2[:, 0])[..., None, None]
    last_2Z11 = torch.minimum(half_2 + _HALF, spans_Z2[:, 1])[..., None, None]
    image_pixel_NC211SG = (pixel_G - shift_NC2S[..., None])[:, :, :, None, None]
    under_NC22ZSG = ((image_pixel_NC211SG >= first_2Z11) & (image_pixel_NC211SG < last_2Z11)).float()
    down_NC2ZSG, right_NC2ZSG = under_NC22ZSG.unbind(2)
    energies_NCGX = torch.stack([band_NCGG.square(), spread_NCGG, spread_NCGG.square()], dim=3).flatten(3)
    rows_NC2ZSEG = (down_NC2ZSG.flatten(2, 4) @ energies_NCGX).view(N, C, 2, Z, S, 3, SIDE)
    sums_NCZ2SE2S = rows_NC2ZSEG.transpose(2, 3).flatten(3, 5) @ right_NC2ZSG.permute(0, 1, 3, 5, 2, 4).flatten(4)
    sums_NCZ2SE2S = sums_NCZ2SE2S.view(N, C, Z, 2, S, 3, 2, S)
    other = _parts(sums_NCZ2SE2S.permute(5, 3, 6, 0, 1, 4, 7, 2).flatten(1, 2)[..., None, :])
    down_count_2NCS1Z, right_count_2NC1SZ = (
        under_NC2ZSG.sum(dim=-1).permute(2, 0, 1, 4, 3).unsqueeze(axis)
        for under_NC2ZSG, axis in ((down_NC2ZSG, 4), (right_NC2ZSG, 3))
    )
    count = _parts((down_count_2NCS1Z[:, None] * right_count_2NC1SZ).flatten(0, 1)[..., None, :])

    energy = (own[:, 0] + NOISE * count) * (other[:, 0] + NOISE * count)
    correlation = (products / (energy + 1e-6).sqrt()).clamp(0, 1)
    # How many pixels hold structure, as if all of these held the same: the participation number of the energies.
    pixels = torch.minimum(*(sums[:, 1].square() / (sums[:, 2] + 1e-6) for sums in (own, other)))
    # The correlation of equal likelihood ratio if ``FULL`` pixels held structure, 0..1: the likelihood ratio of
    # a correlation c among n independent pixels is (1 - c^2)^(-n/2).
    value = (1 - (1 - correlation.square()) ** (pixels / FULL).clamp(max=1)).sqrt()
    min_T = torch.tensor([MIN_WHOLE, *[MIN_HALF / 2] * 4], device=device) * SIDE**2
    value_TNCSSZ = torch.where(count >= min_T[:, None, None, None, None, None], value, 0)
    return value_TNCSSZ.amax(dim=(0, 3, 4, 5))


def _parts(sums_QNCSSBZ: Tensor) -> Tensor:
    """Sums over quarters as sums over parts, (T, ..., N, C, S, S, Z); more axes may stand before the quarters.

    Each part is of its band, or of the only one.
    """
    n_bands = sums_QNCSSBZ.shape[-2]
    parts = []
    for band, places in _PARTS:
        quarters = sums_QNCSSBZ.select(-2, min(band, n_bands - 1)).unbind(-6)
        parts.append(torch.stack([quarters[place] for place in places]).sum(dim=0))
    return torch.stack(parts)

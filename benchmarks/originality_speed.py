"""The search for copies against a plain reference: milliseconds an image of both, which give the same results.

The reference computes the definition directly, in batches of torch. Coarse search: the products of every view of an
image with every block of every patch. Close look: the patch's pixels below the image at every shift, times the image,
its energies and its pixels. Copies of an image and of its halves: the score of one pair at a time. The two take turns
in one process; the numbers are medians of turns, of CPU time on a CPU and of elapsed time elsewhere. Each turn prepares
the patches anew; the gate has prepared them in the first turn, which is not counted.

    python benchmarks/originality_speed.py [--samples 64] [--patches 2000] [--turns 3] [--folder PNGS] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from histoloom.evaluation.images import ImageFolder
from histoloom.evaluation.originality.greys import (
    BANDS,
    SIDE,
    dihedral_copies,
    gaussian_in_pieces,
    interpolation,
    read_greys,
)
from histoloom.evaluation.originality.nearest import (
    CLOSE,
    DIGITS,
    Gallery,
    best_score,
    best_score_of_weakest_half,
    nearest,
)
from histoloom.evaluation.originality.pair_scores import (
    FULL,
    FURTHEST,
    HALF,
    MIN_HALF,
    MIN_WHOLE,
    NEIGHBOURHOOD,
    NOISE,
    REACH,
    SIZES,
    bands,
    turns,
)
from histoloom.evaluation.originality.shortlist import KINDS, LOW, PER_KIND, blocks, coarse
from histoloom.seeding import numpy_generator

IMAGES, PATCHES = 16, 256
"""that the coarse reference compares at once"""
ROUNDING = 1.5 * 10**-DIGITS
HALVES = (np.s_[:, :HALF], np.s_[:, HALF:], np.s_[:HALF], np.s_[HALF:])
PARTS = (np.s_[:, :], *HALVES)
BAND_OF_PART = [0, 1, 1, 2, 2]


def plain_nearest(greys_NGG: np.ndarray, patches_MGG: np.ndarray, *, device: torch.device) -> np.ndarray:
    """Number and score of the nearest patch of each image, (N, 2)."""
    ways_NC4 = plain_shortlist(coarse(greys_NGG), coarse(patches_MGG), device=device)
    on_device_MGG = torch.from_numpy(patches_MGG).to(device)
    return np.array(
        [
            plain_best_way(torch.from_numpy(grey_GG).to(device), on_device_MGG, np.unique(ways_C4, axis=0))
            for grey_GG, ways_C4 in zip(greys_NGG, ways_NC4, strict=True)
        ]
    )


def plain_shortlist(images_NLL: np.ndarray, patches_MLL: np.ndarray, *, device: torch.device) -> np.ndarray:
    """The patch, the dihedral copy and the shift (y, x) of each candidate, (N, C, 4)."""
    ways = []
    for kind in KINDS:
        views = [blocks(copy, kind.from_image, kind=kind) for copy in dihedral_copies(images_NLL).swapaxes(0, 1)]
        views_NVD = torch.from_numpy(np.concatenate(views)).to(device).transpose(0, 1).contiguous()
        largest_NM, way_NM = [], []
        for first in range(0, len(patches_MLL), PATCHES):
            blocks_PMD = torch.from_numpy(blocks(patches_MLL[first : first + PATCHES], kind.from_patch, kind=kind)).to(
                device
            )
            best = [plain_products(views_nVD, blocks_PMD) for views_nVD in views_NVD.split(IMAGES)]
            largest_NM.append(torch.cat([largest for largest, _ in best]))
            way_NM.append(torch.cat([way for _, way in best]))
        # Of equal ones the first.
        order = torch.cat(largest_NM, dim=1).sort(dim=1, descending=True, stable=True)
        patch_NC = order.indices[:, :PER_KIND]
        way_NC = torch.cat(way_NM, dim=1).gather(1, patch_NC).cpu().numpy()
        view_NC, place_NC = np.divmod(way_NC, len(kind.from_patch))
        dihedral_NC, cut_NC = np.divmod(view_NC, len(kind.from_image))
        shift_NC2 = np.array(kind.from_patch)[place_NC] - np.array(kind.from_image)[cut_NC]
        shift_NC2 = np.rint(shift_NC2 * SIDE / LOW).astype(int)
        ways.append(np.concatenate([patch_NC.cpu().numpy()[..., None], dihedral_NC[..., None], shift_NC2], axis=2))
    return np.concatenate(ways, axis=1)


def plain_products(views_NVD: Tensor, blocks_PMD: Tensor) -> tuple[Tensor, Tensor]:
    """The largest product of each image with each patch, (N, M), and the number of its view and place."""
    n, n_views, _ = views_NVD.shape
    largest_NM = torch.full((n, blocks_PMD.shape[1]), -torch.inf, device=views_NVD.device)
    way_NM = torch.zeros_like(largest_NM, dtype=torch.int64)
    for place, block_MD in enumerate(blocks_PMD):
        products_NVM = (views_NVD.flatten(0, 1) @ block_MD.T).view(n, n_views, -1)
        value_NM, view_NM = products_NVM.max(dim=1)
        number_NM = view_NM * len(blocks_PMD) + place
        better_NM = (value_NM > largest_NM) | ((value_NM == largest_NM) & (number_NM < way_NM))
        largest_NM = torch.where(better_NM, value_NM, largest_NM)
        way_NM = torch.where(better_NM, number_NM, way_NM)
    return largest_NM, way_NM


def plain_best_way(grey_GG: Tensor, patches_MGG: Tensor, ways_C4: np.ndarray) -> tuple[int, float]:
    """All candidates in the image's own size first, then the best in every size."""
    rough_C = plain_scores(grey_GG, patches_MGG, ways_C4, sizes=(1.0,), reach=REACH, step=2)
    best_C4 = ways_C4[np.lexsort((ways_C4[:, 0], -rough_C))[:CLOSE]]
    close_C = plain_scores(grey_GG, patches_MGG, best_C4, sizes=SIZES, reach=REACH, step=1)
    winner = np.lexsort((best_C4[:, 0], -close_C))[0]
    return int(best_C4[winner, 0]), float(close_C[winner])


def plain_scores(
    grey_GG: Tensor, patches_MGG: Tensor, ways_C4: np.ndarray, *, sizes: tuple[float, ...], reach: int, step: int
) -> np.ndarray:
    """The largest value of any part, size and shift, for each way; the patch is turned as the way says."""
    device, middle = grey_GG.device, (SIDE - 1) / 2
    views, reached = [], []
    band_BGG = bands(grey_GG[None].float())[0]
    for size in sizes:
        places_G = (np.arange(SIDE) - middle) / size + middle
        reached_G = torch.from_numpy((places_G >= 0) & (places_G <= SIDE - 1)).to(device).float()
        reached.append(reached_G[:, None] * reached_G)
        enlarge_GG = torch.from_numpy(interpolation(SIDE, SIDE, places_G)).to(device)
        views.append(enlarge_GG @ band_BGG @ enlarge_GG.T * reached[-1])
    view_BZGG, reached_ZGG = torch.stack(views, dim=1), torch.stack(reached)
    spread = [spread_out(view_ZGG, pieces) for view_ZGG, pieces in zip(view_BZGG, BANDS, strict=True)]
    energies_EBZGG = torch.stack([view_BZGG.square(), torch.stack(spread), torch.stack(spread).square()])

    # A part's pixels, of the band of its kind.
    part_TGG = torch.zeros(len(PARTS), SIDE, SIDE, device=device)
    for of_part_GG, part in zip(part_TGG, PARTS, strict=True):
        of_part_GG[part] = 1
    part_T1GG = part_TGG[:, None]
    view_TZX = (view_BZGG[BAND_OF_PART] * part_T1GG).flatten(2)
    own_ETZX = (energies_EBZGG[:, BAND_OF_PART] * part_T1GG).flatten(3)
    pixels_TZX = (reached_ZGG * part_T1GG).flatten(2)

    # The patch's pixels below the image at every shift; 0 outside.
    turned_CGG = (
        patches_MGG[ways_C4[:, 0]]
        .flatten(1)
        .gather(1, torch.from_numpy(turns()[0][ways_C4[:, 1]]).to(device))
        .unflatten(1, (SIDE, SIDE))
    )
    band_CGG = bands(turned_CGG.float(), BANDS[:1])[:, 0]
    spread_CGG = spread_out(band_CGG, BANDS[0])
    planes_5CGG = torch.stack([torch.ones_like(band_CGG), band_CGG, band_CGG.square(), spread_CGG, spread_CGG.square()])
    pad = FURTHEST + reach
    padded_5CWW = torch.nn.functional.pad(planes_5CGG, (pad,) * 4)
    shift_C2 = (turns()[1][ways_C4[:, 1]] @ ways_C4[:, 2:, None])[..., 0].clip(-FURTHEST, FURTHEST) + FURTHEST
    side = SIDE + 2 * reach
    windows_5CWW = torch.stack(
        [padded_5CWW[:, c, y : y + side, x : x + side] for c, (y, x) in enumerate(shift_C2)], dim=1
    )
    inside_SX, below_SX, *patch_ESX = (
        plane.unfold(1, SIDE, step).unfold(2, SIDE, step).reshape(-1, SIDE**2) for plane in windows_5CWW
    )

    count = pixels_TZX @ inside_SX.T
    own = own_ETZX @ inside_SX.T
    other = torch.stack([pixels_TZX @ energy_SX.T for energy_SX in patch_ESX])
    energy = (own[0] + NOISE * count) * (other[0] + NOISE * count)
    correlation = (view_TZX @ below_SX.T / (energy + 1e-6).sqrt()).clamp(0, 1)
    structure = torch.minimum(*(sums[1].square() / (sums[2] + 1e-6) for sums in (own, other)))
    value = (1 - (1 - correlation.square()) ** (structure / FULL).clamp(max=1)).sqrt()
    least_T11 = torch.tensor([MIN_WHOLE, *[MIN_HALF / 2] * 4], device=device)[:, None, None] * SIDE**2
    value_TZCS = torch.where(count >= least_T11, value, 0).unflatten(2, (len(ways_C4), -1))
    return value_TZCS.amax(dim=(0, 1, 3)).cpu().double().numpy().round(DIGITS)


def spread_out(view_XGG: Tensor, pieces: tuple[int, int]) -> Tensor:
    """Squares over their neighbourhood."""
    rows_GG, columns_GG = (
        torch.from_numpy(gaussian_in_pieces(NEIGHBOURHOOD, one)).to(view_XGG.device) for one in pieces
    )
    return rows_GG @ view_XGG.square() @ columns_GG.T


def plain_best_scores(greys_NGG: np.ndarray, *, device: torch.device) -> np.ndarray:
    """What copies of the images, and of their weakest halves, would score, (2, N)."""
    scores = []
    for grey_GG in greys_NGG:
        alone = [grey_GG]
        for half in HALVES:
            alone.append(np.full_like(grey_GG, int(grey_GG.mean())))
            alone[-1][half] = grey_GG[half]
        of_image = [
            plain_scores(grey[0], grey, np.zeros((1, 4), int), sizes=(1.0,), reach=0, step=1)[0]
            for grey in (torch.from_numpy(some_GG[None]).to(device) for some_GG in alone)
        ]
        scores.append([of_image[0], min(of_image[1:])])
    return np.array(scores).T


def in_turns(
    ours: Callable[[], np.ndarray], plain: Callable[[], np.ndarray], *, turns: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Seconds of both, by the median turn; ``AssertionError`` where their results differ by more than rounding."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(-1, turns):  # the first turn warms up
        results = []
        for work, taken in zip((ours, plain), seconds, strict=True):
            start = clock()
            results.append(work())
            if turn >= 0:
                taken.append(clock() - start)
        np.testing.assert_allclose(results[0], results[1], atol=ROUNDING)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def random_greys(n: int, *, rng: np.random.Generator) -> np.ndarray:
    """Noise with blobs of the size of nuclei, uint8 (n, G, G)."""
    blurred = gaussian_filter(rng.normal(size=(n, SIDE, SIDE)), (0, 2, 2))
    return np.clip(160 + 300 * blurred, 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--patches", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="PNGs: the first ones are samples, the others training patches")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    n = given.samples + given.patches
    if given.folder is None:
        greys_NGG = random_greys(n, rng=numpy_generator(0, "benchmark", "originality"))
    else:
        images = ImageFolder(given.folder)
        greys_NGG = read_greys(images, indices=np.arange(min(n, len(images))))[:]
    samples_NGG, patches_MGG = greys_NGG[: given.samples].copy(), greys_NGG[given.samples :]
    # Every fourth sample is a turned copy.
    copied = np.arange(0, len(samples_NGG), 4)
    samples_NGG[copied] = np.rot90(patches_MGG[copied % len(patches_MGG)], axes=(1, 2))

    prepared = Gallery(patches_MGG, device=device)

    def search(n: int, gallery: Gallery | None = None) -> np.ndarray:
        found = nearest(samples_NGG[:n], gallery or Gallery(patches_MGG, device=device))
        return np.stack([found.number_N, found.score_N], axis=1)

    print(f"{len(samples_NGG)} samples, {len(patches_MGG)} patches, {torch.get_num_threads()} thread(s), {device}")
    for name, n, ours, plain in (
        (
            "search for the nearest patch",
            given.samples,
            lambda: search(given.samples),
            lambda: plain_nearest(samples_NGG, patches_MGG, device=device),
        ),
        (
            "one image, as the gate does",
            1,
            lambda: search(1, prepared),
            lambda: plain_nearest(samples_NGG[:1], patches_MGG, device=device),
        ),
        (
            "scores of copies and halves",
            given.samples,
            lambda: np.stack([score(samples_NGG, device=device) for score in (best_score, best_score_of_weakest_half)]),
            lambda: plain_best_scores(samples_NGG, device=device),
        ),
    ):
        seconds, plain_seconds = in_turns(ours, plain, turns=given.turns, clock=clock)
        print(
            f"{name:29} ours {1000 * seconds / n:7.2f} ms an image, plain "
            f"{1000 * plain_seconds / n:7.2f}, ratio {plain_seconds / seconds:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

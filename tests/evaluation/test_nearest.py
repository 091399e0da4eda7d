"""The search for the nearest patch against the exhaustive search and against the score's definition, both by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from histoloom.evaluation.originality import nearest as search
from histoloom.evaluation.originality import pair_scores, shortlist
from histoloom.evaluation.originality.greys import COARSEST, FINEST, SIDE, dihedral_copies, to_greys
from histoloom.evaluation.originality.nearest import Gallery, best_score, nearest
from histoloom.evaluation.originality.pair_scores import FURTHEST, NEIGHBOURHOOD, NOISE, SIZES
from histoloom.evaluation.originality.shortlist import KINDS, PER_KIND, BlockKind, CoarsePatches, coarse
from histoloom.evaluation.originality.symmetry import TOLERANCE, Copies, coordinates

CPU = torch.device("cpu")
HALF = SIDE // 2
PARTS = (np.s_[:, :], np.s_[:, :HALF], np.s_[:, HALF:], np.s_[:HALF], np.s_[HALF:])


@pytest.fixture(scope="module")
def greys(crops) -> tuple[np.ndarray, np.ndarray]:
    """Images, the first five of which are turned copies of the first patches, and the patches."""
    patches = crops(30, 96, seed=1)
    copies = np.stack([np.rot90(patches[number], number) for number in range(5)])
    return to_greys(np.concatenate([copies, crops(5, 96, seed=2)])), to_greys(patches)


@pytest.mark.parametrize("sizes", [(16, 256), (3, 7)])
def test_the_shortlist_is_that_of_the_exhaustive_search(
    sizes: tuple[int, int], greys: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortlist, "IMAGES", {"cpu": sizes[0]})
    monkeypatch.setattr(shortlist, "PATCHES", sizes[1])
    images_NLL, patches_MLL = (coarse(part) for part in greys)
    found = shortlist.shortlist(images_NLL, CoarsePatches(greys[1], device=CPU))
    for number, kind in enumerate(KINDS):
        views_8PND = [
            shortlist.blocks(copy_NLL, kind.from_image, kind=kind)
            for copy_NLL in dihedral_copies(images_NLL).swapaxes(0, 1)
        ]
        blocks_PMD = shortlist.blocks(patches_MLL, kind.from_patch, kind=kind)
        products_NM8CP = np.einsum("tcnd,pmd->nmtcp", np.stack(views_8PND).astype(int), blocks_PMD.astype(int))
        for image, products_M8CP in enumerate(products_NM8CP):
            best_M = products_M8CP.reshape(len(patches_MLL), -1).max(axis=1)
            order_C = np.argsort(-best_M, kind="stable")[:PER_KIND]
            columns = np.s_[image, number * PER_KIND : (number + 1) * PER_KIND]
            np.testing.assert_array_equal(found.patch_NC[columns], order_C)
            for place, patch in enumerate(order_C):
                turn, cut, corner = np.unravel_index(products_M8CP[patch].argmax(), products_M8CP[patch].shape)
                shift_2 = np.subtract(kind.from_patch[corner], kind.from_image[cut]) * SIDE / shortlist.LOW
                assert found.dihedral_NC[columns][place] == turn
                np.testing.assert_array_equal(found.shift_NC2[columns][place], np.rint(shift_2))


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_copies_are_as_near_the_exact_ones_as_is_said(
    kind: shortlist.BlockKind, greys: tuple[np.ndarray, np.ndarray]
) -> None:
    views_NVD = shortlist._views(coarse(greys[0]), kind=kind)
    block_MD = shortlist.blocks(coarse(greys[1]), kind.from_patch, kind=kind)[3]
    symmetry = coordinates(kind.height, kind.width)
    families = shortlist._families(kind)
    assert sorted(np.concatenate([family.view_FH.ravel() for family in families])) == list(range(views_NVD.shape[1]))
    for family in families:
        copies = Copies.of_views(views_NVD, family, symmetry, device=CPU)
        largest_RM = copies.largest(torch.from_numpy(block_MD @ symmetry.basis_DK), symmetry.parts).numpy()
        exact_NFHM = views_NVD[:, family.view_FH].astype(int) @ block_MD.astype(int).T
        error_NFM = np.abs(largest_RM.reshape(len(views_NVD), len(family.view_FH), -1) - exact_NFHM.max(axis=2))
        bound_N = 2000 * copies.error_N + TOLERANCE * 2000**2
        assert (error_NFM.max(axis=(1, 2)) <= bound_N).all()
        assert bound_N.max() < 0.005 * exact_NFHM.max()


def band(grey: np.ndarray) -> np.ndarray:
    """As the definition has it, for a piece of an image."""
    return np.asarray(gaussian_filter(grey.astype(float), FINEST) - gaussian_filter(grey.astype(float), COARSEST))


def score_by_hand(
    image: np.ndarray, patch: np.ndarray, *, shift: np.ndarray, reach: int, step: int, sizes: tuple[float, ...] = SIZES
) -> float:
    """The largest value of any part, size and shift; the image's pixel p lies on the patch's pixel p + shift."""
    whole = band(patch)
    spread = gaussian_filter(whole**2, NEIGHBOURHOOD)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    best = 0.0
    for size in sizes:
        places = (np.stack([rows, columns]) - (SIDE - 1) / 2) / size + (SIDE - 1) / 2
        reached = ((places >= 0) & (places <= SIDE - 1)).all(axis=0)
        for part in PARTS:
            # A half is filtered by itself, beside the other half: each of its quantities ends at the middle.
            halves = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
            pieces = PARTS[:1] if part is PARTS[0] else PARTS[1:3] if part in PARTS[1:3] else PARTS[3:]
            for piece in pieces:
                halves[0][piece] = band(image[piece])
            view = map_coordinates(halves[0], places, order=1, mode="nearest") * reached
            for piece in pieces:
                halves[1][piece] = gaussian_filter(view[piece] ** 2, NEIGHBOURHOOD)
            for y in np.clip(shift[0], -FURTHEST, FURTHEST) + np.arange(-reach, reach + 1, step):
                for x in np.clip(shift[1], -FURTHEST, FURTHEST) + np.arange(-reach, reach + 1, step):
                    inside = (rows + y >= 0) & (rows + y < SIDE) & (columns + x >= 0) & (columns + x < SIDE)
                    of_part = np.zeros((SIDE, SIDE), bool)
                    of_part[part] = True
                    own = inside & of_part
                    both = own & reached
                    if both.sum() < (0.5 if part is PARTS[0] else 0.4) * SIDE**2:
                        continue
                    on_patch = rows[both] + y, columns[both] + x
                    energies = [
                        (np.square(view[own]).sum(), halves[1][own].sum(), np.square(halves[1][own]).sum()),
                        (
                            np.square(whole[on_patch]).sum(),
                            spread[on_patch].sum(),
                            np.square(spread[on_patch]).sum(),
                        ),
                    ]
                    norm = np.prod([energy[0] + NOISE * both.sum() for energy in energies])
                    correlation = max(0.0, (view[both] * whole[on_patch]).sum() / np.sqrt(norm))
                    pixels = min(energy[1] ** 2 / (energy[2] + 1e-6) for energy in energies)
                    power = min(1.0, pixels / (SIDE**2 // 4))
                    best = max(best, float(np.sqrt(1 - (1 - correlation**2) ** power)))
    return best


@pytest.mark.parametrize("turn", range(8))
def test_a_score_is_what_its_definition_gives(turn: int, greys: tuple[np.ndarray, np.ndarray]) -> None:
    """The definition turns the image, the search turns the patch and its shift."""
    images_NGG, patches_MGG = greys
    rng = np.random.default_rng(turn)
    number, patch, shift_2 = turn % 5, turn % 7, rng.integers(-12, 13, 2)
    expected = score_by_hand(
        dihedral_copies(images_NGG[number][None])[0, turn], patches_MGG[patch], shift=shift_2, reach=4, step=4
    )
    image = pair_scores.image_bands(torch.from_numpy(images_NGG[number : number + 1]).float())
    patches_12GG = pair_scores.patch_bands(torch.from_numpy(patches_MGG[patch : patch + 1]).float())
    way_114 = torch.tensor([[[0, turn, *(pair_scores.turns()[1][turn] @ shift_2)]]])
    score = pair_scores.scores(image, pair_scores.windows(patches_12GG, way_114, reach=4), way_114[..., 2:], step=4)
    assert expected > 0.1
    assert float(score) == pytest.approx(expected, abs=1e-4)


def test_the_score_of_a_copy_is_what_the_definition_gives(greys: tuple[np.ndarray, np.ndarray]) -> None:
    images_NGG = greys[0][:9]
    faint_NGG = np.round(images_NGG * 0.03 + 200).astype(np.uint8)
    expected_N = [
        score_by_hand(image, image, shift=np.zeros(2, int), reach=0, step=1, sizes=(1.0,))
        for image in np.concatenate([images_NGG, faint_NGG])
    ]
    assert min(expected_N) < 0.6 < 0.9 < max(expected_N)
    np.testing.assert_allclose(best_score(np.concatenate([images_NGG, faint_NGG])), expected_N, atol=1e-4)


def test_large_batches_as_on_a_gpu_give_the_same(
    greys: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = nearest(greys[0], Gallery(greys[1]))
    monkeypatch.setattr(search, "BATCH", {})
    monkeypatch.setattr(shortlist, "IMAGES", {})
    many = nearest(greys[0], Gallery(greys[1]))
    np.testing.assert_array_equal(many.number_N, one.number_N)
    np.testing.assert_allclose(many.score_N, one.score_N, atol=1.5e-4)
    assert (one.number_N[:5] == np.arange(5)).all()


def test_a_gallery_is_prepared_once_as_far_as_its_memory_allows(
    greys: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    blocks = shortlist.blocks

    def counted(images_NLL: np.ndarray, places: tuple[tuple[int, int], ...], *, kind: BlockKind) -> np.ndarray:
        prepared.extend([len(images_NLL)] if places == kind.from_patch else [])
        return blocks(images_NLL, places, kind=kind)

    monkeypatch.setattr(shortlist, "blocks", counted)
    monkeypatch.setattr(shortlist, "PATCHES", 10)
    results = []
    # All 3 parts of 10 patches for 3 kinds of blocks; room for one part of the first kind and one of the second; none.
    for room, calls in ((2**29, 9), (500_000 + 72_000, 9 + 7), (0, 18)):
        monkeypatch.setattr(shortlist, "KEPT_BYTES", room)
        gallery = Gallery(greys[1])
        prepared.clear()
        results += [nearest(greys[0], gallery), nearest(greys[0], gallery)]
        assert prepared == [10] * calls
    for result in results[1:]:
        np.testing.assert_array_equal(result.number_N, results[0].number_N)
        np.testing.assert_array_equal(result.score_N, results[0].score_N)


def test_without_patches_there_is_none(greys: tuple[np.ndarray, np.ndarray]) -> None:
    result = nearest(greys[0], Gallery(greys[1][:0]))
    assert (result.number_N == -1).all()
    assert (result.score_N == 0).all()

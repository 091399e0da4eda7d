"""What clusters share with slide, patient and stain: against references, and when to warn and when not."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score

from histoloom.clustering.confounding.association import (
    COLOUR_WARN_ABOVE,
    PERMUTATIONS,
    Factor,
    PatchStains,
    association,
    colour_agreement,
    mutual_information,
    one_slide_clusters,
    patch_stains,
    permuted,
    slide_stains,
    warnings_of,
)
from histoloom.clustering.confounding.report import examine
from histoloom.clustering.results import Confounding
from histoloom.run.directory import write_json
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet

SLIDES, PER, TISSUES = 8, 50, 4
SLIDES_N = np.repeat(np.arange(SLIDES), PER)


def tissues() -> np.ndarray:
    """Which kind each patch is of, the same mix on every slide but for chance."""
    return numpy_generator(0, "tissue").integers(0, TISSUES, SLIDES * PER)


def test_information_is_that_of_scikit_learn() -> None:
    rng = numpy_generator(0, "labels")
    first_N, second_N = rng.integers(0, 7, 200), rng.integers(0, 30, 200)
    assert mutual_information(first_N, second_N) == pytest.approx(mutual_info_score(first_N, second_N), abs=1e-12)


def test_clusters_of_tissue_are_within_the_null_and_of_slides_far_beyond() -> None:
    factor = Factor("slide", SLIDES_N, "patches")
    labels = {TISSUES: tissues(), SLIDES: SLIDES_N}
    clean, slide = association(labels, factor=factor, slides_N=SLIDES_N, rng=numpy_generator(0, "null"))
    assert clean.null_mean == pytest.approx((TISSUES - 1) * (SLIDES - 1) / (2 * SLIDES * PER), rel=0.2)
    assert abs(clean.z or 0) < 3
    assert (clean.warns, slide.warns) == (False, True)
    assert clean.excess < 0.02 < clean.share + 0.02
    assert (slide.share, slide.excess, slide.nmi, slide.ami) == pytest.approx((1, 1, 1, 1))
    assert slide.p == 1 / (PERMUTATIONS + 1)


def test_half_of_the_clusters_split_by_batch_is_warned_of_by_slide_and_by_stain() -> None:
    """Two stain batches of four slides; two of four tissues come apart by batch."""
    batch_N = (SLIDES_N >= SLIDES // 2).astype(np.int64)
    tissue_N = tissues()
    labels = {6: np.where(tissue_N < 2, tissue_N, 2 + 2 * (tissue_N - 2) + batch_N)}
    result = [
        association(labels, factor=factor, slides_N=SLIDES_N, rng=numpy_generator(0, factor.name))[0]
        for factor in (Factor("slide", SLIDES_N, "patches"), Factor("slide_stain", batch_N, "slides"))
    ]
    assert [entry.warns for entry in result] == [True, True]
    warnings = warnings_of(6, associations=result, one_slide=[])
    assert warnings[0].startswith("Which slide a patch is from explains 2")
    assert warnings[1].startswith("How a slide is stained explains ")
    assert "clusters.independence" in warnings[-1]


def test_a_null_of_slides_keeps_each_slide_whole() -> None:
    patients_N = SLIDES_N // 2
    shuffled_N = permuted(Factor("patient", patients_N, "slides"), slides_N=SLIDES_N, rng=numpy_generator(0, "x"))
    assert all(len(set(shuffled_N[slide == SLIDES_N])) == 1 for slide in range(SLIDES))
    assert sorted(shuffled_N) == sorted(patients_N)
    assert (shuffled_N != patients_N).any()


def test_clusters_of_one_slide_are_named_where_there_are_slides_to_tell() -> None:
    names_N = np.array([f"slide {number}" for number in SLIDES_N])
    labels_N = np.where(SLIDES_N == 3, 1, 0)
    labels_N[:4] = 1
    (result,) = one_slide_clusters(labels_N, k=3, slides_N=names_N)
    assert (result.cluster, result.slide, result.patches) == (1, "slide 3", PER + 4)
    assert result.share == pytest.approx(PER / (PER + 4))
    assert one_slide_clusters(labels_N, k=3, slides_N=np.where(SLIDES_N == 3, "a", "b")) == []
    assert "slide 3" in warnings_of(3, associations=[], one_slide=[result])[0]
    assert warnings_of(4, associations=[], one_slide=[result]) == []


def stained(h: float, e: float, *, n: int) -> np.ndarray:
    """Even patches with so much haematoxylin and eosin, half of each glass, uint8 (n, 8, 8, 3)."""
    from skimage.color import rgb_from_hed

    image_HW3 = np.full((8, 8, 3), 255.0)
    image_HW3[:, :4] = 256 * np.exp(-(h * rgb_from_hed[0] + e * rgb_from_hed[1])) - 1
    return np.repeat(image_HW3.round().astype(np.uint8)[None], n, axis=0)


def test_stain_is_measured_as_it_was_mixed() -> None:
    result = patch_stains(np.concatenate([stained(0.9, 0.3, n=1), stained(0.2, 0.8, n=1)]))
    np.testing.assert_allclose(result.haematoxylin_N, [0.45, 0.1], atol=0.02)
    np.testing.assert_allclose(result.eosin_N, [0.15, 0.4], atol=0.02)
    balance = slide_stains(result, slides_N=np.array(["a", "b"]))
    assert [balance[slide].balance for slide in ("a", "b")] == pytest.approx([0.75, 0.2], abs=0.03)


def test_the_stain_of_many_slides_takes_one_pass() -> None:
    two = patch_stains(np.concatenate([stained(0.9, 0.3, n=1), stained(0.2, 0.8, n=1)]))
    copies = 20_000
    many = PatchStains(*(np.concatenate([values] * copies) for values in vars(two).values()))
    slides_N = np.array([f"{kind}{number % 1000}" for number in range(copies) for kind in "ab"], object)
    start = time.process_time()
    balance = slide_stains(many, slides_N=slides_N)
    assert time.process_time() - start < 2  # 10 seconds, if each slide searches all patches
    assert len(balance) == 2000
    assert [balance[slide].balance for slide in ("a7", "b7")] == pytest.approx([0.75, 0.2], abs=0.03)


def test_colour_is_mean_and_deviation_over_the_patch() -> None:
    images_NHW3 = numpy_generator(0, "pixels").integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    result = patch_stains(images_NHW3)
    flat_NP3 = images_NHW3.reshape(3, -1, 3).astype(np.float64)
    np.testing.assert_allclose(result.colour_N6[:, :3], flat_NP3.mean(1))
    np.testing.assert_allclose(result.colour_N6[:, 3:], flat_NP3.std(1))
    np.testing.assert_array_equal(result.stain_N4[:, 0], result.haematoxylin_N)
    half_glass = patch_stains(stained(0.9, 0.3, n=1)).stain_N4[0]
    np.testing.assert_allclose(half_glass, [0.45, 0.15, 0.45, 0.15], atol=0.02)


def coloured(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of one tone each, its haematoxylin and eosin drawn at random, and with speckles or none, by chance.

    uint8 (n, 8, 8, 3), and which have speckles (n,): these differ from the others in texture, not in colour.
    """
    rng = numpy_generator(0, "coloured")
    parts, speckled_N = [], rng.integers(0, 2, count)
    for h, e, speckles in zip(*rng.uniform(0.1, 1.2, (2, count)), speckled_N, strict=True):
        image_HW3 = stained(h, e, n=1)[0]
        pixels_P3 = image_HW3.reshape(-1, 3)
        parts.append((rng.permutation(pixels_P3) if speckles else pixels_P3).reshape(image_HW3.shape))
    return np.stack(parts), speckled_N


def test_clusters_made_from_colour_warn_and_clusters_independent_of_it_do_not() -> None:
    images_NHW3, speckled_N = coloured(1200)
    stains = patch_stains(images_NHW3)
    made_of = {"colour": stains.colour_N6, "stain": stains.stain_N4}
    for name, x_ND in made_of.items():
        labels = {k: KMeans(k, n_init=1, random_state=1).fit_predict(x_ND) for k in (4, 6)}
        for entry in colour_agreement(labels, stains=stains, seed=0):
            assert getattr(entry, name) >= COLOUR_WARN_ABOVE, (name, entry)
            assert entry.warning.startswith("Colour explains most of the clusters")
            assert entry.warning.count(". ") == 0, "one sentence"
    random_N = numpy_generator(1, "labels").integers(0, 6, len(images_NHW3))
    for k, labels_N in ((2, speckled_N), (6, random_N)):
        (entry,) = colour_agreement({k: labels_N}, stains=stains, seed=0)
        assert abs(entry.colour) < 0.02
        assert abs(entry.stain) < 0.02
        assert entry.warning == ""


def test_agreement_with_colour_is_the_adjusted_information_and_repeats() -> None:
    stains = patch_stains(coloured(300)[0])
    labels = {3: numpy_generator(0, "labels").integers(0, 3, 300)}
    labels[3][:200] = KMeans(3, n_init=4, random_state=0).fit_predict(stains.colour_N6)[:200]
    (entry,) = colour_agreement(labels, stains=stains, seed=0)
    starts = [KMeans(3, n_init=1, random_state=start).fit_predict(stains.colour_N6) for start in range(20)]
    expected = max(adjusted_mutual_info_score(start_N, labels[3]) for start_N in starts)
    assert entry.colour == pytest.approx(expected, abs=0.03)
    assert (entry.k, entry.n) == (3, 300)
    assert colour_agreement(labels, stains=stains, seed=0) == [entry]


def test_no_comparison_with_colour_where_there_are_fewer_colours_than_clusters() -> None:
    images_NHW3 = np.concatenate([stained(0.9, 0.3, n=20), stained(0.2, 0.8, n=20)])
    stains = patch_stains(images_NHW3)
    labels = {2: np.repeat([0, 1], 20), 3: np.arange(40) % 3}
    (entry,) = colour_agreement(labels, stains=stains, seed=0)
    assert entry.k == 2
    assert (entry.colour, entry.stain) == pytest.approx((1, 1))


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> PatchSet:
    """Eight slides of four patients, half of them with more eosin."""
    folder = tmp_path_factory.mktemp("patches")
    (folder / "images").mkdir()
    rows = []
    for slide in range(SLIDES):
        images_N = [stained(0.6, 0.3 + 0.5 * (slide % 2) + 0.002 * place, n=1) for place in range(PER)]
        np.save(folder / "images" / f"s{slide}.npy", np.concatenate(images_N))
        whose = {"slide_id": f"s{slide}", "slide": f"slide {slide}", "patient": f"p{slide // 2}", "split": "train"}
        rows += [whose | {"patch_id": f"s{slide}_{place}"} for place in range(PER)]
    pd.DataFrame(rows).to_parquet(folder / "index.parquet", index=False)
    write_json(folder / "meta.json", {"size": 8, "mpp": 1.0, "n": len(rows)})
    return PatchSet.open(folder)


def labels_of(patches: PatchSet, labels_N: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame({"patch_id": patches.table["patch_id"], "k4": labels_N})
    return table.iloc[numpy_generator(0, "order").permutation(len(table))]


def test_no_warning_where_nothing_is_wrong(patches: PatchSet) -> None:
    result = examine(labels_of(patches, tissues()), patches=patches, seed=0)
    assert result.warnings == {}
    assert result.one_slide == ()
    assert result.patches == result.stain_patches == SLIDES * PER
    factors = [entry.factor for entry in result.associations]
    assert factors == ["slide", "patient", "slide_stain", "haematoxylin", "eosin"]
    assert max(entry.excess for entry in result.associations) < 0.05
    (colour,) = result.colour
    assert max(abs(colour.colour), abs(colour.stain)) < 0.1
    assert colour.warning == ""
    assert result.ami_with_slides(4) == pytest.approx(0, abs=0.05)


def test_a_run_without_comparison_with_colour_still_loads(patches: PatchSet, tmp_path: Path) -> None:
    result = examine(labels_of(patches, tissues()), patches=patches, seed=0)
    content = result.model_dump(mode="json")
    del content["colour"], content["rule"]["colour"]
    write_json(tmp_path / "confounding.json", content)
    loaded = Confounding.load(tmp_path)
    assert loaded is not None
    assert loaded.associations == result.associations
    assert loaded.colour_of(4) is None


def test_clusters_of_the_stain_are_distinguished_from_clusters_of_the_patient(
    patches: PatchSet, tmp_path: Path
) -> None:
    stain_N = SLIDES_N % 2
    result = examine(labels_of(patches, 2 * stain_N + tissues() % 2), patches=patches, seed=0)
    by = {entry.factor: entry for entry in result.associations}
    assert by["slide_stain"].warns
    assert not by["patient"].warns
    assert by["slide_stain"].excess > 0.3 > by["patient"].excess
    assert len(result.warnings[4]) == 3
    assert result == examine(labels_of(patches, 2 * stain_N + tissues() % 2), patches=patches, seed=0)
    result.save(tmp_path)
    assert Confounding.load(tmp_path) == result


def test_one_slide_alone_has_nothing_to_be_compared_with(tmp_path: Path, patches: PatchSet) -> None:
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "s0.npy", np.load(patches.folder / "images" / "s0.npy"))
    table = patches.table[patches.table["slide_id"] == "s0"]
    table.to_parquet(tmp_path / "index.parquet", index=False)
    write_json(tmp_path / "meta.json", {"size": 8, "mpp": 1.0, "n": len(table)})
    labels = pd.DataFrame({"patch_id": table["patch_id"], "k2": np.arange(PER) % 2})
    result = examine(labels, patches=PatchSet.open(tmp_path), seed=0)
    assert {entry.factor for entry in result.associations} <= {"haematoxylin", "eosin"}
    assert result.warnings == {}

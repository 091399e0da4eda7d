"""A reading is balanced, seeded, shows no picture twice and says where its real pictures are from."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from histoloom.clustering.clustering_set import Clustering
from histoloom.errors import UserError
from histoloom.evaluation.images import SampleFolder
from histoloom.evaluation.reading.folder import readings
from histoloom.evaluation.reading.make import create_reading
from histoloom.evaluation.reading.plan import LEVELS, Plan, Request
from histoloom.names import add_label, add_name
from histoloom.run.directory import Run, read_json
from histoloom.slides.patch_set import PatchSet

DETECT = Request("real-or-synthetic", 12)


def test_half_are_samples_of_each_tissue_alike(run: Run) -> None:
    plan = create_reading(run, DETECT).plan
    counts = Counter((trial.tissue, trial.synthetic) for trial in plan.trials)
    assert sum(trial.synthetic for trial in plan.trials) == 6
    for tissue in range(len(plan.names)):
        assert counts[tissue, True] == counts[tissue, False]
    assert plan.choices == LEVELS


def test_truth_is_the_runs(run: Run) -> None:
    plan = create_reading(run, DETECT).plan
    labels = Clustering.open(run.folder("clusters")).labels(plan.k)
    splits = PatchSet.open(run.folder("patches")).table.set_index("patch_id")["split"]
    samples = SampleFolder(run.folder("samples")).table.set_index("sample_id")
    for trial in plan.trials:
        if trial.synthetic:
            assert samples.loc[trial.name, "cluster"] == trial.cluster
            assert trial.split == ""
        else:
            assert labels[trial.name] == trial.cluster
            assert splits[trial.name] == trial.split
        assert plan.names[trial.tissue] == f"tissue {'abc'[trial.cluster]}"


def test_pictures_are_those_of_the_plan_and_all_differ(run: Run) -> None:
    reading = create_reading(run, DETECT)
    patches = PatchSet.open(run.folder("patches"))
    samples = SampleFolder(run.folder("samples"))
    images = [reading.picture(trial) for trial in range(12)]
    assert len({image.tobytes() for image in images}) == 12
    for image, trial in zip(images, reading.plan.trials, strict=True):
        if trial.synthetic:
            row = int(np.flatnonzero(samples.table["sample_id"] == trial.name)[0])
            np.testing.assert_array_equal(image, samples.images(np.array([row]))[0])
        else:
            np.testing.assert_array_equal(image, patches.images(patches.rows_of([trial.name]))[0])


def test_real_pictures_are_held_out_as_far_as_there_are_some_and_do_not_overlap(run: Run) -> None:
    plan = create_reading(run, DETECT).plan
    real = {trial.name: trial for trial in plan.trials if not trial.synthetic}
    table = PatchSet.open(run.folder("patches")).table.set_index("patch_id").loc[list(real)]
    for _, group in table.groupby("slide_id"):
        corners = group[["x", "y"]].to_numpy()
        distance = np.abs(corners[:, None] - corners).max(axis=-1) + 1e9 * np.eye(len(corners))
        assert distance.min() >= group["extent"].iloc[0]
    trained = [trial for trial in real.values() if trial.split == "train"]
    if trained:
        assert "the rest is of training slides" in plan.notes[0]
    else:
        assert plan.notes[0] == "All real patches are of held-out slides."


def test_without_held_out_slides_it_says_so(run: Run) -> None:
    path = run.folder("patches") / "index.parquet"
    pd.read_parquet(path).assign(split="train").to_parquet(path, index=False)
    plan = create_reading(run, DETECT).plan
    assert {trial.split for trial in plan.trials} == {"train", ""}
    assert "No real patch is of a held-out slide" in plan.notes[0]


def test_the_same_seed_shows_the_same_pictures_and_another_others(run: Run, tmp_path) -> None:
    import shutil

    other = Run.open(shutil.copytree(run.path, tmp_path / "other"))
    small = replace(DETECT, trials=4, seed=7)
    first, again = (create_reading(place, small).plan for place in (run, other))
    assert first.trials == again.trials
    different = [create_reading(run, replace(small, seed=seed)).plan.trials for seed in range(8, 12)]
    assert any(set(trials) != set(first.trials) for trials in different)


def test_later_readings_show_first_what_was_not_shown(run: Run) -> None:
    small = replace(DETECT, trials=4)
    first, second = (create_reading(run, small).plan for _ in range(2))
    assert not {trial.name for trial in first.trials} & {trial.name for trial in second.trials}
    assert [reading.id for reading in readings(run.path)] == ["001-real-or-synthetic", "002-real-or-synthetic"]
    assert (first.seed, second.seed) == (1, 2)


def test_reconstructions_take_the_place_of_real_patches(run: Run) -> None:
    request = Request("reconstruction-or-synthetic", 8, seed=3)
    reading = create_reading(run, request)
    patches = PatchSet.open(run.folder("patches"))
    for number, trial in enumerate(reading.plan.trials):
        if not trial.synthetic:
            original = patches.images(patches.rows_of([trial.name]))[0]
            assert (reading.picture(number) != original).any()
            assert np.abs(reading.picture(number).astype(int) - original).mean() < 90


def test_naming_asks_for_named_tissues_and_merges_clusters_of_one_name(run: Run) -> None:
    k = Clustering.open(run.folder("clusters")).chosen
    reading = create_reading(run, Request("naming", 4))
    assert reading.plan.choices == (*(f"tissue {'abc'[c]}" for c in range(k)), "cannot tell")
    for cluster in range(k):
        add_name(run.path, cluster=cluster, name="all one", k=k, rater="Ann")
    with pytest.raises(UserError, match=r"1 tissues at k = \d have a name; name two or more"):
        create_reading(run, Request("naming", 4))


def test_artefacts_are_not_shown_and_the_plan_says_so(run: Run) -> None:
    k = Clustering.open(run.folder("clusters")).chosen
    add_label(run.path, cluster=0, k=k, rater="Ann", flag="artefact")
    plan = create_reading(run, Request("real-or-synthetic", 8)).plan
    assert 0 not in {trial.cluster for trial in plan.trials}
    assert "Left out as artefacts: groups 0." in plan.notes


def test_too_few_pictures_are_refused_in_one_line(run: Run) -> None:
    with pytest.raises(UserError, match=r"there are pictures for \d+ trials, .* ask for fewer"):
        create_reading(run, replace(DETECT, trials=200))
    with pytest.raises(UserError, match="even number"):
        Request("naming", 7)
    with pytest.raises(UserError, match="no samples at k = 99"):
        create_reading(run, replace(DETECT, k=99))
    assert not readings(run.path)


def test_the_plan_reads_back(run: Run) -> None:
    reading = create_reading(run, DETECT)
    assert Plan.of_json(read_json(reading.folder / "plan.json")) == reading.plan
    assert sorted(path.name for path in reading.folder.iterdir()) == ["key", "pictures.npy", "plan.json"]
    with pytest.raises(UserError, match="format 2"):
        Plan.of_json(reading.plan.as_json() | {"format": 2})


def test_making_a_reading_of_patches_as_they_are_loads_no_torch() -> None:
    code = "import sys, histoloom.evaluation.reading.make\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

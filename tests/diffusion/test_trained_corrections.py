"""Trainings on corrected patches: the conditions that the loss sees, further conditions, and drawing from them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histoloom import pipeline
from histoloom.atlas.web.draw import tissues
from histoloom.atlas.web.generator_view import ExportView
from histoloom.atlas.web.run_view import RunView
from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clustering_set import Clustering
from histoloom.config import make_config, read_preset, with_settings
from histoloom.diffusion import distillation, stage
from histoloom.diffusion.corrections import NO_CONDITION, TrainedCorrections
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.generation.request import Request
from histoloom.diffusion.generation.run_request import request_specs
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.unet import make_unet
from histoloom.errors import UserError
from histoloom.names import merge
from histoloom.names.corrections import CorrectedTissues, correct, undo_correction
from histoloom.run.directory import Run, read_json
from histoloom.run.stage import EventLog, StageContext
from histoloom.setup import change_settings
from histoloom.sharing.export import export_generator
from histoloom.training.tasks import Task

K = 3
SETTINGS = ("diffusion.corrections=true", "diffusion.training.phases.0.images=8", "evaluation.originality=off")


def a_run(tiny_run: Path, folder: Path) -> Run:
    """The tiny run, with a training of one step that uses corrections."""
    return change_settings(Run.open(Path(shutil.copytree(tiny_run, folder))), SETTINGS, save=True)


def correct_some(run: Path) -> dict[str, int]:
    """Correct training patches in every way; returns the number that each shall have at ``K``."""
    merge(run, clusters=[0, 2], k=K, rater="A", name="bone")
    table = pd.read_parquet(run / "clusters" / "index.parquet").set_index("patch_id")[f"k{K}"]
    split = pd.read_parquet(run / "patches" / "index.parquet").set_index("patch_id")["split"]
    of_1, of_0 = (table[(table == cluster) & (split[table.index] == "train")].index.tolist() for cluster in (1, 0))
    new, shared, none, back = of_1[:4]
    moved = of_0[0]
    correct(run, patches=[new], target="lacuna", k=K, rater="A")
    correct(run, patches=[shared, back], target="Bone", k=K, rater="A")
    correct(run, patches=[none], target="", k=K, rater="A")
    correct(run, patches=[moved], target=1, k=K, rater="B")
    correct(run, patches=[back], target=None, k=K, rater="A")
    clustering = Clustering.open(run / "clusters")
    row = clustering.table["patch_id"].tolist().index(shared)
    probable = int(clustering.probabilities(K)[row][[0, 2]].argmax()) * 2
    return {new: K, shared: probable, none: NO_CONDITION, moved: 1}


def context_of(run: Run, *, out: Path) -> StageContext:
    out.mkdir(exist_ok=True)
    clusters = run.artifact("clusters")
    assert clusters is not None
    inputs = {name: run.folder(name) for name in pipeline.STAGE_NAMES}
    corrections = pipeline.training_corrections(run, clustering=clusters.fingerprint)
    return StageContext(run.path, run.config, out, inputs, EventLog(out / "log.jsonl"), corrections=corrections)


def messages(out: Path) -> list[str]:
    return [str(event["message"]) for event in EventLog(out / "log.jsonl").read() if "message" in event]


def test_further_names_count_on_from_the_clusters_of_their_k() -> None:
    conditions = Conditions((2, 3), (0, 2))
    assert (conditions.null, conditions.count, conditions.sizes) == (7, 8, (2, 5))
    assert [conditions.number(k=3, cluster=cluster) for cluster in range(5)] == [2, 3, 4, 5, 6]
    assert conditions.numbers(np.array([[1, 4], [-1, 0]])).tolist() == [[1, 6], [7, 2]]
    with pytest.raises(UserError, match="no cluster 5 at k = 3; there are 0 to 4"):
        conditions.number(k=3, cluster=5)
    with pytest.raises(UserError, match="no cluster 2 at k = 2"):
        conditions.number(k=2, cluster=2)


def test_the_loss_sees_the_corrected_conditions(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of training, warm start and distillation; all other patches keep theirs, and so does the other k."""
    run = a_run(tiny_run, tmp_path / "run")
    expected = correct_some(run.path)
    context = context_of(run, out=tmp_path / "out")
    latents, clustering = LatentSet.open(run.folder("latents")), Clustering.open(run.folder("clusters"))
    corrections = stage.frozen_corrections(context, clustering=clustering)
    assert corrections.numbers == {K: expected}
    assert "1 lacuna" in messages(tmp_path / "out")[-1]
    assert "1 no tissue" in messages(tmp_path / "out")[-1]

    space = GeneratorSpec.load(run.folder("diffusion")).space
    spec = stage.make_spec(context, latents=latents, clustering=clustering, space=space, corrections=corrections)
    assert (spec.groups, spec.conditions.sizes) == ({K: ("lacuna",)}, (2, K + 1))
    rows = latents.rows(split="train")
    ids = latents.table["patch_id"].to_numpy()[rows].tolist()
    assert len(spec.frequencies[K]) == K + 1
    assert spec.frequencies[K][K] == pytest.approx(1 / len(rows))
    assert sum(spec.frequencies[K]) == pytest.approx(1 - 1 / len(rows)), "one patch shows no tissue"

    own = stage.sweep_labels(latents, clustering)[rows]
    wanted = spec.conditions.numbers(own)
    for patch, number in expected.items():
        wanted[ids.index(patch), 1] = 2 + number if number >= 0 else spec.conditions.null
    unet = make_unet(spec.diffusion, shape=spec.shape, conditions=spec.conditions.count)
    task = stage.make_task(
        context, latents=latents, clustering=clustering, spec=spec, unet=unet, corrections=corrections
    )
    np.testing.assert_array_equal(task.batch(np.arange(len(rows)))[1], wanted)

    # A warm start has a source for each condition.
    sources = stage.warm_start(
        context,
        latents=latents,
        clustering=clustering,
        spec=spec,
        pretrained=run.folder("diffusion"),
        corrections=corrections,
    )
    assert len(sources) == spec.conditions.count
    assert sources.max() < spec.conditions.null

    # A student learns what its teacher did.
    spec.save(run.folder("diffusion"))
    corrections.save(run.folder("diffusion"))
    seen: list[Task] = []

    def record(task: Task, **_: object) -> None:
        seen.append(task)
        raise InterruptedError

    monkeypatch.setattr(distillation, "train", record)
    with pytest.raises(InterruptedError):
        distillation.distil(run, distillation.DistillConfig(images=8))
    np.testing.assert_array_equal(seen[0].batch(np.arange(len(rows)))[1], wanted)


def test_what_a_training_uses_is_frozen_in_its_folder(tiny_run: Path, tmp_path: Path) -> None:
    run = a_run(tiny_run, tmp_path / "run")
    context = context_of(run, out=tmp_path / "out")
    clustering = Clustering.open(run.folder("clusters"))
    assert stage.frozen_corrections(context, clustering=clustering) == TrainedCorrections()
    assert not (context.out / "corrections.json").exists()
    assert messages(context.out) == []
    patch = str(clustering.table["patch_id"][0])
    given = replace(context, corrections={K: CorrectedTissues(("lacuna",), {patch: (K,), "of another run": (1,)})})
    first = stage.frozen_corrections(given, clustering=clustering)
    assert first.numbers == {K: {patch: K}}
    assert stage.frozen_corrections(context, clustering=clustering) == first
    assert "it starts anew" in messages(context.out)[0]


def test_corrections_make_the_generator_stale_only_where_it_uses_them(tiny_run: Path, tmp_path: Path) -> None:
    run = a_run(tiny_run, tmp_path / "run")
    plain = change_settings(run, ["diffusion.corrections=false"], save=False)

    def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
        return {name for name in before if before[name] != after[name]}

    before, before_plain = pipeline.wanted_fingerprints(run), pipeline.wanted_fingerprints(plain)
    patch = str(Clustering.open(run.folder("clusters")).table["patch_id"][0])
    correct(run.path, patches=[patch], target="lacuna", k=K, rater="A")
    corrected = pipeline.wanted_fingerprints(run)
    assert changed(before, corrected) == {"diffusion", "samples", "evaluation", "report"}
    assert changed(before_plain, pipeline.wanted_fingerprints(plain)) == {"report"}
    correct(run.path, patches=[patch], target="Lacuna ", k=K, rater="B")
    correct(run.path, patches=["x"], target="fat", k=17, rater="B")
    undo_correction(run.path, k=K, rater="B")
    assert changed(corrected, pipeline.wanted_fingerprints(run)) == {"report"}
    undo_correction(run.path, k=K, rater="A")
    assert changed(before, pipeline.wanted_fingerprints(run)) == {"report"}


def test_a_name_that_no_cluster_has_is_trained_drawn_exported_and_undone(tiny_run: Path, tmp_path: Path) -> None:
    run = a_run(tiny_run, tmp_path / "run")
    correct_some(run.path)
    pipeline.execute(run, until="diffusion")
    out = tmp_path / "export"
    export_generator(run, out)
    views = RunView(run.path), ExportView(out, title="export", drawn=tmp_path / "drawn")
    for home, view in zip((run.path, out), views, strict=True):
        generator = Generator.load(home)
        specs = generator.sample_specs("LACUNA", n=2, seed=1, k=K)
        assert {(spec.k, spec.cluster) for spec in specs} == {(K, K)}
        asked = request_specs(generator, Request(n=2, tissues=("lacuna",), k=K, seed=1), sources=[])
        assert set(asked) == set(specs)
        seen: list[torch.Tensor] = []
        generator.unet.register_forward_pre_hook(
            lambda _network, _inputs, named, seen=seen: seen.append(named["class_labels"]), with_kwargs=True
        )
        sampler = generator.spec.sampler.model_copy(update={"guidance": 1.0})
        (drawn, _) = generator.draw(specs, sampler=sampler)
        assert (drawn.tissue, drawn.record["cluster"]) == ("lacuna", K)
        assert {int(number) for numbers in seen for number in numbers} == {
            generator.spec.conditions.number(k=K, cluster=K)
        }
        with pytest.raises(UserError, match="no tissue 'lacuna' at k = 2"):
            generator.sample_specs("lacuna", n=1, seed=0, k=2)

        offered = {tissue.name: tissue for tissue in tissues(view, k=K)}
        assert set(offered) == {"bone", "lacuna", "cluster 1"}
        assert (offered["lacuna"].title, offered["lacuna"].clusters) == ("lacuna (corrected patches)", [K])
        assert 0 < offered["lacuna"].share < 0.05
        assert {tissue.name for tissue in tissues(view, k=2)} == {"cluster 0", "cluster 1"}
    index = read_json(out / "model_index.json")
    assert index["tissues"]["k"][str(K)]["names"][str(K)] == "lacuna"
    assert index["tissues"]["null"] == 2 + K + 1
    assert f"| {K} | lacuna |" in (out / "README.md").read_text(encoding="utf-8")
    assert not (out / "corrections.json").exists(), "patches' ids stay in the run"

    # Without the corrections the generator is that of before, and is trained anew.
    for rater, steps in (("A", 4), ("B", 1)):
        for _ in range(steps):
            undo_correction(run.path, k=K, rater=rater)
    pipeline.execute(run, until="diffusion")
    assert "it starts anew" in messages(run.folder("diffusion"))[0]
    assert Generator.load(run.path).spec.groups == {}
    assert set(read_json(run.folder("diffusion") / "generator.json")) == set(
        read_json(tiny_run / "diffusion" / "generator.json")
    )


def test_corrections_go_with_no_joint_training() -> None:
    settings = ["slides.paths=[x]", "diffusion.corrections=true"]
    with pytest.raises(UserError, match=r"corrections of patches cannot be used; set diffusion\.corrections=false"):
        make_config(with_settings(read_preset("paper"), settings))

"""The evaluation stage on a tiny run written here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloom.clustering.results import Decision
from histoloom.config import Config, make_config, read_preset, with_settings
from histoloom.evaluation import distribution, similarity, stage
from histoloom.evaluation.extractors import Pixels
from histoloom.names import add_label
from histoloom.run.stage import EventLog, StageContext

SIZE = 32
SLIDES = {"s1": "train", "s2": "train", "s3": "holdout"}
PER_SLIDE = 24


def make(**settings: object) -> Config:
    values = read_preset("demo") | {"slides": {"paths": ["slides"]}}
    settings = {"originality": "off"} | settings
    pairs = [f"evaluation.{key}={value}" for key, value in settings.items()]
    plain = ["runtime.device=cpu", "evaluation.cluster_classifier=null", f"patches.size={SIZE}"]
    return make_config(with_settings(values, [*plain, *pairs]))


def write_patches(folder: Path, crops, *, truth: bool) -> pd.DataFrame:
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, (slide, split) in enumerate(SLIDES.items()):
        np.save(folder / "images" / f"{slide}.npy", crops(PER_SLIDE, SIZE, seed=number))
        for index in range(PER_SLIDE):
            rows.append(
                {"patch_id": f"{slide}_x{index * SIZE}_y0", "slide_id": slide, "slide": slide, "patient": slide}
                | {"split": split, "x": index * SIZE, "y": 0, "extent": float(SIZE), "tissue": 1.0}
            )
        if truth:
            classes = np.repeat(np.arange(PER_SLIDE, dtype=np.uint8)[None] % 2, 2, axis=0)
            Image.fromarray(classes).save(folder / f"{slide}.truth.png")
            (folder / f"{slide}.truth.json").write_text(json.dumps({"classes": ["void", "cells"]}))
    slides = [
        {"slide_id": slide, "file": str(folder / f"{slide}.tif"), "width": PER_SLIDE * SIZE, "height": 2 * SIZE}
        for slide in SLIDES
    ]
    table = pd.DataFrame(rows)
    table.to_parquet(folder / "index.parquet")
    pd.DataFrame(slides).to_parquet(folder / "slides.parquet")
    (folder / "meta.json").write_text(json.dumps({"size": SIZE, "mpp": 1.0, "n": len(rows)}))
    return table


def write_clusters(folder: Path, table: pd.DataFrame) -> None:
    """k2: every other patch; k3: cluster 2 lives in slide s1 alone. Rows in another order than the patches'."""
    folder.mkdir()
    number = table.groupby("slide_id").cumcount().to_numpy()
    k3 = np.where((table["slide_id"] == "s1") & (number >= 20), 2, number % 2)
    labels = pd.DataFrame({"patch_id": table["patch_id"], "k2": number % 2, "k3": k3})
    labels.sample(frac=1, random_state=0).to_parquet(folder / "index.parquet", index=False)
    Decision(k=2, rule="the smallest").save(folder)


def write_samples(folder: Path, crops, *, each: int = 4) -> None:
    rows = []
    for k in (2, 3):
        for cluster in range(k):
            place = folder / f"k{k}" / f"cluster-{cluster:02d}"
            place.mkdir(parents=True)
            for index, image in enumerate(crops(each, SIZE, seed=100 + 10 * k + cluster)):
                Image.fromarray(image).save(place / f"{index:06d}.png")
                name = f"k{k}/cluster-{cluster:02d}/{index:06d}.png"
                rows.append({"file_name": name, "k": k, "cluster": cluster, "index": index})
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)


def write_run(root: Path, crops, *, truth: bool = True) -> dict[str, Path]:
    inputs = {name: root / name for name in ("patches", "clusters", "samples")}
    table = write_patches(inputs["patches"], crops, truth=truth)
    write_clusters(inputs["clusters"], table)
    write_samples(inputs["samples"], crops)
    return inputs


def evaluate(out: Path, inputs: dict[str, Path], config: Config) -> dict[str, bytes]:
    out.mkdir(parents=True, exist_ok=True)
    stage.run(StageContext(out.parent, config, out, inputs, EventLog(out / "log.jsonl")))
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "log.jsonl"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, crops) -> dict[str, Path]:
    return write_run(tmp_path_factory.mktemp("run"), crops)


def load(files: dict[str, bytes], name: str):
    return json.loads(files[name])


@pytest.mark.usefixtures("no_weights")
def test_entries_of_every_cluster_comparison_and_metric(run: dict[str, Path], tmp_path: Path) -> None:
    files = evaluate(tmp_path / "out", run, make(pairs=6, bootstrap=50))
    expected_files = {"similarity.json", "missing.json", "truth.json", "distribution.json"}
    expected_files |= {"two_sample.json", "verdicts.json"}
    assert set(files) == expected_files  # originality is off: see make
    # 8 samples of the chosen k are not judged, and the reason stands in both files.
    note = "it needs 20 samples, and there are 8"
    assert load(files, "two_sample.json")["note"] == note
    verdicts = load(files, "verdicts.json")
    assert verdicts["k"] == 2
    assert verdicts["overall"]["sentence"] == f"The two-sample test: {note}."
    assert {cluster: verdict["word"] for cluster, verdict in verdicts["clusters"].items()} == dict.fromkeys(
        "01", "not measured"
    )
    table = pd.DataFrame(load(files, "similarity.json"))
    expected = {(2, 0), (2, 1), (2, None), (3, 0), (3, 1), (3, 2), (3, None)}
    clusters = table["cluster"].astype(object).where(table["cluster"].notna(), None)
    assert set(zip(table["k"], clusters, strict=True)) == expected
    assert len(table) == 7 * 3 * 2
    assert not table.duplicated(["k", "cluster", "comparison", "metric"]).any()
    assert table["interval"].map(lambda pair: pair[0]).le(table["value"]).all()
    assert table["interval"].map(lambda pair: pair[1]).ge(table["value"]).all()
    single = table[table["cluster"].notna()]
    assert (single["pairs"] == 6).all()
    assert list(load(files, "missing.json")) == ["lpips"]


@pytest.mark.usefixtures("no_weights")
def test_artefacts_are_left_out_of_scores(run: dict[str, Path], tmp_path: Path) -> None:
    config = make(pairs=6, bootstrap=50)
    whole = evaluate(tmp_path / "whole", run, config)
    add_label(tmp_path, cluster=1, k=2, rater="Dr A", flag="artefact")
    files = evaluate(tmp_path / "out", run, config)
    table = pd.DataFrame(load(files, "similarity.json"))
    assert set(table[table["k"] == 2]["cluster"].dropna()) == {0}
    assert set(table[table["k"] == 3]["cluster"].dropna()) == {0, 1, 2}
    assert list(load(files, "verdicts.json")["clusters"]) == ["0"]
    assert load(files, "two_sample.json")["note"] == "it needs 20 samples, and there are 4"
    assert files["truth.json"] == whole["truth.json"]
    assert "k = 2: left out as artefacts: clusters 1" in (tmp_path / "out" / "log.jsonl").read_text()


@pytest.mark.usefixtures("no_weights")
def test_real_side_is_held_out_where_there_is_enough(run: dict[str, Path], tmp_path: Path) -> None:
    entries = load(evaluate(tmp_path / "out", run, make(pairs=6, bootstrap=50)), "similarity.json")
    split = {(e["k"], e["cluster"], e["comparison"]): e["real_split"] for e in entries}
    assert split[2, 0, "synthetic_real"] == "holdout"
    assert split[3, 2, "synthetic_real"] == "train"
    assert split[3, 2, "synthetic_other"] == "holdout"
    assert split[3, None, "synthetic_real"] == "mixed"
    same_slide = {(e["k"], e["cluster"]) for e in entries if e.get("same_slide")}
    assert same_slide == {(3, 2), (3, None)}


@pytest.mark.usefixtures("no_weights")
def test_over_all_clusters_is_the_mean_over_pairs(run: dict[str, Path], tmp_path: Path) -> None:
    entries = load(evaluate(tmp_path / "out", run, make(pairs=6, bootstrap=50)), "similarity.json")
    chosen = [e for e in entries if (e["k"], e["comparison"], e["metric"]) == (2, "synthetic_real", "ssim")]
    parts = [e for e in chosen if e["cluster"] is not None]
    (whole,) = [e for e in chosen if e["cluster"] is None]
    assert whole["pairs"] == sum(e["pairs"] for e in parts)
    assert whole["value"] == pytest.approx(sum(e["value"] * e["pairs"] for e in parts) / whole["pairs"])


@pytest.mark.usefixtures("no_weights")
def test_truth_is_found(run: dict[str, Path], tmp_path: Path) -> None:
    truth = load(evaluate(tmp_path / "out", run, make(pairs=2, bootstrap=10)), "truth.json")
    assert [(entry["k"], entry["method"], entry["n"], entry["classes"]) for entry in truth] == [
        (2, "infomax", 72, 2),
        (3, "infomax", 72, 2),
    ]
    assert truth[0]["nmi"] == pytest.approx(1.0)
    assert 0.5 < truth[1]["nmi"] < 1.0


@pytest.mark.usefixtures("no_weights")
def test_slides_without_truth_give_no_file(tmp_path: Path, crops) -> None:
    inputs = write_run(tmp_path / "run", crops, truth=False)
    assert "truth.json" not in evaluate(tmp_path / "out", inputs, make(pairs=2, bootstrap=10))


@pytest.mark.usefixtures("no_weights")
def test_continued_equals_uninterrupted(run: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(pairs=4, bootstrap=20)
    whole = evaluate(tmp_path / "whole", run, config)
    entries_of_k = similarity.entries_of_k
    computed: list[int] = []

    def killed_at_3(*args, k: int, **kwargs):
        computed.append(k)
        if k == 3 and len(computed) == 2:
            raise KeyboardInterrupt
        return entries_of_k(*args, k=k, **kwargs)

    monkeypatch.setattr(similarity, "entries_of_k", killed_at_3)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "cut", run, config)
    assert evaluate(tmp_path / "cut", run, config) == whole
    assert computed == [2, 3, 3]


@pytest.mark.usefixtures("no_weights")
def test_similarity_by_the_papers_definitions_stands_in_a_file_of_its_own(run: dict[str, Path], tmp_path: Path) -> None:
    plain = evaluate(tmp_path / "plain", run, make(pairs=3, bootstrap=10))
    files = evaluate(tmp_path / "out", run, make(pairs=3, bootstrap=10, paper_definitions="true", paper_pairs=6))
    assert files.keys() - plain.keys() == {"paper_similarity.json"}
    assert all(files[name] == plain[name] for name in plain)

    result = load(files, "paper_similarity.json")
    assert list(result["missing"]) == ["lpips"]
    assert {entry["k"] for entry in result["entries"]} == {2, 3}
    over_all = {(e["metric"], e["comparison"]): e for e in result["entries"] if (e["k"], e["cluster"]) == (2, None)}
    assert over_all["ssim", "synthetic_real"]["pairs"] == 6
    assert over_all["ms_ssim", "real_real"]["extractor"] == "RGB pixels, 5 of 5 scales"
    assert all(entry["real_split"] == "train" for entry in result["entries"])


@pytest.mark.usefixtures("squeeze_weights")
def test_partial_result_of_fewer_metrics_is_not_used(run: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "partial"
    out.mkdir(parents=True)
    stale = {"extractors": {"ssim": "RGB pixels"}, "entries": [{"stale": True}]}
    (out / "k2.json").write_text(json.dumps(stale))
    entries = load(evaluate(tmp_path / "out", run, make(pairs=2, bootstrap=10)), "similarity.json")
    assert {entry["metric"] for entry in entries} == {"ssim", "ms_ssim", "lpips"}
    assert len(entries) == 7 * 3 * 3


@pytest.fixture(scope="module")
def many_samples(tmp_path_factory: pytest.TempPathFactory, crops) -> dict[str, Path]:
    """The same run with 20 samples of each cluster."""
    inputs = write_run(tmp_path_factory.mktemp("many"), crops)
    shutil.rmtree(inputs["samples"])
    write_samples(inputs["samples"], crops, each=20)
    return inputs


@pytest.mark.usefixtures("no_weights")
def test_distributions_of_every_k_with_their_floor(many_samples: dict[str, Path], tmp_path: Path) -> None:
    result = load(evaluate(tmp_path / "out", many_samples, make(pairs=2, bootstrap=10)), "distribution.json")
    assert set(result["missing"]) == {"lpips-alex", "encoder"}
    entries = result["entries"]
    assert {(e["k"], e["cluster"], e["extractor"]) for e in entries} == {(2, None, "pixels"), (3, None, "pixels")}
    assert {e["n_synthetic"] for e in entries if e["k"] == 2} == {40}
    assert {(e["n_real"], e["real_split"]) for e in entries} == {(24, "holdout")}
    assert all("24 images are few" in " ".join(e["notes"]) for e in entries)
    log = (tmp_path / "out" / "log.jsonl").read_text()
    assert "k = 2: frechet by pixels" in log
    assert "real against real" in log


@pytest.mark.usefixtures("no_weights")
def test_too_few_samples_are_reported_and_no_number_is_given(run: dict[str, Path], tmp_path: Path) -> None:
    result = load(evaluate(tmp_path / "out", run, make(pairs=2, bootstrap=10)), "distribution.json")
    assert result["entries"] == []
    assert "too few samples or real patches" in (tmp_path / "out" / "log.jsonl").read_text()


@pytest.mark.usefixtures("no_weights")
def test_features_of_a_killed_stage_are_used(
    many_samples: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(pairs=2, bootstrap=10)
    whole = evaluate(tmp_path / "a" / "out", many_samples, config)
    monkeypatch.setattr(distribution, "distribution_entries", _stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "b" / "out", many_samples, config)
    monkeypatch.undo()
    monkeypatch.setattr(Pixels, "block_features", _stopped)
    monkeypatch.setattr("histoloom.autoencoder.lpips._ADDRESS", (tmp_path / "no-network").as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-torch-home"))
    monkeypatch.delenv("HISTOLOOM_WEIGHTS", raising=False)
    assert evaluate(tmp_path / "b" / "out", many_samples, config) == whole


def _stopped(*_args: object, **_named: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("no_weights")
def test_a_run_with_few_held_out_patches_gets_scores_alone(run: dict[str, Path], tmp_path: Path) -> None:
    files = evaluate(tmp_path / "out", run, make(pairs=2, bootstrap=10, originality="report"))
    result = load(files, "originality.json")
    assert (result["n"], result["n_train"], result["copy_rate"], result["threshold"]) == (20, 48, None, None)
    assert "nothing could be calibrated" in result["notes"][0]
    assert len(result["samples"]) == 20
    scores = [entry["score"] for entry in result["samples"]]
    assert scores == sorted(scores, reverse=True)
    assert not any(entry["copy"] for entry in result["samples"])
    with np.load(tmp_path / "out" / "suspicious.npz") as kept:
        assert kept["sample"].shape == kept["nearest"].shape == (8, SIZE, SIZE, 3)
    assert evaluate(tmp_path / "again", run, make(pairs=2, bootstrap=10, originality="report")) == files

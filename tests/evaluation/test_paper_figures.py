"""The benchmark on the patches of the paper's figures still runs, and its numbers tell tissue from something else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paper_figures
import pytest
import torch

from histoloom.evaluation.extractors import Extractor, ExtractorSources, make_extractors
from histoloom.evaluation.images import ImageFolder


def pixels() -> Extractor:
    sources = ExtractorSources(torch.device("cpu"), download=False)
    return make_extractors(["pixels"], sources=sources, size=32)[0][0]


def test_samples_like_the_real_patches_reach_the_floor_and_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paper_figures, "AUDITED", 0)
    rng = np.random.default_rng(0)
    levels_KE = 40 + 35 * np.arange(5)[:, None] + rng.normal(0, 4, (5, 20))
    tissue = rng.normal(levels_KE[..., None, None, None], 15, (5, 20, 32, 32, 3)).clip(0, 255).astype(np.uint8)

    def numbers(synthetic: np.ndarray, name: str) -> dict[str, paper_figures.Number]:
        patches = paper_figures.FigurePatches(tissue[:, :10], synthetic)
        return paper_figures.compare(patches, extractor=pixels(), splits=3, folder=tmp_path / name)

    alike, dark = numbers(tissue[:, 10:], "alike"), numbers(tissue[:, 10:] // 2, "dark")
    assert alike["recognised"].value > 0.9
    assert dark["recognised"].value < 0.7
    assert alike["recognised"].floor == dark["recognised"].floor > 0.9
    assert alike["frechet"].value < 3 * alike["frechet"].floor
    assert dark["frechet"].value > 3 * dark["frechet"].floor
    assert dark["kid"].value > alike["kid"].value
    assert alike["frechet"].interval[0] <= alike["frechet"].value <= alike["frechet"].interval[1]
    table = paper_figures.table({"alike": alike, "dark": dark}).splitlines()
    assert len(table) == 2 + len(alike)
    assert all(line.count("|") == 6 for line in table)


def test_without_clusters_nothing_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_figures, "AUDITED", 0)
    images = np.random.default_rng(0).integers(0, 255, (2, 1, 40, 32, 32, 3), dtype=np.uint8)
    numbers = paper_figures.compare(paper_figures.FigurePatches(*images), extractor=pixels(), splits=2, folder=tmp_path)
    assert numbers.keys() == {"frechet", "kid", "precision", "recall", paper_figures.RATIO}
    table = paper_figures.table({"known": numbers | {"recognised": numbers["recall"]}, "unknown": numbers})
    assert table.splitlines()[-1].endswith("|  |  |")


def test_without_the_figures_it_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paper_figures.main(["--out", str(tmp_path / "out"), "--data", str(tmp_path)])
    assert capsys.readouterr().out.startswith("skipped: the paper's figures are not at")
    assert not (tmp_path / "out").exists()


def test_the_papers_patches_are_read(real_data: Path) -> None:
    if not (real_data / "paper" / "figures").is_dir():
        pytest.skip(f"the patches of the paper's figures are not at {real_data}")
    patches = paper_figures.paper_patches(real_data)
    assert patches.real.shape == patches.synthetic.shape == (14, 10, 128, 128, 3)
    assert patches.real.std() > 10
    # Patches of one cluster are more alike in colour than patches of all clusters are.
    means = patches.real.mean(axis=(2, 3))
    assert means.std(axis=1).mean() < 0.7 * means.std(axis=(0, 1)).mean()
    figures = paper_figures.as_in_figures(patches.real[:2, :2])
    assert figures.shape == (2, 2, 128, 128, 3)
    assert np.abs(figures.astype(int) - patches.real[:2, :2]).mean() < 10


def test_copies_score_highest(crops, tmp_path: Path) -> None:
    a, b = crops(3, 64, seed=0), crops(3, 64, seed=1)
    for name, images in {"a": a, "b": b, "copies": a[:, :, ::-1]}.items():
        paper_figures.write_images(images[None], tmp_path / name)
    a_images, b_images, copies = (ImageFolder(tmp_path / name) for name in ("a", "b", "copies"))
    scores = paper_figures.audit_scores(a_images, synthetic=copies, b=b_images)
    for value, floor in scores.values():
        assert value > 0.95
        assert floor < 0.8


def test_spread_of_pairs(real_data: Path) -> None:
    folder = real_data / "paper" / "figures"
    if not folder.is_dir():
        pytest.skip(f"the patches of the paper's figures are not at {folder}")
    patches = paper_figures.paper_patches(real_data)
    spread = paper_figures.spread_of_pairs(paper_figures.FigurePatches(patches.real[:3, :2], patches.synthetic[:3, :2]))
    assert spread["ssim, same cluster"][0] == pytest.approx(0.8, abs=0.1)
    assert spread["ssim, other clusters"][0] < spread["ssim, floor"][0]
    assert all(deviation > 0 for _, deviation in spread.values())


def test_the_whole_benchmark_on_few_of_the_papers_patches(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (real_data / "paper" / "figures").is_dir():
        pytest.skip(f"the patches of the paper's figures are not at {real_data}")
    monkeypatch.setattr(paper_figures, "AUDITED", 0)
    monkeypatch.setattr(paper_figures, "spread_of_pairs", lambda _: {"ssim, floor": (0.8, 0.1)})
    options = ["--only", "paper", "--each", "4", "--splits", "2", "--extractor", "pixels"]
    paper_figures.main(["--out", str(tmp_path), "--data", str(real_data), *options])
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "paper_figures.json").read_text())
    assert record.keys() == {"paper"}
    assert record["paper"].keys() == {"frechet", "kid", "precision", "recall", paper_figures.RATIO, "recognised"}
    assert all(f"| {name} |" in printed for name in record["paper"])
    assert record["paper"]["recognised"]["floor"] > 2 / 14

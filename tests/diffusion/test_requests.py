from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.run_request import Request, draw_request, request_specs, requested_sampler
from histoloom.diffusion.samplers import SAMPLERS
from histoloom.errors import UserError
from histoloom.names import add_label

DEFAULT = SamplerConfig(method="dpm-solver++", steps=20, guidance=1.8)


def test_a_request_changes_what_it_names_and_keeps_the_rest() -> None:
    assert requested_sampler(Request(n=1), default=DEFAULT) == DEFAULT
    changed = requested_sampler(Request(n=1, method="heun", steps=19), default=DEFAULT)
    assert changed == SamplerConfig(method="heun", steps=19, guidance=1.8)


def test_a_request_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"sampler: heun makes two evaluations a step .* set steps to 19 or 21, not 20$"
    ):
        requested_sampler(Request(n=1, method="heun"), default=DEFAULT)


def test_every_sampler_draws_with_a_trained_generator_and_goes_on(tiny_run: Path, tmp_path: Path) -> None:
    for method in sorted(set(SAMPLERS) - {"student"}):
        request = Request(n=2, method=method, steps=3, guidance=2.0)
        out = draw_request(tiny_run, request, out=tmp_path / method)
        before = {file.name: file.read_bytes() for file in out.rglob("*.png")}
        assert len(before) == 2
        table = pd.read_csv(out / "metadata.csv")[["sampler", "steps", "guidance"]]
        assert table.to_numpy().tolist() == [[method, 3, 2.0]] * 2
        next(out.rglob("*.png")).unlink()
        draw_request(tiny_run, request, out=out)
        assert {file.name: file.read_bytes() for file in out.rglob("*.png")} == before


def test_two_words_for_one_cluster_are_twice_as_many_images(tiny_run: Path, tmp_path: Path) -> None:
    """A cluster's number and its name: 4 images of each are 8, and they are the 8 of one request for the cluster."""
    run = shutil.copytree(tiny_run, tmp_path / "run")
    k = Generator.load(run).spec.chosen_k
    add_label(run, cluster=0, name="bone", k=k, rater="Dr A")
    both = draw_request(run, Request(n=4, tissues=("0", "bone"), steps=2), out=tmp_path / "both")
    pngs = {folder: {file.read_bytes() for file in (both / folder).glob("*.png")} for folder in ("0", "bone")}
    assert [len(images) for images in pngs.values()] == [4, 4]
    table = pd.read_csv(both / "metadata.csv")
    assert sorted(table["index"]) == list(range(8))
    assert table["sample_id"].is_unique
    whole = draw_request(run, Request(n=8, tissues=("bone",), steps=2), out=tmp_path / "whole")
    assert pngs["0"] | pngs["bone"] == {file.read_bytes() for file in whole.rglob("*.png")}
    before = {file: file.stat().st_mtime_ns for file in both.rglob("*.png")}
    draw_request(run, Request(n=5, tissues=("0", "bone"), steps=2), out=both)
    after = {file: file.stat().st_mtime_ns for file in both.rglob("*.png")}
    assert len(after) == 10
    assert before.items() <= after.items(), "more images keep those that are there"


def test_tissues_that_share_no_cluster_do_not_change_each_other(tiny_run: Path) -> None:
    generator = Generator.load(tiny_run)
    alone = request_specs(generator, Request(n=3, tissues=("1",)), sources=[])
    both = request_specs(generator, Request(n=3, tissues=("0", "1")), sources=[])
    assert [spec for spec, tissue in both.items() if tissue == "1"] == list(alone)

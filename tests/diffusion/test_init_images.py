"""Samples that start from pictures: more like one, and between two."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from histoloom import Clustering, Generator, PatchSet, UserError
from histoloom.autoencoder.vqgan import to_uint8
from histoloom.cli.app import app
from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.run_request import Request, draw_request
from histoloom.diffusion.generation.source_images import EncodedPicture
from histoloom.diffusion.samplers import SAMPLERS
from histoloom.diffusion.sampling import slerp

METHODS = sorted(set(SAMPLERS) - {"student"})
FEW_STEPS = SamplerConfig(steps=5, guidance=2.0)


@pytest.fixture(scope="module")
def generator(tiny_run: Path) -> Generator:
    return Generator.load(tiny_run)


@pytest.fixture(scope="module")
def ids(tiny_run: Path) -> list[str]:
    """Two patches that differ."""
    patches = PatchSet.open(tiny_run / "patches")
    images = patches.images(range(20)).astype(float)
    far = int(np.abs(images - images[0]).mean(axis=(1, 2, 3)).argmax())
    table = patches.columns("patch_id")["patch_id"]
    return [str(table[0]), str(table[far])]


def reconstruction(generator: Generator, source: EncodedPicture) -> np.ndarray:
    """What the latent space and the decoder keep of a picture."""
    space = generator.spec.space
    with torch.no_grad():
        z_NChw = space.decode(space.encode(source.z_Chw[None]))
        return to_uint8(generator.autoencoder.decode(z_NChw)).numpy()[0]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference in grey levels."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("method", METHODS)
def test_at_strength_one_nothing_of_the_source_is_left(generator: Generator, ids: list[str], method: str) -> None:
    """Sources of one name have the same random numbers: at strength 1 they give the same picture."""
    sampler = SamplerConfig(method=method, steps=5)
    source, other = (generator.encode(patch_id) for patch_id in ids)
    cluster = source.clusters[generator.spec.chosen_k]
    same_name = EncodedPicture(source.name, other.z_Chw, source.clusters)
    ours, theirs = (generator.vary(one, strength=1.0, n=2, seed=3, sampler=sampler) for one in (source, same_name))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(ours, theirs, strict=True))
    assert {drawn.spec.cluster for drawn in ours} == {cluster}


def test_more_like_a_sample_with_its_own_seed_is_new(generator: Generator) -> None:
    """With the random numbers of the samples, the noised source would lead back to itself and to its neighbours."""
    sampler = SamplerConfig(method="ddim", steps=10, guidance=1.0)
    old = generator.sample("0", n=3, seed=3, sampler=sampler)
    new = generator.vary(old[0].image, strength=0.9, n=3, seed=3, tissue="0", sampler=sampler)
    again = generator.vary(old[0].image, strength=0.9, n=3, seed=4, tissue="0", sampler=sampler)
    usual = min(distance(a.image, b.image) for a in again for b in old)
    assert min(distance(a.image, b.image) for a in new for b in old) > 0.6 * usual


@pytest.mark.parametrize("method", METHODS)
def test_towards_strength_zero_it_is_the_reconstruction(generator: Generator, ids: list[str], method: str) -> None:
    sampler = SamplerConfig(method=method, steps=5, guidance=2.0)
    source = generator.encode(ids[0])
    whole = reconstruction(generator, source)
    far = {
        strength: distance(whole, generator.vary(source, strength=strength, n=1, sampler=sampler)[0].image)
        for strength in (0.001, 0.05, 1.0)
    }
    assert far[0.001] < 2
    assert far[0.001] <= far[0.05] < far[1.0]


def test_a_variation_depends_on_its_seed_and_number_alone(generator: Generator, ids: list[str]) -> None:
    few = generator.vary(ids[0], strength=0.4, n=2, seed=7, sampler=FEW_STEPS)
    many = generator.vary(ids[0], strength=0.4, n=11, seed=7, sampler=FEW_STEPS)
    other = generator.vary(ids[0], strength=0.4, n=2, seed=8, sampler=FEW_STEPS)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(few, many, strict=False))
    assert not np.array_equal(few[0].image, other[0].image)
    assert len({drawn.image.tobytes() for drawn in many}) == 11
    assert len({drawn.record["sample_id"] for drawn in many}) == 11


def test_any_picture_can_be_the_source(generator: Generator, tiny_run: Path, ids: list[str], tmp_path: Path) -> None:
    patches = PatchSet.open(tiny_run / "patches")
    image = patches.images(patches.rows_of([ids[0]]))[0]
    Image.fromarray(image).save(tmp_path / "patch.png")
    by_id, by_file, by_pixels = (generator.encode(what) for what in (ids[0], str(tmp_path / "patch.png"), image))
    assert torch.equal(by_id.z_Chw, by_file.z_Chw)
    assert torch.equal(by_id.z_Chw, by_pixels.z_Chw)
    labels = Clustering.open(tiny_run / "clusters").labels(generator.spec.chosen_k)
    assert by_id.clusters[generator.spec.chosen_k] == labels[ids[0]]
    assert by_file.clusters == by_id.clusters
    assert by_file.name.startswith("patch.png#")
    with pytest.raises(UserError, match="neither a patch of"):
        generator.encode("nothing")
    with pytest.raises(UserError, match="generator wants uint8"):
        generator.encode(np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "torn.png").write_bytes((tmp_path / "patch.png").read_bytes()[:80])
    with pytest.raises(UserError, match=r"torn\.png cannot be read"):
        generator.encode(str(tmp_path / "torn.png"))


def test_between_two_the_ends_are_near_the_reconstructions(generator: Generator, ids: list[str]) -> None:
    ends = [generator.encode(patch_id) for patch_id in ids]
    whole = [reconstruction(generator, end) for end in ends]
    drawn = generator.between(*ends, n=5, strength=0.05, sampler=FEW_STEPS)
    assert [d.spec.init.fraction for d in drawn if d.spec.init] == [0, 0.25, 0.5, 0.75, 1]
    for end, mine, others in ((drawn[0], whole[0], whole[1]), (drawn[-1], whole[1], whole[0])):
        assert distance(end.image, mine) < distance(end.image, others) / 2
    from_first = [distance(d.image, whole[0]) for d in drawn]
    assert from_first == sorted(from_first)
    k = generator.spec.chosen_k
    wanted = [ends[0].clusters[k]] * 3 + [ends[1].clusters[k]] * 2
    assert [d.spec.cluster for d in drawn] == wanted


def test_the_first_end_is_the_same_however_many_lie_between(generator: Generator, ids: list[str]) -> None:
    three = generator.between(ids[0], ids[1], n=3, sampler=FEW_STEPS)
    five = generator.between(ids[0], ids[1], n=5, sampler=FEW_STEPS)
    assert [np.array_equal(three[i].image, five[2 * i].image) for i in range(3)] == [True] * 3


def test_an_arc_keeps_its_ends_and_its_length() -> None:
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert torch.equal(slerp(a, b, fraction=0.0), a)
    torch.testing.assert_close(slerp(a, b, fraction=1.0), b)
    torch.testing.assert_close(slerp(a, b, fraction=0.5), torch.full((1, 2), 3 / 2**0.5))
    assert torch.equal(slerp(a, a, fraction=0.3), a)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1])
def test_a_strength_outside_is_an_error(generator: Generator, ids: list[str], strength: float) -> None:
    with pytest.raises(UserError, match="strength has to be above 0"):
        generator.vary(ids[0], strength=strength, n=1)


def test_errors_of_requests_are_one_line(tiny_run: Path, ids: list[str], tmp_path: Path) -> None:
    for request, message in (
        (Request(n=1, strength=0.5), "no effect without a picture"),
        (Request(n=1, like=ids[0], between=(ids[0], ids[1])), "not both"),
        (Request(n=3, between=(ids[0], ids[1]), tissues=("0",)), "leave --tissue out"),
        (Request(n=1, between=(ids[0], ids[1])), "ask for 2 or more"),
        (Request(n=1, like=ids[0], strength=0.0), "above 0"),
    ):
        with pytest.raises(UserError, match=message):
            draw_request(tiny_run, request, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_draws_like_a_patch_and_says_so(tiny_run: Path, ids: list[str], tmp_path: Path) -> None:
    out = tmp_path / "like"
    command = ["sample", str(tiny_run), "-n", "2", "--out", str(out), "--like", ids[0], "--strength", "0.3"]
    assert CliRunner().invoke(app, command).exit_code == 0
    table = rows(out)
    assert [(row["source"], row["strength"], row["other"]) for row in table] == [(ids[0], "0.3", "")] * 2
    samples = Generator.load(tiny_run).vary(ids[0], strength=0.3, n=2)
    for row, image in zip(table, samples, strict=True):
        assert np.array_equal(np.array(Image.open(out / row["file_name"])), image.image)
    command[command.index("0.3")] = "0.4"
    assert "another request" in str(CliRunner().invoke(app, command).exception)


def test_the_command_draws_between_two(tiny_run: Path, ids: list[str], tmp_path: Path) -> None:
    out = tmp_path / "between"
    command = ["sample", str(tiny_run), "-n", "3", "--out", str(out), "--between", *ids]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert [(row["source"], row["other"], row["fraction"]) for row in rows(out)] == [
        (ids[0], ids[1], fraction) for fraction in ("0.0", "0.5", "1.0")
    ]

"""Features by content: computed once, the same to the bit, whatever happens to the files."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from histoloom.evaluation import feature_cache
from histoloom.evaluation.extractors import ExtractorSources, Pixels, make_extractor
from histoloom.evaluation.feature_cache import cached_features, prune, user_cache


class Pictures:
    """Images in memory, which count how often they are read."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images
        self.n_read = 0

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> bytes:
        return hashlib.sha256(self.images[index].tobytes()).digest()

    def read(self, indices: np.ndarray) -> np.ndarray:
        self.n_read += len(indices)
        return self.images[indices]


@pytest.fixture
def pictures(crops, monkeypatch: pytest.MonkeyPatch) -> Pictures:
    monkeypatch.setattr(feature_cache, "CHUNK", 5)
    return Pictures(crops(12, 32, seed=0))


def compute(pictures: Pictures, cache: Path) -> np.ndarray:
    extractor = make_extractor("pixels", sources=ExtractorSources(torch.device("cpu")))
    return cached_features(pictures, extractor=extractor, cache=cache, what="pictures")


def test_what_is_known_is_not_computed_again(pictures: Pictures, tmp_path: Path) -> None:
    first = compute(pictures, tmp_path)
    assert pictures.n_read == 12
    assert np.array_equal(first, Pixels().features(pictures.images))
    assert np.array_equal(compute(Pictures(pictures.images), tmp_path), first)
    reordered = Pictures(np.concatenate([pictures.images[::-1], pictures.images[:2], 255 - pictures.images[:1]]))
    again = compute(reordered, tmp_path)
    assert reordered.n_read == 1
    assert np.array_equal(again[:14], np.concatenate([first[::-1], first[:2]]))


def test_equal_images_are_computed_once(pictures: Pictures, tmp_path: Path) -> None:
    twice = Pictures(np.repeat(pictures.images, 2, axis=0))
    assert np.array_equal(compute(twice, tmp_path)[::2], Pixels().features(pictures.images))
    assert twice.n_read == 12


def test_a_lookup_reads_the_features_of_its_own_files_alone(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute(pictures, tmp_path)
    files = sorted(tmp_path.glob("*/*.npz"))
    assert len(files) == 3  # of 5, 5 and 2 images
    opened: list[Path] = []
    open_archive = feature_cache._archive

    def counting(path: Path):
        opened.append(path)
        return open_archive(path)

    monkeypatch.setattr(feature_cache, "_archive", counting)
    monkeypatch.setattr(feature_cache, "_known_keys", {})
    compute(Pictures(pictures.images[5:7]), tmp_path)
    assert len(opened) == 3 + 1  # the keys of every file, once; the features of one
    opened.clear()
    compute(Pictures(pictures.images[5:7]), tmp_path)
    compute(Pictures(pictures.images[10:]), tmp_path)
    assert len(opened) == len(set(opened)) == 2  # the features of one file each


def test_a_file_that_another_process_removed_is_no_damage(
    pictures: Pictures, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = compute(pictures, tmp_path)
    for path in tmp_path.glob("*/*.npz"):
        path.unlink()
    again = Pictures(pictures.images)
    assert np.array_equal(compute(again, tmp_path), first)
    assert again.n_read == 12
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_file_is_computed_again(
    pictures: Pictures, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = compute(pictures, tmp_path)
    path = sorted(tmp_path.glob("*/*.npz"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": bytes(data[:-200]), "flip": bytes(data), "empty": b"", "other": b"PK no archive"}[damage])
    again = Pictures(pictures.images)
    assert np.array_equal(compute(again, tmp_path), first)
    assert 0 < again.n_read <= 5
    assert "computed again" in caplog.text


def test_a_killed_computation_keeps_what_it_had(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compute(pictures, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(Pictures, "read", _second_read_fails())
        with pytest.raises(KeyboardInterrupt):
            compute(pictures, tmp_path / "cut")
    again = Pictures(pictures.images)
    assert np.array_equal(compute(again, tmp_path / "cut"), whole)
    assert again.n_read == 7


def _second_read_fails():
    calls = []

    def read(self: Pictures, numbers: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return self.images[numbers]

    return read


def _write(images: np.ndarray, cache: Path) -> None:
    torch.set_num_threads(1)
    compute(Pictures(images), cache)


def test_several_processes_write_at_once(pictures: Pictures, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")  # which imports torch once, where "spawn" does for each
    context.set_forkserver_preload([__name__, "histoloom.evaluation.extractors"])
    writers = [context.Process(target=_write, args=(np.roll(pictures.images, n, axis=0), tmp_path)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    again = Pictures(pictures.images)
    assert np.array_equal(compute(again, tmp_path), Pixels().features(pictures.images))
    assert again.n_read == 0
    assert not list(tmp_path.rglob("*.part"))


def test_a_cache_that_cannot_be_written_is_a_warning(
    pictures: Pictures, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("no folder")
    assert np.array_equal(compute(pictures, blocked), Pixels().features(pictures.images))
    assert "not kept" in caplog.text


def test_what_is_longest_unused_goes_first(pictures: Pictures, tmp_path: Path) -> None:
    compute(pictures, tmp_path)
    files = sorted(tmp_path.glob("*/*.npz"))
    for age, path in enumerate(files):
        os.utime(path, (1000 - age, 1000 - age))
    prune(tmp_path, most=sum(path.stat().st_size for path in files[:2]))
    assert sorted(tmp_path.glob("*/*.npz")) == files[:2]


def test_the_users_cache_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTOLOOM_CACHE", str(tmp_path))
    assert user_cache() == tmp_path / "features"
    monkeypatch.delenv("HISTOLOOM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "histoloom" / "features"

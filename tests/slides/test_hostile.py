"""Hostile and damaged inputs: each gets its one line, none stops the good slides, nothing hangs or eats memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
import zlib
from pathlib import Path

import hostile
import numpy as np
import pytest
import tifffile

from histoloom.config import SlidesConfig
from histoloom.errors import UserError
from histoloom.slides import stage
from histoloom.slides.entries import SlideError
from histoloom.slides.inventory.find import find_slides, inventory_fingerprint
from histoloom.slides.inventory.table import read_table
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.readers.open import open_slide

PATCHES = 60
MOST_MB, MOST_SECONDS = 700, 100


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The patches stage over every bad input at once, with five good slides with odd names."""
    from histoloom.config import make_config, read_preset
    from histoloom.run.stage import EventLog, StageContext

    root = tmp_path_factory.mktemp("hostile")
    folder, out = root / "slides", root / "out"
    folder.mkdir()
    out.mkdir()
    for name, (build, _) in hostile.BAD.items():
        build(folder / name)
    noise = np.random.default_rng(0).integers(90, 250, (128, 128, 3), dtype=np.uint8)
    for name in hostile.GOOD_NAMES:
        tifffile.imwrite(folder / name, noise, **(hostile.TILED | hostile.MPP))
    values = read_preset("cpu") | {
        "slides": {"paths": [str(folder)]},
        "patches": {"size": 16, "mpp": 1.0, "count": PATCHES, "tissue": "all"},
        "runtime": {"workers": 1},
    }
    values["clusters"]["k"] = [2, 3]
    values["diffusion"] |= {"channels": [16, 16], "attention": [False, False]}
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    context = StageContext(root, make_config(values), out, {}, EventLog(out / "log.jsonl"))
    stage.run(context)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return PatchSet.open(out), context, grown / 1024, time.monotonic() - started


def test_there_are_many(outcome):
    assert len(hostile.BAD) >= 40
    assert len(outcome[0].slides) == len(hostile.BAD) + len(hostile.GOOD_NAMES)


@pytest.mark.parametrize("name", hostile.BAD, ids=ascii)
def test_bad_input_has_its_line(outcome, name):
    slides = outcome[0].slides
    (row,) = (
        row for row in slides.to_dict("records") if Path(row["file"]).name == name.encode("utf-8", "replace").decode()
    )
    assert hostile.BAD[name][1] in row["status"]
    assert row["status"] not in ("", "ok")
    assert row["patches"] == 0
    assert row["status"].isprintable()
    assert len(row["status"]) <= 600


def test_good_slides_are_all_used(outcome):
    patches, context, _, _ = outcome
    used = patches.slides[patches.slides["status"] == "ok"]
    assert {Path(file).name for file in used["file"]} == set(hostile.GOOD_NAMES)
    assert len(patches) == PATCHES
    for column in ("slide_id", "slide", "patient"):
        assert all(name.isprintable() for name in used[column])
    assert used["slide_id"].str.fullmatch(r"[A-Za-z0-9._-]{1,104}").all()
    assert all(event["message"].isprintable() for event in context.log.read())


def test_it_costs_little(outcome):
    _, _, grown_mb, seconds = outcome
    assert grown_mb < MOST_MB
    assert seconds < MOST_SECONDS


def test_the_stage_knows_its_slides_again(outcome):
    config = outcome[1].config.slides
    assert inventory_fingerprint(config) == inventory_fingerprint(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,mpp\na.tif,nan\n", "mpp must be a number"),
        (b"file,mpp\na.tif,-0.5\n", "mpp must be a number"),
        (b"file,mpp\na.tif,inf\n", "mpp must be a number"),
        (b"file,mpp\na.tif,250\n", "from 0.01 to 100, got '250'"),
        (b"file,split\na.tif,test\n", "split must be train or holdout"),
        (b"file,split,Split\na.tif,,\n", "has the column split twice"),
        (b"file,mpp\na.tif,1,2,3\n", "quote the commas"),
        (b'file,mpp\n"a.tif,1\n', "is not CSV"),
        (b"file\na\0b.tif\n", "is not"),
        (b"file\n" + b"a" * 200_000 + b"\n", "is not"),
        (b"\xff\xfe\0\xd8", "cannot be read as a UTF-8 CSV"),
        (b"MZ\x90\0" * 10, "cannot be read|no column file"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_bad_tables_have_their_line(tmp_path, content, message):
    (tmp_path / "slides.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_table(tmp_path / "slides.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mpp", ["nan", "inf", "-1", "0", "1e9"])
def test_bad_mpp_is_refused(mpp):
    with pytest.raises(ValueError, match="mpp"):
        SlidesConfig(paths=("x",), mpp=float(mpp))


def test_links_out_are_followed_when_asked(tmp_path, picture, pyramid):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    pyramid(outside / "a.tif", picture(64, 64), mpp=0.5)
    (inside / "a.tif").symlink_to(outside / "a.tif")
    with pytest.raises(UserError, match=r"slides\.follow_links=true"):
        find_slides(SlidesConfig(paths=(str(inside),)))
    for settings in ({"paths": (str(inside),), "follow_links": True}, {"paths": (str(inside), str(outside))}):
        (entry,) = find_slides(SlidesConfig(**settings))
        assert entry.usable


def test_a_strip_that_inflates_takes_no_memory(tmp_path):
    """A megabyte of deflate that holds a gigabyte, where the page says 96 x 96 px."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, hostile.PIXELS, compression="zlib", rowsperstrip=96, metadata=None)
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(2**24)) for _ in range(64)) + packer.flush()
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.filehandle.seek(0, 2)
        end = file.filehandle.tell()
        file.filehandle.write(bomb)
        file.pages[0].tags["StripOffsets"].overwrite(end)
        file.pages[0].tags["StripByteCounts"].overwrite(len(bomb))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_slide(path) as slide, contextlib.suppress(SlideError):
        slide.thumbnail(64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
    assert sys.getsizeof(bomb) < 2**21

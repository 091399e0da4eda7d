from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from histoloom.config import Config, make_config, read_preset
from histoloom.errors import UserError
from histoloom.run.directory import (
    Artifact,
    Run,
    disk_errors_explained,
    file_digest,
    fingerprint,
    git_revision,
    replacing,
    write_json,
    write_text,
)


def a_config(**changes: object) -> Config:
    return make_config({**read_preset("cpu"), "slides": {"paths": ["/slides"]}, **changes})


def publish(run: Run, *, wanted: str, text: str) -> None:
    folder = run.begin("patches", wanted=wanted)
    (folder / "payload.txt").write_text(text)
    run.publish("patches", Artifact("patches", 1, wanted, {}, {}, 1.0, 1.0))


def test_fingerprint_does_not_depend_on_key_order() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_file_digest_sees_head_tail_and_size(tmp_path: Path) -> None:
    path = tmp_path / "slide"
    data = bytearray(300_000)
    digests = set()
    for place in (0, 299_999):
        data[place] = 1
        path.write_bytes(data)
        digests.add(file_digest(path))
    path.write_bytes(data + b"\0")
    assert len({*digests, file_digest(path)}) == 3


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_create_again_with_the_same_settings_is_fine_and_with_others_is_not(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", a_config())
    Run.create(tmp_path / "run", a_config(runtime={"device": "cpu"}))
    with pytest.raises(UserError, match=r"other settings \(seed: 0 there, 1 here\).*--set"):
        Run.create(tmp_path / "run", a_config(seed=1))
    assert Run.open(tmp_path / "run").config.seed == 0


def test_a_directory_in_other_use_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a run"):
        Run.create(tmp_path, a_config())
    with pytest.raises(UserError, match="histoloom init"):
        Run.open(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_states_and_superseding(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", a_config())
    assert run.state("patches", wanted="one") == "missing"
    run.begin("patches", wanted="one")
    assert run.state("patches", wanted="one") == "partial"
    publish(run, wanted="one", text="first")
    assert run.state("patches", wanted="one") == "done"
    assert run.state("patches", wanted="two") == "stale"
    publish(run, wanted="two", text="second")
    assert (run.folder("patches") / "payload.txt").read_text() == "second"
    assert run.restore("patches", wanted="one")
    assert (run.folder("patches") / "payload.txt").read_text() == "first"
    assert run.restore("patches", wanted="two")
    assert not run.restore("patches", wanted="three")


def test_an_unfinished_build_continues_only_for_its_own_fingerprint(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", a_config())
    (run.begin("patches", wanted="one") / "half").write_text("x")
    assert (run.begin("patches", wanted="one") / "half").exists()
    assert not (run.begin("patches", wanted="two") / "half").exists()


class Killed(BaseException):
    """Stands for a kill: nothing after it runs."""


OPERATIONS = (
    (Path, "rename"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (Path, "write_bytes"),
    (os, "fsync"),
    (shutil, "rmtree"),
)
"""What publishing does to the disk."""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_point_of_publishing_loses_nothing(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = 0
    for kill_at in itertools.count(1):
        run = Run.create(tmp_path / str(kill_at), a_config())
        publish(run, wanted="one", text="first")
        folder = run.begin("patches", wanted="two")
        (folder / "payload.txt").write_text("second")
        (folder / "inner" / "checkpoints").mkdir(parents=True)
        (folder / "inner" / "checkpoints" / "last.pt").write_text("pickle")

        count = 0
        with monkeypatch.context() as patched:
            for owner, name in OPERATIONS:
                original = getattr(owner, name)

                def killing(*args: Any, original: Any = original, kill_at: int = kill_at, **options: Any) -> Any:
                    nonlocal count
                    count += 1
                    if when == "before" and count == kill_at:
                        raise Killed
                    result = original(*args, **options)
                    if count == kill_at:
                        raise Killed
                    return result

                patched.setattr(owner, name, killing)
            try:
                run.publish("patches", Artifact("patches", 1, "two", {}, {}, 1.0, 1.0))
                finished = True
            except Killed:
                finished = False
        if finished:
            break
        points = kill_at

        # What the next call of the pipeline does: adopt, then build where the stage is not there.
        run.adopt("patches", wanted="two")
        if run.state("patches", wanted="two") != "done":
            again = run.begin("patches", wanted="two")
            assert (again / "payload.txt").read_text() == "second", f"point {kill_at}: work was lost"
            assert (again / "inner" / "checkpoints" / "last.pt").exists(), f"point {kill_at}: the checkpoint was lost"
            run.publish("patches", Artifact("patches", 1, "two", {}, {}, 1.0, 1.0))
        assert run.state("patches", wanted="two") == "done"
        assert (run.folder("patches") / "payload.txt").read_text() == "second"
        assert not list(run.folder("patches").rglob("checkpoints"))
        assert not (run.folder("patches") / "building.json").exists()
        assert run.restore("patches", wanted="one")
        assert (run.folder("patches") / "payload.txt").read_text() == "first"
    assert points >= 6


def test_a_finished_build_of_other_settings_is_kept(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", a_config())
    folder = run.begin("patches", wanted="one")
    (folder / "payload.txt").write_text("first")
    values = vars(Artifact("patches", 1, "one", {}, {}, 1.0, 1.0))
    write_json(folder / "artifact.json", values)  # and a crash
    assert not run.adopt("patches", wanted="two")
    assert not (run.begin("patches", wanted="two") / "payload.txt").exists()
    assert run.restore("patches", wanted="one")
    assert (run.folder("patches") / "payload.txt").read_text() == "first"


def test_the_git_revision_is_that_of_the_package_alone(tmp_path: Path) -> None:
    """A package installed below somebody's repository is in that checkout, but not tracked by it."""
    module = tmp_path / "site-packages" / "package.py"
    module.parent.mkdir()
    module.write_text("")
    assert git_revision(module) is None
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert git_revision(module) is None
    for command in (["add", "."], [*identity, "commit", "-q", "-m", "ours"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert git_revision(module) is not None


def test_a_missing_stage_says_how_to_make_it(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", a_config())
    with pytest.raises(UserError, match=r"histoloom run .*run --until clusters"):
        run.require("clusters")


HOLD = "import sys,time; from pathlib import Path; from histoloom.run.directory import Run\n"
HOLD += "with Run.open(Path(sys.argv[1])).locked():\n  print('held', flush=True); time.sleep(60)"


def test_two_processes_cannot_hold_a_run_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", a_config())
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is working"), run.locked():
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with run.locked():
                return
        except UserError:
            time.sleep(0.1)
    pytest.fail("the lock of a killed process was never freed")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(UserError, match="no space left"), disk_errors_explained(tmp_path):
        Path("/dev/full").write_text("x" * 100_000)


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()

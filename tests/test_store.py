from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from histoloom.config import Config, make_config, read_preset
from histoloom.errors import UserError
from histoloom.run.directory import (
    Artifact,
    Run,
    disk_errors_explained,
    file_digest,
    fingerprint,
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

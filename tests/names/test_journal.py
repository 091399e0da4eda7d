"""The journal: what several writers and a kill leave of it, and how old files are read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from histoloom.errors import UserError
from histoloom.names import (
    add_label,
    add_name,
    current_labels,
    current_names,
    locked,
    merge,
    names_journal,
    read_events,
    undo,
)
from histoloom.names import journal as journal_module

WRITER = """
import sys
from pathlib import Path
from histoloom.names import add_name
run, rater, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(count):
    add_name(run, cluster=number % 3, name=f"{rater} says {number}", k=3, rater=rater)
    print(number, flush=True)
"""


def writer(run: Path, rater: str, *, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(run), rater, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_an_old_file_reads_as_before(run: Path) -> None:
    old = [
        {"time": "2026-01-01T00:00:00.000+00:00", "rater": "A", "k": 3, "cluster": 1, "name": "bone", "clusters": "f1"},
        {"time": "2026-01-01T00:00:01.000+00:00", "rater": "B", "k": 3, "cluster": 1, "name": "fat", "clusters": "f1"},
        {"time": "2026-01-01T00:00:02.000+00:00", "rater": "B", "k": 3, "cluster": 2, "name": "fat"},
        {"time": "2026-01-01T00:00:03.000+00:00", "rater": "B", "k": 3, "cluster": 0, "name": "x", "clusters": "f0"},
    ]
    text = "".join(json.dumps(line) + "\n" for line in old)
    (run / "names.jsonl").write_text(text, encoding="utf-8")
    assert current_names(run, k=3) == {0: "cluster 0", 1: "fat", 2: "fat"}
    undo(run, k=3, rater="B")
    undo(run, k=3, rater="B")
    assert current_names(run, k=3) == {0: "cluster 0", 1: "bone", 2: "cluster 2"}
    assert (run / "names.jsonl").read_text(encoding="utf-8").startswith(text), "nothing is rewritten"


def test_a_naming_is_a_line_that_earlier_versions_read(run: Path) -> None:
    add_name(run, cluster=1, name="bone", k=3, rater="A")
    values = json.loads((run / "names.jsonl").read_text(encoding="utf-8"))
    assert values == {"rater": "A", "k": 3, "cluster": 1, "name": "bone", "clusters": "f1"} | {
        key: values[key] for key in ("id", "time")
    }


def test_processes_and_threads_that_write_at_once_lose_nothing(run: Path) -> None:
    processes = [writer(run, rater, count=40) for rater in ("A", "B")]
    threads = [
        threading.Thread(
            target=lambda who: [add_label(run, cluster=0, k=3, rater=who, flag="unsure") for _ in range(20)],
            args=(rater,),
        )
        for rater in ("C", "D")
    ]
    for thread in threads:
        thread.start()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    for thread in threads:
        thread.join()
    events = read_events(run)
    assert {rater: sum(e.rater == rater for e in events) for rater in "ABCD"} == {"A": 40, "B": 40, "C": 20, "D": 20}
    assert [e.value for e in events if e.rater == "A"] == [f"A says {number}" for number in range(40)]
    assert len({event.id for event in events}) == 120


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_writer_loses_at_most_the_last_line(run: Path) -> None:
    process = writer(run, "A", count=100_000)
    assert process.stdout is not None
    printed = -1
    while printed < 25:
        printed = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    printed = max([printed, *(int(line) for line in process.stdout.read().splitlines() if line)])
    process.wait()
    process.stdout.close()
    kept = [event.value for event in read_events(run)]
    assert kept == [f"A says {number}" for number in range(len(kept))]
    assert len(kept) >= printed + 1, "every name that was reported as written is kept"
    add_name(run, cluster=0, name="after the kill", k=3, rater="B")
    assert current_names(run, k=3)[0] == "after the kill"


def test_a_lock_that_is_held_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "LOCK_SECONDS", 0.05)
    with locked(run), pytest.raises(UserError, match="another process holds the names"):
        add_name(run, cluster=0, name="bone", k=3, rater="A")
    assert not (run / "names.jsonl").exists()


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b"[]",
        b'{"rater": "A"}',
        b'{"event": "burn", "time": "", "rater": "A", "k": 3, "cluster": 0}',
        b'{"event": "colour", "time": "", "rater": "A", "k": 3, "cluster": 0, "colour": "red;background:url(x)"}',
        b'{"event": "flag", "time": "", "rater": "A", "k": 3, "cluster": 0, "flag": "<b>"}',
        b'{"time": "", "rater": "A", "k": 1e999, "cluster": 0, "name": "x"}',
        b'{"time": "", "rater": "A", "k": 3, "cluster": 0, "name": "\\ud800"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=range(10),
)
def test_invalid_lines_are_left_out(run: Path, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    add_name(run, cluster=0, name="bone", k=3, rater="A")
    with (run / "names.jsonl").open("ab") as file:
        file.write(line + b"\n")
    add_name(run, cluster=1, name="fat", k=3, rater="A")
    assert [event.value for event in read_events(run)] == ["bone", "fat"]
    assert "line 2 is torn" in caplog.text


def test_events_about_nothing_change_nothing(run: Path) -> None:
    add_name(run, cluster=0, name="bone", k=3, rater="A")
    identity = read_events(run)[0].id
    lines = [
        {"event": "undo", "time": "", "rater": "B", "k": 3, "of": [identity], "clusters": "f1"},
        {"event": "undo", "time": "", "rater": "A", "k": 3, "of": ["nobody"], "clusters": "f1"},
        {"event": "merge", "time": "", "rater": "A", "k": 3, "members": [7, -1], "name": "far", "clusters": "f1"},
        {"time": "", "rater": "A", "k": 3, "cluster": 99, "name": "far", "clusters": "f1"},
    ]
    with (run / "names.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert current_names(run, k=3) == {0: "bone", 1: "cluster 1", 2: "cluster 2"}


def test_a_journal_reads_on_where_it_was(run: Path) -> None:
    journal = names_journal(run)
    assert journal.events() == []
    add_name(run, cluster=0, name="bone", k=3, rater="A")
    first = journal.events()
    path = run / "names.jsonl"
    with path.open("ab") as file:
        file.write(b'{"time": "", "rater": "A", "k"')
    assert journal.events() == first
    merge(run, clusters=[0, 1], k=3, rater="A")
    assert journal.events() == read_events(run)
    assert [event.kind for event in journal.events()] == ["name", "merge"]
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n")
    assert journal.events() == first, "another file has taken its place"
    path.unlink()
    assert journal.events() == []


def test_colours_and_flags_are_kept(run: Path) -> None:
    add_label(run, cluster=1, k=3, rater="A", name="bone", colour="#A0B0C0", flag="Mixed")
    label = current_labels(run, k=3)[1]
    assert (label.name, label.colour, label.flag) == ("bone", "#a0b0c0", "mixed")
    assert label.time.endswith("+00:00")

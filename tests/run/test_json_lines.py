"""Append-only files: what a crash tears is lost alone."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from histoloom.run.json_lines import append_lines, read_lines
from histoloom.run.stage import EventLog


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_lines(path) == []
    append_lines(path, [{"a": 1}, {"text": "Gewebe äöü\nzwei Zeilen"}])
    append_lines(path, [{"b": [1.5, None]}], flush=False)
    assert read_lines(path) == [{"a": 1}, {"text": "Gewebe äöü\nzwei Zeilen"}, {"b": [1.5, None]}]


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_torn_line_takes_no_later_one_with_it(cut: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    append_lines(path, [{"event": 1}, {"event": 2}])
    os.truncate(path, path.stat().st_size - cut)
    log = EventLog(path)
    log.write({"event": 3})
    log.write({"event": 4})
    with caplog.at_level(logging.WARNING):
        events = read_lines(path)
    whole = [1, 2, 3, 4] if cut == 1 else [1, 3, 4]  # the last character alone is the line's end
    assert [event["event"] for event in events] == whole
    assert ("line 2 is torn" in caplog.text) == (cut > 1)


def test_keeping_counts_whole_events_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": 1}\n{"event": \n{"event": 3}\n{"event": 4}\n', encoding="utf-8")
    log = EventLog(path)
    log.keep(2)
    assert [event["event"] for event in log.read()] == [1, 3]
    log.write({"event": 5})
    assert [event["event"] for event in log.read()] == [1, 3, 5]


def test_what_json_cannot_say_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        append_lines(path, [{"loss": float("nan")}])
    assert not path.exists()


def test_lines_that_are_no_objects_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('3\n"text"\n{"event": 1}\n\n', encoding="utf-8")
    assert read_lines(path) == [{"event": 1}]

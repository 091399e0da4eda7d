"""A reader's session: own order, opaque addresses, answers that never change, also after a crash."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from histoloom.errors import UserError
from histoloom.evaluation.reading.folder import Reading
from histoloom.evaluation.reading.make import create_reading
from histoloom.evaluation.reading.plan import Request
from histoloom.evaluation.reading.session import AlreadyAnswered, Handouts, Session
from histoloom.run.directory import Run

Read = Callable[..., Session]


@pytest.fixture
def reading(run: Run) -> Reading:
    return create_reading(run, Request("real-or-synthetic", 12))


def say(session: Session, trial: int, answer: int, seconds: float = 1.0, at_most: float | None = None) -> None:
    session.answer(session.tokens[trial], answer=answer, seconds=seconds, at_most=at_most, scaling="smooth")


def test_readers_get_the_same_pictures_in_another_order(reading: Reading) -> None:
    ann, ben = (Session.open(reading, reader=name) for name in ("Ann", "Ben"))
    assert sorted(ann.order) == sorted(ben.order) == list(range(12))
    assert ann.order != ben.order
    assert ann.order == Session(reading, reader="Ann").order
    assert not {*ann.tokens, ann.id} & {*ben.tokens, ben.id}


def test_the_order_tells_nothing_of_the_truth(reading: Reading) -> None:
    """Over many readers every place is as often real as synthetic, and the next is as often alike as it should be."""
    synthetic = np.array([trial.synthetic for trial in reading.plan.trials])
    orders = np.array([synthetic[list(Session(reading, reader=f"reader {i}").order)] for i in range(400)])
    assert np.abs(orders.mean(axis=0) - 0.5).max() < 0.1
    alike = np.mean([[a == b for a, b in pairwise(order)] for order in orders])
    assert alike == pytest.approx(5 / 11, abs=0.03)


def test_addresses_are_of_one_length_and_follow_the_secret_alone(reading: Reading) -> None:
    ann = Session(reading, reader="Ann")
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in (*ann.tokens, ann.id))
    (reading.folder / "key").write_text("00" * 32, encoding="ascii")
    other = Session(Reading(reading.folder), reader="Ann")
    assert other.order == ann.order
    assert not set(other.tokens) & set(ann.tokens)


def test_an_answer_stays(reading: Reading) -> None:
    ann = Session.open(reading, reader="Ann")
    first, second = ann.order[:2]
    say(ann, first, 4)
    say(ann, first, 4)
    with pytest.raises(AlreadyAnswered, match="stays"):
        say(ann, first, 0)
    with pytest.raises(UserError, match="not the next"):
        say(ann, ann.order[5], 0)
    say(ann, second, 0)
    assert [(a.trial, a.answer, a.position) for a in reading.answers()["Ann"].values()] == [
        (first, 4, 0),
        (second, 0, 1),
    ]
    lines = (reading.folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    with (reading.folder / "answers.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(json.loads(lines[0]) | {"answer": 0}) + "\n")
    assert reading.answers()["Ann"][first].answer == 4


@pytest.mark.parametrize("token", ["", "0" * 32, "../plan.json"])
def test_what_is_not_there_is_refused(reading: Reading, token: str) -> None:
    ann = Session.open(reading, reader="Ann")
    with pytest.raises(UserError, match="no such picture"):
        ann.answer(token, answer=0, seconds=1, at_most=None, scaling="smooth")
    with pytest.raises(UserError, match="there are 0 to 4"):
        say(ann, ann.order[0], 5)
    with pytest.raises(UserError, match="no scaling"):
        ann.answer(ann.tokens[ann.order[0]], answer=0, seconds=1, at_most=None, scaling="wild")
    assert ann.progress().answered == 0


def test_seconds_are_bounded_by_what_the_server_saw(reading: Reading) -> None:
    ann = Session.open(reading, reader="Ann")
    for trial, seconds, at_most in zip(ann.order, (9.0, -1.0, 1e9, 2.0), (5.0, 5.0, None, 3.0), strict=False):
        say(ann, trial, 0, seconds, at_most)
    assert [answer.seconds for answer in reading.answers()["Ann"].values()] == [5.0, 0.0, 3600.0, 2.0]


def test_the_clock_starts_with_the_first_showing() -> None:
    time = iter([10.0, 12.0, 20.0])
    handouts = Handouts(clock=lambda: next(time))
    handouts.note("ann", token="a")
    handouts.note("ann", token="a")
    assert handouts.elapsed("ann", token="a") == 2.0
    assert handouts.elapsed("ann", token="b") is None
    handouts.note("ann", token="b")
    assert handouts.elapsed("ben", token="b") is None


def test_the_same_name_goes_on(reading: Reading) -> None:
    ann = Session.open(reading, reader="  Ann ")
    say(ann, ann.order[0], 1)
    again = Session.open(reading, reader="ann")
    assert (again.id, again.reader, again.progress().answered) == (ann.id, "Ann", 1)
    assert reading.readers() == ["Ann"]


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, "a\nb", "a\u202eb", "\x00"])
def test_invalid_names_are_refused(reading: Reading, name: str) -> None:
    with pytest.raises(UserError, match="a reader's name"):
        Session.open(reading, reader=name)
    assert reading.readers() == []


def test_a_torn_line_is_left_out_and_closed(reading: Reading, caplog: pytest.LogCaptureFixture) -> None:
    ann = Session.open(reading, reader="Ann")
    say(ann, ann.order[0], 1)
    path = reading.folder / "answers.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": "2026-01-01", "rater": "Ann", "tri')
    assert ann.progress().answered == 1
    say(ann, ann.order[1], 2)
    assert ann.progress().answered == 2
    assert "torn" in caplog.text


def test_two_readers_at_once_lose_nothing(reading: Reading) -> None:
    def whole(name: str) -> None:
        session = Session.open(reading, reader=name)
        while (trial := session.progress().trial) is not None:
            say(session, trial, 2)

    threads = [threading.Thread(target=whole, args=(name,)) for name in ("Ann", "Ben", "Ann")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = reading.answers()
    assert {name: len(of_reader) for name, of_reader in answers.items()} == {"Ann": 12, "Ben": 12}
    assert len((reading.folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 24


def test_waiting_too_long_for_another_process_is_an_error(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histoloom.evaluation.reading.folder._WAIT_SECONDS", 0.01)
    ann = Session.open(reading, reader="Ann")
    with reading.locked(), pytest.raises(UserError, match="another process holds"):
        say(ann, ann.order[0], 1)
    say(ann, ann.order[0], 1)


KILLED = """
import os, signal, sys
from pathlib import Path
from histoloom.evaluation.reading.folder import readings
from histoloom.evaluation.reading.session import Session
session = Session.open(readings(Path(sys.argv[1]))[0], reader="Ann")
for trial in session.order[:5]:
    session.answer(session.tokens[trial], answer=3, seconds=1, at_most=None, scaling="smooth")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_the_same_picture_is_next(reading: Reading) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(reading.folder.parents[1])], env=dict(os.environ), check=False
    )
    assert done.returncode == -signal.SIGKILL
    ann = Session.open(reading, reader="Ann")
    progress = ann.progress()
    assert (progress.answered, progress.position, progress.trial) == (5, 5, ann.order[5])
    say(ann, ann.order[5], 0)

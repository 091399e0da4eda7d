"""One reader in a reading: their order of the pictures, the next picture, and their answers, which never change.

Addresses of pictures are keyed with the reading's secret and differ between readers: an address reveals neither the
truth of its picture nor which picture another reader saw.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from histoloom.errors import UserError
from histoloom.evaluation.reading.folder import Answer, Reading, now
from histoloom.seeding import permutation

LONGEST_SECONDS = 3600.0
SCALINGS = ("smooth", "pixelated")


class AlreadyAnswered(UserError):
    """The picture has another answer already, which stays."""


@dataclass(frozen=True)
class Progress:
    """Where a reader stands; ``trial`` and ``position`` of the next picture are None at the end."""

    answered: int
    total: int
    position: int | None
    trial: int | None


class Session:
    """A reader in a reading. Answers are read from the disk each time: nothing is kept in memory."""

    def __init__(self, reading: Reading, *, reader: str) -> None:
        self.reading = reading
        self.reader = reader

    @staticmethod
    def open(reading: Reading, *, reader: str) -> Session:
        """Start or continue: the same name is the same reader."""
        return Session(reading, reader=reading.enter(reader))

    @cached_property
    def id(self) -> str:
        """What the reader's pages are addressed with; cannot be guessed."""
        return self._token("session")

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The trials in this reader's order: plain random, so that no picture predicts the next.

        An order without long runs, or one that alternates real and synthetic, would.
        """
        plan = self.reading.plan
        return tuple(permutation(plan.seed, "reading order", plan.id, self.reader, n=len(plan.trials)).tolist())

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The address of each trial's picture, in the plan's order."""
        return tuple(self._token("picture", str(trial)) for trial in range(len(self.order)))

    def progress(self) -> Progress:
        """The first picture in the reader's order that has no answer."""
        return self._progress(self._answered())

    def answer(self, token: str, *, answer: int, seconds: float, at_most: float | None, scaling: str) -> Progress:
        """Record the answer to the next picture; returns the progress after it.

        The same answer again changes nothing (a page may repeat a lost request). Raises ``AlreadyAnswered`` for another
        answer to an answered picture, ``UserError`` for a picture that is not next or an answer that does not exist.
        """
        trial = self._trial(token)
        self._check(answer, scaling=scaling)
        bound = LONGEST_SECONDS if at_most is None else min(at_most, LONGEST_SECONDS)
        with self.reading.locked():
            answered = self._answered()
            if trial in answered:
                if answered[trial].answer != answer:
                    raise AlreadyAnswered("this picture has an answer already, which stays; go on with the next")
                return self._progress(answered)
            position = self._progress(answered).position
            if position is None or self.order[position] != trial:
                raise UserError("this picture is not the next one; load the page again")
            new = Answer(
                time=now(),
                rater=self.reader,
                trial=trial,
                position=position,
                answer=answer,
                seconds=round(min(max(seconds, 0.0), bound), 3),
                at_most=None if at_most is None else round(at_most, 3),
                scaling=scaling,
            )
            self.reading.append(new)
            return self._progress(answered | {trial: new})

    def _answered(self) -> dict[int, Answer]:
        return self.reading.answers().get(self.reader, {})

    def _progress(self, answered: dict[int, Answer]) -> Progress:
        open_ = next((place for place, trial in enumerate(self.order) if trial not in answered), None)
        return Progress(len(answered), len(self.order), open_, None if open_ is None else self.order[open_])

    def _trial(self, token: str) -> int:
        if token not in self.tokens:
            raise UserError("there is no such picture in this reading; load the page again")
        return self.tokens.index(token)

    def _check(self, answer: int, *, scaling: str) -> None:
        choices = len(self.reading.plan.choices)
        if not 0 <= answer < choices:
            raise UserError(f"there is no answer {answer}; there are 0 to {choices - 1}")
        if scaling not in SCALINGS:
            raise UserError(f"no scaling {scaling[:40]!r}; there are: {', '.join(SCALINGS)}")

    def _token(self, *what: str) -> str:
        text = "\0".join((*what, self.reader)).encode()
        return hmac.new(self.reading.key, text, hashlib.sha256).hexdigest()[:32]


class Handouts:
    """When pictures were handed out, to bound the response times that readers' computers measure.

    Kept in memory: after a restart nothing is known until a page is loaded again. ``clock``: seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def note(self, session: str, *, token: str) -> None:
        """The picture is handed out now, unless it was before: loading a page again does not set the clock back."""
        with self._lock:
            if self._first.get(session, ("", 0.0))[0] != token:
                self._first[session] = (token, self._clock())

    def elapsed(self, session: str, *, token: str) -> float | None:
        """Seconds since then; None where it is not known."""
        with self._lock:
            handout = self._first.get(session)
            return self._clock() - handout[1] if handout and handout[0] == token else None

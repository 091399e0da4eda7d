"""Blinded readings over HTTP: begin one, one picture at a time, and the result at its end.

Nothing that is sent before a reader's last answer depends on whether a picture is real: pictures are sent uncompressed,
so that all have the same number of bytes, under addresses made with a secret.
"""

from __future__ import annotations

import hmac
import io
import threading
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse, Response
from PIL import Image
from pydantic import BaseModel, Field

from histoloom.atlas.web.http_errors import Conflict, NotFound
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.params import view_of
from histoloom.atlas.web.run_view import RunView
from histoloom.evaluation.reading.folder import FOLDER, LONGEST_NAME, Reading, readings
from histoloom.evaluation.reading.plan import LEAST, MOST, Kind
from histoloom.evaluation.reading.plan import Request as Design
from histoloom.evaluation.reading.session import AlreadyAnswered, Handouts, Progress, Session
from histoloom.run.directory import Run

router = APIRouter()

MOST_READINGS = 500
_MAKING = threading.Lock()

ReadingId = Annotated[str, Path(min_length=1, max_length=60, description="A reading's id.")]
SessionId = Annotated[str, Path(min_length=1, max_length=60, description="A reader's way through a reading.")]
PictureId = Annotated[str, Path(min_length=1, max_length=60, description="A picture of that way.")]
Scaling = Literal["smooth", "pixelated"]


class NewReading(BaseModel):
    """What the new reading is to ask."""

    kind: Kind
    trials: int = Field(ge=LEAST, le=MOST, multiple_of=2)
    k: int | None = Field(default=None, ge=1, le=10_000)
    feedback: bool = False


class Reader(BaseModel):
    """Who reads."""

    reader: str = Field(min_length=1, max_length=LONGEST_NAME)


class GivenAnswer(BaseModel):
    """An answer to the picture that is next; ``seconds`` as the reader's computer measured them."""

    picture: str = Field(min_length=1, max_length=60)
    answer: int = Field(ge=0, le=1_000)
    seconds: float = Field(ge=0, le=1e6, allow_inf_nan=False)
    scaling: Scaling = "smooth"


class ReaderProgress(BaseModel):
    """How far a reader is."""

    reader: str
    answered: int


class ReadingInfo(BaseModel):
    """A reading, without what it shows."""

    id: str
    kind: Kind
    k: int
    trials: int
    created: str
    feedback: bool
    readers: list[ReaderProgress]


class Shown(BaseModel):
    """A picture to look at."""

    id: str
    address: str


class Feedback(BaseModel):
    """What the last answer was worth; in trainings only."""

    right: bool | None
    truth: str


class State(BaseModel):
    """Where a reader stands; ``picture`` is None at the end. ``after``: the address of the picture behind it."""

    session: str
    reading: str
    kind: Kind
    reader: str
    total: int
    answered: int
    choices: list[str]
    feedback: bool
    picture: Shown | None
    after: str | None
    last: Feedback | None = None


class Mistaken(BaseModel):
    """A picture that the reader took for something else than it is."""

    address: str
    truth: str
    answer: str


class CountTable(BaseModel):
    """How often the reader gave each answer (columns) to each truth (rows)."""

    title: str
    truths: list[str]
    numbers: list[list[int]]


class Outcome(BaseModel):
    """The result of a reader who is done: the reader's own sentence and numbers, and all finished readers'."""

    sentence: str
    notes: list[str]
    titles: list[str]
    rows: list[list[str]]
    together: str | None
    answers: list[str]
    counts: list[CountTable]
    mistaken: list[Mistaken]


@router.get("/read", response_class=HTMLResponse, include_in_schema=False)
def start(request: Request) -> HTMLResponse:
    """Begin a reading, or go on with one."""
    view = view_of(request)
    ks = sorted({sample.k for sample in view.samples.values()})
    return render(request, "read.html", ks=ks, chosen=view.chosen, least=LEAST, most=MOST, longest=LONGEST_NAME)


@router.get("/read/{session}", response_class=HTMLResponse, include_in_schema=False)
def read(request: Request, session: SessionId) -> HTMLResponse:
    """One reader's way through a reading."""
    found = _session(view_of(request), session)
    return render(request, "reading.html", session=found.id, plan=found.reading.plan, reader=found.reader)


@router.get("/api/readings")
def list_readings(request: Request) -> list[ReadingInfo]:
    """All readings of the run, the newest first."""
    return [_info(reading) for reading in reversed(list(_readings(view_of(request))))]


@router.post("/api/readings", status_code=201)
def make_reading(request: Request, wanted: NewReading) -> ReadingInfo:
    """Draw the pictures of a new reading."""
    from histoloom.evaluation.reading.make import create_reading

    view = view_of(request)
    design = Design(wanted.kind, wanted.trials, k=wanted.k, feedback=wanted.feedback)
    with _MAKING:
        if len(readings(view.path)) >= MOST_READINGS:
            raise Conflict(f"this run has {MOST_READINGS} readings, which is the most; remove some from {FOLDER}/")
        return _info(create_reading(Run.open(view.path), design))


@router.post("/api/readings/{reading}/sessions")
def begin(request: Request, reading: ReadingId, who: Reader) -> State:
    """Begin a reading, or go on: the same name is the same reader."""
    view = view_of(request)
    for found in _readings(view):
        if found.id == reading:
            return _state(view, Session.begin(found, reader=who.reader))
    raise NotFound("there is no such reading in this run")


@router.get("/api/reading-sessions/{session}")
def state(request: Request, session: SessionId) -> State:
    """Where a reader stands."""
    view = view_of(request)
    return _state(view, _session(view, session))


@router.get("/api/reading-sessions/{session}/pictures/{picture}.png", response_class=Response)
def picture(request: Request, session: SessionId, picture: PictureId) -> Response:
    """A picture of the reading: a PNG without compression, of the same length for every picture."""
    found = _session(view_of(request), session)
    if picture not in found.tokens:
        raise NotFound("there is no such picture in this reading")
    data = io.BytesIO()
    Image.fromarray(found.reading.picture(found.tokens.index(picture))).save(data, "PNG", compress_level=0)
    headers = {"Cache-Control": "private, max-age=86400, immutable", "ETag": f'"{picture}"'}
    return Response(data.getvalue(), media_type="image/png", headers=headers)


@router.post("/api/reading-sessions/{session}/answers")
def answer(request: Request, session: SessionId, given: GivenAnswer) -> State:
    """Answer the picture that is next; an answer stays."""
    view = view_of(request)
    found = _session(view, session)
    try:
        progress = found.answer(
            given.picture,
            answer=given.answer,
            seconds=given.seconds,
            at_most=_handouts(view).elapsed(found.id, token=given.picture),
            scaling=given.scaling,
        )
    except AlreadyAnswered as error:
        raise Conflict(str(error)) from error
    if progress.trial is None:
        _write_results(view, found)
    last = _feedback(found, given) if found.reading.plan.feedback else None
    return _state(view, found, progress=progress).model_copy(update={"last": last})


@router.get("/api/reading-sessions/{session}/result")
def result(request: Request, session: SessionId) -> Outcome:
    """What came out; only for a reader who answered every picture."""
    view = view_of(request)
    found = _session(view, session)
    progress = found.progress()
    if progress.trial is not None:
        left = progress.total - progress.answered
        raise Conflict(f"the result is shown at the end; {left} of {progress.total} pictures have no answer yet")
    _write_results(view, found)
    return _outcome(view, found)


def _readings(view: RunView) -> Iterator[Reading]:
    """The run's readings; plans, which never change, are read once."""
    for reading in readings(view.path):
        yield view.kept(
            ("reading", reading.id), of=[f"{FOLDER}/{reading.id}/plan.json"], make=partial(Reading, reading.folder)
        )


def _session(view: RunView, id_: str) -> Session:
    for reading in _readings(view):
        for reader in reading.readers():
            session = Session(reading, reader=reader)
            if hmac.compare_digest(session.id.encode(), id_.encode("utf-8", "replace")):
                return session
    raise NotFound("there is no such reading; begin at /read")


def _handouts(view: RunView) -> Handouts:
    return view.kept("handouts", of=[], make=Handouts)


def _info(reading: Reading) -> ReadingInfo:
    plan = reading.plan
    return ReadingInfo(
        id=plan.id,
        kind=plan.kind,
        k=plan.k,
        trials=len(plan.trials),
        created=plan.created,
        feedback=plan.feedback,
        readers=[ReaderProgress(reader=name, answered=len(given)) for name, given in reading.answers().items()],
    )


def _state(view: RunView, session: Session, *, progress: Progress | None = None) -> State:
    progress = progress or session.progress()
    plan = session.reading.plan
    shown = after = None
    if progress.trial is not None and progress.position is not None:
        token = session.tokens[progress.trial]
        _handouts(view).note(session.id, token=token)
        shown = Shown(id=token, address=_address(session, progress.trial))
        behind = session.order[progress.position + 1 :]
        after = _address(session, behind[0]) if behind else None
    return State(
        session=session.id,
        reading=plan.id,
        kind=plan.kind,
        reader=session.reader,
        total=progress.total,
        answered=progress.answered,
        choices=list(plan.choices),
        feedback=plan.feedback,
        picture=shown,
        after=after,
    )


def _address(session: Session, trial: int) -> str:
    return f"/api/reading-sessions/{session.id}/pictures/{session.tokens[trial]}.png"


def _feedback(session: Session, given: GivenAnswer) -> Feedback:
    from histoloom.evaluation.reading.results import is_right, truth_in_words

    plan = session.reading.plan
    trial = session.tokens.index(given.picture)
    return Feedback(right=is_right(plan, trial, answer=given.answer), truth=truth_in_words(plan, trial))


def _write_results(view: RunView, session: Session) -> None:
    from histoloom.evaluation.reading.results import write_results

    write_results(session.reading, run=view.path)


def _outcome(view: RunView, session: Session) -> Outcome:
    from histoloom.evaluation.reading.results import result as result_of
    from histoloom.evaluation.reading.results import truth_in_words
    from histoloom.evaluation.reading.tables import counts, spread, table

    plan = session.reading.plan
    found = result_of(session.reading, run=view.path)
    own = next(row for row in found.readers if row.reader == session.reader)
    titles, rows = table(found)
    given = session.reading.answers()[session.reader]
    return Outcome(
        sentence=own.sentence,
        notes=list(found.notes),
        titles=list(titles),
        rows=[list(row) for row in rows],
        together=None if found.together is None else spread(found.together.accuracy),
        answers=list(plan.choices),
        counts=[CountTable(title=c.title, truths=list(c.truths), numbers=list(c.numbers)) for c in counts(plan, own)],
        mistaken=[
            Mistaken(
                address=_address(session, mistake.trial),
                truth=truth_in_words(plan, mistake.trial),
                answer=plan.choices[given[mistake.trial].answer],
            )
            for mistake in own.mistaken
        ],
    )

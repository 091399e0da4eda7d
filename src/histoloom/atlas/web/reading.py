"""Blinded readings over HTTP: start one, answer one picture at a time, see the result at the end.

No response before a reader's last answer depends on whether a picture is real: pictures are sent uncompressed, so that
all have the same number of bytes, under addresses made with a secret.
"""

from __future__ import annotations

import hmac
import io
import threading
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import HTMLResponse, Response
from PIL import Image
from pydantic import BaseModel, Field

from histoloom.atlas.web.errors import Conflict, NotFound
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.routing import QueryK, View
from histoloom.atlas.web.run_view import RunView
from histoloom.evaluation.reading.folder import FOLDER, LONGEST_NAME, Reading, readings
from histoloom.evaluation.reading.plan import LEAST, MOST, Kind
from histoloom.evaluation.reading.plan import Request as Design
from histoloom.evaluation.reading.session import AlreadyAnswered, Handouts, Progress, Session
from histoloom.run.directory import Run

router = APIRouter()

MOST_READINGS = 500
_CREATING = threading.Lock()

ReadingId = Annotated[str, Path(min_length=1, max_length=60, description="A reading's id.")]
SessionId = Annotated[str, Path(min_length=1, max_length=60, description="The session of a reader in a reading.")]
PictureId = Annotated[str, Path(min_length=1, max_length=60, description="A picture of that session.")]
Scaling = Literal["smooth", "pixelated"]


class NewReading(BaseModel):
    """The design of a new reading."""

    kind: Kind
    trials: int = Field(ge=LEAST, le=MOST, multiple_of=2)
    k: int | None = Field(default=None, ge=1, le=10_000)
    feedback: bool = False


class Reader(BaseModel):
    """A reader's name."""

    reader: str = Field(min_length=1, max_length=LONGEST_NAME)


class Answer(BaseModel):
    """The answer to the next picture; ``seconds`` as the reader's computer measured them."""

    picture: str = Field(min_length=1, max_length=60)
    answer: int = Field(ge=0, le=1_000)
    seconds: float = Field(ge=0, le=1e6, allow_inf_nan=False)
    scaling: Scaling = "smooth"


class ReaderProgress(BaseModel):
    """How many pictures a reader has answered."""

    reader: str
    answered: int


class ReadingInfo(BaseModel):
    """A reading, without its pictures."""

    id: str
    kind: Kind
    k: int
    trials: int
    created: str
    feedback: bool
    readers: list[ReaderProgress]


class NextPicture(BaseModel):
    """The picture to answer next."""

    id: str
    address: str


class Feedback(BaseModel):
    """Whether the last answer is right; in trainings only."""

    right: bool | None
    truth: str


class State(BaseModel):
    """The state of a reader's session; ``picture`` is None at the end. ``after`` is the address of the one after it."""

    session: str
    reading: str
    kind: Kind
    reader: str
    total: int
    answered: int
    choices: list[str]
    feedback: bool
    picture: NextPicture | None
    after: str | None
    last: Feedback | None = None


class Mistaken(BaseModel):
    """A picture that the reader answered wrongly."""

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


def _readings(view: RunView) -> Iterator[Reading]:
    """The run's readings; plans, which never change, are read once."""
    for reading in readings(view.path):
        plan = f"{FOLDER}/{reading.id}/plan.json"
        yield view.cached(("reading", reading.id), depends_on=[plan], make=partial(Reading, reading.folder))


def session_of(view: View, session: SessionId) -> Session:
    """The session in the address; ``NotFound`` where there is none."""
    for reading in _readings(view):
        for reader in reading.readers():
            candidate = Session(reading, reader=reader)
            if hmac.compare_digest(candidate.id.encode(), session.encode("utf-8", "replace")):
                return candidate
    raise NotFound("there is no such reading; begin at /read")


ReaderSession = Annotated[Session, Depends(session_of)]


@router.get("/read", response_class=HTMLResponse, include_in_schema=False)
def start_page(request: Request, view: View, k: QueryK) -> HTMLResponse:
    """The page on which a reader starts a reading, or continues one."""
    ks = sorted({sample.k for sample in view.samples.values()})
    return render(request, "read.html", k=k, ks=ks, chosen=view.chosen, least=LEAST, most=MOST, longest=LONGEST_NAME)


@router.get("/read/{session}", response_class=HTMLResponse, include_in_schema=False)
def session_page(request: Request, view: View, session: ReaderSession) -> HTMLResponse:
    """The page of a reader's session. Its links lead to the reading's k, where the run still has that."""
    plan = session.reading.plan
    k = plan.k if plan.k in view.ks else None
    return render(request, "reading.html", k=k, session=session.id, plan=plan, reader=session.reader)


@router.get("/api/readings")
def list_readings(view: View) -> list[ReadingInfo]:
    """All readings of the run, the newest first."""
    return [_info(reading) for reading in reversed(list(_readings(view)))]


@router.post("/api/readings", status_code=201)
def new_reading(view: View, new: NewReading) -> ReadingInfo:
    """Create a reading and draw its pictures."""
    from histoloom.evaluation.reading.make import create_reading

    design = Design(new.kind, new.trials, k=new.k, feedback=new.feedback)
    with _CREATING:
        if len(readings(view.path)) >= MOST_READINGS:
            raise Conflict(f"this run has {MOST_READINGS} readings, which is the most; remove some from {FOLDER}/")
        return _info(create_reading(Run.open(view.path), design))


@router.post("/api/readings/{reading}/sessions")
def start_session(view: View, reading: ReadingId, reader: Reader) -> State:
    """Start a reading, or continue it: the same name is the same reader."""
    for candidate in _readings(view):
        if candidate.id == reading:
            return _state(view, Session.open(candidate, reader=reader.reader))
    raise NotFound("there is no such reading in this run")


@router.get("/api/reading-sessions/{session}")
def state(view: View, session: ReaderSession) -> State:
    """The state of a session."""
    return _state(view, session)


@router.get("/api/reading-sessions/{session}/pictures/{picture}.png", response_class=Response)
def picture(session: ReaderSession, picture: PictureId) -> Response:
    """A picture of the reading: a PNG without compression, of the same length for every picture."""
    if picture not in session.tokens:
        raise NotFound("there is no such picture in this reading")
    data = io.BytesIO()
    Image.fromarray(session.reading.picture(session.tokens.index(picture))).save(data, "PNG", compress_level=0)
    headers = {"Cache-Control": "private, max-age=86400, immutable", "ETag": f'"{picture}"'}
    return Response(data.getvalue(), media_type="image/png", headers=headers)


@router.post("/api/reading-sessions/{session}/answers")
def answer(view: View, session: ReaderSession, new: Answer) -> State:
    """Answer the next picture; an answer stays."""
    from histoloom.evaluation.reading.results import is_right, truth_in_words, write_results

    try:
        progress = session.answer(
            new.picture,
            answer=new.answer,
            seconds=new.seconds,
            at_most=_handouts(view).elapsed(session.id, token=new.picture),
            scaling=new.scaling,
        )
    except AlreadyAnswered as error:
        raise Conflict(str(error)) from error
    if progress.trial is None:
        write_results(session.reading, run=view.path)
    after = _state(view, session, progress=progress)
    if session.reading.plan.feedback:
        plan, trial = session.reading.plan, session.tokens.index(new.picture)
        after.last = Feedback(right=is_right(plan, trial, answer=new.answer), truth=truth_in_words(plan, trial))
    return after


@router.get("/api/reading-sessions/{session}/result")
def result(view: View, session: ReaderSession) -> Outcome:
    """The result; only for a reader who has answered every picture."""
    from histoloom.evaluation.reading.results import result as result_of
    from histoloom.evaluation.reading.results import truth_in_words, write_results
    from histoloom.evaluation.reading.tables import counts, format_estimate, table

    progress = session.progress()
    if progress.trial is not None:
        left = progress.total - progress.answered
        raise Conflict(f"the result is shown at the end; {left} of {progress.total} pictures have no answer yet")
    write_results(session.reading, run=view.path)

    plan, outcome = session.reading.plan, result_of(session.reading, run=view.path)
    own = next(row for row in outcome.readers if row.reader == session.reader)
    titles, rows = table(outcome)
    answers = session.reading.answers()[session.reader]
    return Outcome(
        sentence=own.sentence,
        notes=list(outcome.notes),
        titles=list(titles),
        rows=[list(row) for row in rows],
        together=None if outcome.together is None else format_estimate(outcome.together.accuracy),
        answers=list(plan.choices),
        counts=[CountTable(title=c.title, truths=list(c.truths), numbers=list(c.numbers)) for c in counts(plan, own)],
        mistaken=[
            Mistaken(
                address=_address(session, mistake.trial),
                truth=truth_in_words(plan, mistake.trial),
                answer=plan.choices[answers[mistake.trial].answer],
            )
            for mistake in own.mistaken
        ],
    )


def _handouts(view: RunView) -> Handouts:
    return view.cached("handouts", depends_on=[], make=Handouts)


def _info(reading: Reading) -> ReadingInfo:
    plan = reading.plan
    return ReadingInfo(
        id=plan.id,
        kind=plan.kind,
        k=plan.k,
        trials=len(plan.trials),
        created=plan.created,
        feedback=plan.feedback,
        readers=[ReaderProgress(reader=name, answered=len(of_reader)) for name, of_reader in reading.answers().items()],
    )


def _state(view: RunView, session: Session, *, progress: Progress | None = None) -> State:
    progress = progress or session.progress()
    plan = session.reading.plan
    picture = after = None
    if progress.trial is not None and progress.position is not None:
        token = session.tokens[progress.trial]
        _handouts(view).note(session.id, token=token)
        picture = NextPicture(id=token, address=_address(session, progress.trial))
        later = session.order[progress.position + 1 :]
        after = _address(session, later[0]) if later else None
    return State(
        session=session.id,
        reading=plan.id,
        kind=plan.kind,
        reader=session.reader,
        total=progress.total,
        answered=progress.answered,
        choices=list(plan.choices),
        feedback=plan.feedback,
        picture=picture,
        after=after,
    )


def _address(session: Session, trial: int) -> str:
    return f"/api/reading-sessions/{session.id}/pictures/{session.tokens[trial]}.png"

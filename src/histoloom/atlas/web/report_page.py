"""The report inside the atlas, and its refresh: it is made again with the present names and readings."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, Field

from histoloom.atlas.jobs.report_job import ReportJob, State
from histoloom.atlas.web.errors import Conflict, NotFound
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.routing import View
from histoloom.atlas.web.run_view import RunView
from histoloom.errors import UserError

REPORT = "report.html"
SHOWN_IN = ("names.jsonl", "synonyms.csv", "corrections.jsonl", "evaluation/artifact.json", "samples/artifact.json")
"""What the report shows and what may change after it was made, beside the readings."""

DOCUMENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)
"""The report is one file with its own styles and pictures; it runs no scripts and loads nothing."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""That of all pages, with a frame for the report."""


class ReportModel(BaseModel):
    """The report, and the state of its last refresh."""

    made: str = Field(description="when it was made, local time; empty where there is none")
    outdated: bool = Field(description="whether names, readings or results changed since")
    state: State
    message: str


@asynccontextmanager
async def _end_refresh(app: FastAPI) -> AsyncIterator[None]:
    yield
    job_of(app.state.view).close()


router = APIRouter(lifespan=_end_refresh)


def job_of(view: RunView) -> ReportJob:
    """The refresh of the run's report."""
    return view.cached("report job", depends_on=[], make=lambda: ReportJob(view.path))


@router.get("/report", response_class=HTMLResponse, include_in_schema=False)
def report_page(request: Request, view: View) -> HTMLResponse:
    """The report in a frame, below the button that makes it again."""
    response = render(request, "report.html", k=view.chosen, addresses={}, report=report_state(view))
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    return response


@router.get("/report/document", response_class=HTMLResponse, tags=["pages"])
def document(view: View) -> Response:
    """The report itself."""
    path = view.path / REPORT
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"this run has no report yet; it is made with: histoloom run {view.path}") from None
    headers = {
        "Content-Security-Policy": DOCUMENT_POLICY,
        "X-Frame-Options": "SAMEORIGIN",
        "Cache-Control": "no-store",
    }
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


@router.get("/api/report", tags=["report"])
def report_state(view: View) -> ReportModel:
    """When the report was made, whether it is outdated, and its refresh."""
    status, path = job_of(view).status(), view.path / REPORT
    made = path.stat().st_mtime if path.is_file() else 0.0
    files = [view.path / name for name in SHOWN_IN] + list((view.path / "readings").glob("*/results.json"))
    changed = max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)
    return ReportModel(
        made=time.strftime("%Y-%m-%d %H:%M", time.localtime(made)) if made else "",
        outdated=bool(made) and changed > made,
        state=status.state,
        message=status.message,
    )


@router.post("/api/report/refresh", tags=["report"])
def refresh(view: View) -> ReportModel:
    """Make the report again; 409 while it is being made."""
    try:
        job_of(view).start()
    except UserError as error:
        raise Conflict(str(error)) from None
    return report_state(view)

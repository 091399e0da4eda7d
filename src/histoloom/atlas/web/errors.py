"""Errors as responses: each is one clear line, and no error shows the inside of the program.

Under ``/api/`` the response is ``{"detail": line}``, elsewhere a page with the same line.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from histoloom.atlas.web.pages import render
from histoloom.atlas.web.security import SECURITY_HEADERS
from histoloom.errors import UserError

_MAX_LENGTH = 500  # characters of a line


class NotFound(UserError):
    """The run has no such id, number or k (404)."""


class Conflict(UserError):
    """The request does not fit the present state of the run (409)."""


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of ``app`` with one line."""
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)


def error_response(request: Request, *, status: int, line: str) -> Response:
    """``line`` as JSON or as a page. It is cut to a bounded length and holds only text that can be encoded.

    A request may hold half of a surrogate pair, which cannot.
    """
    text = " ".join(line.encode("utf-8", "replace").decode("utf-8").split())
    text = text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 1] + "…"
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": text}, status_code=status)
    return render(request, "error.html", status=status, line=text)


async def _user_error(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, NotFound) else 409 if isinstance(error, Conflict) else 400
    return error_response(request, status=status, line=str(error))


async def _internal_error(request: Request, _error: Exception) -> Response:
    """The response to an unexpected error, which Starlette raises again afterwards, so that the server logs it.

    It is sent outside of ``Guard``, which adds the headers to all other responses.
    """
    response = error_response(request, status=500, line="something went wrong here; the terminal says more")
    response.headers.update(SECURITY_HEADERS | {"Cache-Control": "no-store"})
    return response


async def _invalid_request(request: Request, error: Exception) -> Response:
    """The first three problems, such as ``k: Input should be greater than 1``."""
    assert isinstance(error, RequestValidationError), "registered for it"
    problems = []
    for problem in error.errors()[:3]:
        location = problem.get("loc", ())
        where = ".".join(map(str, location[1:])) or str(location[0] if location else "request")
        problems.append(f"{where}: {problem.get('msg', 'is not valid')}")
    return error_response(request, status=422, line="; ".join(problems))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it"
    line = "there is nothing at this address" if error.status_code == 404 else str(error.detail)
    response = error_response(request, status=error.status_code, line=line)
    response.headers.update(error.headers or {})
    return response

"""What an error becomes on the way out: one clear line, and never what is inside the program.

Under ``/api/`` it is ``{"detail": line}``, elsewhere a page that says the same.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from histoloom.atlas.web.http_errors import Conflict, NotFound
from histoloom.atlas.web.pages import render
from histoloom.errors import UserError

_LONGEST = 500  # characters of a line


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of ``app`` with one line."""
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)


def answer(request: Request, *, status: int, line: str) -> Response:
    """``line`` as JSON or as a page, whichever the request is for."""
    text = one_line(line)
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": text}, status_code=status)
    return render(request, "error.html", status=status, line=text)


def failed(request: Request) -> Response:
    """The answer where the application failed unexpectedly; the server's log says more."""
    return answer(request, status=500, line="something went wrong here; the terminal says more")


def one_line(text: str) -> str:
    """``text`` on one line of bounded length that can be encoded: a request may hold half of a surrogate pair."""
    plain = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"


async def _user_error(request: Request, error: Exception) -> Response:
    status = 404 if isinstance(error, NotFound) else 409 if isinstance(error, Conflict) else 400
    return answer(request, status=status, line=str(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for it"
    return answer(request, status=422, line="; ".join(_complaint(found) for found in error.errors()[:3]))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it"
    line = "there is nothing at this address" if error.status_code == 404 else str(error.detail)
    response = answer(request, status=error.status_code, line=line)
    response.headers.update(error.headers or {})
    return response


def _complaint(found: dict[str, object]) -> str:
    """``k: Input should be greater than 1``."""
    location = found.get("loc", ())
    assert isinstance(location, tuple | list), "as pydantic gives it"
    where = ".".join(str(part) for part in location[1:]) or str(location[0] if location else "request")
    return f"{where}: {found.get('msg', 'is not valid')}"

"""Serve the atlas until it is stopped."""

from __future__ import annotations

import errno
import socket
import threading
import webbrowser
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from histoloom.atlas.web.run_view import RunView
from histoloom.atlas.web.security import Access, browser_url
from histoloom.errors import UserError

PORT = 8765


def serve(app: FastAPI, *, access: Access, port: int, say: Callable[[str], None], open_browser: bool) -> None:
    """Answer requests until Ctrl+C; ``say`` is given the address once it can be opened. ``UserError``."""
    with listening(access.host, port=port) as listener:
        url = browser_url(access, port=listener.getsockname()[1])
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none")
        say(url)
        _warm(app)
        if open_browser:
            threading.Timer(0.2, webbrowser.open, [url]).start()
        uvicorn.Server(config).run(sockets=[listener])


def listening(host: str, *, port: int) -> socket.socket:
    """A socket that listens on ``port``; 0 for any that is free. ``UserError`` where it cannot."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # asyncio sends at once only where the protocol is named; else each answer waits 40 ms for the one before.
        listener = socket.socket(found[0][0], socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror}; leave it out to serve this computer alone") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[0][4])
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} is in use, by another atlas perhaps; choose another: --port {port + 1}"
            ) from error
        raise UserError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another: --port {PORT}"
        ) from error
    return listener


def _warm(app: FastAPI) -> None:
    """Read what the first page needs while the browser starts."""
    view = app.state.view
    if not isinstance(view, RunView):
        return

    def read() -> None:
        try:
            view.clusters(view.chosen)
        except UserError:
            return  # the page says it

    threading.Thread(target=read, daemon=True).start()

"""The application: its routes, and the middleware around them."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from histoloom.atlas.web import (
    clusters,
    draw,
    files,
    flow,
    gallery_api,
    jobs,
    map_page,
    naming,
    pictures,
    reading,
    slides,
)
from histoloom.atlas.web.errors import add_error_handlers
from histoloom.atlas.web.pages import NavigationEntry
from histoloom.atlas.web.run_view import RunView
from histoloom.atlas.web.security import Access, Guard

ROUTERS: tuple[APIRouter, ...] = (
    files.router,
    clusters.router,
    pictures.router,
    gallery_api.router,
    flow.router,
    map_page.router,
    slides.router,
    naming.router,
    draw.router,
    jobs.router,
    reading.router,
)
"""The routes of every part."""

NAVIGATION: tuple[NavigationEntry, ...] = (
    NavigationEntry("/", "Groups", also=("/clusters",)),
    NavigationEntry("/slides", "Slides"),
    NavigationEntry("/name", "Name"),
    NavigationEntry("/map", "Map"),
    NavigationEntry("/flow", "Splits and merges"),
    NavigationEntry("/draw", "Generate"),
    NavigationEntry("/read", "Read blinded"),
)
"""The pages, in the order in which a pathologist goes through them."""


def create_app(run: Path, *, access: Access) -> FastAPI:
    """The atlas of a run. ``UserError`` where it has no patches or no clusters yet."""
    view = RunView(run)
    for stage in ("patches", "clusters"):
        view.run.require(stage)
    app = FastAPI(
        title="Histoloom atlas",
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
        middleware=[Middleware(Guard, access=access)],
    )
    app.state.view = view
    app.state.navigation = NAVIGATION
    add_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    return app

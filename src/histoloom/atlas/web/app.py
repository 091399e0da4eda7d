"""The application: its routes, and the middleware around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from histoloom.atlas.web import (
    clusters,
    compare,
    corrections,
    draw,
    export_pages,
    files,
    flow,
    gallery_api,
    jobs,
    map_page,
    naming,
    own,
    paint,
    paint_slides,
    painted,
    pictures,
    reading,
    region,
    report_page,
    slides,
)
from histoloom.atlas.web.errors import add_error_handlers
from histoloom.atlas.web.generator_view import ExportView, GeneratorView
from histoloom.atlas.web.pages import NavigationEntry
from histoloom.atlas.web.run_view import RunView
from histoloom.atlas.web.security import Access, Guard

ROUTERS: tuple[APIRouter, ...] = (
    files.router,
    clusters.router,
    pictures.router,
    gallery_api.router,
    compare.router,
    flow.router,
    map_page.router,
    slides.router,
    region.router,
    naming.router,
    corrections.router,
    draw.router,
    own.router,
    paint.router,
    paint_slides.router,
    painted.router,
    jobs.router,
    reading.router,
    report_page.router,
)
"""The routes of every part."""

NAVIGATION: tuple[NavigationEntry, ...] = (
    NavigationEntry("/", "Groups", also=("/clusters", "/compare")),
    NavigationEntry("/slides", "Slides"),
    NavigationEntry("/name", "Name"),
    NavigationEntry("/map", "Map"),
    NavigationEntry("/flow", "Splits"),
    NavigationEntry("/draw", "Generate"),
    NavigationEntry("/paint", "Paint"),
    NavigationEntry("/read", "Read blinded"),
    NavigationEntry("/report", "Report"),
)
"""The pages, in the order in which a pathologist goes through them."""


EXPORT_ROUTERS: tuple[APIRouter, ...] = (
    files.router,
    export_pages.router,
    draw.router,
    own.router,
    paint.router,
    painted.router,
    jobs.router,
)
"""The routes of an exported generator, which has neither patches nor slides."""


def create_app(run: Path, *, access: Access) -> FastAPI:
    """The atlas of a run. ``UserError`` where it has no patches or no clusters yet."""
    view = RunView(run)
    for stage in ("patches", "clusters"):
        view.run.require(stage)
    return _app(view, ROUTERS, navigation=NAVIGATION, access=access)


def create_export_app(generator: Path, *, drawn: Path, access: Access) -> FastAPI:
    """The page that generates, for an exported generator; its pictures go to ``drawn``. ``UserError``."""
    view = ExportView(generator, title=generator.resolve().name, drawn=drawn)
    view.check()
    return _app(
        view,
        EXPORT_ROUTERS,
        navigation=(NavigationEntry("/draw", "Generate"), NavigationEntry("/paint", "Paint")),
        access=access,
    )


def _app(
    view: GeneratorView, routers: Iterable[APIRouter], *, navigation: Sequence[NavigationEntry], access: Access
) -> FastAPI:
    app = FastAPI(
        title="Histoloom atlas",
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
        middleware=[Middleware(Guard, access=access)],
    )
    app.state.view = view
    app.state.navigation = navigation
    add_error_handlers(app)
    for router in routers:
        app.include_router(router)
    return app

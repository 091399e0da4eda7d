"""A tiny run behind the atlas: a client that speaks HTTP to it, and a real browser."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import uvicorn
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, Page, expect, sync_playwright

from histoloom.atlas.web.app import create_app
from histoloom.atlas.web.security import Access
from histoloom.atlas.web.serve import listening
from histoloom.run.directory import Run, write_json

HERE = "http://127.0.0.1"
CHROMIUM = os.environ.get("HISTOLOOM_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def client_of(run: Path, *, access: Access | None = None, **options: Any) -> TestClient:
    """A client of a run's atlas, addressed as a browser on this computer does."""
    return TestClient(create_app(run, access=access or Access()), base_url=HERE, follow_redirects=False, **options)


@pytest.fixture(scope="module")
def client(published: Run) -> TestClient:
    """The atlas of a run that tests only read."""
    return client_of(published.path)


@pytest.fixture
def changing_client(finished: Run) -> TestClient:
    """The atlas of a run of its own, which the test may change."""
    return client_of(finished.path)


@pytest.fixture(scope="session")
def open_client() -> Callable[..., TestClient]:
    """``client_of``, for a run that a test names."""
    return client_of


@pytest.fixture(scope="session")
def write_map() -> Callable[[Run], list[str]]:
    """Gives a run a 2-D map of every third patch, along a spiral; returns their ids."""

    def write(run: Run) -> list[str]:
        ids = pd.read_parquet(run.folder("clusters") / "index.parquet")["patch_id"].tolist()[::3]
        turn_N = np.linspace(0, 9, len(ids))
        xy_N2 = 0.5 + (turn_N / 20)[:, None] * np.stack([np.cos(turn_N), np.sin(turn_N)], axis=1)
        maps = {"pca": xy_N2.round(4).tolist(), "tsne": xy_N2[:, ::-1].round(4).tolist()}
        near = [[(place + 1) % len(ids), (place + 2) % len(ids)] for place in range(len(ids))]
        run.folder("report").mkdir()
        write_json(
            run.folder("report") / "embedding.json",
            {"identity": {}, "patch_ids": ids, "maps": maps, "neighbours": near},
        )
        write_json(run.folder("report") / "artifact.json", {})
        return ids

    return write


@contextmanager
def serving(run: Path, *, access: Access | None = None) -> Iterator[str]:
    """A run's atlas on a free port of this computer, for a browser; gives its address, without a slash at its end."""
    access = access or Access()
    with listening(access.host, port=0) as listener:
        config = uvicorn.Config(create_app(run, access=access), log_level="warning", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture(scope="session")
def serve_run() -> Callable[..., AbstractContextManager[str]]:
    """``serving``, for a run that a test names: ``with serve_run(path) as address``."""
    return serving


@pytest.fixture(scope="module")
def address(published: Run) -> Iterator[str]:
    """Where the atlas of a run that tests only read is served."""
    with serving(published.path) as found:
        yield found


@pytest.fixture
def own_address(finished: Run) -> Iterator[str]:
    """Where the atlas of a run of the test's own is served."""
    with serving(finished.path) as found:
        yield found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window; tests that need it skip where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here; install it, or say where it is: HISTOLOOM_CHROMIUM")
    expect.set_options(timeout=20_000)  # the atlas shares the cores with the browser and the other test processes
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page; an error on it, a refused script or a request to elsewhere fails the test."""
    with watched_page(browser) as found:
        yield found


@pytest.fixture
def visit(browser: Browser) -> Callable[..., AbstractContextManager[Page]]:
    """``watched_page`` of this browser: ``with visit(color_scheme="dark") as page`` is one more visitor."""
    return partial(watched_page, browser)


@contextmanager
def watched_page(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page of its own visitor (cookies, storage) with ``options`` of ``Browser.new_context``."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    found, wrong = context.new_page(), []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("console", lambda message: wrong.append(message.text) if _is_wrong(message.text) else None)
    found.on("request", lambda request: wrong.append(request.url) if not _is_here(request.url) else None)
    yield found
    context.close()
    assert not wrong, wrong


@pytest.fixture(scope="session")
def problems() -> Callable[[Page], list[str]]:
    """What axe complains of on a page: its rule, how grave it is, and the first element."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")

    def of(page: Page) -> list[str]:
        found = axe.Axe().run(page).response["violations"]
        return [f"{one['id']} ({one['impact']}): {one['nodes'][0]['html']} {one['nodes'][0]['any']}" for one in found]

    return of


def _is_wrong(message: str) -> bool:
    return "Content Security Policy" in message


def _is_here(url: str) -> bool:
    return url.startswith((f"{HERE}:", "data:", "blob:", "about:"))

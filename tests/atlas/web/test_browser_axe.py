"""Every page is free of what axe finds wrong for those who do not see, or not well, or use no mouse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Page

from histoloom.atlas.maps.palette import colours
from histoloom.atlas.maps.patch_map import Embedding
from histoloom.atlas.report.page import render
from histoloom.atlas.report.read_run import STAGES, read_page
from histoloom.atlas.web.app import NAVIGATION
from histoloom.names.corrections import correct
from histoloom.run.directory import Run

Problems = Callable[[Page], list[str]]

PATHS = (
    *(entry.path for entry in NAVIGATION),
    *(
        "/?k=2",
        "/clusters/4/1",
        "/clusters/2/0?order=borderline",
        "/clusters/4/0?corrected=1",
        "/groups/4?name=fat",
        "/compare?left=1&right=synthetic&around=1",
        "/slides/slide-1?cluster=1",
        "/slides/slide-1/similar?x=0&y=0&width=80&height=64",
        "/slides/bad",
        "/nothing",
    ),
)
SCREENS = [(1024, "light"), (2560, "dark")]  # each width and each scheme once: a page takes seconds


@pytest.fixture(scope="module")
def whole_address(published: Run, write_map: Any, serve_run: Callable[..., Any]) -> Iterator[str]:
    """The run has a 2-D map, a name that no cluster has, and a patch without tissue."""
    write_map(published)
    index = pd.read_parquet(published.folder("clusters") / "index.parquet")
    patches = index["patch_id"][index["k4"] == 0].tolist()
    correct(published.path, patches=patches[:2], target="fat", k=4, rater="Dr A")
    correct(published.path, patches=patches[2:3], target="", k=4, rater="Dr A")
    with serve_run(published.path) as address:
        yield address


@pytest.fixture(scope="module")
def report(published: Run, whole_address: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of the same run."""
    assert whole_address, "its 2-D map is there"
    page = read_page(
        published.path,
        config=published.config,
        inputs={stage: published.folder(stage) for stage in STAGES},
        maps=tmp_path_factory.mktemp("maps"),
        embedding=Embedding.load(published.folder("report") / "embedding.json"),
    )
    return render(page)


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_every_page(visit: Callable[..., Any], problems: Problems, whole_address: str, width: int, scheme: str) -> None:
    with visit(viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        for path in PATHS:
            page.goto(f"{whole_address}{path}")
            page.wait_for_load_state("networkidle")
            assert not problems(page), path
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} is wider than {width} px"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_large_view(visit: Callable[..., Any], problems: Problems, whole_address: str, scheme: str) -> None:
    with visit(color_scheme=scheme) as page:
        page.goto(f"{whole_address}/clusters/2/0")
        page.locator("#real button").first.click()
        assert not problems(page)
        page.get_by_role("button", name="Correct …").click()
        assert not problems(page)
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Select", exact=True).click()
        page.locator("#real button").first.click()
        assert not problems(page)


def test_patches_selected_on_the_map(visit: Callable[..., Any], problems: Problems, whole_address: str) -> None:
    with visit(color_scheme="dark", viewport={"width": 768, "height": 900}) as page:
        page.goto(f"{whole_address}/map?k=4")
        page.get_by_role("button", name="Select all of fat").click()
        page.get_by_label("These show").select_option("new")
        assert not problems(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 768


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_the_report(visit: Callable[..., Any], problems: Problems, report: str, width: int, scheme: str) -> None:
    with visit(viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        page.set_content(report)
        assert not problems(page)


def test_the_report_is_as_wide_as_its_page_on_screen_and_on_paper(visit: Callable[..., Any], report: str) -> None:
    """No table is wider than what holds it, also with all numbers unfolded; print has a page a group.

    The map of patches takes other colours.
    """
    wider = """[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth + 1)
        .map(one => one.textContent.trim().slice(0, 60))"""
    with visit(viewport={"width": 768, "height": 900}) as page:
        page.set_content(report)
        colour = "getComputedStyle(document.querySelector('.points .patient-1')).backgroundColor"
        assert not page.locator(".legend-patient").is_visible()
        page.check("#by-patient")
        assert page.evaluate(colour) == f"rgb{colours(2)[1]}"
        assert page.locator(".legend-patient li").all_inner_texts() == ["patient 0", "patient 1"]
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        for media, width in (("screen", 768), ("print", 688)):  # A4 less its margins
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(media=media)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(wider) == []
        groups = page.locator(".group")
        breaks = groups.evaluate_all("all => all.map(one => getComputedStyle(one).breakBefore)")
        assert len(breaks) >= 4
        assert breaks[0] == "auto", "the first is below the heading of its section"
        assert set(breaks[1:]) == {"page"}
        assert not page.locator("nav").is_visible()

"""The slide viewer in a browser: move, zoom, layers, legend, from a patch to its cluster; by mouse and by keys."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Page, Route, expect

from histoloom.run.directory import Run, write_json

Visit = Callable[..., AbstractContextManager[Page]]

LARGER = 10
SIDE = 32 * LARGER
"""Level-0 px of a patch on the larger slide."""


@pytest.fixture
def larger(
    finished: Run, fields: dict[str, np.ndarray], serve_run: Callable[..., AbstractContextManager[str]]
) -> Iterator[tuple[Run, str]]:
    """A run whose first slide, and its patches, are ten times as large: 1600 x 1280 px."""
    folder = finished.folder("patches")
    slides, index = (pd.read_parquet(folder / name) for name in ("slides.parquet", "index.parquet"))
    on = index["slide_id"] == "slide-0"
    index.loc[on, ["x", "y"]] *= LARGER
    index.loc[on, "extent"] = float(SIDE)
    slides.loc[slides["slide_id"] == "slide-0", ["width", "height"]] *= LARGER
    index.to_parquet(folder / "index.parquet", index=False)
    slides.to_parquet(folder / "slides.parquet", index=False)
    Image.fromarray(np.kron(fields["slide-0"], np.ones((LARGER, LARGER, 1), np.uint8))).save(
        Path(slides.set_index("slide_id")["file"]["slide-0"])
    )
    maps = finished.folder("report") / "maps"
    maps.mkdir(parents=True)
    Image.new("RGB", (160, 128), (0, 200, 0)).save(maps / "slide-0.png")
    write_json(maps / "slide-0.json", {"slide_id": "slide-0", "k": 4, "clusters": "0" * 16})
    with serve_run(finished.path) as address:
        yield finished, address


def opened(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#viewer[data-ready]")
    page.wait_for_selector('#viewer[data-sharp="true"]')
    page.wait_for_function("() => document.getElementById('viewer').dataset.patches !== '0'")


def place(page: Page) -> tuple[float, float, float]:
    found = page.evaluate("() => ({...document.getElementById('viewer').dataset})")
    return float(found["x"]), float(found["y"]), float(found["zoom"])


def colour_in_the_middle(page: Page, *, left: float = 0) -> list[int]:
    """Red, green and blue, ``left`` screen pixels to the left of the viewer's middle."""
    return page.evaluate(
        """(left) => new Promise((resolve) => setTimeout(() => {
            const canvas = document.getElementById('picture');
            const x = Math.round(canvas.width / 2 - left * devicePixelRatio);
            const pixel = canvas.getContext('2d').getImageData(x, canvas.height >> 1, 1, 1);
            resolve([...pixel.data].slice(0, 3));
        }, 250))""",
        left,
    )


def middle(page: Page) -> tuple[float, float]:
    box = page.locator("#viewer").bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def wait_for_view(page: Page, wanted: Callable[[tuple[float, float, float]], bool]) -> tuple[float, float, float]:
    """Wait until ``wanted`` accepts the centre and zoom of the viewer, which may move in an animation; return them."""
    for _ in range(100):
        if wanted(place(page)):
            return place(page)
        page.wait_for_timeout(30)
    pytest.fail(f"the viewer stopped at {place(page)}")


def test_the_viewer_shows_the_slides_own_pixels(
    page: Page, larger: tuple[Run, str], fields: dict[str, np.ndarray]
) -> None:
    opened(page, f"{larger[1]}/slides/slide-0#805,645,2")
    page.get_by_label("Groups of patches").uncheck()
    assert np.abs(np.array(colour_in_the_middle(page)) - fields["slide-0"][64, 80]).max() <= 12


def test_dragging_moves_what_is_under_the_mouse(page: Page, larger: tuple[Run, str]) -> None:
    opened(page, f"{larger[1]}/slides/slide-0#800,640,1")
    x, y = middle(page)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y + 45, steps=6)
    page.mouse.up()
    assert place(page)[:2] == (860, 595)
    expect(page).to_have_url(re.compile("#860,595,1$"))


def test_the_wheel_zooms_about_the_mouse(page: Page, larger: tuple[Run, str]) -> None:
    opened(page, f"{larger[1]}/slides/slide-0#800,640,1")
    x, y = middle(page)
    page.mouse.move(x + 100, y - 50)
    page.mouse.wheel(0, -200)
    across, down, zoom = wait_for_view(page, lambda found: found[2] > 1)
    # The place under the mouse was (900, 590), and still is.
    assert across + 100 / zoom == pytest.approx(900, abs=1.5)
    assert down - 50 / zoom == pytest.approx(590, abs=1.5)
    page.mouse.wheel(0, 200)
    wait_for_view(page, lambda found: found == (800, 640, 1))


def test_keys_move_and_zoom_and_open(visit: Visit, larger: tuple[Run, str]) -> None:
    index = pd.read_parquet(larger[0].folder("patches") / "index.parquet").query("slide_id == 'slide-0'")
    labels = pd.read_parquet(larger[0].folder("clusters") / "index.parquet").set_index("patch_id")["k2"]
    first = index.iloc[0]
    x, y = int(first.x + SIDE / 2), int(first.y + SIDE / 2)
    with visit(reduced_motion="reduce") as page:
        opened(page, f"{larger[1]}/slides/slide-0?k=2#{x},{y},2")
        viewer = page.get_by_role("application", name="Slide slide-0")
        viewer.focus()
        page.keyboard.press("ArrowRight")
        moved = wait_for_view(page, lambda found: found[0] > x)
        assert moved[1:] == (y, 2)
        page.keyboard.press("ArrowLeft")
        wait_for_view(page, lambda found: found == (x, y, 2))
        page.keyboard.press("-")
        wait_for_view(page, lambda found: found[2] == 1.25)
        page.keyboard.press("+")
        wait_for_view(page, lambda found: found[2] == 2)
        expect(page.locator("#live")).to_contain_text("in the middle")
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile(rf"/clusters/2/{labels[first.patch_id]}$"))
        page.go_back()
        page.wait_for_selector("#viewer[data-ready]")
        assert place(page) == (x, y, 2)


def test_a_click_on_a_patch_opens_its_cluster(page: Page, larger: tuple[Run, str]) -> None:
    index = pd.read_parquet(larger[0].folder("patches") / "index.parquet").query("slide_id == 'slide-0'")
    labels = pd.read_parquet(larger[0].folder("clusters") / "index.parquet").set_index("patch_id")["k4"]
    last = index.iloc[-1]
    opened(page, f"{larger[1]}/slides/slide-0#{int(last.x + SIDE / 2)},{int(last.y + SIDE / 2)},1")
    page.mouse.move(*middle(page))
    expect(page.locator("#tip")).to_have_text(f"Group {labels[last.patch_id]}")
    page.mouse.click(*middle(page))
    page.wait_for_url(re.compile(rf"/clusters/4/{labels[last.patch_id]}$"))


def test_an_address_with_a_patch_shows_that_patch_in_a_frame(page: Page, larger: tuple[Run, str]) -> None:
    index = pd.read_parquet(larger[0].folder("patches") / "index.parquet").query("slide_id == 'slide-0'")
    x, y = int(index.iloc[3].x), int(index.iloc[3].y)
    opened(page, f"{larger[1]}/slides/slide-0?patch={x},{y}")
    *_, zoom = wait_for_view(page, lambda found: found[:2] == (x + SIDE / 2, y + SIDE / 2))
    page.get_by_label("Groups of patches").uncheck()
    assert colour_in_the_middle(page, left=SIDE / 2 * zoom) == [0x0B, 0x5C, 0xAD]
    assert colour_in_the_middle(page) != [0x0B, 0x5C, 0xAD]
    opened(page, f"{larger[1]}/slides/slide-0?patch={x},{y}#805,645,2")
    assert place(page) == (805, 645, 2), "a centre and zoom in the address have priority"
    opened(page, f"{larger[1]}/slides/slide-0?patch=bone#805,645,2")
    assert place(page) == (805, 645, 2)


def test_layers_and_opacity_change_what_is_seen(page: Page, larger: tuple[Run, str]) -> None:
    first = pd.read_parquet(larger[0].folder("patches") / "index.parquet").query("slide_id == 'slide-0'").iloc[0]
    opened(page, f"{larger[1]}/slides/slide-0#{int(first.x + SIDE / 2)},{int(first.y + SIDE / 2)},1")
    tinted = colour_in_the_middle(page)
    page.get_by_label("Groups of patches").uncheck()
    plain = colour_in_the_middle(page)
    assert tinted != plain
    page.get_by_label("Report’s tissue map").check()
    page.get_by_label("Opacity").fill("100")
    assert colour_in_the_middle(page) == [0, 200, 0]
    page.get_by_label("Opacity").fill("0")
    assert colour_in_the_middle(page) == plain


def test_groups_are_shown_by_checkboxes_and_the_rest_is_dimmed(page: Page, larger: tuple[Run, str]) -> None:
    first = pd.read_parquet(larger[0].folder("patches") / "index.parquet").query("slide_id == 'slide-0'").iloc[0]
    labels = pd.read_parquet(larger[0].folder("clusters") / "index.parquet").set_index("patch_id")["k2"]
    own = int(labels[first.patch_id])
    opened(page, f"{larger[1]}/slides/slide-0?k=2&cluster={own}#{int(first.x + SIDE / 2)},{int(first.y + SIDE / 2)},2")
    legend = page.get_by_role("list", name="Groups")
    one = legend.get_by_role("checkbox", name=f"Group {own}")
    other = legend.get_by_role("checkbox", name=f"Group {1 - own}")
    expect(one).to_be_checked()
    expect(other).not_to_be_checked()
    tinted = colour_in_the_middle(page)

    legend.get_by_role("button", name=f"Show Group {1 - own} alone").click()
    expect(one).not_to_be_checked()
    expect(page).to_have_url(re.compile(rf"\?k=2&groups={1 - own}#"))
    dimmed = colour_in_the_middle(page)
    page.get_by_role("button", name="All", exact=True).click()
    assert colour_in_the_middle(page) == tinted
    page.get_by_label("Groups of patches").uncheck()
    plain = colour_in_the_middle(page)
    assert sum(dimmed) > sum(plain), "what is not shown is paler"
    assert len({tuple(colour) for colour in (tinted, dimmed, plain)}) == 3

    # The address reopens the view: groups, layers, opacity.
    page.get_by_role("button", name="None", exact=True).click()
    other.check()
    page.get_by_label("Names on the map").check()
    page.get_by_label("Groups of patches").check()
    page.get_by_label("Opacity").fill("75")
    expect(page).to_have_url(re.compile(rf"&layers=patches,names&groups={1 - own}&fill=75#"))
    view = page.locator("#picture")
    page.wait_for_timeout(250)
    before = view.screenshot()
    page.reload()
    opened(page, page.url)
    expect(other).to_be_checked()
    expect(one).not_to_be_checked()
    expect(page.get_by_label("Names on the map")).to_be_checked()
    page.wait_for_timeout(250)
    again = view.screenshot()
    difference = ImageChops.difference(*(Image.open(io.BytesIO(png)).convert("RGB") for png in (again, before)))
    assert np.asarray(difference).mean() < 0.5, "grey levels; a browser may draw a line a little differently"


def test_another_k_keeps_the_place(page: Page, larger: tuple[Run, str]) -> None:
    opened(page, f"{larger[1]}/slides/slide-0#700,600,0.75")
    page.get_by_role("link", name="2 groups").click()
    page.wait_for_url(re.compile(r"k=2#700,600,0\.75$"))
    page.wait_for_selector("#viewer[data-ready]")
    assert place(page) == (700, 600, 0.75)


def test_requests_for_tiles_out_of_view_are_cancelled(page: Page, larger: tuple[Run, str]) -> None:
    opened(page, f"{larger[1]}/slides/slide-0#100,100,4")
    cancelled: list[str] = []
    held: list[Route] = []
    hold = True
    page.on("requestfailed", lambda request: cancelled.append(request.url))
    page.route("**/tiles/**", lambda route: held.append(route) if hold else route.continue_())
    page.evaluate("() => (location.hash = '#1500,1200,4')")
    wait_for_view(page, lambda found: found == (1500, 1200, 4))
    for _ in range(100):
        page.wait_for_timeout(30)
        if held:
            break
    held_urls = [route.request.url for route in held]
    assert any("/tiles/0/5/4.jpg" in url for url in held_urls)
    hold = False
    page.evaluate("() => (location.hash = '#800,640,0.5')")
    wait_for_view(page, lambda found: found == (800, 640, 0.5))
    page.wait_for_selector('#viewer[data-sharp="true"]')
    for _ in range(100):
        if len(cancelled) >= len(held_urls):
            break
        page.wait_for_timeout(30)
    assert sorted(cancelled) == sorted(held_urls)


def test_a_slide_that_moved_is_shown_as_its_thumbnail(page: Page, own_address: str, finished: Run) -> None:
    table = pd.read_parquet(finished.folder("patches") / "slides.parquet").set_index("slide_id")
    Path(table["file"]["slide-0"]).unlink()
    page.goto(f"{own_address}/slides/slide-0")
    expect(page.get_by_role("note")).to_contain_text("The thumbnail is shown instead")
    page.wait_for_selector("#viewer[data-ready]")
    page.get_by_label("Groups of patches").uncheck()
    page.wait_for_timeout(200)
    assert max(colour_in_the_middle(page)) > 0


@pytest.mark.parametrize("width", [1024, 1600, 2560])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_does_not_overflow(visit: Visit, address: str, width: int, scheme: str) -> None:
    with visit(viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        for path in ("/slides", "/slides/slide-1"):
            page.goto(f"{address}{path}")
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_two_fingers_zoom(visit: Visit, larger: tuple[Run, str]) -> None:
    with visit(has_touch=True) as page:
        opened(page, f"{larger[1]}/slides/slide-0#800,640,1")
        x, y = middle(page)
        session = page.context.new_cdp_session(page)

        def touch(kind: str, *points: float) -> None:
            at = [{"x": x + dx, "y": y, "id": number} for number, dx in enumerate(points)]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

        touch("touchStart", -50, 50)
        for apart in (60, 75, 90, 100):
            touch("touchMove", -apart, apart)
        touch("touchEnd")
        across, down, zoom = wait_for_view(page, lambda found: found[2] > 1.5)
        assert zoom == pytest.approx(2, rel=0.02)
        assert (across, down) == pytest.approx((800, 640), abs=3)

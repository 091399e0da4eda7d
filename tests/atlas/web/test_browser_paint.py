"""The page that paints, in a browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

WAIT = 60_000


@pytest.fixture(scope="module")
def paint_address(
    tiny_run: Path, tmp_path_factory: pytest.TempPathFactory, serve_run: Callable[..., AbstractContextManager[str]]
) -> Iterator[str]:
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("browser-painting") / "run"))
    with serve_run(run) as address:
        yield address


def opened(page: Page, address: str) -> None:
    page.goto(f"{address}/paint?k=3")
    page.locator("#surface[data-ready]").wait_for(timeout=WAIT)


def drag(page: Page, *places: tuple[float, float]) -> None:
    """Drag over the layout; places are shares of its width and height."""
    page.locator("#drawing").scroll_into_view_if_needed()
    box = page.locator("#drawing").bounding_box()
    assert box is not None
    for number, (x, y) in enumerate(places):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def saved(page: Page, folder: Path) -> dict[str, float]:
    """The area of each tissue in the saved layout, as a share of the field."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the layout").click()
    download.value.save_as(folder / "layout.geojson")
    areas: dict[str, float] = {}
    for feature in json.loads((folder / "layout.geojson").read_text(encoding="utf-8"))["features"]:
        name, rings = feature["properties"]["classification"]["name"], feature["geometry"]["coordinates"]
        for number, ring in enumerate(rings):
            doubled = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(ring))
            areas[name] = areas.get(name, 0) + abs(doubled) / 2 * (1 if number == 0 else -1)
    whole = sum(areas.values())
    return {name: area / whole for name, area in areas.items()}


def test_draw_by_mouse_and_keys_save_preview_and_paint(
    page: Page, paint_address: str, problems: Callable[[Page], list[str]], tmp_path: Path
) -> None:
    opened(page, paint_address)
    expect(page.get_by_text("Painted fields are synthetic.")).to_be_visible()
    first, second, third = page.locator("#palette input").all()
    titles = page.locator("#palette .name").all_inner_texts()
    name = [title.replace("Group", "cluster") for title in titles]
    assert saved(page, tmp_path) == {name[0]: 1.0}

    # A rectangle and an outline by the mouse; the brush by keys; undo and redo.
    second.check()
    page.get_by_role("button", name="Rectangle").click()
    drag(page, (-0.01, -0.01), (0.49, 1.01))  # begun beside the layout
    areas = saved(page, tmp_path)
    assert areas[name[1]] == pytest.approx(0.5, abs=0.04)
    third.check()
    page.get_by_role("button", name="Polygon").click()
    drag(page, (0.6, 0.1), (0.9, 0.1), (0.9, 0.5), (0.6, 0.5), (0.6, 0.2))
    areas = saved(page, tmp_path)
    assert areas[name[2]] == pytest.approx(0.12, abs=0.02)
    first.check()
    page.locator("#surface").focus()
    for key in ("b", "Shift+ArrowRight", "Enter", "Shift+ArrowDown", "Shift+ArrowDown", "Escape"):
        page.keyboard.press(key)
    drawn = saved(page, tmp_path)
    assert drawn[name[1]] < 0.45, "the first tissue is drawn over the second"
    page.keyboard.press("Control+z")  # wherever the focus is
    assert saved(page, tmp_path) == areas
    page.get_by_role("button", name="Redo").click()
    assert saved(page, tmp_path) == drawn
    expect(page.locator("#command")).to_contain_text("--layout layout.geojson --out field --size 256 256 --seed")

    # A smaller field; it is kept over a reload. Bad input is one line.
    for label in ("Width", "Height"):
        page.get_by_label(label).fill("64")
        page.get_by_label(label).blur()
    page.get_by_text("Method, boundaries").click()
    page.get_by_label("Method").select_option("ddim")
    page.get_by_label("Steps").fill("1")
    page.reload()
    page.locator("#surface[data-ready]").wait_for(timeout=WAIT)
    expect(page.get_by_label("Width")).to_have_value("64")
    assert set(saved(page, tmp_path)) == set(name)
    page.get_by_label("Width").fill("16")
    page.get_by_role("button", name="Preview", exact=True).click()
    expect(page.locator("#problem")).to_contain_text("Width, px: Value must be greater than or equal to 32")
    page.get_by_label("Width").fill("64")
    page.get_by_label("Width").blur()

    page.get_by_role("button", name="Preview", exact=True).click()
    expect(page.locator("#preview-picture")).to_have_js_property("naturalWidth", 64, timeout=WAIT)
    expect(page.locator("#preview-caption")).to_contain_text("Synthetic, not for diagnosis.")
    colours = """async () => {
        for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
        return new Set(document.getElementById("drawing").getContext("2d").getImageData(0, 0, 200, 200).data).size;
    }"""
    drawn_colours = page.evaluate(colours)
    page.get_by_label("Show it on the layout").check()
    assert page.evaluate(colours) > 2 * drawn_colours
    page.get_by_role("button", name="Paint the whole field").click()
    card = page.locator(".fields .job")
    expect(card.get_by_text("Done")).to_be_visible(timeout=WAIT)
    page.reload()
    expect(card.get_by_role("link", name="Field (OME-TIFF)")).to_be_visible(timeout=WAIT)
    expect(card.locator("img")).to_have_js_property("naturalWidth", 64)
    page.get_by_role("button", name="Fill all with this tissue").click()
    card.get_by_role("button", name="Use its layout").click()
    expect(page.locator(".toast", has_text="The layout is taken over.")).to_be_visible()
    assert set(saved(page, tmp_path)) == set(name)
    card.get_by_role("link", name="Look at it").click()
    page.locator("#viewer[data-ready]").wait_for(timeout=WAIT)
    page.get_by_label("Tissues as drawn").check()
    expect(page.locator("#legend li")).to_have_count(3)
    assert not problems(page)
    page.set_viewport_size({"width": 390, "height": 844})
    stage = page.locator(".stage").bounding_box()
    assert stage is not None
    assert stage["width"] > 300, "the panel is below the field"


def test_a_layout_from_a_slide_and_from_a_file(
    visit: Callable[..., Any], paint_address: str, problems: Callable[[Page], list[str]], tmp_path: Path
) -> None:
    """On a narrow dark screen; axe finds nothing on the page and in its dialogs."""
    with visit(viewport={"width": 390, "height": 844}, color_scheme="dark") as page:
        opened(page, paint_address)
        assert not problems(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_role("button", name="From a slide").click()
        page.locator("#slide-surface[data-corner]").wait_for(timeout=WAIT)
        assert not problems(page)
        before = page.locator("#slide-surface").get_attribute("data-corner")
        page.locator("#slide-surface").focus()
        page.keyboard.press("Shift+ArrowLeft")
        expect(page.locator("#slide-surface")).not_to_have_attribute("data-corner", str(before))
        page.get_by_role("button", name="Cancel").click()
        page.goto(f"{paint_address}/slides?k=3")
        page.locator(".cards h2").nth(1).wait_for()
        page.locator(".cards .cover").nth(1).click()
        page.get_by_role("link", name="Paint its tissue anew").click()
        page.locator("#slide-surface[data-corner]").wait_for(timeout=WAIT)
        expect(page.locator("#slide-choice")).to_have_value("1")
        page.get_by_role("button", name="Use this part").click()
        expect(page.locator(".toast", has_text="The layout is taken over.")).to_be_visible()
        page.get_by_role("button", name="Smooth the edges").click()
        areas = saved(page, tmp_path)
        assert len(areas) > 1
        page.get_by_role("button", name="Fill all with this tissue").click()
        page.get_by_role("button", name="Open a layout").click()
        assert not problems(page)
        page.locator("#import-use").click()
        expect(page.locator("#import-problem")).to_have_text("Choose a file.")
        page.get_by_label("File", exact=True).set_input_files(tmp_path / "layout.geojson")
        page.locator("#import-use").click()
        expect(page.locator("#import-dialog")).to_be_hidden()
        assert saved(page, tmp_path) == areas

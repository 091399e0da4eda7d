"""The pages of clusters, in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from histoloom.run.directory import Run

PATCH_LINKS = ["More like this", "On its slide", "To its group", "As PNG"]
LOADED = "() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)"


@pytest.fixture(scope="module")
def mapped_address(published: Run, write_map: Any, serve_run: Callable[..., Any]) -> Iterator[str]:
    write_map(published)
    with serve_run(published.path) as found:
        yield found


def wait_for_drawing(canvas: Locator, *, before: bytes) -> None:
    """Wait until a canvas shows something else than in an earlier screenshot."""
    wait_until(canvas.page, lambda: bool(canvas.screenshot() != before))


def wait_until(page: Page, holds: Callable[[], bool]) -> None:
    """Ask again for up to 10 s, also where the machine is busy; for what has no element that ``expect`` could await."""
    for _ in range(200):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come to hold within 10 s")


def test_the_first_page_shows_pictures_and_keeps_k(page: Page, address: str) -> None:
    page.goto(f"{address}/")
    expect(page.get_by_role("heading", level=1)).to_have_text("4 groups")
    page.wait_for_function(LOADED)
    page.locator(".k-switch .term").focus()
    expect(page.get_by_role("tooltip", name="k is the number of groups")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("tooltip")).to_have_count(0)
    page.get_by_role("link", name="2 groups").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("2 groups")
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Groups").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("2 groups")


def test_a_cluster_is_viewed_with_the_keyboard_alone(page: Page, address: str) -> None:
    page.goto(f"{address}/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.get_by_role("link", name="Group 1").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Group 1")
    pictures = page.get_by_role("list", name="Real patches").get_by_role("button")
    pictures.first.focus()
    page.keyboard.press("ArrowRight")
    expect(pictures.nth(1)).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("link", name="PDF")).to_be_focused()  # the gallery is one stop of the Tab key
    page.keyboard.press("Tab")
    expect(pictures.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    shown = page.get_by_role("dialog").get_by_role("img")
    text = pictures.nth(1).get_by_role("img").get_attribute("alt")
    expect(shown).to_have_attribute("alt", str(text))
    page.keyboard.press("ArrowRight")
    expect(shown).to_have_attribute("alt", str(pictures.nth(2).get_by_role("img").get_attribute("alt")))
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(pictures.nth(1)).to_be_focused()

    # A filter is a select, and the address and the sheet keep it
    page.get_by_label("Slide file").select_option("slide-1")
    expect(pictures.first.get_by_role("img")).to_have_attribute("alt", re.compile("Patch of slide-1 "))
    expect(page).to_have_url(re.compile(r"\?slide=slide-1$"))
    expect(page.get_by_role("link", name="PDF")).to_have_attribute("href", re.compile("left=1&.*slide=slide-1"))
    n = pictures.count()
    page.reload()
    expect(page.get_by_label("Slide file")).to_have_value("slide-1")
    expect(pictures).to_have_count(n)


def test_the_order_of_a_gallery_is_in_the_address(page: Page, address: str) -> None:
    page.goto(f"{address}/clusters/2/0")
    first = page.get_by_role("list", name="Real patches").get_by_role("img").first
    typical = first.get_attribute("src")
    page.get_by_role("button", name="Borderline").click()
    expect(page.get_by_role("button", name="Borderline")).to_have_attribute("aria-pressed", "true")
    expect(first).not_to_have_attribute("src", str(typical))
    borderline = str(first.get_attribute("src"))
    expect(page.get_by_role("status")).to_contain_text("borderline patches, page 1 of 1")
    page.reload()
    expect(page.get_by_role("button", name="Borderline")).to_have_attribute("aria-pressed", "true")
    expect(first).to_have_attribute("src", borderline)


def test_samples_are_shown_with_the_real_patches(page: Page, address: str) -> None:
    page.goto(f"{address}/clusters/4/3")
    samples = page.get_by_role("list", name="Synthetic patches").get_by_role("button")
    expect(samples).to_have_count(3)
    samples.first.click()
    expect(page.get_by_role("dialog")).to_contain_text("not a photograph of tissue")


def test_another_k_leads_to_the_same_tissue(page: Page, address: str) -> None:
    page.goto(f"{address}/clusters/4/0")
    page.get_by_role("link", name="2 groups", exact=True).click()
    expect(page).to_have_url(f"{address}/clusters/2/{page.url[-1]}")
    page.get_by_role("link", name="4 groups, the chosen number").click()
    expect(page).to_have_url(f"{address}/clusters/4/{page.url[-1]}")


def test_the_map_shows_the_patch_under_the_pointer(page: Page, mapped_address: str) -> None:
    page.goto(f"{mapped_address}/map")
    canvas = page.locator("#map")
    box = canvas.bounding_box()
    assert box is not None
    hover = page.locator("#map-hover")

    def preview_is_shown() -> bool:
        """Whether the pointer finds a patch: the map takes it once its patches have come."""
        canvas.hover(position={"x": 1, "y": 1})
        canvas.hover(position={"x": box["width"] / 2, "y": box["height"] / 2})
        return hover.is_visible()

    wait_until(page, preview_is_shown)
    expect(hover).to_contain_text("Group")
    page.mouse.down()
    page.mouse.up()
    # The enlarged patch says and offers what it does in a gallery, and the keys step to those beside it on the map.
    dialog = page.get_by_role("dialog")
    for term in ("Slide file", "Patient", "Position", "Probability", "Used for"):
        expect(dialog.get_by_role("term").filter(has_text=term)).to_be_visible()
    expect(dialog.get_by_role("link")).to_have_text(PATCH_LINKS)
    first = str(dialog.get_by_role("link", name="On its slide").get_attribute("href"))
    assert re.fullmatch(r"/slides/slide-\d\?k=4&cluster=\d&patch=\d+,\d+", first)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("link", name="On its slide")).not_to_have_attribute("href", first)
    expect(dialog.get_by_role("button", name="Close")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(dialog.get_by_role("link", name="On its slide")).to_have_attribute("href", first)
    page.get_by_role("button", name="Close").click()
    before = canvas.screenshot()
    canvas.focus()
    page.keyboard.press("+")
    wait_for_drawing(canvas, before=before)
    for by, names in {"slide": ["slide-0", "slide-1", "slide-2"], "patient": ["patient 0", "patient 1"]}.items():
        before = canvas.screenshot()
        page.get_by_label("Colour by").select_option(by)
        expect(page.get_by_role("list", name="Colours").get_by_role("listitem")).to_have_text(names)
        expect(page).to_have_url(re.compile(rf"colour={by}"))
        wait_for_drawing(canvas, before=before)
    page.get_by_role("button", name="Show the most central patch").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_a_cluster_is_followed_through_splits_and_merges(page: Page, address: str) -> None:
    page.goto(f"{address}/flow")
    page.locator('[data-node="2-0"]').focus()
    shown = page.locator(".band.on")
    assert 0 < shown.count() < page.locator(".band").count()
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{address}/clusters/2/0")


def test_errors_are_shown(page: Page, address: str) -> None:
    page.goto(f"{address}/clusters/2/0")
    page.route("**/patches?*", lambda route: route.fulfill(status=409, json={"detail": "someone was faster"}))
    page.get_by_role("button", name="Random").click()
    expect(page.get_by_role("status")).to_have_text("someone was faster")
    page.get_by_role("button", name="Close this message").click()
    expect(page.locator(".toast")).to_have_count(0)

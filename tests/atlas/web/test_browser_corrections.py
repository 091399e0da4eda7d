"""Patches are corrected where they are seen, with the pointer and with keys, in a browser."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd
from playwright.sync_api import Page, expect

from histoloom.names import add_name
from histoloom.names.corrections import NO_TISSUE, correct, counts_by_name, current_corrections
from histoloom.run.directory import Run


def draw_outline(page: Page, *, radius: float, keys: tuple[str, ...] = ("Shift",)) -> None:
    """Draw around the middle of the map, with these keys held."""
    box = page.locator("#map").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for key in keys:
        page.keyboard.down(key)
    page.mouse.move(x + radius, y)
    page.mouse.down()
    for turn in range(1, 14):  # a little more than once around
        page.mouse.move(x + radius * math.cos(turn / 2), y + radius * math.sin(turn / 2))
    page.mouse.up()
    for key in keys:
        page.keyboard.up(key)


def selected(page: Page) -> int:
    """How many points of the map are selected."""
    text = page.locator("#selection-number").inner_text()
    return int(text.split()[0].replace(",", "")) if text else 0


def test_an_outline_on_the_map_sends_patches_to_a_new_group(
    page: Page, own_address: str, finished: Run, write_map: Any
) -> None:
    ids = write_map(finished)
    add_name(finished.path, cluster=1, name="bone", k=4, rater="Dr B")
    page.goto(f"{own_address}/map?k=4")
    legend = page.get_by_role("group", name="Groups shown")
    expect(legend.get_by_role("radio")).to_have_count(5)
    page.evaluate("scrollTo(0, 150)")

    # With the pointer: an outline alone, and one more of it with Ctrl, which adds, or Alt, which takes out
    draw_outline(page, radius=40)
    few = selected(page)
    assert 0 < few < len(ids)
    expect(page.get_by_role("list", name="Some of the selected patches").get_by_role("button")).to_have_count(
        min(few, 12)
    )
    draw_outline(page, radius=300, keys=("Shift", "Control"))
    assert selected(page) == len(ids)
    draw_outline(page, radius=40, keys=("Shift", "Alt"))
    assert selected(page) == len(ids) - few
    page.get_by_role("button", name="Select", exact=True).click()
    draw_outline(page, radius=40, keys=())
    assert selected(page) == few

    # A correction needs a target and a rater; the page names what is missing.
    panel = page.get_by_role("region", name="Correct patches")
    panel.get_by_role("button", name="Send").click()
    expect(panel.get_by_role("alert")).to_have_text("Choose what these patches show.")
    panel.get_by_label("These show").select_option("A new group …")
    panel.get_by_label("Name of the group").fill("fat")
    assert panel.locator("datalist option").evaluate_all("all => all.map(one => one.value)") == ["bone"]
    panel.get_by_role("button", name="Send").click()
    expect(panel.get_by_role("alert")).to_contain_text("Enter your own name")
    panel.get_by_label("Corrected by").fill("Dr A")
    panel.get_by_role("button", name="Send").click()
    expect(page.locator(".toast")).to_contain_text(f"{few} patches: fat")
    expect(legend).to_contain_text(f"fat {few}")
    expect(page.locator("#map-words")).to_contain_text("fat")
    assert counts_by_name(current_corrections(finished.path, k=4)) == {"fat": few}
    assert selected(page) == 0

    # The only group shown, the method and the colouring are in the address, which opens the same view
    legend.get_by_role("radio", name="fat").check()
    page.get_by_role("button", name="Principal components").click()
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_label("Colour by").select_option("slide")
    expect(page).to_have_url(re.compile(r"method=pca&at=0.500,0.500,1.600&colour=slide&group=fat"))
    page.reload()
    expect(legend.get_by_role("radio", name="fat")).to_be_checked()
    expect(page.get_by_role("button", name="Principal components")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("link", name="2 groups")).to_be_visible()
    page.get_by_role("button", name="All", exact=True).click()

    # By keys: a circle that grows, what is in it, and Escape; then a whole group from the legend
    legend.get_by_role("radio", name="all groups").check()
    page.locator("#map").focus()
    page.keyboard.press("-")
    for key in ("Shift+ArrowLeft", "Shift+ArrowLeft", "Shift+ArrowRight", *["+"] * 9):  # the first one shows the circle
        page.keyboard.press(key)
    page.keyboard.press("Space")
    assert selected(page) == len(ids)
    for _ in range(4):
        page.keyboard.press("-")
    page.keyboard.press("Backspace")
    assert 0 < selected(page) < len(ids)
    page.keyboard.press("Escape")
    expect(page.locator("#selection-body")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Picture")).to_be_visible()
    page.keyboard.press("Escape")
    legend.get_by_role("button", name="Select all of fat").click()
    expect(page.locator("#selection-number")).to_have_text(f"{few} selected: {few} of fat")

    # Back to their own groups; the message undoes exactly that
    panel.get_by_label("These show").select_option("Their own groups again")
    panel.get_by_role("button", name="Send").click()
    expect(legend).not_to_contain_text("fat")
    page.locator(".toast").get_by_role("button", name="Undo").click()
    expect(legend).to_contain_text(f"fat {few}")
    assert counts_by_name(current_corrections(finished.path, k=4)) == {"fat": few}


def test_patches_of_a_gallery_are_selected_and_corrected(page: Page, own_address: str, finished: Run) -> None:
    page.goto(f"{own_address}/clusters/4/0")
    page.evaluate("localStorage.setItem('histoloom-rater', 'Dr A')")
    page.reload()
    gallery = page.get_by_role("list", name="Real patches")
    pictures = gallery.locator("li > button")
    expect(pictures.first).to_be_visible()
    total = pictures.count()
    page.get_by_role("button", name="Select", exact=True).click()
    pictures.nth(1).click()
    pictures.nth(3).click(modifiers=["Shift"])
    expect(pictures.nth(2)).to_have_attribute("aria-pressed", "true")
    pictures.nth(3).press("ArrowRight")
    page.keyboard.press("Space")
    bar = page.get_by_role("group", name="Selected patches")
    expect(bar.get_by_role("status")).to_have_text("4 selected")
    expect(page.get_by_role("dialog")).to_have_count(0)
    bar.get_by_label("These show").select_option("No tissue")
    bar.get_by_role("button", name="Send").click()
    expect(pictures).to_have_count(total - 4)
    expect(page.locator("#group-summary")).to_contain_text(f"{total - 4} patches")
    assert counts_by_name(current_corrections(finished.path, k=4)) == {NO_TISSUE: 4}
    pictures.first.press("Escape")
    expect(bar).to_be_hidden()

    # Those that were sent away are shown on request, say where to, and come back one by one
    page.get_by_role("button", name="Corrected (4)").click()
    expect(pictures).to_have_count(4)
    expect(page).to_have_url(re.compile("corrected=1"))
    badge = gallery.locator(".badge").first
    expect(badge).to_contain_text("corrected: no tissue, by Dr A")
    badge.get_by_role("button").click()
    expect(pictures).to_have_count(3)
    page.locator(".toast").get_by_role("button", name="Undo").click()
    expect(pictures).to_have_count(4)

    # The large view does the same, and stays open
    pictures.first.click()
    view = page.get_by_role("dialog", name="Picture")
    view.get_by_role("button", name="Correct …").click()
    ask = page.get_by_role("dialog", name="Correct")
    ask.get_by_label("This patch shows").select_option("Group 2")
    ask.get_by_role("button", name="Send").click()
    expect(ask).to_have_count(0)
    expect(view.locator("dl")).to_contain_text("group 2")
    expect(view.get_by_role("link", name="To its group")).to_have_attribute("href", "/clusters/4/2")
    view.get_by_role("button", name="Undo the correction").click()
    expect(view.get_by_role("button", name="Undo the correction")).to_have_count(0)
    view.locator(".toast").get_by_role("button", name="Undo").click()
    expect(page.get_by_role("button", name="Corrected (4)")).to_be_visible()
    assert counts_by_name(current_corrections(finished.path, k=4)) == {NO_TISSUE: 3, "cluster 2": 1}
    view.get_by_role("button", name="Close", exact=True).click()
    expect(pictures.first).to_be_focused()


def test_a_group_of_corrections_has_its_own_gallery(page: Page, own_address: str, finished: Run) -> None:
    index = pd.read_parquet(finished.folder("clusters") / "index.parquet")
    first, *others = index["patch_id"].tolist()[:3]
    correct(finished.path, patches=[first, *others], target="fat", k=4, rater="Dr A")
    page.goto(f"{own_address}/?k=4")
    page.get_by_role("link", name="fat").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("fat")
    pictures = page.get_by_role("list", name="Real patches").locator("li > button")
    expect(pictures).to_have_count(3)

    # Its patches can be hidden on a slide, and a patch under the cross is enlarged and corrected; the legend follows
    patch = pd.read_parquet(finished.folder("patches") / "index.parquet").set_index("patch_id").loc[first]
    page.goto(f"{own_address}/slides/{patch.slide_id}?k=4#{patch.x + 16},{patch.y + 16},8")
    page.wait_for_selector("#viewer[data-ready]")
    legend = page.get_by_role("list", name="Groups")
    legend.get_by_role("checkbox", name="fat").uncheck()
    expect(page).to_have_url(re.compile(r"groups=0,1,2,3"))
    expect(legend.get_by_role("link", name="Open the page of fat")).to_have_attribute("href", "/groups/4?name=fat")
    page.locator("#viewer").focus()
    page.wait_for_function("Number(document.querySelector('#viewer').dataset.patches) > 0")
    page.keyboard.press("c")
    page.get_by_role("dialog", name="Picture").get_by_role("button", name="Correct …").click()
    ask = page.get_by_role("dialog", name="Correct")
    ask.get_by_label("This patch shows").select_option("A new group …")
    ask.get_by_label("Name of the group").fill("bone")
    ask.get_by_label("Corrected by").fill("Dr A")
    ask.get_by_role("button", name="Send").click()
    expect(legend.get_by_role("checkbox", name="bone")).to_be_checked()
    expect(legend.get_by_role("checkbox", name="fat")).not_to_be_checked()
    page.get_by_role("dialog", name="Picture").get_by_role("button", name="Close", exact=True).click()

    for path in ("compare?k=4&left=0&right=1&around=1", "slides/slide-1/similar?k=4&x=0&y=0&width=80&height=64"):
        page.goto(f"{own_address}/{path}")
        page.locator(".same-scale a").first.click()
        expect(page.get_by_role("dialog").get_by_role("button", name="Correct …")).to_be_visible()
        page.keyboard.press("Escape")

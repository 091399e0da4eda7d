"""A region on a slide, and the patches like it."""

from __future__ import annotations

import re

import numpy as np
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect

from histoloom.autoencoder.latents import LatentSet
from histoloom.run.directory import Run
from histoloom.slides.patch_set import PatchSet


def test_the_patches_most_like_a_region_come_first(client: TestClient, published: Run) -> None:
    table = PatchSet.open(published.folder("patches")).table.set_index("patch_id")
    here = table[(table["slide_id"] == "slide-1") & (table["x"] + 16 < 80) & (table["y"] + 16 < 64)]
    page = client.get("/slides/slide-1/similar?x=0&y=0&width=80&height=64").text
    found = re.findall(r'<img src="/api/patches/([^"]*)\.jpg', page)

    # The features of this run are the means and deviations of its latents
    latents = LatentSet.open(published.folder("latents"))
    z_NChw = latents.normalised(np.arange(len(latents))).numpy()
    z_ND = np.concatenate([z_NChw.mean(axis=(2, 3)), z_NChw.std(axis=(2, 3))], axis=1)
    inside = latents.table["patch_id"].isin(here.index).to_numpy()
    distance = np.linalg.norm(z_ND - z_ND[inside].mean(axis=0), axis=1)
    expected = latents.table["patch_id"].to_numpy()[np.argsort(distance)]
    assert 0 < len(here) < 24
    assert found[:5] == [one for one in expected if one not in here.index][:5]
    assert len(found) == min(60, len(table) - len(here))
    assert f"{len(here)} patch" in page


def test_a_region_without_patches_or_without_a_slide_says_so(client: TestClient) -> None:
    assert "No patch of the run" in client.get("/slides/slide-1/similar?x=900&y=900&width=9&height=9").text
    assert "Most like" not in client.get("/slides/slide-1/similar").text
    assert client.get("/slides/bad/similar?x=0&y=0&width=9&height=9").status_code == 200
    assert client.get("/slides/nothing/similar").status_code == 404
    assert client.get("/slides/slide-1/similar?x=-1").status_code == 422


def test_a_region_is_drawn_in_the_viewer_with_the_mouse_or_the_keys(page: Page, address: str) -> None:
    page.goto(f"{address}/slides/slide-1?k=2#80,64,4")
    viewer = page.locator("#viewer[data-ready]")
    box = viewer.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.get_by_role("button", name="Draw a region").click()
    expect(page.locator("#region-hint")).to_be_visible()
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 240, y - 200)
    page.mouse.up()
    expect(page).to_have_url(f"{address}/slides/slide-1/similar?k=2&x=20&y=14&width=60&height=50")
    expect(page.get_by_role("heading", name="Most like the region")).to_be_visible()
    page.go_back()
    expect(page).to_have_url(f"{address}/slides/slide-1?k=2#80,64,4")

    viewer.focus()
    page.keyboard.press("r")
    expect(page.get_by_role("button", name="Draw a region")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#region-hint")).to_be_hidden()
    for key in ("r", "ArrowLeft", "ArrowLeft", "Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    side, step = min(box["width"], box["height"]) / 2 / 4, min(box["width"], box["height"]) / 50 / 4
    expect(page.get_by_role("heading", name="Most like the region")).to_be_visible()
    drawn = {name: int(page.get_by_label(name).input_value()) for name in ("Left", "Top", "Width", "Height")}
    expected = {"Left": 80 - side / 2 - 2 * step, "Top": 64 - side / 2, "Width": side + step, "Height": side}
    assert all(abs(drawn[name] - value) <= 2 for name, value in expected.items()), (drawn, expected)


def test_a_region_is_drawn_with_the_mouse(page: Page, address: str) -> None:
    page.goto(f"{address}/slides/slide-1/similar?k=2")
    picture = page.get_by_role("img", name="The slide with the region")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.up()
    expect(page.get_by_role("heading", name="Most like the region")).to_be_visible()
    assert abs(int(page.get_by_label("Width").input_value()) - 80) <= 3
    assert abs(int(page.get_by_label("Height").input_value()) - 64) <= 3
    assert "k=2" in page.url

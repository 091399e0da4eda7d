"""The pages to look at clusters with, in a browser."""

from __future__ import annotations

from playwright.sync_api import Page, expect


def test_the_first_page_shows_pictures_and_keeps_k(page: Page, address: str) -> None:
    page.goto(f"{address}/")
    expect(page.get_by_role("heading", level=1)).to_have_text("4 clusters")
    loaded = "() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)"
    page.wait_for_function(loaded)
    page.get_by_role("link", name="2 clusters").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("2 clusters")
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="Clusters").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("2 clusters")

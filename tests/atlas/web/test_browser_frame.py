"""The frame of all pages, in a browser: the bar, messages, fields that were wrong, the enlarged picture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from playwright.sync_api import Locator, Page, expect

Visit = Callable[..., AbstractContextManager[Page]]


def box(locator: Locator) -> dict[str, float]:
    found = locator.bounding_box()
    assert found is not None
    x, y, width, height = found["x"], found["y"], found["width"], found["height"]
    return {"x": x, "y": y, "height": height, "right": x + width, "bottom": y + height}


def test_nothing_is_cut_off_or_jumps_on_a_narrow_page(visit: Visit, address: str) -> None:
    with visit(viewport={"width": 768, "height": 520}) as page:
        tabs = page.get_by_role("navigation", name="Pages").get_by_role("link")
        places = []
        for path in ("/clusters/4/1", "/slides", "/nothing"):
            page.goto(f"{address}{path}")
            places.append([box(tab)["x"] for tab in tabs.all()])
            assert page.evaluate("getComputedStyle(document.documentElement).scrollbarGutter") == "stable"
        assert places[0] == places[1] == places[2]
        bar = box(page.locator(".bar"))
        assert bar["height"] < 60, "the tabs are on one line"
        brand = box(page.locator(".brand img"))
        assert brand["y"] >= bar["y"] + 4
        assert brand["bottom"] <= bar["bottom"] - 4
        assert box(page.get_by_role("heading", level=1))["y"] >= bar["bottom"] + 16

        page.goto(f"{address}/clusters/4/1")
        page.locator("#real button").first.click()
        close = box(page.get_by_role("dialog").get_by_role("button", name="Close"))
        dialog = box(page.get_by_role("dialog"))
        assert close["bottom"] <= dialog["bottom"] - 8
        assert close["right"] <= dialog["right"] - 8
        assert box(page.get_by_role("dialog").get_by_role("img"))["y"] >= dialog["y"] + 8


def test_a_server_that_stops_is_said_once_and_so_is_its_return(page: Page, address: str) -> None:
    page.goto(f"{address}/clusters/4/1")
    expect(page.locator("#real button").first).to_be_visible()
    page.route("**/*", lambda route: route.abort())
    for order in ("Random", "Borderline", "Typical"):
        with page.expect_event("requestfailed"):
            page.get_by_role("button", name=order).click()
    expect(page.locator(".toast")).to_have_text(["The atlas does not answer; is it still running in the terminal?"])
    page.unroute("**/*")
    page.get_by_role("button", name="Random").click()
    expect(page.locator(".toast span")).to_have_text(["The atlas answers again."])


def test_a_corrected_field_is_no_longer_marked(page: Page, address: str) -> None:
    page.goto(f"{address}/read")
    name = page.get_by_label("Your name")
    name.fill("  ")
    page.get_by_role("button", name="Start").click()
    expect(name).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#problem")).to_have_text("Enter your name.")
    name.press_sequentially("Dr A")
    assert name.get_attribute("aria-invalid") is None
    expect(page.locator("#problem")).to_be_hidden()

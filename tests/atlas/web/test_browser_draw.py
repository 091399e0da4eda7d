"""The page to draw on, in a browser."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from histoloom.slides.patch_set import PatchSet

WAIT = 60_000
LOADED = "() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)"


@pytest.fixture(scope="module")
def drawing_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run, to draw into."""
    run = tmp_path_factory.mktemp("browser-drawing") / "run"
    shutil.copytree(tiny_run, run)
    return run


@pytest.fixture
def draw_address(drawing_run: Path, serve_run: Callable[..., AbstractContextManager[str]]) -> Iterator[str]:
    """Where the atlas of this run is served, without what other tests have drawn."""
    shutil.rmtree(drawing_run / "drawn", ignore_errors=True)
    with serve_run(drawing_run) as address:
        yield address


def ask(page: Page, *, n: int, seed: int = 0, steps: int = 2) -> None:
    """Fill the form in and send it off. A seed that is typed is kept."""
    expect(page.locator("#tissue option")).not_to_have_count(0)
    page.get_by_label("Pictures", exact=True).fill(str(n))
    page.get_by_label("Seed", exact=True).fill(str(seed))
    if not page.get_by_label("Steps").is_visible():
        page.get_by_text("Method, steps, guidance").click()
    page.get_by_label("Steps").fill(str(steps))
    page.get_by_role("button", name="Generate", exact=True).click()


def test_pictures_appear_are_kept_and_can_be_downloaded(page: Page, draw_address: str, tmp_path: Path) -> None:
    page.goto(f"{draw_address}/draw?k=2")
    expect(page.get_by_text("These pictures are synthetic.")).to_be_visible()
    page.get_by_label("Tissue").select_option("cluster 1")
    ask(page, n=3, seed=5)
    made = page.locator(".job")
    expect(made).to_have_count(1, timeout=WAIT)
    expect(made.get_by_text("Done")).to_be_visible(timeout=WAIT)
    expect(made.locator(".gallery img")).to_have_count(3, timeout=WAIT)
    page.wait_for_function(LOADED)
    page.reload()
    expect(page.get_by_role("heading", name="3 of cluster 1")).to_be_visible()
    expect(page.locator(".job .gallery img")).to_have_count(3)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download ZIP").click()
    download.value.save_as(tmp_path / "drawn.zip")
    with zipfile.ZipFile(tmp_path / "drawn.zip") as file:
        assert sum(name.endswith(".png") for name in file.namelist()) == 3
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".job")).to_have_count(0)


def test_a_request_that_takes_long_says_why(page: Page, draw_address: str) -> None:
    held: list[Route] = []
    page.route("**/api/jobs", lambda route: held.append(route) if route.request.method == "POST" else route.continue_())
    page.goto(f"{draw_address}/draw?k=2")
    ask(page, n=1)
    expect(page.get_by_role("button", name="Loading the generator")).to_be_disabled()
    while not held:  # the button changes before the request is there
        page.wait_for_timeout(20)
    held[0].fulfill(status=409, json={"detail": "20 jobs wait already"})
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()


def test_two_jobs_wait_for_each_other_and_one_is_cancelled(page: Page, draw_address: str) -> None:
    page.goto(f"{draw_address}/draw")
    ask(page, n=400, steps=20)
    first = page.locator(".job").last
    expect(first.get_by_text("Generating")).to_be_visible(timeout=WAIT)
    page.goto(f"{draw_address}/slides")  # the job goes on, and every page says so
    jobs = page.get_by_role("button", name=re.compile(r"^Job \d+ %"))
    jobs.click(timeout=WAIT)
    page.get_by_role("link", name="400 of all tissues").click()
    ask(page, n=2, seed=1)
    second = page.locator(".job").first
    expect(second.get_by_text("Waiting")).to_be_visible(timeout=WAIT)
    expect(second.get_by_text("1 job before it")).to_be_visible()
    first.get_by_role("button", name="Cancel").click()
    expect(first.get_by_text("Cancelled")).to_be_visible(timeout=WAIT)
    expect(second.get_by_text("Done")).to_be_visible(timeout=WAIT)
    expect(first.get_by_role("button", name="Continue")).to_be_visible()
    expect(second.locator(".gallery img")).to_have_count(2)


def test_more_like_a_patch_and_between_two(page: Page, draw_address: str, drawing_run: Path) -> None:
    patch = str(PatchSet.open(drawing_run / "patches").columns("patch_id")["patch_id"][3])
    page.goto(f"{draw_address}/draw?like={patch}")
    expect(page.get_by_text(f"More like this: patch {patch}")).to_be_visible(timeout=WAIT)
    expect(page.get_by_label("Tissue")).to_have_value("")
    page.get_by_label("Similar to free").fill("0.3")
    ask(page, n=2)
    expect(page.locator(".job").get_by_text("very similar (0.30)")).to_be_visible(timeout=WAIT)
    expect(page.locator(".job .gallery li:not(.source) img")).to_have_count(2, timeout=WAIT)
    expect(page.locator(".job .gallery li.source.real img")).to_have_attribute("alt", f"Source: patch {patch}")
    expect(page.get_by_role("heading", name="2 similar to this patch")).to_be_visible()
    expect(page.locator(".job .thumbs img")).to_have_attribute("alt", f"patch {patch}")
    page.locator(".job .gallery li:not(.source) button").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("not for diagnosis")).to_be_visible()
    expect(dialog.get_by_text(patch)).to_be_visible()
    dialog.get_by_role("button", name="Nearest real patch").click()
    expect(dialog.get_by_text("Nearest real training patch")).to_be_visible(timeout=WAIT)
    dialog.get_by_role("button", name="Between two").click()
    page.locator(".job .gallery li:not(.source) button").nth(1).click()
    page.get_by_role("dialog").get_by_role("button", name="Between two").click()
    expect(page.locator(".slot img")).to_have_count(2)
    ask(page, n=3)
    newest = page.locator(".job").first
    expect(newest.get_by_role("heading")).to_contain_text("3 between", timeout=WAIT)
    expect(newest.locator(".gallery .note")).to_have_text(["from", "0 %", "50 %", "100 %", "to"], timeout=WAIT)


def test_pictures_and_settings_are_kept_and_a_new_job_is_in_view(page: Page, draw_address: str) -> None:
    chosen = []
    for cluster, first in ((0, "From"), (1, "To")):
        page.goto(f"{draw_address}/clusters/2/{cluster}")
        page.locator("#real button").first.click()
        page.get_by_role("dialog").get_by_role("button", name="Between two").click()
        chosen.append(f"{first}: patch ")
    expect(page.locator(".toast", has_text="Two pictures are chosen.")).to_be_visible()
    page.locator("#real button").nth(1).click()
    page.get_by_role("dialog").get_by_role("button", name="Between two").click()
    expect(page.locator(".toast", has_text="takes the place of the second one")).to_be_visible()
    page.goto(f"{draw_address}/slides?k=2")
    page.get_by_role("link", name="Between two: 2 of 2 pictures chosen; open").click()
    for title in chosen:
        expect(page.locator(".slot", has_text=title).locator("img")).to_be_visible()
    page.get_by_label("Pictures", exact=True).fill("3")
    page.get_by_label("Similar to free").fill("0.3")
    before = page.locator(".slot figcaption").all_inner_texts()
    page.get_by_label("3 groups").click()
    expect(page).to_have_url(re.compile(r"/draw\?k=3$"))
    expect(page.locator(".slot figcaption")).to_have_text(before)
    expect(page.locator(".slot img")).to_have_count(2)
    expect(page.get_by_label("Pictures", exact=True)).to_have_value("3")
    expect(page.get_by_label("Similar to free")).to_have_value("0.3")

    page.set_viewport_size({"width": 1280, "height": 500})
    for seed in (1, 2):
        ask(page, n=3, seed=seed, steps=1)
        expect(page.locator(".job .gallery img")).to_have_count(5 * seed, timeout=WAIT)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator(".job").first.get_by_role("heading")).not_to_be_in_viewport()
    page.get_by_role("button", name="Another seed").click()
    seed_of_job = page.get_by_label("Seed", exact=True).input_value()
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator(".job")).to_have_count(3)
    expect(page.locator(".job").first).to_contain_text(f"seed {seed_of_job}")
    expect(page.get_by_label("Seed", exact=True)).not_to_have_value(seed_of_job)  # the next job's is new
    expect(page.locator(".job").first.get_by_role("heading")).to_be_in_viewport()

    # The job is done, but the page has not heard of it yet: to cancel it is no error.
    expect(page.locator(".job .gallery img")).to_have_count(15, timeout=WAIT)
    earlier = page.request.get(f"{draw_address}/api/jobs").json()
    for job in earlier["jobs"]:
        job["state"] = "drawing"
    page.route("**/api/jobs", lambda route: route.fulfill(json=earlier))
    page.reload()
    page.locator(".job").first.get_by_role("button", name="Cancel").click()
    expect(page.locator(".toast")).to_contain_text("This job had ended already: done.")
    expect(page.locator(".toast.problem")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit: Callable[..., Any], draw_address: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    with visit(viewport={"width": 1024, "height": 900}, color_scheme=scheme) as page:
        page.goto(f"{draw_address}/draw")
        ask(page, n=2, steps=1)
        expect(page.locator(".job .gallery img")).to_have_count(2, timeout=WAIT)
        page.wait_for_function(LOADED)
        assert not axe.Axe().run(page).response["violations"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 1024
        page.locator(".job .gallery button").first.click()
        page.get_by_role("dialog").get_by_role("button", name="More like this").click()
        page.locator(".job .gallery button").first.click()
        page.get_by_role("dialog").get_by_role("button", name="Nearest real patch").click()
        expect(page.get_by_text("Nearest real training patch")).to_be_visible(timeout=WAIT)
        assert not axe.Axe().run(page).response["violations"]


def test_the_form_shows_its_errors_beside_the_button(page: Page, draw_address: str) -> None:
    page.goto(f"{draw_address}/draw")
    ask(page, n=0)
    expect(page.get_by_role("alert")).to_contain_text("Pictures")
    page.get_by_label("Method").select_option("heun")
    ask(page, n=1, steps=4)
    expect(page.get_by_role("alert")).to_contain_text("heun makes two evaluations a step")
    page.get_by_role("button", name="Between two").click()
    ask(page, n=2)
    expect(page.get_by_role("alert")).to_contain_text("Choose two pictures first.")
    expect(page.locator(".job")).to_have_count(0)


def test_a_picture_of_the_users_own_is_checked_and_becomes_the_source(
    page: Page, draw_address: str, tmp_path: Path
) -> None:
    Image.new("RGB", (80, 64), (120, 60, 120)).save(tmp_path / "scan.png")
    (tmp_path / "notes.png").write_text("no picture")
    page.goto(f"{draw_address}/draw?k=2")
    expect(page.locator("#tissue option")).not_to_have_count(0)
    page.get_by_role("button", name="More like this").click()
    page.get_by_text("A picture of your own").click()
    problem, use = page.locator("#own-problem"), page.get_by_role("button", name="Use this picture")
    use.click()
    expect(problem).to_have_text("Choose a PNG or JPEG file.")
    for name, mpp, line in (
        ("notes.png", "", "Enter the um/px of the file"),
        ("notes.png", "0.5", "notes.png cannot be read as a PNG or JPEG picture"),
        ("scan.png", "0.1", "needs a square of 32 um: give at least 320 px a side"),
    ):
        page.get_by_label("PNG or JPEG file").set_input_files(tmp_path / name)
        page.get_by_label("um/px of the file").fill(mpp)
        use.click()
        expect(problem).to_contain_text(line)
    page.get_by_label("um/px of the file").fill("0.5")
    page.keyboard.press("Enter")
    expect(page.get_by_text("More like this: scan.png, the middle 32 x 32 um of 40 x 32 um")).to_be_visible()
    expect(page.locator(".job")).to_have_count(0)
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    assert not axe.Axe().run(page).response["violations"]
    page.get_by_role("button", name="Remove scan.png").click()
    expect(page.locator("#own-list li")).to_have_count(0)

"""A blinded reading in a browser: by keyboard, reloaded in the middle, by two readers at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager

from playwright.sync_api import Page, expect

from histoloom.evaluation.reading.folder import readings
from histoloom.names import add_name
from histoloom.run.directory import Run

Visit = Callable[..., AbstractContextManager[Page]]
READY = "Continue|Start"


def begin(page: Page, address: str, *, reader: str, trials: int, question: str = "Real or synthetic?") -> None:
    page.goto(f"{address}/read")
    page.get_by_label("Your name").fill(reader)
    page.get_by_label(question).check()
    page.get_by_label("Pictures", exact=True).fill(str(trials))
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/read/[0-9a-f]{32}$"))


def wait_for_picture(page: Page) -> None:
    """Wait until a picture is there for as long as the page takes no answer to it."""
    page.locator("#reading[data-answerable]").wait_for()


def press(page: Page, key: str) -> None:
    """Answer the picture that is shown."""
    before = page.locator("#count").inner_text()
    wait_for_picture(page)
    page.keyboard.press(key)
    expect(page.locator("#count")).not_to_have_text(before)


def test_a_whole_reading_by_keyboard_with_a_reload_and_a_pause(page: Page, own_address: str, finished: Run) -> None:
    begin(page, own_address, reader="Ann", trials=6)
    expect(page.get_by_role("heading", name="6 pictures")).to_be_visible()
    page.keyboard.press("Enter")
    for key in "135":
        press(page, key)
    shown = page.locator("#picture").get_attribute("src")
    page.reload()
    expect(page.get_by_role("heading", name="Continue with picture 4 of 6")).to_be_visible()
    expect(page.locator("#picture")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.locator("#picture")).to_have_attribute("src", str(shown))
    page.locator("#picture").wait_for(state="visible")
    page.keyboard.press("Space")
    expect(page.get_by_role("heading", name="Paused")).to_be_visible()
    page.keyboard.press("1")
    expect(page.locator("#count")).to_have_text("3 of 6")
    page.keyboard.press("Space")
    page.get_by_role("button", name="Pixels").click()
    for key in "445":
        press(page, key)
    expect(page.get_by_role("heading", name="The result")).to_be_focused()
    expect(page.locator(".verdict")).to_contain_text(re.compile(r"Ann was right in \d of 6 and could not tell 1"))
    answers = readings(finished.path)[0].answers()["Ann"]
    assert [answer.answer for answer in answers.values()] == [0, 2, 4, 3, 3, 4]
    assert [answer.scaling for answer in answers.values()] == ["smooth"] * 3 + ["pixelated"] * 3
    assert all(0 < answer.seconds < 60 for answer in answers.values())
    page.reload()
    expect(page.get_by_role("heading", name="The result")).to_be_visible()


def test_two_readers_at_once(own_address: str, visit: Visit, finished: Run) -> None:
    with visit() as ann, visit() as ben:
        begin(ann, own_address, reader="Ann", trials=4)
        ben.goto(f"{own_address}/read")
        ben.get_by_label("Your name").fill("Ben")
        expect(ben.locator("#readings")).to_contain_text("Ann: 0 of 4")
        ben.get_by_role("button", name="Read 001-real-or-synthetic").click()
        for page in (ann, ben):
            page.get_by_role("button", name=re.compile(READY)).click()
        for _ in range(4):
            press(ann, "1")
            press(ben, "5")
        expect(ben.locator("#result table").first).to_contain_text("Ann")
        expect(ben.get_by_text("Together: accuracy 0.50")).to_be_visible()
    assert len(readings(finished.path)) == 1


def test_naming_by_letters(page: Page, own_address: str, finished: Run) -> None:
    for cluster, name in enumerate(("bone", "<img src=x onerror=alert(1)>", "fat", "voids")):
        add_name(finished.path, cluster=cluster, name=name, k=4, rater="x")
    begin(page, own_address, reader="Ann", trials=4, question="Which tissue is it?")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("button", name="b <img src=x onerror=alert(1)>")).to_be_visible()
    for key in "abce":
        press(page, key)
    expect(page.locator(".verdict")).to_contain_text("of the samples as what they were drawn for")
    expect(page.get_by_text("Named differently from the requested tissue")).to_be_visible()


def test_a_training_says_what_it_was_below_that_picture(page: Page, own_address: str) -> None:
    page.goto(f"{own_address}/read?k=2")
    expect(page.get_by_role("link", name="Map")).to_have_attribute("href", "/map?k=2")
    expect(page.get_by_label("Groups (k)")).to_have_value("2")
    page.get_by_label(re.compile("Training")).check()
    page.get_by_label("Pictures", exact=True).fill("4")
    page.get_by_label("Your name").fill("Ann")
    page.get_by_role("button", name="Start").click()
    page.get_by_role("button", name="Start").click()
    shown = str(page.locator("#picture").get_attribute("src"))
    press(page, "5")
    truth = page.get_by_role("status").filter(has_text=re.compile("Right: a sample|Wrong: a real patch"))
    expect(truth).to_be_visible()
    expect(page.locator("#picture")).to_have_attribute("src", shown)
    expect(page.get_by_role("button", name="Next picture")).to_be_focused()
    page.keyboard.press("Enter")
    wait_for_picture(page)
    expect(page.locator("#picture")).not_to_have_attribute("src", shown)
    expect(truth).to_have_count(0)
    expect(page.get_by_role("link", name="Map")).to_have_attribute("href", "/map?k=2")


def test_a_lost_answer_is_sent_again(page: Page, own_address: str, finished: Run) -> None:
    begin(page, own_address, reader="Ann", trials=4)
    page.get_by_role("button", name="Start").click()
    wait_for_picture(page)
    page.route("**/answers", lambda route: route.abort())
    page.keyboard.press("2")
    expect(page.locator("#unsent-text")).to_contain_text("The atlas does not answer")
    expect(page.locator("#unsent-text")).to_contain_text("Your answer is kept here.")
    expect(page.locator(".toast")).to_have_count(0)
    page.unroute("**/answers")
    page.keyboard.press("Enter")
    expect(page.locator("#count")).to_have_text("1 of 4")
    assert [answer.answer for answer in readings(finished.path)[0].answers()["Ann"].values()] == [1]


def test_the_form_shows_what_is_missing(page: Page, own_address: str) -> None:
    page.goto(f"{own_address}/read")
    page.evaluate("localStorage.setItem('histoloom-rater', 'Dr A')")
    page.reload()
    expect(page.get_by_label("Your name")).to_have_value("Dr A")
    expect(page.locator("#trials-hint")).to_have_text("an accuracy of 50 % is known to ± 15 points")
    page.get_by_label("Your name").fill("Ann")
    page.get_by_label("Pictures", exact=True).fill("300")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("alert")).to_contain_text("ask for fewer")

"""Naming in a browser, mostly without a mouse."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from histoloom.atlas.maps.palette import colours, hexadecimal
from histoloom.names import clusters_of_tissue, current_labels, current_names, read_events, read_label_state
from histoloom.run.directory import Run

Visit = Callable[..., AbstractContextManager[Page]]


def start(page: Page, address: str, *, rater: str = "Dr A") -> None:
    """Open the page as ``rater``, by the keyboard."""
    page.goto(f"{address}/name")
    expect(page.get_by_role("dialog", name="Who is naming?")).to_be_visible()
    page.keyboard.type(rater)
    page.keyboard.press("Enter")
    expect(page.locator("#who")).to_have_text(rater)
    expect(page.get_by_role("group", name="Group 0", exact=True)).to_be_focused()


def kept(page: Page) -> None:
    expect(page.locator("#saved")).to_have_text("All changes saved")


def names(run: Path, rater: str, *, k: int = 4) -> list[str]:
    return [label.name for label in read_label_state(run, k=k).labels(rater).values()]


def field(page: Page, cluster: int) -> str:
    return page.get_by_label(f"Name of group {cluster}").input_value()


def test_a_name_typed_before_the_raters_names_have_come_is_kept(page: Page, own_address: str, finished: Run) -> None:
    held: list[Route] = []
    page.goto(f"{own_address}/name")
    expect(page.get_by_role("dialog", name="Who is naming?")).to_be_visible()
    page.route("**/api/names/4?rater=Dr*", lambda route: held.append(route))
    page.keyboard.type("Dr A")
    with page.expect_request("**/api/names/4?rater=Dr*"):
        page.keyboard.press("Enter")
    page.get_by_label("Name of group 0").fill("bone")
    kept(page)
    while not held:  # a request is announced before its route is called
        page.wait_for_timeout(20)
    held[0].continue_()
    page.unroute("**/api/names/4?rater=Dr*")
    flag = page.get_by_role("group", name="Flag of group 1").get_by_role("button", name="mixed")
    flag.click()
    expect(flag).to_have_attribute("aria-pressed", "true")
    assert (field(page, 0), names(finished.path, "Dr A")[0]) == ("bone", "bone")
    expect(page.locator(".toast")).to_have_count(0)


def test_name_merge_flag_colour_and_undo_by_the_keyboard(page: Page, own_address: str, finished: Run) -> None:
    start(page, own_address)
    run = finished.path
    page.keyboard.press("Enter")
    page.keyboard.type("voids  within the tissue ")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Name of group 1")).to_be_focused()
    page.keyboard.type("bone")
    page.keyboard.press("Escape")
    expect(page.get_by_role("group", name="Group 1", exact=True)).to_be_focused()
    page.keyboard.press("2")
    row = page.get_by_role("group", name="Group 1", exact=True)
    expect(row.get_by_role("button", name="mixed")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("c")
    expect(page.get_by_role("dialog", name="Colour of group 1")).to_be_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.press("n")
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("group", name="Group 3", exact=True)).to_be_focused()
    page.keyboard.press("m")
    page.keyboard.type("0")
    page.keyboard.press("Enter")
    expect(page.get_by_text("One tissue with group 0")).to_be_visible()
    kept(page)
    assert clusters_of_tissue(run, "Voids within the tissue", k=4) == [0, 3]
    label = current_labels(run, k=4)[1]
    assert (label.name, label.flag, label.colour) == ("bone", "mixed", hexadecimal(colours(3)[2]))
    page.keyboard.press("Control+z")
    expect(page.get_by_label("Name of group 3")).to_have_value("")
    assert clusters_of_tissue(run, "voids within the tissue", k=4) == [0]
    for _ in range(4):
        page.keyboard.press("Control+z")
    expect(page.locator("#undo")).to_be_disabled()
    assert names(run, "Dr A") == ["", "", "", ""]
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("Control+y")
    expect(page.get_by_label("Name of group 1")).to_have_value("bone")
    assert names(run, "Dr A") == ["voids  within the tissue", "bone", "", ""]


def test_who_types_faster_than_a_dialog_ends_stays_where_she_went(page: Page, own_address: str) -> None:
    start(page, own_address)
    page.keyboard.press("c")
    expect(page.get_by_role("dialog", name="Colour of group 0")).to_be_visible()
    page.evaluate("""() => new Promise((done) => {
      const dialog = document.getElementById("colour-dialog");
      dialog.addEventListener("close", () => setTimeout(done));
      dialog.close();
      document.querySelector('[data-cluster="3"]').focus();
    })""")
    expect(page.get_by_role("group", name="Group 3", exact=True)).to_be_focused()


def test_what_was_typed_outlives_a_reload(page: Page, own_address: str, finished: Run) -> None:
    start(page, own_address)
    page.keyboard.press("Enter")
    page.keyboard.type("necrotic tumour")
    page.reload()
    expect(page.locator("#who")).to_have_text("Dr A")
    expect(page.get_by_label("Name of group 0")).to_have_value("necrotic tumour")
    kept(page)
    assert names(finished.path, "Dr A")[0] == "necrotic tumour"


def test_a_name_that_cannot_be_kept_says_why_and_how_it_goes_on(page: Page, own_address: str, finished: Run) -> None:
    start(page, own_address)
    page.keyboard.press("Enter")
    page.keyboard.type("3")
    expect(page.get_by_text("reads as a cluster's number")).to_be_visible()
    expect(page.locator("#saved")).to_have_text("Group 0 is not saved")
    page.keyboard.type(" kinds of cells")
    expect(page.get_by_text("reads as a cluster's number")).to_be_hidden()
    kept(page)
    assert names(finished.path, "Dr A")[0] == "3 kinds of cells"


def test_two_raters_at_once_and_their_agreement(visit: Visit, own_address: str, finished: Run) -> None:
    with visit() as one, visit() as two:
        start(one, own_address, rater="Dr A")
        start(two, own_address, rater="Dr <B>")
        for cluster in range(4):
            for page, name in ((one, f"tissue {'abcd'[cluster]}"), (two, f"Tissue {'abce'[cluster]}")):
                page.keyboard.press("Enter")
                page.keyboard.type(name)
                page.keyboard.press("Escape")
                page.keyboard.press("n")
        kept(one)
        kept(two)
        assert [field(one, cluster) for cluster in range(4)] == ["tissue a", "tissue b", "tissue c", "tissue d"]
        assert [field(two, cluster) for cluster in range(4)] == ["Tissue a", "Tissue b", "Tissue c", "Tissue e"]
        one.get_by_role("button", name="Agreement").press("Enter")
        expect(one.get_by_role("row", name=re.compile("Dr A and Dr <B>"))).to_contain_text("0.69")
        expect(one.get_by_text("Shaded: 1 of 4 groups")).to_be_visible()
        one.get_by_role("button", name="Add a synonym").press("Enter")
        one.keyboard.type("tissue")
        two.get_by_label("Name of group 0").fill("TISSUE A")
        kept(two)
        expect(one.get_by_role("row", name=re.compile("tissue a TISSUE A"))).to_be_visible()
        one.keyboard.type(" d")  # the cursor stayed where it was
        one.get_by_label("Means the same as").fill("tissue e")
        one.get_by_role("button", name="Save the synonyms").press("Enter")
        expect(one.get_by_text("No group was named differently.")).to_be_visible()
        one.get_by_label("What counts").select_option("Dr A")
        expect(one.get_by_role("row", name=re.compile("tissue d tissue d Tissue e"))).to_be_visible()
        assert current_names(finished.path, k=4)[3] == "tissue d"
        two.keyboard.press("Escape")
        for undone in ("tissue a Tissue a", "tissue d tissue d –"):
            two.keyboard.press("Control+z")
            expect(one.get_by_role("row", name=re.compile(undone))).to_be_visible()


def test_two_tabs_of_one_rater_see_each_other(page: Page, own_address: str) -> None:
    start(page, own_address)
    other = page.context.new_page()
    other.goto(f"{own_address}/name")
    other.get_by_label("Name of group 2").fill("from the other tab")
    page.bring_to_front()
    expect(page.get_by_label("Name of group 2")).to_have_value("from the other tab")
    page.get_by_label("Name of group 2").fill("the later one")
    expect(other.get_by_label("Name of group 2")).to_have_value("the later one")
    other.locator("#undo").click()
    expect(page.get_by_label("Name of group 2")).to_have_value("from the other tab")


def test_the_list_of_tissues_can_be_walked_without_merging(page: Page, own_address: str, finished: Run) -> None:
    start(page, own_address)
    page.get_by_label("Name of group 2").fill("bone")
    page.keyboard.press("Escape")
    page.keyboard.press("p")
    page.keyboard.press("m")
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    expect(page.get_by_role("group", name="Group 1", exact=True)).to_be_focused()
    kept(page)
    assert names(finished.path, "Dr A") == ["", "", "bone", ""]
    page.get_by_label("Group 1 is the same tissue as").select_option("2 · bone")
    page.get_by_role("button", name="Merge group 1 with this group").click()
    expect(page.get_by_label("Name of group 1")).to_have_value("bone")
    page.locator("#toasts").get_by_role("button", name="Undo this merge").click()
    expect(page.get_by_label("Name of group 1")).to_have_value("")


def test_undo_of_a_merge_undoes_that_merge_alone(page: Page, own_address: str, finished: Run) -> None:
    def merge(cluster: int) -> Locator:
        """Make the cluster one with cluster 2; the message stays for as long as the pointer is on it."""
        page.get_by_label(f"Group {cluster} is the same tissue as").select_option("2 · bone")
        page.get_by_role("button", name=f"Merge group {cluster} with this group").click()
        button = page.locator("#toasts").get_by_role("button", name="Undo this merge")
        button.hover()
        return button

    start(page, own_address)
    page.get_by_label("Name of group 2").fill("bone")
    kept(page)
    button = merge(1)
    page.get_by_label("Name of group 3").fill("fat")
    kept(page)
    expect(page.locator("#undo")).to_have_attribute("title", "Undo the name of group 3: fat")
    button.click()
    expect(page.locator(".toast").filter(has_text="Undone: merge of groups 1, 2: bone")).to_be_visible()
    assert names(finished.path, "Dr A") == ["", "", "bone", "fat"]
    button = merge(0)
    page.locator("#who").press("Enter")
    page.get_by_label("Your name").fill("Dr B")
    page.keyboard.press("Enter")
    expect(page.locator("#who")).to_have_text("Dr B")
    page.get_by_label("Name of group 3").fill("air")
    kept(page)
    button.click()
    expect(page.locator(".toast").filter(has_text="is of Dr A, who alone can undo it")).to_be_visible()
    assert names(finished.path, "Dr A") == ["bone", "", "bone", "fat"]
    assert names(finished.path, "Dr B") == ["", "", "", "air"]


def test_a_group_is_named_on_its_own_page(page: Page, own_address: str, finished: Run) -> None:
    page.goto(f"{own_address}/clusters/4/1")
    field = page.get_by_label("What does this group show?")
    field.fill("bone")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Enter your own name first")
    expect(page.get_by_label("Named by")).to_be_focused()
    page.keyboard.type("Dr A")
    expect(page.locator("#group-problem")).to_be_hidden()
    page.get_by_role("button", name="Save the name").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("1 bone")
    assert names(finished.path, "Dr A") == ["", "bone", "", ""]
    page.locator("#toasts").get_by_role("button", name="Undo this name").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Group 1")
    field.fill("3")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("reads as a cluster's number")

    page.goto(f"{own_address}/clusters/4/0")
    expect(page.get_by_label("Named by")).to_have_value("Dr A")
    field.fill("fat")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("0 fat")
    page.goto(f"{own_address}/clusters/4/2")
    field.fill("FAT")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{own_address}/clusters/4/0")
    expect(page.get_by_role("heading", level=1)).to_contain_text("0, 2 fat")
    page.get_by_role("button", name="artefact").click()
    expect(page.get_by_text("Artefact: it is left out of mixtures")).to_be_visible()
    assert [label.flag for label in current_labels(finished.path, k=4).values()] == ["artefact", "", "artefact", ""]


def test_a_table_is_exported_filled_in_and_imported(
    page: Page, own_address: str, finished: Run, tmp_path: Path
) -> None:
    start(page, own_address)
    page.keyboard.press("Enter")
    page.keyboard.type("bone")
    kept(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="Export CSV").click()
    table = tmp_path / "names.csv"
    download.value.save_as(table)
    text = table.read_text(encoding="utf-8-sig")
    table.write_text(text.replace("4,1,,", "4,1,fat,"), encoding="utf-8")
    page.set_input_files("#file", table)
    page.get_by_role("button", name="As names of Dr A").click()
    expect(page.get_by_label("Name of group 1")).to_have_value("fat")
    table.write_text("k,cluster,name,patches\n4,2,x,1\n4,3,x,1\n", encoding="utf-8")
    page.set_input_files("#file", table)
    page.get_by_role("button", name="As names of Dr A").click()
    expect(page.get_by_role("listitem").filter(has_text="rows 2 to 3: the numbers of patches are not")).to_be_visible()
    page.get_by_role("button", name="Import anyway").click()
    expect(page.get_by_label("Name of group 3")).to_have_value("x")
    assert names(finished.path, "Dr A") == ["bone", "fat", "x", "x"]


def test_the_page_can_be_used_from_1024_to_2560_in_light_and_dark(visit: Visit, own_address: str) -> None:
    for width, scheme in ((1024, "dark"), (2560, "light")):
        with visit(viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
            start(page, own_address)
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, "nothing stands over"
            for cluster in range(4):
                expect(page.get_by_label(f"Name of group {cluster}")).to_be_enabled()


SERVER = """
import sys
from pathlib import Path
from histoloom.atlas.web.app import create_app
from histoloom.atlas.web.security import Access
from histoloom.atlas.web.serve import serve
app, port = create_app(Path(sys.argv[1]), access=Access()), int(sys.argv[2])
serve(app, access=Access(), port=port, say=lambda text: print(text, flush=True), open_browser=False)
"""


def served(run: Path, *, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    """The atlas in a process of its own, and its address."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(run), str(port)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip().rstrip("/")


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_kill_while_typing_loses_at_most_the_last_keystroke(visit: Visit, finished: Run) -> None:
    first, address = served(finished.path)
    with visit() as page:
        start(page, address)
        page.keyboard.press("Enter")
        page.keyboard.type("boundary of tissue containing red blood cell")
        kept(page)
        page.keyboard.type("s")
        killed(first)
        last = read_events(finished.path)[-1].value
        assert last in ("boundary of tissue containing red blood cells", "boundary of tissue containing red blood cell")
        page.keyboard.type(" and more")
        expect(page.locator("#saved")).to_have_text("Not saved: the atlas does not answer")
        second, _ = served(finished.path, port=int(address.rpartition(":")[2]))
        kept(page)
        assert names(finished.path, "Dr A")[0] == "boundary of tissue containing red blood cells and more"
        killed(second)

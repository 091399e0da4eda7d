"""The slides over HTTP: pages, tiles, patches; an invalid request gets one line, and no file can be reached."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from histoloom.clustering.clustering_set import Clustering
from histoloom.names import add_name
from histoloom.run.directory import Run, write_json
from histoloom.slides.inventory.pseudonyms import PrivateRecord, SlideNames
from histoloom.slides.patch_set import PatchSet

TILE = "/api/slides/slide-1/tiles/0/0/0.jpg"


def picture(client: TestClient, address: str) -> np.ndarray:
    response = client.get(address)
    assert response.status_code == 200, response.text
    with Image.open(io.BytesIO(response.content)) as image:
        return np.asarray(image.convert("RGB"))


def changed(run: Run, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = run.folder("patches") / name
    change(pd.read_parquet(path)).to_parquet(path, index=False)


def file_of(run: Run, slide_id: str) -> Path:
    table = pd.read_parquet(run.folder("patches") / "slides.parquet").set_index("slide_id")
    return Path(table["file"][slide_id])


def test_the_list_has_every_slide_and_where_its_patches_are(client: TestClient) -> None:
    page = client.get("/slides").text
    for slide_id in ("slide-0", "slide-1", "slide-2"):
        assert f'href="/slides/{slide_id}?k=4"' in page
    assert page.count('<svg class="mix"') == 3
    assert "held out" in page
    assert "patient 1" in page
    assert "cannot be read: torn file" in page
    assert "&lt;b&gt;bad&lt;/b&gt;" in page
    assert "<b>bad</b>" not in page


def test_slides_are_found_by_name_patient_and_split(client: TestClient) -> None:
    def shown(find: str) -> int:
        return client.get("/slides", params={"find": find, "k": 2}).text.count('href="/slides/slide-')

    assert (shown("SLIDE-1"), shown("patient 0"), shown("holdout"), shown("<script>")) == (1, 2, 1, 0)
    assert "No slide has “&lt;script&gt;”" in client.get("/slides?find=<script>").text


def test_many_slides_come_by_the_page(finished: Run, open_client: Callable[..., TestClient]) -> None:
    def many(table: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([table, *(table.iloc[:1].assign(slide_id=f"more-{n:03d}") for n in range(70))])

    changed(finished, "slides.parquet", many)
    client = open_client(finished.path)
    first, second = client.get("/slides").text, client.get("/slides?page=1").text
    assert (first.count('<li class="card'), second.count('<li class="card')) == (60, 14)
    assert "Page 1 of 2" in first
    assert "torn file" in second  # those left out come last
    assert client.get("/slides?page=2").status_code == 404


def test_the_viewers_page_names_its_neighbours(client: TestClient) -> None:
    page = client.get("/slides/slide-1?k=2").text
    assert 'href="/slides/slide-0?k=2"' in page
    assert 'href="/slides/slide-2?k=2"' in page
    assert 'data-slide="slide-1" data-k="2"' in page
    assert "viewer.js" not in client.get("/slides/bad").text
    assert "This slide was left out of the run: cannot be read: torn file" in client.get("/slides/bad").text


def test_a_slide_says_what_the_viewer_needs(client: TestClient, published: Run) -> None:
    answer = client.get("/api/slides/slide-1?k=2").json()
    assert (answer["width"], answer["height"], answer["mpp"], answer["tile"], answer["levels"]) == (160, 128, 1, 256, 1)
    assert (answer["problem"], answer["map"]) == ("", "")
    sizes = Clustering.open(published.folder("clusters")).labels(2)
    sizes = sizes[sizes.index.str.startswith("slide-1_")].value_counts()
    groups = {tuple(entry["clusters"]): entry["patches"] for entry in answer["groups"]}
    assert groups == {(cluster,): sizes.get(cluster, 0) for cluster in (0, 1)}
    tile = answer["tiles"].format(level=0, column=0, row=0)
    assert picture(client, tile).shape == (128, 160, 3)
    assert "immutable" in client.get(tile).headers["cache-control"]
    assert picture(client, answer["thumbnail"]).shape == (128, 160, 3)


def test_tiles_are_kept_by_what_the_slide_is(finished: Run, open_client: Callable[..., TestClient]) -> None:
    client = open_client(finished.path)
    first = client.get(TILE)
    assert first.headers["content-type"] == "image/jpeg"
    assert "no-cache" in first.headers["cache-control"]
    again = {"If-None-Match": first.headers["etag"]}
    assert client.get(TILE, headers=again).status_code == 304
    shutil.copyfile(file_of(finished, "slide-0"), file_of(finished, "slide-1"))
    assert client.get(TILE, headers=again).status_code == 200
    assert (picture(client, TILE) == picture(client, TILE.replace("slide-1", "slide-0"))).all()


@pytest.mark.parametrize(
    "place",
    ["1/0/0", "-1/0/0", "0/1/0", "0/0/1", "0/-1/0", "99999999999999999999/0/0", "0/0/-99999999999999999999"],
)
def test_no_tile_there(client: TestClient, place: str) -> None:
    response = client.get(f"/api/slides/slide-1/tiles/{place}.jpg")
    assert response.status_code == 404
    assert response.json()["detail"].startswith("there is no such")
    assert "\n" not in response.json()["detail"]


@pytest.mark.parametrize("place", ["a/0/0", "0/0.5/0", "0/0/0x1", "1e3/0/0", "%00/0/0", "9" * 5000 + "/0/0"])
def test_no_number(client: TestClient, place: str) -> None:
    response = client.get(f"/api/slides/slide-1/tiles/{place}.jpg")
    assert response.status_code == 422
    assert isinstance(response.json()["detail"], str)


@pytest.mark.parametrize("slide_id", ["nobody", "..%2fslide-1", "%2e%2e", "%00", "%ff", "x" * 290, "%F0%9F%92%A9"])
@pytest.mark.parametrize(
    "rest", ["", "/tiles/0/0/0.jpg", "/thumbnail.jpg", "/map.png", "/patches?left=0&top=0&right=9&bottom=9"]
)
def test_no_slide_of_that_name(client: TestClient, slide_id: str, rest: str) -> None:
    response = client.get(f"/api/slides/{slide_id}{rest}")
    assert response.status_code == 404
    assert response.json()["detail"].startswith(("there is no", "this run has no", "there is nothing"))
    assert client.get(f"/slides/{slide_id}").status_code == 404


def test_patches_of_a_part_are_those_of_the_index(client: TestClient, published: Run) -> None:
    table = PatchSet.open(published.folder("patches")).table
    labels = Clustering.open(published.folder("clusters")).labels(4)
    rows = table[(table.slide_id == "slide-2") & (table.x < 60) & (table.y < 50)]
    box = {"left": -5, "top": 0, "right": 60, "bottom": 50}
    found = client.get("/api/slides/slide-2/patches", params=box).json()
    assert found["total"] == len(found["x"]) == len(rows)
    expected = zip(rows.x, rows.y, rows.extent, labels[rows.patch_id], strict=True)
    seen = zip(found["x"], found["y"], found["extent"], found["cluster"], strict=True)
    assert sorted(seen) == sorted(expected)


def test_clusters_of_one_name_are_one_group(finished: Run, open_client: Callable[..., TestClient]) -> None:
    add_name(finished.path, cluster=1, name="fat", k=4, rater="A")
    add_name(finished.path, cluster=3, name="Fat", k=4, rater="A")
    client = open_client(finished.path)
    groups = client.get("/api/slides/slide-1").json()["groups"]
    assert [(group["name"], group["clusters"]) for group in groups] == [
        ("cluster 0", [0]),
        ("fat", [1, 3]),
        ("cluster 2", [2]),
    ]
    found = client.get("/api/slides/slide-1/patches?left=0&top=0&right=200&bottom=200").json()
    assert {(cluster, group) for cluster, group in zip(found["cluster"], found["group"], strict=True)} <= {
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 1),
    }
    assert [found["group"].count(place) for place in range(3)] == [group["patches"] for group in groups]


@pytest.mark.parametrize("left", ["nan", "inf", "-1e9", "", "x"])
def test_patches_of_no_place(client: TestClient, left: str) -> None:
    response = client.get(f"/api/slides/slide-2/patches?left={left}&top=0&right=1&bottom=1")
    assert response.status_code == 422
    assert isinstance(response.json()["detail"], str)
    assert client.get("/api/slides/slide-2/patches?left=0&top=0&right=1&bottom=1&k=3").status_code == 404


def test_the_reports_map_is_shown_where_it_is_of_these_clusters(
    finished: Run, open_client: Callable[..., TestClient]
) -> None:
    maps = finished.folder("report") / "maps"
    maps.mkdir(parents=True)
    Image.new("RGB", (16, 12), "green").save(maps / "slide-1.png")
    write_json(maps / "slide-1.json", {"slide_id": "slide-1", "k": 4, "clusters": "0" * 16})
    client = open_client(finished.path)
    assert picture(client, client.get("/api/slides/slide-1?k=4").json()["map"])[0, 0].tolist() == [0, 128, 0]
    assert client.get("/api/slides/slide-1?k=2").json()["map"] == ""
    refused = client.get("/api/slides/slide-1/map.png?k=2")
    assert refused.status_code == 404
    assert "report.map_slides" in refused.json()["detail"]
    write_json(maps / "slide-1.json", {"slide_id": "slide-1", "k": 4, "clusters": "1" * 16})
    assert client.get("/api/slides/slide-1?k=4").json()["map"] == ""


def test_a_missing_slide_is_reported_and_its_thumbnail_shown(
    finished: Run, open_client: Callable[..., TestClient]
) -> None:
    file = file_of(finished, "slide-1")
    file.unlink()
    client = open_client(finished.path)
    page = client.get("/slides/slide-1").text
    assert f"{file}: the file does not exist. The thumbnail is shown instead" in page
    answer = client.get("/api/slides/slide-1").json()
    assert answer["tiles"] == ""
    assert "does not exist" in answer["problem"]
    assert picture(client, answer["thumbnail"]).shape == (128, 160, 3)
    refused = client.get(TILE)
    assert refused.status_code == 409
    assert refused.json()["detail"] == "the slide cannot be shown: the file does not exist"
    assert str(file) not in refused.text


def test_a_private_slide_is_shown_and_never_named(
    finished: Run, open_client: Callable[..., TestClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = file_of(finished, "slide-1")
    private = tmp_path / "private"
    private.mkdir()
    names = SlideNames(file=str(real), slide="slide-1", patient="ward", patient_id="p1")
    PrivateRecord(paths=("/ward",), table=None, slides={"slide-1": names}).save(private / "ward.json")
    monkeypatch.setenv("HISTOLOOM_PRIVATE", str(private))
    changed(
        finished,
        "slides.parquet",
        lambda table: table.assign(file=table["file"].where(table.slide_id != "slide-1", "private:ward/slide-1")),
    )
    client = open_client(finished.path)
    assert picture(client, TILE).shape == (128, 160, 3)
    real.unlink()
    texts = [client.get(address).text for address in ("/slides", "/slides/slide-1", "/api/slides/slide-1", TILE)]
    assert "the file does not exist" in texts[1]
    assert not any(real.name in text or str(real.parent) in text or "ward" in text for text in texts)


def test_a_damaged_slide_is_one_line(finished: Run, open_client: Callable[..., TestClient]) -> None:
    file_of(finished, "slide-1").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 500)
    client = open_client(finished.path)
    assert client.get(TILE).status_code == 409
    assert client.get("/slides/slide-1").status_code == 200
    assert client.get("/api/slides/slide-1").json()["tiles"] == ""


def test_many_ask_at_once(client: TestClient) -> None:
    addresses = [f"/api/slides/slide-{n % 3}/tiles/0/0/0.jpg" for n in range(24)]
    addresses += ["/api/slides/slide-0/patches?left=0&top=0&right=99&bottom=99", "/api/slides/slide-0?k=2"] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(client.get, addresses))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers[:24]}) == 3


def test_small_thumbnails_are_for_lists(client: TestClient) -> None:
    assert picture(client, "/api/slides/slide-0/thumbnail.jpg?size=small").shape == (128, 160, 3)
    assert client.get("/api/slides/bad/thumbnail.jpg").status_code == 404
    assert client.get("/api/slides/slide-0/thumbnail.jpg?size=huge").status_code == 422

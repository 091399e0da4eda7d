"""Two galleries at one scale, their filters, and galleries as files."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from histoloom.atlas.browse.sheet import (
    A4,
    COLUMNS,
    MARGIN,
    TILE,
    SheetGallery,
    encoded_sheet,
    gallery_pages,
    gallery_sheet,
    scale_bar,
)
from histoloom.names import add_name
from histoloom.run.directory import Run
from histoloom.slides.patch_set import PatchSet


def galleries(client: TestClient, query: str) -> list[str]:
    """The two sections of the page."""
    response = client.get(f"/compare?{query}")
    assert response.status_code == 200, response.text
    return response.text.split("<section")[1:]


def labels_of(run: Run, column: str) -> pd.Series:
    return pd.read_parquet(run.folder("clusters") / "index.parquet").set_index("patch_id")[column]


def test_a_group_is_compared_with_its_samples_or_with_another_group(client: TestClient, published: Run) -> None:
    labels = labels_of(published, "k4")
    left, right = galleries(client, "left=2&right=synthetic")
    shown = re.findall(r"/api/patches/([^/.]+)\.jpg", left)
    assert sorted(shown) == sorted(labels.index[labels == 2]), "real patches of the group, each once"
    assert re.findall(r"/api/samples/(k4-c\d-\d)\.png\?[^\"]*\" width", right) == [f"k4-c2-{n}" for n in range(3)]
    assert "not for diagnosis" in right
    assert "not for diagnosis" not in left
    other = galleries(client, "left=synthetic-1&right=3")
    assert "k4-c1-0" in other[0]
    assert f"{(labels == 3).sum()} patches" in other[1]
    everything = galleries(client, "")
    assert "72 patches" in everything[0]
    assert "12 samples" in everything[1]
    assert 'href="/compare?k=4&amp;left=2&amp;right=synthetic"' in client.get("/clusters/4/2").text


def test_both_galleries_have_one_scale_at_every_zoom(client: TestClient) -> None:
    for zoom, side in enumerate((48, 96, 192, 384)):
        page = client.get(f"/compare?left=0&right=synthetic&zoom={zoom}&around=1").text
        widths = set(re.findall(r'<img src="/api/[^"]*" width="(\d+)"', page.split('class="compared"')[1]))
        assert widths == {str(side), str(3 * side)}, "samples alone, real patches with the tissue about them"
        # Patches are 32 um wide here
        assert f'<svg width="{round(side * 20 / 32)}"' in page
        assert "20 µm, in both galleries" in page


def test_the_surrounding_tissue_is_read_from_the_slide(client: TestClient, published: Run, fields: Any) -> None:
    table = PatchSet.open(published.folder("patches")).table
    inside = table[(table["x"] >= 32) & (table["y"] >= 32) & (table["x"] < 96) & (table["y"] < 64)]
    patch = inside.iloc[0]
    response = client.get(f"/api/patches/{patch['patch_id']}/surroundings.jpg")
    picture = np.asarray(Image.open(io.BytesIO(response.content))).astype(int)
    x, y = int(patch["x"]) - 32, int(patch["y"]) - 32
    expected = fields[patch["slide_id"]][y : y + 96, x : x + 96].astype(int)
    assert picture.shape == (96, 96, 3)
    difference = np.abs(picture - expected).mean(axis=2)
    assert difference[:28].mean() < 8, "the tissue above"
    assert difference[36:60, 36:60].mean() < 8, "the patch"
    assert client.get("/api/patches/nothing/surroundings.jpg").status_code == 404


def test_patches_of_a_slide_that_is_gone_are_shown_alone(changing_client: TestClient, finished: Run) -> None:
    file = finished.path.parent / "slides" / "slide-0.png"
    file.rename(file.with_suffix(".away"))
    page = changing_client.get("/compare?left=real&around=1").text
    assert page.count("does not exist") == 1
    assert re.search(r"/api/patches/slide-0[^/\"]*\.jpg", page)
    assert not re.search(r"/api/patches/slide-0[^/\"]*/surroundings", page)
    assert re.search(r"/api/patches/slide-1[^/\"]*/surroundings", page)
    patch_id = PatchSet.open(finished.folder("patches")).table["patch_id"].iloc[0]
    response = changing_client.get(f"/api/patches/{patch_id}/surroundings.jpg")
    assert (response.status_code, "the slide cannot be shown" in response.text) == (409, True)
    response = changing_client.get("/compare.png?left=real&around=1")
    assert response.status_code == 409


@pytest.mark.parametrize(
    ("query", "status"),
    [("left=9", 404), ("left=other", 400), ("slide=nothing", 404), ("patient=nobody", 404), ("zoom=9", 422)],
)
def test_what_there_is_not_gets_one_line(client: TestClient, query: str, status: int) -> None:
    for address in ("/compare", "/compare.png"):
        assert client.get(f"{address}?{query}").status_code == status
    assert client.get("/clusters/4/0?slide=nothing").status_code == 404


def test_galleries_are_filtered_by_slide_and_patient_with_counts(client: TestClient, published: Run) -> None:
    table = PatchSet.open(published.folder("patches")).table.set_index("patch_id")
    table["k4"] = labels_of(published, "k4")
    here = table[(table["k4"] == 1) & (table["patient"] == "patient 0")]
    both = here[here["slide_id"] == "slide-2"]
    assert 0 < len(both) < len(here) < (table["k4"] == 1).sum()
    for query, expected in (("patient=patient 0", here), ("patient=patient 0&slide=slide-2", both)):
        found = client.get(f"/api/clusters/4/1/patches?{query}").json()
        assert found["total"] == len(expected)
        assert {patch["id"] for patch in found["patches"]} == set(expected.index)
        assert f"{len(expected)} patch" in galleries(client, f"left=1&{query}")[0]
    assert client.get("/api/clusters/4/1/patches?patient=patient 1&slide=slide-2").json()["total"] == 0
    page = client.get("/clusters/4/1?patient=patient 0").text
    assert f'<option value="patient 0" selected>patient 0 ({len(here)})</option>' in page
    assert f'<option value="slide-2">slide-2 ({len(both)})</option>' in page


def test_a_gallery_is_one_sheet(changing_client: TestClient, finished: Run) -> None:
    add_name(finished.path, cluster=1, name="кость $x$ " + "wide " * 30, k=4, rater="Dr A")
    query = "k=4&left=1&right=synthetic&patient=patient 0"
    response = changing_client.get(f"/compare.png?{query}")
    assert response.headers["content-type"] == "image/png"
    two = Image.open(io.BytesIO(response.content))
    one = Image.open(io.BytesIO(changing_client.get("/compare.png?k=4&left=1&right=&patient=patient 0").content))
    assert two.height > one.height + TILE, "the samples are below"
    pdf = changing_client.get(f"/compare.pdf?{query}")
    assert (pdf.headers["content-type"], pdf.content[:5]) == ("application/pdf", b"%PDF-")
    around = Image.open(io.BytesIO(changing_client.get(f"/compare.png?{query}&around=1").content))
    assert around.height > two.height


def test_a_pdf_has_a4_pages_and_cuts_no_picture() -> None:
    images = [np.full((8, 8, 3), 90, np.uint8)] * (8 * COLUMNS)
    galleries = [SheetGallery("a", ("b",), images), SheetGallery("c", (), images[:1])]
    pages = gallery_pages(galleries, heading="d", side_um=64.0)
    assert [page.size for page in pages] == [A4, A4]
    assert sum(int((np.asarray(page) == 90).all(axis=2).sum()) for page in pages) == (8 * COLUMNS + 1) * TILE**2
    data = encoded_sheet(galleries, heading="d", side_um=64.0, kind="pdf")
    assert data.count(b"/MediaBox [ 0 0 595.2 841.92 ]") == 2


def test_a_sheet_has_its_pictures_and_a_true_scale_bar() -> None:
    images = [np.full((16, 16, 3), value, np.uint8) for value in (40, 90, 140, 190, 60, 110, 160)]
    sheet = np.asarray(gallery_sheet([SheetGallery("a", ("b",), images)], heading="c", side_um=64.0))
    assert [scale_bar(side) for side in (64.0, 32.0, 100.0, 0.7)] == [50.0, 20.0, 100.0, 0.5]
    row = sheet[sheet.shape[0] - MARGIN - MARGIN // 2 - TILE // 2 - 8]
    assert set(np.unique(row)) == {160, 255}, "the seventh begins the second row"
    dark_rows = (sheet[:120] == (16, 20, 24)).all(axis=2).sum(axis=1)
    assert dark_rows.max() >= TILE * 50 / 64
    assert (sheet[:120, MARGIN : MARGIN + round(TILE * 50 / 64)] == (16, 20, 24)).all(axis=2).all(axis=1).sum() == 8

"""The pages to look at clusters with."""

from __future__ import annotations

import io

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from histoloom.slides.patch_set import PatchSet
from histoloom.store import Run


def test_the_first_page_has_a_card_for_each_cluster(client: TestClient) -> None:
    for query, clusters in (("", 4), ("?k=2", 2)):
        answered = client.get(f"/{query}")
        assert answered.status_code == 200
        assert answered.text.count('<li class="card') == clusters
        assert "Cluster 0" in answered.text


def test_an_unknown_k_is_said_in_one_line(client: TestClient) -> None:
    answered = client.get("/?k=3")
    assert answered.status_code == 404
    assert "k = 3 is not in this run&#39;s sweep; there are 2, 4" in answered.text


def test_a_patch_is_the_patch(client: TestClient, published: Run) -> None:
    patches = PatchSet.open(published.folder("patches"))
    patch_id, image = patches.table["patch_id"].iloc[7], patches.images([7])[0]
    exact = client.get(f"/api/patches/{patch_id}.png")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(exact.content))), image)
    shown = np.asarray(Image.open(io.BytesIO(client.get(f"/api/patches/{patch_id}.jpg").content)))
    assert np.abs(shown.astype(int) - image).mean() < 8  # the picture is noise, which JPEG is worst at


def test_no_patch_of_that_name(client: TestClient) -> None:
    for patch_id in ("nothing", "..%2f..%2fconfig.yaml", "%00", "%ff"):
        answered = client.get(f"/api/patches/{patch_id}.png")
        assert answered.status_code == 404
        assert answered.json()["detail"].startswith("there is no")


def test_a_picture_is_kept_by_the_browser(client: TestClient) -> None:
    page = client.get("/").text
    address = page.split('<img src="/api')[1].split('"')[0].replace("&amp;", "&")
    first = client.get(f"/api{address}")
    assert first.headers["content-type"] == "image/jpeg"
    assert "immutable" in first.headers["cache-control"]
    assert client.get(f"/api{address}", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    assert "no-cache" in client.get(f"/api{address.split('?')[0]}").headers["cache-control"]

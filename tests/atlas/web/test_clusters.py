"""The pages that show clusters, and the requests that they make."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from markupsafe import escape
from PIL import Image
from safetensors.numpy import load_file

from histoloom.atlas.report.lights import lights
from histoloom.atlas.web.gallery_api import PAGE, pages
from histoloom.names import add_label, add_name
from histoloom.run.directory import Run, read_json, write_json
from histoloom.slides.patch_set import PatchSet


def gallery(client: TestClient, *, k: int, cluster: int, order: str = "typical") -> list[dict[str, Any]]:
    """All pages of a gallery."""
    address = f"/api/clusters/{k}/{cluster}/patches?order={order}"
    first = client.get(address).json()
    rest = [client.get(f"{address}&page={page}").json() for page in range(1, first["pages"])]
    return [patch for page in (first, *rest) for patch in page["patches"]]


def test_the_first_page_has_a_card_for_each_cluster(client: TestClient) -> None:
    for query, clusters in (("", 4), ("?k=2", 2)):
        response = client.get(f"/{query}")
        assert response.status_code == 200
        assert response.text.count('<li class="card') == clusters
        assert "Group 0" in response.text


def test_the_first_page_says_what_the_run_is_whether_it_is_good_and_what_to_do(
    changing_client: TestClient, finished: Run
) -> None:
    page = changing_client.get("/").text
    assert "72 squares of 32 µm" in page
    for light in lights(finished.path, k=4):
        assert light.question in page
        assert str(escape(light.sentence)) in page
    assert "Name 4 groups: 0 done" in page
    assert 'class="button primary" href="/name?k=4">Name the groups</a>' in page
    for cluster in range(4):
        add_name(finished.path, cluster=cluster, name=f"tissue {cluster}", k=4, rater="Dr A")
        text = changing_client.get("/").text
        assert f"Name 4 groups: {cluster + 1} done" in text
    assert 'class="button primary" href="/slides?k=4"' in text
    assert "Name 2 groups: 0 done" in changing_client.get("/?k=2").text


def test_measurements_of_another_version_do_not_close_the_first_page(
    changing_client: TestClient, finished: Run
) -> None:
    (finished.folder("evaluation") / "verdicts.json").write_text("{}")
    response = changing_client.get("/")
    assert response.status_code == 200
    assert "Another version of Histoloom made the measurements" in response.text
    assert "Name 4 groups: 0 done" in response.text


def test_merged_clusters_are_one_group_everywhere(changing_client: TestClient, finished: Run, write_map: Any) -> None:
    write_map(finished)
    sizes = [len(gallery(changing_client, k=4, cluster=cluster)) for cluster in range(4)]
    mosaic = re.search(r'/api/clusters/4/1/mosaic[^"]*', changing_client.get("/").text)
    for cluster in (1, 3):
        add_name(finished.path, cluster=cluster, name="bone", k=4, rater="Dr A")
    page = changing_client.get("/").text
    assert page.count('<li class="card') == 3
    assert '<span class="number">1, 3</span> bone' in page
    assert "<h1>3 groups</h1>" in page
    assert "Of its 4 groups, those with the same name are one." in page
    merged = re.search(r'/api/clusters/4/1/mosaic[^"]*', page)
    assert mosaic is not None
    assert merged is not None
    assert merged[0] != mosaic[0], "the browser may have kept the picture of cluster 1 alone"
    assert "immutable" in changing_client.get(merged[0]).headers["cache-control"]
    assert "immutable" not in changing_client.get(mosaic[0]).headers["cache-control"]

    response = changing_client.get("/clusters/4/3")
    assert (response.status_code, response.headers["location"]) == (307, "/clusters/4/1")
    text = changing_client.get("/clusters/4/1").text
    assert f"{sizes[1] + sizes[3]} patches" in text
    assert 'rel="next">2 ' in text
    assert len(gallery(changing_client, k=4, cluster=1)) == sizes[1] + sizes[3]
    assert gallery(changing_client, k=4, cluster=3) == []
    assert len(changing_client.get("/api/clusters/4/1/samples").json()["samples"]) == 6
    colours = dict(re.findall(r"\.c(\d) \{ --c: (#\w+)", changing_client.get("/clusters/4/colours.css").text))
    assert colours["1"] == colours["3"] != colours["2"]
    on_map = changing_client.get("/api/map?k=4").json()["groups"]
    assert [group["clusters"] for group in on_map["groups"]] == [[0], [1, 3], [2]]
    assert max(on_map["values"]) == 2
    bars = changing_client.get("/slides?k=4").text
    assert '<rect class="c1"' in bars
    assert '<rect class="c3"' not in bars
    assert changing_client.get("/name").text.count('class="card naming-row') == 4, "each is named by itself"
    changed = changing_client.post("/api/names/4/3", json={"rater": "Dr A", "colour": "#112233"}).json()
    assert [one["colour"] for one in changed["clusters"]] == ["", "#112233", "", "#112233"]
    undone = changing_client.post("/api/names/4/undo", json={"rater": "Dr A"}).json()
    assert {one["colour"] for one in undone["clusters"]} == {""}


def test_an_artefact_says_what_it_is_left_out_of(changing_client: TestClient, finished: Run) -> None:
    add_label(finished.path, cluster=2, k=4, rater="Dr A", flag="artefact")
    assert changing_client.get("/").text.count("left out of mixtures, readings and scores") == 1
    assert "Artefact: it is left out of mixtures" in changing_client.get("/clusters/4/2").text
    assert "Artefact: it is left out" not in changing_client.get("/clusters/4/1").text


def test_an_unknown_k_gets_one_line(client: TestClient) -> None:
    response = client.get("/?k=3")
    assert response.status_code == 404
    assert "k = 3 is not in this run&#39;s sweep; there are 2, 4" in response.text


@pytest.mark.parametrize("order", ["typical", "random", "borderline"])
def test_a_gallery_holds_every_patch_of_its_cluster_once(client: TestClient, published: Run, order: str) -> None:
    labels = pd.read_parquet(published.folder("clusters") / "index.parquet").set_index("patch_id")["k4"]
    for cluster in range(4):
        found = [patch["id"] for patch in gallery(client, k=4, cluster=cluster, order=order)]
        assert sorted(found) == sorted(labels.index[labels == cluster])


def test_orders_follow_the_probabilities(client: TestClient, published: Run) -> None:
    folder = published.folder("clusters")
    ids = pd.read_parquet(folder / "index.parquet")["patch_id"]
    p_NK = load_file(folder / "probabilities.safetensors")["k2"]
    p_by_id = dict(zip(ids, p_NK, strict=True))
    typical = [p_by_id[patch["id"]][1] for patch in gallery(client, k=2, cluster=1)]
    assert np.all(np.diff(typical) <= 1e-3)
    margins = [np.ptp(p_by_id[patch["id"]]) for patch in gallery(client, k=2, cluster=1, order="borderline")]
    assert np.all(np.diff(margins) >= 0)
    shown = gallery(client, k=2, cluster=0)[0]
    assert shown["probability"] == pytest.approx(float(p_by_id[shown["id"]][0]))
    assert (shown["second"], shown["second_probability"]) == (1, pytest.approx(float(p_by_id[shown["id"]][1])))


def test_random_is_the_same_in_every_visit_and_no_other_order(client: TestClient) -> None:
    first, again = (gallery(client, k=2, cluster=0, order="random") for _ in range(2))
    assert first == again
    assert first != gallery(client, k=2, cluster=0)


def test_pages() -> None:
    assert [pages(n) for n in (0, 1, PAGE, PAGE + 1)] == [1, 1, 1, 2]


def test_samples_are_those_of_the_cluster(client: TestClient, published: Run) -> None:
    found = client.get("/api/clusters/4/2/samples").json()
    assert [sample["id"] for sample in found["samples"]] == ["k4-c2-0", "k4-c2-1", "k4-c2-2"]
    file = published.folder("samples") / "k4" / "cluster-02" / "000001.png"
    assert client.get(found["samples"][1]["src"]).content == file.read_bytes()


def test_a_patch_is_the_patch(client: TestClient, published: Run) -> None:
    patches = PatchSet.open(published.folder("patches"))
    patch_id, image = patches.table["patch_id"].iloc[7], patches.images([7])[0]
    exact = client.get(f"/api/patches/{patch_id}.png")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(exact.content))), image)
    shown = np.asarray(Image.open(io.BytesIO(client.get(f"/api/patches/{patch_id}.jpg").content)))
    assert np.abs(shown.astype(int) - image).mean() < 8  # the picture is noise, which JPEG is worst at
    assert client.get(f"/api/patches/{patch_id}?k=2").json()["slide"] == patches.table["slide"].iloc[7]


def test_nothing_is_found_by_a_name_that_is_not_in_the_run(client: TestClient) -> None:
    names = ("nothing", "..%2f..%2fconfig.yaml", "%2e%2e%2fconfig.yaml", "%00", "%ff", "%ed%a0%80")
    for place in ("patches/{}.png", "patches/{}.jpg", "patches/{}", "samples/{}.png", "clusters/2/0/slides/{}.jpg"):
        for name in names:
            response = client.get(f"/api/{place.format(name)}")
            assert response.status_code == 404
            assert response.json()["detail"].startswith("there is no")


@pytest.mark.parametrize(
    "path", ["clusters/2/2", "clusters/3/0", "api/clusters/2/2/patches", "api/clusters/9/0/samples"]
)
def test_no_such_cluster(client: TestClient, path: str) -> None:
    assert client.get(f"/{path}").status_code == 404


def test_a_picture_is_kept_by_the_browser(client: TestClient) -> None:
    address = gallery(client, k=2, cluster=0)[0]["src"]
    first = client.get(address)
    assert first.headers["content-type"] == "image/jpeg"
    assert "immutable" in first.headers["cache-control"]
    again = client.get(address, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "no-cache" in client.get(address.split("?")[0]).headers["cache-control"]


def test_a_slide_shows_where_the_cluster_lies(client: TestClient, published: Run) -> None:
    """The picture is the pale thumbnail, but where patches of the cluster were cut."""
    table = PatchSet.open(published.folder("patches")).table.set_index("patch_id")
    labels = pd.read_parquet(published.folder("clusters") / "index.parquet").set_index("patch_id")["k2"]
    here = table[(table["slide_id"] == "slide-0") & (labels.reindex(table.index) == 0)]
    shown = np.asarray(Image.open(io.BytesIO(client.get("/api/clusters/2/0/slides/slide-0.jpg").content))).astype(int)
    plain = np.asarray(Image.open(published.folder("patches") / "thumbnails" / "slide-0.jpg")).astype(int)
    inside_HW = np.zeros(shown.shape[:2], bool)
    for x, y in zip(here["x"], here["y"], strict=True):
        inside_HW[y : y + 32, x : x + 32] = True
    pale = 0.65 * plain + 0.35 * 255
    difference_HW = np.abs(shown - pale).mean(axis=2)
    assert difference_HW[inside_HW].mean() > 5 * difference_HW[~inside_HW].mean()


def test_a_cluster_page_says_what_becomes_of_it(client: TestClient) -> None:
    page = client.get("/clusters/4/0").text
    assert "With 2 groups it stays together, in" in page
    assert page.count("<figure>") == 3
    assert 'href="/clusters/2/' in page.split('aria-label="Number of groups"')[1]


def test_changes_agree_with_the_labels(client: TestClient, published: Run) -> None:
    labels = pd.read_parquet(published.folder("clusters") / "index.parquet")
    for change in client.get("/api/clusters/4/at/2").json():
        inside = labels[labels["k4"] == change["cluster"]]["k2"]
        assert change["patches"] == len(inside)
        for part in change["to"]:
            assert part["share"] == pytest.approx((inside == part["cluster"]).mean())


def test_splits_and_merges_are_a_picture_and_tables(client: TestClient) -> None:
    page = client.get("/flow").text
    assert page.count('class="node"') == 6
    assert page.count("<caption>") == 2


def test_names_are_inert_wherever_they_stand(changing_client: TestClient, finished: Run) -> None:
    name = '<img src=x onerror="alert(1)">{{ 7 * 7 }}'
    add_name(finished.path, cluster=1, name=name, k=4, rater="Dr A")
    for path in ("/", "/clusters/4/1", "/clusters/2/0", "/flow"):
        page = changing_client.get(path).text
        assert "<img src=x" not in page
        assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt;{{ 7 * 7 }}" in page


def test_no_map_says_how_to_get_one(client: TestClient) -> None:
    assert client.get("/api/map").status_code == 404
    assert "histoloom run" in client.get("/map").text


def test_the_map_holds_its_patches(changing_client: TestClient, finished: Run, write_map: Any) -> None:
    ids = write_map(finished)
    labels = pd.read_parquet(finished.folder("clusters") / "index.parquet").set_index("patch_id")["k4"]
    found = changing_client.get("/api/map").json()
    for colouring in found["colourings"].values():
        assert len(colouring["values"]) == len(found["ids"])
        assert max(colouring["values"]) < len(colouring["names"]) == len(colouring["colours"])
    slides = found["colourings"]["slide"]
    assert all(
        patch.startswith(slides["names"][place]) for patch, place in zip(found["ids"], slides["values"], strict=True)
    )
    assert found["ids"] == ids
    assert found["groups"]["values"] == labels[ids].tolist()
    assert list(found["maps"]) == ["tsne", "pca"]
    stored = read_json(finished.folder("report") / "embedding.json")["maps"]["pca"]
    assert np.reshape(found["maps"]["pca"], (-1, 2)).tolist() == stored
    shown = set(re.findall(r'data-patch="([^"]*)"', changing_client.get("/map").text))
    assert shown <= set(ids)
    assert {labels[patch_id] for patch_id in shown} == set(labels[ids])


def test_a_stage_that_is_published_again_is_read_again(changing_client: TestClient, finished: Run) -> None:
    before = changing_client.get("/api/clusters/2/0/patches").json()["total"]
    folder = finished.folder("clusters")
    labels = pd.read_parquet(folder / "index.parquet")
    labels.assign(k2=0).to_parquet(folder / "index.parquet", index=False)
    write_json(folder / "artifact.json", {**vars(finished.artifact("clusters")), "fingerprint": "1" * 16})
    after = changing_client.get("/api/clusters/2/0/patches").json()
    assert before < after["total"] == len(labels)
    assert changing_client.get("/clusters/2/1").status_code == 200


def test_a_run_without_clusters_says_what_to_do(finished: Run, open_client: Any) -> None:
    finished.folder("clusters").rename(finished.path / "away")
    with pytest.raises(ValueError, match=r"has no clusters yet; make them: histoloom run .* --until clusters"):
        open_client(finished.path)

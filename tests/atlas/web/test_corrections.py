"""The API of corrections, and the pages that follow it: what an expert says of single patches counts everywhere."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
import pytest
from fastapi.testclient import TestClient

from histoloom.atlas.web.corrections import MAX_PATCHES
from histoloom.names import add_name, choose_reference
from histoloom.names.corrections import NO_TISSUE, current_corrections
from histoloom.run.directory import Run


@pytest.fixture
def send(changing_client: TestClient) -> Callable[..., dict[str, Any]]:
    """POST below /api/corrections/4 as a rater; gives what is answered."""

    def post(path: str = "", *, rater: str = "Dr A", status: int = 200, **body: Any) -> dict[str, Any]:
        response = changing_client.post(f"/api/corrections/4{path}", json={"rater": rater, **body})
        assert response.status_code == status, response.text
        found: dict[str, Any] = response.json()
        return found

    return post


@pytest.fixture
def ids(finished: Run) -> dict[int, list[str]]:
    """The patches of each cluster at k = 4."""
    index = pd.read_parquet(finished.folder("clusters") / "index.parquet")
    return {cluster: index["patch_id"][index["k4"] == cluster].tolist() for cluster in range(4)}


def test_patches_go_to_a_group_a_name_no_tissue_and_back(
    send: Callable[..., Any], finished: Run, ids: dict[int, list[str]], changing_client: TestClient
) -> None:
    a, b, c = ids[0][:3]
    sent = send(patches=[a, b, a], target=2)
    assert (sent["counts"], sent["undo"], sent["reference"]) == ({"cluster 2": 2}, "2 patches: cluster 2", "")
    assert send(patches=[c], target=" fat ")["counts"] == {"cluster 2": 2, "fat": 1}
    last = send(patches=[b], target="")
    assert current_corrections(finished.path, k=4) == {a: "cluster 2", b: NO_TISSUE, c: "fat"}
    sizes = {one["name"]: one["patches"] for one in last["groups"]}
    assert sizes == {
        "cluster 0": len(ids[0]) - 3,
        "cluster 1": len(ids[1]),
        "cluster 2": len(ids[2]) + 1,
        "cluster 3": len(ids[3]),
        "fat": 1,
    }
    assert last["groups"][-1]["clusters"] == []
    assert last["suggestions"] == ["fat"]
    listed = changing_client.get("/api/corrections/4/patches").json()
    assert {(one["patch"], one["name"], one["rater"]) for one in listed["corrections"]} == {
        (a, "cluster 2", "Dr A"),
        (b, NO_TISSUE, "Dr A"),
        (c, "fat", "Dr A"),
    }
    assert listed["total"] == 3
    assert send(patches=[a, b, c], target=None)["counts"] == {}
    assert changing_client.get("/api/corrections/2").json()["counts"] == {}, "another k has its own"


def test_exactly_one_step_is_undone_and_redone(send: Callable[..., Any], ids: dict[int, list[str]]) -> None:
    first = send(patches=ids[0][:1], target=1, edit="one")
    send(patches=ids[0][1:2], target=1, edit="one")
    send(patches=ids[3][:1], target="fat")
    assert "another rater" in send("/undo", rater="Dr B", step=first["step"], status=409)["detail"]
    undone = send("/undo", step=first["step"])
    assert (undone["counts"], undone["redo"]) == ({"fat": 1}, "2 patches: cluster 1")
    assert "undone already" in send("/undo", step=first["step"], status=409)["detail"]
    assert send("/redo")["counts"] == {"cluster 1": 2, "fat": 1}
    assert "nothing to redo" in send("/redo", status=409)["detail"]
    send(patches=ids[0][:1], target=None)
    assert "1 of its patches were corrected again" in send("/undo", step=first["step"], status=409)["detail"]
    assert [send("/undo")["undo"] for _ in range(3)] == ["2 patches: cluster 1", "1 patch: fat", ""]
    assert "nothing to undo" in send("/undo", status=409)["detail"]


def test_the_version_changes_with_every_change(
    send: Callable[..., Any], ids: dict[int, list[str]], changing_client: TestClient, finished: Run
) -> None:
    get = lambda since="": changing_client.get(f"/api/corrections/4?rater=Dr+A&since={since}")  # noqa: E731
    versions = [get().json()["version"]]
    assert get(versions[0]).status_code == 204
    send(patches=ids[0][:1], target="fat")
    versions.append(get(versions[0]).json()["version"])
    add_name(finished.path, cluster=1, name="bone", k=4, rater="Dr B")
    versions.append(get(versions[1]).json()["version"])
    send("/undo")
    versions.append(get(versions[2]).json()["version"])
    assert len(set(versions)) == 4
    choose_reference(finished.path, reference="Dr B", by="Dr B")
    send(patches=ids[0][:1], target="fat")
    assert (get().json()["counts"], get().json()["reference"]) == ({}, "Dr B"), "only the reference's count"


def test_what_is_not_in_the_run_is_refused(
    send: Callable[..., Any], ids: dict[int, list[str]], changing_client: TestClient, finished: Run
) -> None:
    one = ids[0][:1]
    assert (
        "2 of the 3 patches are not in this run" in send(patches=[*one, "x", "\ud7ff"], target=1, status=404)["detail"]
    )
    assert "no group 4 at k = 4" in send(patches=one, target=4, status=404)["detail"]
    assert "reads as a cluster's number" in send(patches=one, target="cluster 9", status=400)["detail"]
    assert "the name is empty" in send(patches=one, target="  ", status=400)["detail"]
    assert "control character" in send(patches=one, target="a\u202eb", status=400)["detail"]
    for wrong in (
        {"patches": [], "target": 1},
        {"patches": ["a"] * (MAX_PATCHES + 1), "target": 1},
        {"patches": one},
        {"patches": one, "target": True},
        {"patches": one, "target": -1},
        {"patches": one, "target": "a" * 201},
        {"patches": one, "target": 1, "edit": "a" * 41},
        {"patches": one, "target": 1, "more": 1},
        {"patches": one, "target": 1, "rater": ""},
    ):
        send(status=422, **wrong)
    body = b'{"rater": "A", "patches": ["\\ud800"], "target": 1}'
    headers = {"content-type": "application/json"}
    assert changing_client.post("/api/corrections/4", content=body, headers=headers).status_code in (404, 422)
    assert (
        changing_client.post("/api/corrections/3", json={"rater": "A", "patches": one, "target": 1}).status_code == 404
    )
    assert current_corrections(finished.path, k=4) == {}


def test_raters_who_correct_at_the_same_time_lose_nothing(
    send: Callable[..., Any], ids: dict[int, list[str]], finished: Run
) -> None:
    with ThreadPoolExecutor(8) as pool:
        steps = list(pool.map(lambda n: send(patches=[ids[0][n]], target="fat", rater=f"Dr {n % 2}")["step"], range(8)))
    assert len(set(steps)) == 8
    assert current_corrections(finished.path, k=4) == dict.fromkeys(ids[0][:8], "fat")
    for n, step in enumerate(steps[:2]):
        send("/undo", rater=f"Dr {n}", step=step)
    assert current_corrections(finished.path, k=4) == dict.fromkeys(ids[0][2:8], "fat")


def test_pages_counts_and_pictures_follow_corrections(
    send: Callable[..., Any], ids: dict[int, list[str]], changing_client: TestClient
) -> None:
    """A patch is in the gallery of the group that it was sent to, and only there; each says who sent it."""
    get = changing_client.get
    before = {cluster: get(f"/api/clusters/4/{cluster}/mosaic.jpg").headers["etag"] for cluster in range(3)}
    lost, fat, none = ids[0][0], ids[0][1], ids[0][2]
    send(patches=[lost], target=1)
    send(patches=[fat], target="fat & more/less")
    send(patches=[none], target="")

    def gallery(path: str) -> dict[str, dict[str, Any]]:
        separator = "&" if "?" in path else "?"
        first = get(path).json()
        pages = [get(f"{path}{separator}page={page}").json() for page in range(first["pages"])]
        assert first["total"] == sum(len(page["patches"]) for page in pages)
        return {patch["id"]: patch for page in pages for patch in page["patches"]}

    assert set(gallery("/api/clusters/4/0/patches")) == set(ids[0]) - {lost, fat, none}
    assert set(gallery("/api/clusters/4/1/patches")) == {*ids[1], lost}
    sent = gallery("/api/clusters/4/1/patches?corrected=1")
    assert list(sent) == [lost]
    assert (sent[lost]["group"], sent[lost]["corrected_by"], sent[lost]["cluster"]) == ("cluster 1", "Dr A", 0)
    assert sent[lost]["page"] == "/clusters/4/1"
    away = gallery("/api/clusters/4/0/patches?corrected=1")
    assert {patch: one["group"] for patch, one in away.items()} == {lost: "cluster 1", fat: "fat & more/less", none: ""}
    assert away[fat]["page"] == "/groups/4?name=fat%20%26%20more%2Fless"
    assert list(gallery("/api/groups/4/patches?name=fat+%26+MORE/less")) == [fat]
    assert list(gallery("/api/groups/4/patches?name=")) == [none]
    assert get(f"/api/patches/{fat}?k=4").json()["group"] == "fat & more/less"
    typical = get("/api/clusters/4/1/patches?order=typical").json()
    assert typical["patches"][-1]["id"] == lost, "what the program did not put there is the least typical"
    assert get("/api/clusters/4/1/patches?order=borderline").json()["patches"][0]["id"] == lost

    start = get("/?k=4").text
    assert start.count('<li class="card') == 5
    assert 'href="/groups/4?name=fat%20%26%20more%2Fless"' in start
    assert "1 patch without tissue" in start
    assert "· 1 sent here" in start
    assert "· 3 sent away" in start
    assert f"{len(ids[0]) - 3} patches" in get("/clusters/4/0").text
    page = get("/groups/4?name=fat%20%26%20more%2Fless")
    assert page.status_code == 200
    assert 'the program put them in <a href="/clusters/4/0">group 0</a> (1)' in page.text
    assert "No tissue" in get("/groups/4?name=").text
    assert get("/groups/4?name=cluster+1").headers["location"] == "/clusters/4/1"
    assert get("/groups/4?name=nothing").status_code == 404
    assert get("/api/groups/4/mosaic.jpg?name=fat+%26+more/less").headers["content-type"] == "image/jpeg"
    after = {cluster: get(f"/api/clusters/4/{cluster}/mosaic.jpg").headers["etag"] for cluster in range(3)}
    assert [before[one] == after[one] for one in range(3)] == [False, False, True]
    assert ".c4 { --c: #" in get("/clusters/4/colours.css").text

    slide = lost.split("_")[0]
    assert (
        get(f"/slides/{slide}?k=4").status_code
        == get(f"/slides/{slide}/similar?k=4&width=90&height=90").status_code
        == 200
    )
    legend = get(f"/api/slides/{slide}?k=4").json()["groups"]
    assert [one["clusters"] for one in legend] == [[0], [1], [2], [3], []]
    assert legend[4]["page"] == away[fat]["page"]
    assert 'class="c4"' in get("/slides?k=4").text
    place = f"x={away[lost]['x']}&y={away[lost]['y']}"
    assert get(f"/api/slides/{slide}/patch?k=4&{place}").json() == away[lost]
    assert get(f"/api/slides/{slide}/patch?k=4&x=-1&y=0").status_code == 404
    compared = get("/compare?k=4&left=0&right=1")
    assert compared.status_code == 200
    send("/undo")
    send("/undo")
    assert get("/?k=4").text.count('<li class="card') == 4


def test_a_group_may_lose_all_of_its_patches(
    send: Callable[..., Any], ids: dict[int, list[str]], changing_client: TestClient
) -> None:
    send(patches=ids[3], target="fat")
    add_to = changing_client.get("/api/clusters/4/3/patches").json()
    assert (add_to["total"], add_to["corrected"]) == (0, len(ids[3]))
    for path in (
        "/?k=4",
        "/clusters/4/3",
        "/api/clusters/4/3/mosaic.jpg",
        "/slides?k=4",
        "/groups/4?name=fat",
        "/flow?k=4",
    ):
        assert changing_client.get(path).status_code == 200, path

"""The naming API: what a rater says is kept, seen by others, exchanged, and harmless."""

from __future__ import annotations

import base64
import csv
import io
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from fastapi.testclient import TestClient

from histoloom.atlas.web import naming
from histoloom.names import current_labels, current_names, read_events
from histoloom.run.directory import Run, write_json


@pytest.fixture
def say(changing_client: TestClient) -> Callable[..., dict[str, Any]]:
    """POST below /api/names/4 as a rater; gives what is answered."""

    def post(path: str, *, rater: str = "A", status: int = 200, **body: Any) -> dict[str, Any]:
        response = changing_client.post(f"/api/names/4/{path}", json={"rater": rater, **body})
        assert response.status_code == status, response.text
        found: dict[str, Any] = response.json()
        return found

    return post


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_labels_are_saved_and_shown(say: Callable[..., Any], changing_client: TestClient, finished: Run) -> None:
    say("1", name=" bone ")
    say("1", colour="#0072B2")
    found = say("1", flag="mixed")
    assert found["clusters"][1] == {
        "cluster": 1,
        "name": "bone",
        "colour": "#0072b2",
        "flag": "mixed",
        "shown": "#0072b2",
    }
    assert (found["undo"], found["redo"]) == ("flag of group 1: mixed", "")
    assert (found["suggestions"], found["raters"]) == (["bone"], ["A"])
    label = current_labels(finished.path, k=4)[1]
    assert (label.name, label.colour, label.flag) == ("bone", "#0072b2", "mixed")
    assert ".c1 { --c: #0072b2; }" in changing_client.get("/clusters/4/colours.css").text
    assert "bone" in changing_client.get("/").text
    assert say("1", name="")["clusters"][1]["name"] == ""
    assert current_names(finished.path, k=4)[1] == "cluster 1"


def test_merge_undo_and_redo(say: Callable[..., Any], finished: Run) -> None:
    say("0", name="voids")
    merged = say("merge", clusters=[0, 2, 3])
    assert [cluster["name"] for cluster in merged["clusters"]] == ["voids", "", "voids", "voids"]
    assert [cluster["name"] for cluster in say("undo")["clusters"]] == ["voids", "", "", ""]
    assert say("undo")["undo"] == ""
    assert "nothing to undo" in say("undo", status=409)["detail"]
    assert say("redo")["redo"] == "merge of groups 0, 2, 3: voids"
    assert [cluster["name"] for cluster in say("redo")["clusters"]] == ["voids", "", "voids", "voids"]
    assert "nothing to redo" in say("redo", status=409)["detail"]
    assert current_names(finished.path, k=4)[3] == "voids"
    assert "name one of them" in say("merge", rater="B", clusters=[0, 1], status=400)["detail"]


def test_a_named_step_is_undone_and_no_other(say: Callable[..., Any]) -> None:
    say("0", name="voids")
    merged = say("merge", clusters=[0, 3])["step"]
    say("1", name="bone")
    assert "another rater" in say("undo", rater="B", step=merged, status=409)["detail"]
    assert [cluster["name"] for cluster in say("undo", step=merged)["clusters"]] == ["voids", "bone", "", ""]
    assert "undone already" in say("undo", step=merged, status=409)["detail"]
    say("redo")
    merged = say("merge", clusters=[0, 2])["step"]
    say("2", name="fat")
    assert "group 2 was changed again since" in say("undo", step=merged, status=409)["detail"]
    assert say("undo")["clusters"][2]["name"] == "voids"
    assert say("undo", step=merged)["clusters"][2]["name"] == ""


def test_a_flag_stays_with_the_name_of_its_rater(say: Callable[..., Any], finished: Run) -> None:
    say("1", rater="B", flag="artefact")
    assert current_labels(finished.path, k=4)[1].flag == "artefact"
    say("1", rater="A", name="bone")
    say("1", rater="B", flag="mixed")
    label = current_labels(finished.path, k=4)[1]
    assert (label.name, label.flag) == ("bone", "")
    say("1", rater="B", name="cartilage")
    label = current_labels(finished.path, k=4)[1]
    assert (label.name, label.flag) == ("cartilage", "mixed")


def test_raters_have_their_own_view_and_are_compared(say: Callable[..., Any], changing_client: TestClient) -> None:
    for rater, names in (("A", ("bone", "fat")), ("B", ("Bone", "voids"))):
        for cluster, name in enumerate(names):
            say(str(cluster), rater=rater, name=name)
    mine = changing_client.get("/api/names/4?rater=A").json()
    assert [cluster["name"] for cluster in mine["clusters"]] == ["bone", "fat", "", ""]
    assert mine["suggestions"] == ["Bone", "fat", "voids"]
    found = changing_client.get("/api/names/4/agreement").json()
    assert found["raters"] == ["A", "B"]
    assert [side["differ"] for side in found["clusters"]] == [False, True, False, False]
    (pair,) = found["agreement"]
    assert (pair["kind"], pair["clusters"], pair["equal"]["observed"]) == ("Cohen", 2, 0.5)
    chosen = changing_client.post("/api/names/reference", json={"rater": "B", "reference": "A"})
    assert chosen.json() == {"reference": "A"}
    assert changing_client.get("/api/names/4/agreement").json()["clusters"][1]["counts"] == "fat"
    unknown = changing_client.post("/api/names/reference", json={"rater": "B", "reference": "C"})
    assert (unknown.status_code, unknown.json()["detail"][:12]) == (400, "no rater 'C'")


def test_synonyms_count_as_one_name_in_agreement(say: Callable[..., Any], changing_client: TestClient) -> None:
    for rater, names in (("A", ("fat", "bone")), ("B", ("Adipose tissue", "bone"))):
        for cluster, name in enumerate(names):
            say(str(cluster), rater=rater, name=name)
    before = changing_client.get("/api/names/4/agreement").json()
    assert [side["differ"] for side in before["clusters"]] == [True, False, False, False]
    rows = [{"name": "adipose tissue", "means": "fat"}]
    assert changing_client.post("/api/names/synonyms", json={"rows": rows}).json() == {"rows": rows}
    after = changing_client.get("/api/names/4/agreement").json()
    assert after["synonyms"] == rows
    assert not any(side["differ"] for side in after["clusters"])
    assert [before["agreement"][0]["equal"]["observed"], after["agreement"][0]["equal"]["observed"]] == [0.5, 1.0]
    refused = changing_client.post("/api/names/synonyms", json={"rows": [{"name": " ", "means": "x"}]})
    assert (refused.status_code, "is empty" in refused.json()["detail"]) == (400, True)


def test_names_carry_over_to_another_k(say: Callable[..., Any], changing_client: TestClient, finished: Run) -> None:
    labels = pd.read_parquet(finished.folder("clusters") / "index.parquet")
    # At k = 2 cluster 0 is what cluster 3 is at k = 4, and nothing else is alike.
    folder = finished.folder("clusters")
    labels.assign(k2=(labels["k4"] != 3).astype(int)).to_parquet(folder / "index.parquet", index=False)
    write_json(folder / "artifact.json", {**vars(finished.artifact("clusters")), "fingerprint": "1" * 16})
    for cluster, name in ((3, "bone"), (1, "fat")):
        say(str(cluster), name=name)
    say("3", flag="unsure")
    found = changing_client.get("/api/names/2/carried", params={"rater": "A"}).json()
    assert found == [{"cluster": 0, "name": "bone", "source_k": 4, "source": 3, "overlap": 1.0}]
    assert changing_client.get("/api/names/2/carried", params={"rater": "B"}).json() == found, "the names that count"
    taken = changing_client.post("/api/names/2/carry", json={"rater": "A"}).json()
    assert [(one["name"], one["flag"]) for one in taken["clusters"]] == [("bone", "unsure"), ("", "")]
    assert changing_client.post("/api/names/2/carry", json={"rater": "A"}).status_code == 409
    undone = changing_client.post("/api/names/2/undo", json={"rater": "A", "step": taken["step"]}).json()
    assert [(one["name"], one["flag"]) for one in undone["clusters"]] == [("", ""), ("", "")]


def test_a_version_tells_what_changed(say: Callable[..., Any], changing_client: TestClient) -> None:
    version = say("0", name="bone")["version"]
    same = changing_client.get("/api/names/4", params={"rater": "A", "since": version})
    assert (same.status_code, same.content) == (204, b"")
    say("0", rater="B", flag="unsure")
    assert changing_client.get("/api/names/4", params={"rater": "A", "since": version}).status_code == 200


def test_a_table_goes_out_and_in(say: Callable[..., Any], changing_client: TestClient, finished: Run) -> None:
    say("2", name="=HYPERLINK(1)", flag="artefact")
    out = changing_client.get("/api/names/table.csv", params={"rater": "A", "k": 4})
    assert out.headers["content-type"].startswith("text/csv")
    assert 'filename="names-k4.csv"' in out.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(out.content.decode("utf-8-sig"), newline="")))
    assert [row["name"] for row in rows] == ["", "", "'=HYPERLINK(1)", ""]
    data = in_base64(out.content.decode())
    result = changing_client.post("/api/names/import", json={"data": data, "rater": "B"}).json()
    assert result == {"rows": 1, "empty": 3, "changes": 2, "problems": []}
    before = len(read_events(finished.path))
    wrong = in_base64("k,cluster,name,patches\n4,0,bone,1\n4,1,bone,1\n")
    refused = changing_client.post("/api/names/import", json={"data": wrong, "rater": "B"}).json()
    assert [problem.split(":")[0] for problem in refused["problems"]] == ["rows 2 to 3"]
    assert len(read_events(finished.path)) == before
    forced = changing_client.post("/api/names/import", json={"data": wrong, "rater": "B", "force": True}).json()
    assert forced["changes"] == 2
    assert changing_client.post("/api/names/import", json={"data": "%%%"}).status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("4/0", {"rater": "A", "name": "x" * 201}, 422),
        ("4/0", {"rater": "", "name": "x"}, 422),
        ("4/0", {"rater": " ", "name": "x"}, 400),
        ("4/0", {"name": "x"}, 422),
        ("4/0", {"rater": "A", "flag": "odd"}, 422),
        ("4/0", {"rater": "A", "colour": "red"}, 400),
        ("4/0", {"rater": "A", "name": "a\x07b"}, 400),
        ("4/0", {"rater": "A", "name": "3"}, 400),
        ("4/0", {"rater": "A", "edit": "../x"}, 200),
        ("4/0", {"rater": "A", "name": "x", "edit": "../x"}, 400),
        ("4/0", {"rater": "A", "more": 1}, 422),
        ("4/4", {"rater": "A", "name": "x"}, 404),
        ("3/0", {"rater": "A", "name": "x"}, 404),
        ("4/merge", {"rater": "A", "clusters": [0]}, 422),
        ("4/merge", {"rater": "A", "clusters": [0, 9], "name": "x"}, 404),
        ("4/merge", {"rater": "A", "clusters": [1, 1], "name": "x"}, 400),
        ("import", {"rater": "A", "data": ""}, 200),
    ],
)
def test_invalid_labels_get_one_line(
    changing_client: TestClient, finished: Run, path: str, body: dict[str, Any], status: int
) -> None:
    response = changing_client.post(f"/api/names/{path}", json=body)
    assert response.status_code == status, response.text
    if status >= 400:
        assert "\n" not in response.json()["detail"]
    assert not (finished.path / "names.jsonl").exists()


def test_half_a_character_is_no_name(changing_client: TestClient) -> None:
    for body in (b'{"rater": "A", "name": "\\ud800"}', b'{"rater": "\\ud800", "name": "x"}', b"[1]", b"{"):
        response = changing_client.post("/api/names/4/0", content=body, headers={"content-type": "application/json"})
        assert response.status_code in (400, 422)
    assert changing_client.get("/api/names/4?rater=%ED%A0%80%00").status_code == 200
    assert changing_client.get("/api/names/table.csv?rater=%ED%A0%80").status_code == 200


def test_the_page_holds_every_cluster_and_names_stay_text(say: Callable[..., Any], changing_client: TestClient) -> None:
    say("0", name="<img src=x onerror=alert(1)>")
    page = changing_client.get("/name")
    assert page.status_code == 200
    assert page.text.count('class="card naming-row') == 4
    assert "<img src=x" not in page.text + changing_client.get("/").text
    assert changing_client.get("/name?k=2").text.count('class="card naming-row') == 2
    assert changing_client.get("/name?k=3").status_code == 404


def test_the_samples_table_follows(say: Callable[..., Any], finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "REFRESH_DELAY", 0.0)
    say("3", name="bone", flag="unsure")
    path = finished.folder("samples") / "metadata.csv"
    for _ in range(500):
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row["k"], row["cluster"]) == ("4", "3")]
        if {row["tissue"] for row in rows} == {"bone"} and {row.get("flag") for row in rows} == {"unsure"}:
            return
        time.sleep(0.01)
    pytest.fail("the samples' table does not follow")

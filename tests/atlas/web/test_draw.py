"""Drawing over HTTP: what is refused, what a job says of itself, its pictures and its ZIP file."""

from __future__ import annotations

import csv
import io
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from histoloom import Generator
from histoloom.atlas.jobs.job_log import JobPicture, archive
from histoloom.atlas.web.app import create_export_app
from histoloom.atlas.web.security import MAX_UPLOAD, Access
from histoloom.errors import UserError
from histoloom.names import add_label, add_name
from histoloom.names.table import inert
from histoloom.run.directory import Run
from histoloom.sharing.export import export_generator
from histoloom.slides.patch_set import PatchSet

ENDED = {"done", "cancelled", "failed", "interrupted"}


@pytest.fixture(scope="module")
def drawing_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run with a name that a spreadsheet would compute."""
    run = tmp_path_factory.mktemp("drawing") / "run"
    shutil.copytree(tiny_run, run)
    add_name(run, cluster=0, name="=cmd|' /C calc'!A0", k=2, rater="Dr A")
    return run


@pytest.fixture(scope="module")
def drawing(drawing_run: Path) -> Iterator[TestClient]:
    """The atlas of this run, whose queue ends with it."""
    from histoloom.atlas.web.app import create_app

    app = create_app(drawing_run, access=Access())
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield client


def finished_job(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/api/jobs", json=body)
    assert response.status_code == 201, response.text
    for _ in range(6000):
        job: dict[str, Any] = client.get(f"/api/jobs/{response.json()['id']}").json()
        if job["state"] in ENDED:
            return job
        time.sleep(0.01)
    raise AssertionError(f"waited in vain: {job}")


def pictures(client: TestClient, job: dict[str, Any]) -> list[dict[str, Any]]:
    return list(client.get(f"/api/jobs/{job['id']}/pictures").json()["pictures"])


def test_a_job_draws_what_the_generator_draws(drawing: TestClient, drawing_run: Path) -> None:
    job = finished_job(drawing, n=2, tissues=["1"], k=2, seed=6, steps=2)
    assert (job["state"], job["made"], job["share"]) == ("done", 2, 1.0)
    generator = Generator.load(drawing_run)
    sampler = generator.spec.sampler.model_copy(update={"steps": 2})
    for shown, drawn in zip(
        pictures(drawing, job), generator.sample("1", n=2, seed=6, k=2, sampler=sampler), strict=True
    ):
        response = drawing.get(shown["src"])
        assert response.headers["content-type"] == "image/png"
        assert "immutable" in response.headers["cache-control"]
        assert np.array_equal(np.array(Image.open(io.BytesIO(response.content))), drawn.image)
        assert shown["record"]["sample_id"] == drawn.record["sample_id"]


def test_more_like_a_patch_a_sample_and_a_drawn_picture(drawing: TestClient, drawing_run: Path) -> None:
    patch = str(PatchSet.open(drawing_run / "patches").columns("patch_id")["patch_id"][3])
    with (drawing_run / "samples" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        sample = next(csv.DictReader(file))["sample_id"]
    first = finished_job(drawing, n=1, k=2, steps=2)
    for name, real in ((patch, True), (f"samples/{sample}", False), (f"drawn/{first['id']}/0", False)):
        source = drawing.get("/api/draw/source", params={"name": name}).json()
        assert (source["name"], source["real"]) == (name, real)
        assert drawing.get(source["src"]).status_code == 200
        job = finished_job(drawing, n=1, k=2, steps=2, like=name, strength=0.4)
        assert job["state"] == "done", job["message"]
        assert pictures(drawing, job)[0]["record"]["strength"] == 0.4
    between = finished_job(drawing, n=3, k=2, steps=2, between=[patch, f"drawn/{first['id']}/0"])
    assert [shown["record"]["fraction"] for shown in pictures(drawing, between)] == [0, 0.5, 1]


def test_the_nearest_training_patch(drawing: TestClient, drawing_run: Path) -> None:
    patches = PatchSet.open(drawing_run / "patches")
    busiest = patches.rows("train")[int(patches.images(patches.rows("train")).std(axis=(1, 2, 3)).argmax())]
    patch = str(patches.columns("patch_id")["patch_id"][busiest])
    job = finished_job(drawing, n=1, like=patch, strength=0.01)
    found = drawing.get(f"/api/jobs/{job['id']}/pictures/0/nearest").json()
    assert drawing.get(found["src"]).status_code == 200
    assert 0 <= found["score"] <= 1
    assert found["threshold"] is None


def test_the_zip_file_is_a_labelled_folder_that_no_spreadsheet_computes(drawing: TestClient) -> None:
    job = finished_job(drawing, n=2, tissues=["0"], k=2, steps=1)
    response = drawing.get(f"/api/jobs/{job['id']}/pictures.zip")
    assert response.headers["content-disposition"] == f'attachment; filename="synthetic-{job["id"]}.zip"'
    with zipfile.ZipFile(io.BytesIO(response.content)) as file:
        assert file.testzip() is None
        names = file.namelist()
        assert all(name.startswith(f"synthetic-{job['id']}/") and ".." not in name for name in names)
        rows = list(csv.DictReader(io.TextIOWrapper(file.open(names[-1]), encoding="utf-8", newline="")))
        assert {f"synthetic-{job['id']}/{row['file_name']}" for row in rows} == {n for n in names if n.endswith(".png")}
        assert {row["tissue"] for row in rows} == {"'=cmd|' /C calc'!A0"}
        assert "Not for diagnosis" in file.read(names[0]).decode()
        first = pictures(drawing, job)[0]
        assert file.read(f"synthetic-{job['id']}/{first['record']['file_name']}") == drawing.get(first["src"]).content


def test_an_archive_leaves_out_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    made = [
        JobPicture(0, {"file_name": "a.png"}, withheld=False),
        JobPicture(1, {"file_name": "gone.png"}, withheld=False),
    ]
    parts = list(archive(tmp_path, pictures=made, name="x"))
    assert len(parts) == 2
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as file:
        assert file.namelist() == ["x/README.txt", "x/a.png", "x/metadata.csv"]
        assert file.read("x/metadata.csv") == b"file_name\na.png\n"
    assert [inert(cell) for cell in ("=1", "+1", "-1", "@a", "\ta", "a=")] == ["'=1", "'+1", "'-1", "'@a", "'\ta", "a="]


def test_cancel_go_on_and_delete(drawing: TestClient) -> None:
    job = drawing.post("/api/jobs", json={"n": 60, "steps": 3}).json()
    assert drawing.post(f"/api/jobs/{job['id']}/cancel").status_code == 200
    while (job := drawing.get(f"/api/jobs/{job['id']}").json())["state"] not in ENDED:
        time.sleep(0.01)
    assert job["state"] == "cancelled"
    again = drawing.post(f"/api/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()["state"]) == (200, "cancelled")
    assert drawing.post(f"/api/jobs/{job['id']}/resume").json()["state"] in ("waiting", "drawing")
    assert drawing.delete(f"/api/jobs/{job['id']}").status_code == 409
    drawing.post(f"/api/jobs/{job['id']}/cancel")
    while drawing.get(f"/api/jobs/{job['id']}").json()["state"] not in ENDED:
        time.sleep(0.01)
    assert drawing.delete(f"/api/jobs/{job['id']}").json() == {"state": "deleted"}
    assert drawing.get(f"/api/jobs/{job['id']}").status_code == 404
    assert job["id"] not in {one["id"] for one in drawing.get("/api/jobs").json()["jobs"]}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"n": 0}, 422, "n: "),
        ({"n": 1, "seed": -1}, 422, "seed: "),
        ({"n": 1, "seed": 2**60}, 422, "seed: "),
        ({"n": 1, "strength": 0}, 422, "strength: "),
        ({"n": 1, "unknown": 1}, 422, "unknown: "),
        ({"n": 1, "like": "a\nb"}, 422, "plain line"),
        ({"n": 1, "tissues": ["nowhere"]}, 400, "no tissue 'nowhere'"),
        ({"n": 1, "method": "heun", "steps": 4}, 400, "heun makes two"),
        ({"n": 1, "like": "../../config.yaml"}, 400, "has no picture"),
        ({"n": 1, "like": "drawn/../../config.yaml/0"}, 400, "has no picture"),
        ({"n": 9999}, 400, "at most 500"),
    ],
)
def test_an_invalid_request_gets_one_line(drawing: TestClient, body: dict[str, Any], status: int, message: str) -> None:
    response = drawing.post("/api/jobs", json=body)
    assert response.status_code == status
    assert message in response.json()["detail"]


def test_half_a_surrogate_pair_is_refused(drawing: TestClient) -> None:
    for field in ('"tissues":["\\ud800"]', '"like":"\\ud800"'):
        content = f'{{"n":1,{field}}}'.encode()
        response = drawing.post("/api/jobs", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 422


@pytest.mark.parametrize(
    "address",
    [
        *("jobs/none", "jobs/..%2f..", "jobs/none/pictures", "jobs/none/pictures/0.png", "jobs/none/pictures.zip"),
        *("jobs/none/pictures/0/nearest", "draw/source?name=none", "draw/source?name=samples/none"),
        *("draw/source?name=drawn/none/0", "draw/options?k=99"),
    ],
)
def test_what_is_not_there_is_not_found(drawing: TestClient, address: str) -> None:
    response = drawing.get(f"/api/{address}")
    assert response.status_code == 404
    assert response.json()["detail"]


def test_what_can_be_chosen(drawing: TestClient, drawing_run: Path) -> None:
    found = drawing.get("/api/draw/options?k=2").json()
    assert [tissue["clusters"] for tissue in found["tissues"]] == [[0], [1]]
    assert found["tissues"][0]["title"] == "=cmd|' /C calc'!A0 (0)"
    assert sum(tissue["share"] for tissue in found["tissues"]) == pytest.approx(1)
    assert "student" not in found["methods"]
    assert (found["method"], found["steps"]) == ("unipc", 3)
    add_label(drawing_run, cluster=2, k=3, rater="Dr A", flag="artefact")
    flags = {tissue["title"]: tissue["artefact"] for tissue in drawing.get("/api/draw/options?k=3").json()["tissues"]}
    assert flags == {"Group 0": False, "Group 1": False, "Group 2": True}


def test_the_page_says_that_pictures_are_synthetic(drawing: TestClient) -> None:
    page = drawing.get("/draw").text
    assert "These pictures are synthetic." in page
    assert "not for diagnosis" in page


def test_a_run_without_a_generator_says_so(finished: Run, open_client: Callable[..., TestClient]) -> None:
    (finished.folder("diffusion") / "generator.json").unlink(missing_ok=True)
    client = open_client(finished.path)
    assert "This run has no generator yet." in client.get("/draw").text
    response = client.post("/api/jobs", json={"n": 1})
    assert (response.status_code, response.json()["detail"].split(";")[0]) == (409, "this run has no generator yet")


def test_a_restart_keeps_the_jobs(
    drawing: TestClient, drawing_run: Path, open_client: Callable[..., TestClient]
) -> None:
    job = finished_job(drawing, n=1, steps=1, seed=9)
    again = open_client(drawing_run)
    assert job in again.get("/api/jobs").json()["jobs"]
    assert again.get(f"/api/jobs/{job['id']}/pictures/0.png").status_code == 200
    refused = again.post("/api/jobs", json={"n": 1})
    assert "another window of Histoloom draws" in refused.json()["detail"]


def test_an_exported_generator_generates_without_its_run(tiny_run: Path, tmp_path: Path) -> None:
    export, kept = tmp_path / "export", tmp_path / "new" / "kept"
    export_generator(Run.open(tiny_run), export)
    before = {file: file.stat().st_mtime_ns for file in export.rglob("*")}
    app = create_export_app(export, drawn=kept, access=Access())
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        assert client.get("/").headers["location"] == "/draw"
        assert client.get("/draw?k=2").status_code == client.get("/clusters/2/colours.css").status_code == 200
        assert client.get("/slides").status_code == client.get("/api/draw/source?name=a").status_code == 404
        options = client.get("/api/draw/options?k=2").json()
        assert sum(tissue["share"] for tissue in options["tissues"]) == pytest.approx(1)
        job = finished_job(client, n=2, tissues=["1"], k=2, seed=6)
        shown = [client.get(one["src"]).content for one in pictures(client, job)]
        drawn = Generator.load(export).sample("1", n=2, seed=6, k=2)
        for content, sample in zip(shown, drawn, strict=True):
            assert np.array_equal(np.array(Image.open(io.BytesIO(content))), sample.image)
        like = finished_job(client, n=1, k=2, like=f"drawn/{job['id']}/0", strength=0.4)
        assert (like["state"], like["sources"][0]["cluster"]) == ("done", 1)
        assert client.get(f"/api/jobs/{job['id']}/pictures/0/nearest").json()["patch_id"] is None
        refused = client.post("/api/jobs", json={"n": 1, "like": "slide-0_x1_y1"})
        assert "has no picture" in refused.json()["detail"]
        # It cannot tell the tissue of a picture: the user says it, with the picture or with the job.
        known, unknown = (
            add_own(client, shade=shade, query=query).json() for shade, query in ((90, "&k=2&cluster=1"), (200, ""))
        )
        refused = client.post("/api/jobs", json={"n": 2, "k": 2, "between": [known["name"], unknown["name"]]})
        assert "is not known at k = 2 without the run; add it again at this k" in refused.json()["detail"]
        refused = client.post("/api/jobs", json={"n": 2, "k": 2, "like": unknown["name"]})
        assert "is not known at k = 2 without the run; choose a tissue" in refused.json()["detail"]
        job = finished_job(client, n=2, k=2, steps=1, between=[known["name"], f"drawn/{job['id']}/0"])
        assert (job["state"], job["sources"][0]["title"].partition(",")[0]) == ("done", "a b.png")
    assert len(list(kept.rglob("c*.png"))) == 5
    assert {file: file.stat().st_mtime_ns for file in export.rglob("*")} == before


def test_what_is_no_generator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run nor an exported generator"):
        create_export_app(tmp_path, drawn=tmp_path / "kept", access=Access())
    (tmp_path / "generator.json").write_text("{}")
    with pytest.raises(UserError, match="copy the whole folder"):
        create_export_app(tmp_path, drawn=tmp_path / "kept", access=Access())


def add_own(client: TestClient, *, shade: int = 90, query: str = "", kind: str = "image/png") -> Any:
    data = io.BytesIO()
    Image.new("RGB", (80, 64), (shade, 60, 120)).save(data, "PNG")
    address = f"/api/draw/own?title=a%20b.png&mpp=0.5{query}"
    return client.post(address, content=data.getvalue(), headers={"Content-Type": kind})


def test_a_picture_of_the_users_own(drawing: TestClient, drawing_run: Path) -> None:
    added = add_own(drawing).json()
    assert added["title"] == "a b.png, the middle 32 x 32 um of 40 x 32 um"
    assert drawing.get("/api/draw/own").json() == [added]
    assert drawing.get("/api/draw/source", params={"name": added["name"]}).json() == added
    shown = np.array(Image.open(io.BytesIO(drawing.get(added["src"]).content)))
    assert shown.shape == (32, 32, 3)
    assert (shown == (90, 60, 120)).all()
    job = finished_job(drawing, n=1, k=2, steps=2, like=added["name"], strength=0.3)
    assert job["state"] == "done", job["message"]
    assert str(pictures(drawing, job)[0]["record"]["source"]).startswith("a b.png#")
    assert drawing.delete(f"/api/draw/{added['name']}").json() == {"state": "removed"}
    for method, address in (("GET", added["src"]), ("DELETE", f"/api/draw/{added['name']}")):
        assert drawing.request(method, address).status_code == 404
    assert drawing.get(f"/api/jobs/{job['id']}").json()["sources"] == []
    assert not list((drawing_run / "drawn" / "pictures").glob("*.png"))


def test_files_are_taken_at_one_address_only_and_checked(drawing: TestClient) -> None:
    assert add_own(drawing, kind="text/html").status_code == 415
    assert drawing.post("/api/jobs", content=b"a", headers={"Content-Type": "image/png"}).status_code == 415
    for content, kind in ((b"{}", "application/json"), (b"\xff\xd8", "image/jpeg")):
        refused = drawing.post("/api/draw/own?title=a.png&mpp=1", content=content, headers={"Content-Type": kind})
        assert (refused.status_code, refused.json()["detail"].partition(" as ")[0]) == (400, "a.png cannot be read")
    too_large = {"Content-Type": "image/png", "Content-Length": str(MAX_UPLOAD + 1)}
    assert drawing.post("/api/draw/own?title=a.png&mpp=1", content=b"a", headers=too_large).status_code == 413
    for query in ("&mpp=0", "&mpp=nan", "&k=99", "&k=2&cluster=2"):
        assert add_own(drawing, query=query).status_code in (404, 422)
    other_page = {"Content-Type": "image/png", "Origin": "http://elsewhere.example"}
    assert drawing.post("/api/draw/own?title=a.png&mpp=1", content=b"a", headers=other_page).status_code == 403
    assert drawing.get("/api/draw/own").json() == []

"""Painting over HTTP: layouts as files and from slides, previews, and fields as jobs that survive."""

from __future__ import annotations

import base64
import io
import json
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from histoloom import Generator
from histoloom.atlas.browse.drawn_layout import EMPTY, Grid, cell_of
from histoloom.atlas.browse.slide_tissue import tissue_of_boxes
from histoloom.atlas.jobs.field_job import FieldPlan, Preview, PreviewRequest, seconds_of_field
from histoloom.atlas.jobs.job_log import JobLog
from histoloom.atlas.jobs.queue import JobQueue, Superseded
from histoloom.atlas.jobs.sample_runner import SampleRunner
from histoloom.atlas.web.app import create_app, create_export_app
from histoloom.atlas.web.security import Access
from histoloom.cli.app import app as command_line
from histoloom.config import SamplerConfig
from histoloom.diffusion.painting.layout import NOTHING, Canvas, read_layout
from histoloom.errors import UserError
from histoloom.names import add_name
from histoloom.run.directory import Run
from histoloom.sharing.export import export_generator

K = 3
NAMES = ["bone", "fat"]
QUICK = {"method": "ddim", "steps": 1, "guidance": 1.0, "k": K}
ENDED = {"done", "cancelled", "failed", "interrupted"}


@pytest.fixture(scope="module")
def painting_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run with two tissues, one of them of two clusters."""
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("painting") / "run"))
    for cluster, name in enumerate(("bone", "fat", "fat")):
        add_name(run, cluster=cluster, name=name, k=K, rater="Dr A")
    return run


@pytest.fixture(scope="module")
def painting(painting_run: Path) -> Iterator[TestClient]:
    with client_of(painting_run) as client:
        yield client


def client_of(run: Path) -> TestClient:
    return TestClient(create_app(run, access=Access()), base_url="http://127.0.0.1", follow_redirects=False)


def grid(cells_hw: np.ndarray, *, cell: int = 4, tissues: list[str] | None = None) -> dict[str, Any]:
    height, width = (side * cell for side in cells_hw.shape)
    made = Grid.of(cells_hw.astype(np.int16), tissues=tissues or NAMES, size=(width, height), cell=cell)
    return made.model_dump()


def halves(height: int, width: int) -> np.ndarray:
    cells_hw = np.zeros((height, width), int)
    cells_hw[:, width // 2 :] = 1
    return cells_hw


def waited(client: TestClient, job_id: str, *, until: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
    for _ in range(6000):
        job: dict[str, Any] = client.get(f"/api/jobs/{job_id}").json()
        if (until or (lambda one: one["state"] in ENDED))(job):
            return job
        time.sleep(0.01)
    raise AssertionError(f"waited in vain: {job}")


def cells_of(layout: dict[str, Any]) -> np.ndarray:
    rows, columns = Grid.model_validate(layout).shape_hw
    return np.frombuffer(base64.b64decode(layout["cells"]), np.uint8).reshape(rows, columns)


def test_the_palette_has_a_tissue_once_with_its_colour_and_a_patch(painting: TestClient) -> None:
    options = painting.get("/api/paint/options", params={"k": K}).json()
    tissues = {tissue["name"]: tissue for tissue in options["tissues"]}
    assert {name: tissue["clusters"] for name, tissue in tissues.items()} == {"bone": [0], "fat": [1, 2]}
    assert len({tissue["colour"] for tissue in tissues.values()}) == 2
    assert painting.get(tissues["fat"]["example"]).headers["content-type"] == "image/jpeg"
    assert "student" not in options["methods"]
    text = painting.get("/paint").text
    assert "Painted fields are synthetic." in text
    assert "not for diagnosis" in text
    assert 'href="/paint?k=' in painting.get("/").text, "it is in the menu"


def test_a_layout_becomes_a_file_and_a_file_a_layout(painting: TestClient, painting_run: Path, tmp_path: Path) -> None:
    cells_hw = np.random.default_rng(0).integers(0, 2, (9, 14))
    saved = painting.post("/api/paint/layout", json={"layout": grid(cells_hw), "seed": 4, **QUICK}).json()
    file = tmp_path / "layout.geojson"
    file.write_text(saved["geojson"], encoding="utf-8")
    read = read_layout(file, Canvas((9, 14), factor=4, mpp=1.0), mpp=1.0)
    np.testing.assert_array_equal(np.array([NAMES.index(name) for name in read.names])[read.tissue_hw], cells_hw)
    expected = f"paint {painting_run} --layout layout.geojson --out field --size 56 36 --seed 4"
    assert expected in saved["command"]

    mpp = Generator.load(painting_run).spec.mpp
    geojson = {"Content-Type": "application/geo+json"}
    query: dict[str, Any] = {"k": K, "mpp": mpp}
    back = painting.post("/api/paint/import", params=query, content=file.read_bytes(), headers=geojson).json()
    assert (back["empty"], back["layout"]["width"], back["layout"]["height"]) == (0, 56, 36)
    drawn = [back["layout"]["tissues"].index(name) for name in NAMES]
    np.testing.assert_array_equal(cells_of(back["layout"]), np.array(drawn)[cells_hw])

    picture = io.BytesIO()
    Image.fromarray(np.where(cells_hw, 7, 2).astype(np.uint8)).save(picture, "PNG")
    legend = json.dumps({"2": "0", "7": "Fat"})
    query |= {"legend": legend, "mpp": 4 * mpp}
    png = {"Content-Type": "image/png"}
    of_png = painting.post("/api/paint/import", params=query, content=picture.getvalue(), headers=png).json()
    assert of_png == back, "a cluster's number and a name in another case are tissues"


def test_a_large_layout_has_coarse_cells_and_a_rest_at_its_end(tmp_path: Path) -> None:
    width, height, factor = 4 * 1100, 4 * 10, 4
    cell = cell_of((width, height), factor=factor)
    assert cell == 12
    cells_hw = np.random.default_rng(1).integers(0, 2, (-(-height // cell), -(-width // cell))).astype(np.int16)
    file = tmp_path / "layout.geojson"
    file.write_text(Grid.of(cells_hw, tissues=NAMES, size=(width, height), cell=cell).geojson(), encoding="utf-8")
    read = read_layout(file, Canvas((height // factor, width // factor), factor=factor, mpp=1.0), mpp=1.0)
    place_hw = np.array([NAMES.index(name) for name in read.names])[read.tissue_hw]
    np.testing.assert_array_equal(place_hw, cells_hw.repeat(3, axis=0).repeat(3, axis=1)[: height // 4, : width // 4])


def test_previews_of_the_whole_and_of_a_part() -> None:
    made = Grid.of(halves(40, 100).astype(np.int16), tissues=NAMES, size=(400, 160), cell=4)
    whole, names = made.preview(part=None, patch=32)
    assert (whole.shape, names) == ((38, 96), ("bone", "fat"))
    np.testing.assert_array_equal(whole, np.tile(np.arange(96) // 48, (38, 1)))
    part, names = made.preview(part=(180, 10_000), patch=32)
    assert part.shape == (96, 96)
    np.testing.assert_array_equal(part, np.tile(np.arange(180, 276) >= 200, (96, 1)))


def test_a_field_is_what_the_command_line_paints(painting: TestClient, painting_run: Path, tmp_path: Path) -> None:
    new = {"layout": grid(halves(10, 16)), "seed": 4, **QUICK}
    job = waited(painting, painting.post("/api/paint/fields", json=new).json()["id"])
    assert (job["state"], job["share"]) == ("done", 1.0), job["message"]
    files = {file["name"]: file["href"] for file in job["painted"]["files"]}
    assert set(files) == {"field.ome.tif", "mask.png", "mask.json", "map.geojson", "field.json", "layout.geojson"}
    response = painting.get(files["field.ome.tif"])
    assert "synthetic-" in response.headers["content-disposition"]
    pixels = tifffile.imread(io.BytesIO(response.content))
    assert pixels.shape == (40, 64, 3)
    assert painting.get(files["field.json"]).json()["synthetic"] is True

    # The command of the saved layout paints the same; that of the job finds its field finished.
    saved = painting.post("/api/paint/layout", json=new).json()
    (tmp_path / "layout.geojson").write_text(saved["geojson"], encoding="utf-8")
    words = shlex.split(saved["command"].replace("layout.geojson", str(tmp_path / "layout.geojson")))
    words[words.index("--out") + 1] = str(tmp_path / "field")
    assert CliRunner().invoke(command_line, words[1:]).exit_code == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "field" / "field.ome.tif"), pixels)
    again = CliRunner().invoke(command_line, shlex.split(job["painted"]["command"])[1:])
    assert again.exit_code == 0, again.output
    readme = painting_run / "drawn" / job["id"] / "README.txt"
    assert job["painted"]["command"] in readme.read_text(encoding="utf-8")

    # Its picture, its tiles, its page, its layout.
    with Image.open(io.BytesIO(painting.get(job["painted"]["picture"]).content)) as picture:
        assert picture.size == (64, 40)
    viewed = painting.get(f"/api/paint/fields/{job['id']}").json()
    assert (viewed["width"], viewed["height"], viewed["levels"]) == (64, 40, 1)
    tile = viewed["tiles"].format(level=0, column=0, row=0)
    assert painting.get(tile).headers["content-type"] == "image/jpeg"
    assert painting.get(tile.replace("/0/0/0.", "/0/1/0.")).status_code == 404
    assert "Synthetic." in painting.get(job["painted"]["page"]).text
    layout = painting.get(f"/api/paint/fields/{job['id']}/layout").json()["layout"]
    np.testing.assert_array_equal(
        cells_of(layout), [[layout["tissues"].index(NAMES[c]) for c in r] for r in halves(10, 16)]
    )
    for name in ("..%2Fjob.json", "job.json", "mask.tif"):
        assert painting.get(f"/api/paint/fields/{job['id']}/files/{name}").status_code == 404

    assert painting.delete(f"/api/jobs/{job['id']}").status_code == 200
    assert not readme.parent.exists()
    assert painting.get(viewed["thumbnail"]).status_code == 404


class Slow(SampleRunner):
    """Waits after the first batch of a field until it may continue."""

    begun, go_on = threading.Event(), threading.Event()

    def paint(self, request: Any, *, field: Any, folder: Path, on_progress: Any) -> None:
        def wait(done: float, total: float) -> None:
            on_progress(done, total)
            if done:
                self.begun.set()
                while not self.go_on.wait(0.01):
                    on_progress(done, total)

        super().paint(request, field=field, folder=folder, on_progress=wait)


def test_a_preview_waits_for_no_job_and_a_restart_loses_no_field(
    painting_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(painting_run, tmp_path / "run", ignore=shutil.ignore_patterns("drawn")))
    monkeypatch.setattr("histoloom.atlas.jobs.sample_runner.SampleRunner", Slow)
    new = {"layout": grid(halves(10, 16)), "seed": 4, **QUICK, "steps": 2}
    with client_of(run) as client:
        job_id = client.post("/api/paint/fields", json=new).json()["id"]
        assert Slow.begun.wait(60)
        preview = client.post("/api/paint/preview", json=new | {"part": [0, 0]}).json()
        assert waited(client, job_id, until=lambda job: job["share"] > 0)["state"] == "drawing", (
            "it is painted meanwhile"
        )
        data = base64.b64decode(preview["src"].partition(",")[2])
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.size, picture.info["Software"]) == ((64, 40), "Histoloom")
        assert preview["field_seconds"] > 0
        log = JobLog.read(run / "drawn" / f"{job_id}.jsonl")
        assert log is not None
        assert 0 < log.share < 1, "a program that is killed leaves how far the field was"
    monkeypatch.undo()
    with client_of(run) as client:
        job = client.get(f"/api/jobs/{job_id}").json()
        assert (job["state"], 0 < job["share"] < 1, job["painted"]["picture"]) == ("interrupted", True, "")
        assert client.get(f"/api/paint/fields/{job_id}").status_code == 409
        assert "not painted yet" in client.get(f"/paint/{job_id}").text
        assert client.post(f"/api/jobs/{job_id}/resume").status_code == 200
        assert waited(client, job_id)["state"] == "done"
        field = client.get(f"/api/paint/fields/{job_id}/files/field.ome.tif").content
        other = waited(client, client.post("/api/paint/fields", json=new).json()["id"])
        whole = client.get(f"/api/paint/fields/{other['id']}/files/field.ome.tif").content
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(field)), tifffile.imread(io.BytesIO(whole)))


def test_a_newer_preview_takes_the_place_of_one_that_is_painted(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, sample_runner=object())  # type: ignore[arg-type]
    begun = threading.Event()

    def endless(_runner: object, check: Callable[[float, float], None]) -> None:
        while True:
            begun.set()
            check(0, 1)
            time.sleep(0.001)

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(queue.urgently, "preview", endless)
        assert begun.wait(60)
        other = pool.submit(queue.urgently, "examples", lambda *_: "examples")
        assert pool.submit(queue.urgently, "preview", lambda *_: "second").result(60) == "second"
        assert other.result(60) == "examples"
        with pytest.raises(Superseded, match="another preview was asked for"):
            first.result(60)
        begun.clear()
        last = pool.submit(queue.urgently, "preview", endless)
        assert begun.wait(60)
        queue.close()
        with pytest.raises(Superseded):
            last.result(60)
    with pytest.raises(UserError, match="is being closed"):
        queue.urgently("preview", lambda *_: None)


def test_a_field_takes_longer_where_windows_have_more_tissues(painting_run: Path) -> None:
    spec = Generator.load(painting_run).spec
    student = SamplerConfig(method="student", steps=4, guidance=2.0)
    guided = SamplerConfig(method="unipc", steps=4, guidance=2.0)
    plain = FieldPlan(np.zeros((32, 32)), 4, (128, 128), student, 4)
    assert plain.cost(spec) == 49 * 4.5
    assert FieldPlan(plain.tissue_hw, 4, (128, 128), guided, 4).cost(spec) == 49 * 8.5
    stripes = np.tile(np.arange(32) // 4, (32, 1))
    assert 49 * 10 < FieldPlan(stripes, 4, (128, 128), student, 4).cost(spec) < 49 * 14
    with_maps = spec.model_copy(update={"diffusion": spec.diffusion.model_copy(update={"condition_maps": True})})
    assert FieldPlan(stripes, 4, (128, 128), student, 4).cost(with_maps) == 49 * 4.5, "a window is evaluated once"
    request = PreviewRequest(np.zeros((32, 32), int), ("bone",), K, 0, 8.0)
    preview = Preview(np.zeros((32, 32, 3), np.uint8), student, 2.0)
    assert seconds_of_field(plain, preview=preview, request=request, spec=spec) == 98


def without_tissue() -> dict[str, Any]:
    cells_hw = halves(10, 16)
    cells_hw[:, 0] = NOTHING
    return grid(cells_hw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layout": grid(halves(10, 16), tissues=["bone", "bonne"])},
            "no tissue 'bonne' at k = 3; did you mean 'bone'?",
        ),
        ({"layout": grid(halves(4, 16))}, "a field of 64 x 16 px is smaller than a patch of this generator"),
        ({"layout": without_tissue()}, "6.2% of the layout has no tissue; fill it, or choose a background"),
        ({"layout": grid(halves(10, 16)) | {"width": 68}}, "a layout of 17 x 10 cells has 170 of them, got 160"),
        ({"layout": grid(halves(10, 16)) | {"cells": "%"}}, "the cells of the layout are not base64"),
        ({"layout": grid(halves(10, 16), tissues=["bone"])}, "the layout has the tissue number 1, of 1 tissues"),
        ({"layout": grid(halves(16, 16), cell=3)}, "the sides of a field and of its cells are multiples of 4 px"),
        ({"layout": grid(halves(10, 16), cell=2000)}, "a field has at most 20,000 px along a side here"),
        ({"layout": grid(halves(600, 16))}, "a layout has at most 512 cells along a side, got 16 x 600"),
        ({"method": "student", "steps": None, "guidance": None}, "has no student"),
        ({"method": "heun", "steps": 4}, "set steps to 3 or 5, not 4"),
    ],
)
def test_a_layout_that_cannot_be_painted_gets_one_line(
    painting: TestClient, change: dict[str, Any], message: str
) -> None:
    for address in ("layout", "preview", "fields"):
        response = painting.post(f"/api/paint/{address}", json={"layout": grid(halves(10, 16)), **QUICK} | change)
        assert (response.status_code, message in response.json()["detail"]) == (400, True), response.text
    assert "\n" not in response.json()["detail"]


@pytest.mark.parametrize(
    ("content", "query", "message"),
    [
        (b"{", {}, "layout.geojson cannot be read; give GeoJSON, or a PNG with a legend"),
        (b"\x89PNG", {"legend": '{"0": "bone"}'}, "layout.png is no PNG that can be read"),
        ("square", {"mpp": 0.001}, "um/px does not fit a field of"),
        ("square", {"mpp": 0.1}, "a field has from 32 to 20,000 px a side here: check the um/px"),
        ("named nothing", {}, "no tissue 'nothing' at k = 3"),
    ],
)
def test_a_file_that_is_no_layout_gets_one_line(
    painting: TestClient, content: bytes | str, query: dict[str, Any], message: str
) -> None:
    if isinstance(content, str):
        ring = [[0, 0], [64, 0], [64, 64], [0, 64], [0, 0]]
        properties = {"classification": {"name": "bone" if content == "square" else "nothing"}}
        feature = {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}
        content = json.dumps(feature).encode()
    kind = "image/png" if "legend" in query else "application/geo+json"
    params = {"k": K, "mpp": 1.0} | query
    response = painting.post("/api/paint/import", params=params, content=content, headers={"Content-Type": kind})
    assert (response.status_code, message in response.json()["detail"]) == (400, True), response.text


def test_a_field_that_the_disk_cannot_hold_is_refused(painting: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("histoloom.atlas.jobs.queue.shutil.disk_usage", lambda _: free)
    response = painting.post("/api/paint/fields", json={"layout": grid(halves(10, 16)), **QUICK})
    assert "the disk has 0 MB left; make it smaller, or free some space" in response.json()["detail"]


# --- from slides


def test_a_place_has_the_tissue_of_the_nearest_box() -> None:
    boxes_N4 = np.array([[0, 0, 10, 10], [6, 0, 16, 10], [30, 0, 40, 10]], float)
    known = tissue_of_boxes(boxes_N4, np.array([0, 1, -1]), names=("bone", "fat"), source="patches")
    assert known.cells((0, 0, 40, 10), (1, 20)).tolist() == [[0] * 4 + [1] * 4 + [NOTHING] * 12]
    nothing = tissue_of_boxes(np.zeros((0, 4)), np.zeros(0, int), names=(), source="patches")
    assert (nothing.cells((0, 0, 4, 4), (2, 2)) == NOTHING).all()


def test_a_layout_from_a_slide(painting: TestClient, painting_run: Path) -> None:
    choice = painting.get("/api/paint/slides").json()[0]
    address = f"/api/paint/slides/{choice['slide_id']}"
    whole = painting.get(address, params={"k": K}).json()
    assert whole["source"] in ("report", "patches")
    assert (whole["layout"]["width"], whole["layout"]["height"]) == (choice["width"], choice["height"])

    # A map that ``histoloom map`` made goes before: its left half is of cluster 0, the other of both others.
    run = Run.open(painting_run)
    slides = pd.read_parquet(run.folder("patches") / "slides.parquet").set_index("slide_id")
    slide = painting_run.parent / "map.geojson"
    file = slides.loc[choice["slide_id"], "file"]
    made = CliRunner().invoke(command_line, ["map", str(painting_run), str(file), "--out", str(slide), "--k", str(K)])
    assert made.exit_code == 0, made.output
    mapped = painting.get(address, params={"k": K}).json()
    assert (mapped["source"], mapped["empty"] < 0.01) == ("map", True)
    part = {"k": K, "left": 10, "top": 20, "width": 64, "height": 40}
    layout = painting.get(f"{address}/layout", params=part).json()
    assert (layout["layout"]["cell"], cells_of(layout["layout"]).shape) == (4, (10, 16))
    full, scale = cells_of(mapped["layout"]), mapped["layout"]["cell"]
    middle = full[int((20 + 20) / scale), int((10 + 32) / scale)]
    assert cells_of(layout["layout"])[5, 8] == middle
    beyond = painting.get(f"{address}/layout", params=part | {"left": -64}).json()
    assert beyond["empty"] > 0.8
    assert (cells_of(beyond["layout"])[:, 0] == EMPTY).all()
    assert painting.get("/api/paint/slides/none", params={"k": K}).status_code == 404


# --- elsewhere


def test_a_run_without_a_generator_says_so(finished: Run) -> None:
    with client_of(finished.path) as client:
        assert "This run has no generator yet" in client.get("/paint").text
        for response in (
            client.get("/api/paint/options"),
            client.post("/api/paint/fields", json={"layout": grid(halves(10, 16))}),
        ):
            assert (response.status_code, "no generator yet" in response.json()["detail"]) == (409, True)


def test_an_exported_generator_paints_without_its_run(painting_run: Path, tmp_path: Path) -> None:
    export_generator(Run.open(painting_run), tmp_path / "export")
    app = create_export_app(tmp_path / "export", drawn=tmp_path / "kept", access=Access())
    with TestClient(app, base_url="http://127.0.0.1") as client:
        page = client.get("/paint").text
        assert "From a slide" not in page
        options = client.get("/api/paint/options", params={"k": K}).json()
        assert {(tissue["name"], tissue["example"]) for tissue in options["tissues"]} == {("bone", ""), ("fat", "")}
        drawn = client.get("/api/paint/examples", params={"k": K}).json()
        assert set(drawn) == set(NAMES)
        with Image.open(io.BytesIO(base64.b64decode(drawn["fat"].partition(",")[2]))) as picture:
            assert picture.size == (32, 32)
        job = waited(
            client, client.post("/api/paint/fields", json={"layout": grid(halves(10, 16)), **QUICK}).json()["id"]
        )
        assert job["state"] == "done", job["message"]
        assert (tmp_path / "kept" / job["id"] / "field" / "field.ome.tif").is_file()
        assert client.get("/api/paint/slides").status_code == 404


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(UserError, match=r"100.0% of the layout has no tissue"):
        Grid.of(np.full((3, 3), NOTHING), tissues=NAMES, size=(12, 12), cell=4).layout()

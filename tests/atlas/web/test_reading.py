"""Blinded readings over HTTP: nothing tells the truth before the end, answers stay, requests are judged."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from histoloom.evaluation.reading.folder import FOLDER, Reading
from histoloom.evaluation.reading.plan import Plan
from histoloom.evaluation.reading.session import Session
from histoloom.names import add_name
from histoloom.run.directory import Run, read_json
from histoloom.slides.patch_set import PatchSet

TRIALS = 12


def begin(client: TestClient, reader: str = "Ann", **wanted: Any) -> dict[str, Any]:
    made = client.post("/api/readings", json={"kind": "real-or-synthetic", "trials": TRIALS} | wanted)
    assert made.status_code == 201, made.text
    return join(client, made.json()["id"], reader)


def join(client: TestClient, reading: str, reader: str) -> dict[str, Any]:
    begun = client.post(f"/api/readings/{reading}/sessions", json={"reader": reader})
    assert begun.status_code == 200, begun.text
    return begun.json()


def give(client: TestClient, state: dict[str, Any], answer: int = 2, **more: Any) -> Any:
    body = {"picture": state["picture"]["id"], "answer": answer, "seconds": 0.5} | more
    return client.post(f"/api/reading-sessions/{state['session']}/answers", json=body)


def trial_of(run: Run, state: dict[str, Any]) -> tuple[Plan, int]:
    reading = Reading(run.path / FOLDER / state["reading"])
    return reading.plan, Session(reading, reader=state["reader"]).tokens.index(state["picture"]["id"])


def finish(
    client: TestClient, state: dict[str, Any], rule: Callable[[dict[str, Any]], int] = lambda _: 2
) -> dict[str, Any]:
    while state["picture"]:
        state = give(client, state, rule(state)).json()
    return state


def test_no_response_tells_the_truth_before_the_end(changing_client: TestClient, finished: Run) -> None:
    client = changing_client
    state = begin(client)
    seen: dict[bool, list[str]] = {True: [], False: []}
    lengths: set[tuple[int, str]] = set()
    while state["picture"]:
        plan, trial = trial_of(finished, state)
        response = client.get(state["picture"]["address"])
        sent = [json.dumps(state), str(sorted(response.headers.items()))]
        sent += [client.get(path).text for path in ("/read", f"/read/{state['session']}", "/api/readings")]
        sent += [client.get(f"/api/reading-sessions/{state['session']}").text]
        sent += [client.get(f"/api/reading-sessions/{state['session']}/result").text]
        text = "\n".join(sent)
        for other in plan.trials:
            assert other.name not in text
        for word in ("holdout", "sample_id", "patch_id", "cluster-0", "fingerprint", plan.names[0]):
            assert word not in text
        # What differs from picture to picture is the digits of its address alone.
        plain = re.sub(r"[0-9a-f]{32}", "*", text).replace(f'"answered": {state["answered"]}', "n")
        seen[plan.trials[trial].synthetic].append(re.sub(r"\d+", "#", plain))
        lengths.add((len(response.content), response.headers["content-type"]))
        state = give(client, state).json()
    assert len(lengths) == 1
    assert set(seen[True][:-1]) & set(seen[False][:-1])


def test_pictures_are_the_pixels_without_metadata(changing_client: TestClient, finished: Run) -> None:
    state = begin(changing_client)
    patches = PatchSet.open(finished.folder("patches"))
    while state["picture"]:
        plan, trial = trial_of(finished, state)
        data = changing_client.get(state["picture"]["address"]).content
        with Image.open(io.BytesIO(data)) as image:
            assert image.info == {}
            pixels = np.asarray(image)
        if not plan.trials[trial].synthetic:
            np.testing.assert_array_equal(pixels, patches.images(patches.rows_of([plan.trials[trial].name]))[0])
        assert re.findall(rb"(IHDR|IDAT|IEND|tEXt|pHYs|iCCP)", data)[0] == b"IHDR"
        state = give(changing_client, state).json()


def test_a_picture_of_another_reader_is_not_there(changing_client: TestClient) -> None:
    ann = begin(changing_client)
    ben = join(changing_client, ann["reading"], "Ben")
    for session, picture in (
        (ann["session"], ben["picture"]["id"]),
        (ben["session"], ann["picture"]["id"]),
        ("0" * 32, "0" * 32),
    ):
        assert changing_client.get(f"/api/reading-sessions/{session}/pictures/{picture}.png").status_code == 404
    assert ann["session"] != ben["session"]


def test_a_reload_goes_on_at_the_same_picture(changing_client: TestClient, finished: Run, open_client) -> None:
    state = begin(changing_client)
    for _ in range(5):
        state = give(changing_client, state).json()
    with open_client(finished.path) as again:
        reloaded = again.get(f"/api/reading-sessions/{state['session']}").json()
        assert reloaded == state | {"last": None}
        assert reloaded["answered"] == 5
        assert join(again, state["reading"], "ann")["picture"] == state["picture"]


def test_an_answer_is_recorded_once_and_cannot_change(changing_client: TestClient, finished: Run) -> None:
    state = begin(changing_client)
    after = give(changing_client, state, 4, seconds=1e5).json()
    assert give(changing_client, state, 4).json()["picture"] == after["picture"]
    refused = give(changing_client, state, 0)
    assert (refused.status_code, refused.json()["detail"][:41]) == (409, "this picture has an answer already, which")
    answers = Reading(finished.path / FOLDER / state["reading"]).answers()["Ann"]
    assert [answer.answer for answer in answers.values()] == [4]
    first = next(iter(answers.values()))
    assert first.at_most is not None
    assert first.seconds == pytest.approx(first.at_most, abs=0.002)
    assert first.seconds < 60


def test_the_result_comes_at_the_end_and_only_then(changing_client: TestClient, finished: Run) -> None:
    state = begin(changing_client)
    early = changing_client.get(f"/api/reading-sessions/{state['session']}/result")
    assert (early.status_code, "12 of 12 pictures have no answer" in early.json()["detail"]) == (409, True)
    finish(changing_client, state, lambda _: 3)
    found = changing_client.get(f"/api/reading-sessions/{state['session']}/result").json()
    assert found["sentence"].startswith("Ann was right in 6 of 12: 50%")
    assert found["counts"] == [{"title": "Answers", "truths": ["real", "synthetic"], "numbers": [[0, 0, 0, 6, 0]] * 2}]
    assert len(found["mistaken"]) == 6
    assert {mistake["answer"] for mistake in found["mistaken"]} == {"rather synthetic"}
    assert all(mistake["truth"].startswith("real patch of") for mistake in found["mistaken"])
    assert changing_client.get(found["mistaken"][0]["address"]).status_code == 200
    assert read_json(finished.path / "readings" / state["reading"] / "results.json")["readers"][0]["reader"] == "Ann"


def test_two_readers_are_shown_side_by_side(changing_client: TestClient) -> None:
    ann = begin(changing_client)
    ben = join(changing_client, ann["reading"], "Ben")
    for _ in range(TRIALS):
        ann, ben = give(changing_client, ann).json(), give(changing_client, ben, 0).json()
    found = changing_client.get(f"/api/reading-sessions/{ben['session']}/result").json()
    assert [row[0] for row in found["rows"]] == ["Ann", "Ben"]
    assert found["together"].startswith("0.50 (")
    listed = changing_client.get("/api/readings").json()
    assert [(reader["reader"], reader["answered"]) for reader in listed[0]["readers"]] == [("Ann", 12), ("Ben", 12)]


def test_naming_has_its_own_choices_and_result(changing_client: TestClient, finished: Run) -> None:
    refused = changing_client.post("/api/readings", json={"kind": "naming", "trials": 8})
    assert (refused.status_code, "name two or more first" in refused.json()["detail"]) == (400, True)
    for cluster, name in enumerate(("bone", "fat", "<i>void</i>", "bone")):
        add_name(finished.path, cluster=cluster, name=name, k=4, rater="x")
    state = begin(changing_client, kind="naming", trials=8)
    assert state["choices"] == ["bone", "fat", "<i>void</i>", "cannot tell"]
    done = finish(changing_client, state, lambda _: 3)
    found = changing_client.get(f"/api/reading-sessions/{done['session']}/result").json()
    assert [one["title"] for one in found["counts"]] == ["Samples", "Real patches"]
    assert len(found["mistaken"]) == 8


def test_a_training_tells_after_each_answer_and_another_reading_does_not(
    changing_client: TestClient, finished: Run
) -> None:
    state = begin(changing_client, feedback=True)
    plan, trial = trial_of(finished, state)
    feedback = give(changing_client, state, 4).json()["last"]
    assert feedback["right"] is plan.trials[trial].synthetic
    assert feedback["truth"].split(" of ")[0] == ("sample" if plan.trials[trial].synthetic else "real patch")
    assert give(changing_client, begin(changing_client), 4).json()["last"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "guess", "trials": 12},
        {"kind": "naming", "trials": 13},
        {"kind": "naming", "trials": 2},
        {"kind": "naming", "trials": 4_000},
        {"kind": "naming", "trials": 12, "k": 0},
        {},
        [],
    ],
)
def test_readings_that_cannot_be(changing_client: TestClient, finished: Run, body: Any) -> None:
    response = changing_client.post("/api/readings", json=body)
    assert response.status_code == 422
    assert isinstance(response.json()["detail"], str)
    assert not (finished.path / "readings").exists()


def test_readings_that_the_run_cannot_have(changing_client: TestClient) -> None:
    for body in ({"trials": 200}, {"trials": 4, "k": 3}):
        response = changing_client.post("/api/readings", json={"kind": "real-or-synthetic"} | body)
        assert response.status_code == 400


@pytest.mark.parametrize("reader", ["", " ", "x" * 81, "a\nb", "\x00", "\ud800", None, 5])
def test_readers_that_cannot_be(changing_client: TestClient, reader: Any) -> None:
    made = changing_client.post("/api/readings", json={"kind": "real-or-synthetic", "trials": 4}).json()
    body = json.dumps({"reader": reader}).encode()
    response = changing_client.post(
        f"/api/readings/{made['id']}/sessions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code in (400, 422)
    assert isinstance(response.json()["detail"], str)


@pytest.mark.parametrize(
    "more",
    [{"answer": -1}, {"answer": 5}, {"seconds": -1}, {"seconds": 1e300}, {"picture": "../plan.json"}, {"scaling": "x"}],
)
def test_answers_that_cannot_be(changing_client: TestClient, finished: Run, more: dict[str, Any]) -> None:
    state = begin(changing_client)
    response = give(changing_client, state, **more)
    assert response.status_code in (400, 422)
    assert Reading(finished.path / FOLDER / state["reading"]).answers() == {"Ann": {}}


def test_what_is_not_there(changing_client: TestClient) -> None:
    state = begin(changing_client)
    for path in ("/read/nothing", "/api/reading-sessions/nothing", "/api/reading-sessions/nothing/result", "/read/%ff"):
        assert changing_client.get(path).status_code == 404
    assert changing_client.post("/api/readings/..%2f/sessions", json={"reader": "Ann"}).status_code == 404
    assert changing_client.get(f"/api/reading-sessions/{state['session']}/pictures/plan.json.png").status_code == 404


def test_a_run_without_samples_says_so(changing_client: TestClient, finished: Run, tmp_path: Path) -> None:
    finished.folder("samples").rename(tmp_path / "away")
    assert "no samples yet" in changing_client.get("/read").text
    response = changing_client.post("/api/readings", json={"kind": "real-or-synthetic", "trials": 4})
    assert (response.status_code, "has no samples yet" in response.json()["detail"]) == (400, True)


def test_orders_of_readers_differ(changing_client: TestClient, finished: Run) -> None:
    ann = begin(changing_client)
    orders = []
    for reader in ("Ann", "Ben", "Cleo"):
        state, order = join(changing_client, ann["reading"], reader), []
        while state["picture"]:
            order.append(trial_of(finished, state)[1])
            state = give(changing_client, state).json()
        orders.append(order)
    assert all(sorted(one) == sorted(other) and one != other for one, other in pairwise(orders))

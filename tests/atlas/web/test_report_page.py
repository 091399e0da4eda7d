"""The report inside the atlas, and its refresh."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect

from histoloom.atlas.jobs import report_job
from histoloom.atlas.web.report_page import DOCUMENT_POLICY
from histoloom.names import add_name
from histoloom.run.directory import Run

SLOW = "import sys, time, pathlib; run = pathlib.Path(sys.argv[1])\nwhile not (run / 'go').exists(): time.sleep(0.01)\n"
WRITES = SLOW + "(run / 'report.html').write_text('<h1>the new one</h1>')"
FAILS = "import sys; print('a warning', file=sys.stderr); sys.exit('no space left for the report')"


def use(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let a refresh run ``program``, which is given the run, in place of ``histoloom report``."""
    monkeypatch.setattr(report_job, "report_command", lambda run: [sys.executable, "-c", program, str(run)])


def ended(client: TestClient) -> dict[str, Any]:
    for _ in range(1000):
        found: dict[str, Any] = client.get("/api/report").json()
        if found["state"] != "running":
            return found
        time.sleep(0.01)
    pytest.fail("the refresh does not end")


def test_the_report_is_made_again_one_at_a_time(
    changing_client: TestClient, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, WRITES)
    assert changing_client.get("/report/document").status_code == 404
    assert "This run has no report yet" in changing_client.get("/report").text
    assert changing_client.post("/api/report/refresh").json()["state"] == "running"
    again = changing_client.post("/api/report/refresh")
    assert (again.status_code, "being made already" in again.json()["detail"]) == (409, True)
    (finished.path / "go").touch()
    assert ended(changing_client)["state"] == "done"
    response = changing_client.get("/report/document")
    assert response.text == "<h1>the new one</h1>"
    assert response.headers["content-security-policy"] == DOCUMENT_POLICY
    assert "script" not in DOCUMENT_POLICY
    assert not changing_client.get("/api/report").json()["outdated"]
    add_name(finished.path, cluster=0, name="bone", k=4, rater="A")
    os.utime(finished.path / "report.html", (1.0, 1.0))
    assert changing_client.get("/api/report").json()["outdated"]
    assert "have changed since" in changing_client.get("/report").text


def test_a_report_that_cannot_be_made_says_why(changing_client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FAILS)
    changing_client.post("/api/report/refresh")
    found = ended(changing_client)
    assert (found["state"], found["message"]) == ("failed", "no space left for the report")
    assert "Not made: no space left for the report" in changing_client.get("/report").text


def test_the_report_is_read_and_refreshed_in_the_browser(page: Page, own_address: str, finished: Run) -> None:
    style = "<style>h1 { color: rgb(1, 2, 3) }</style>"
    (finished.path / "report.html").write_text(f"<title>r</title>{style}<h1>Of before</h1>")
    page.goto(f"{own_address}/report")
    heading = page.frame_locator("#report").get_by_role("heading", name="Of before")
    expect(heading).to_have_css("color", "rgb(1, 2, 3)")
    page.get_by_role("button", name="Refresh").click()  # the run of the test has no stages that are up to date
    expect(page.locator("#report-state")).to_contain_text("Not made: histoloom: the report needs patches")
    expect(page.get_by_role("button", name="Refresh")).to_be_enabled()
    expect(heading).to_be_visible()

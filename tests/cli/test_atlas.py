"""`histoloom atlas`, as a user types it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from command_line import histoloom

from histoloom.atlas.web.serve import listening


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "histoloom", "atlas", *map(str, arguments), "--no-open"]


def test_atlas_prints_its_address_serves_and_stops(tiny_run: Path) -> None:
    with subprocess.Popen(
        command(tiny_run, "--port", "0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address, line
        with urllib.request.urlopen(address[0], timeout=60) as response:
            assert b"groups</h1>" in response.read()
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--host", "0.0.0.0"], "needs a token: histoloom atlas RUN --host 0.0.0.0 --token"),
        (["--token", "short"], "the token must have at least 16"),
        (["--out", "elsewhere"], "leave --out out"),
    ],
)
def test_unsafe_options_are_one_line_errors(tiny_run: Path, arguments: list[str], line: str) -> None:
    done = histoloom("atlas", tiny_run, *arguments, "--no-open")
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_starter_opens_without_a_run(tmp_path: Path) -> None:
    with subprocess.Popen(
        command("starter", "--port", "0", "--out", tmp_path / "mine"), stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as running:
        assert running.stdout is not None
        address = re.search(r"http://127\.0\.0\.1:\d+/", running.stdout.readline())
        assert address
        with urllib.request.urlopen(address[0], timeout=60) as response:
            assert response.url == f"{address[0]}draw"
            page = response.read().decode()
        running.send_signal(signal.SIGINT)
    assert "An exported generator" in page
    assert str(tmp_path / "mine") in page


def test_a_missing_run_and_a_port_in_use_are_one_line_errors(tiny_run: Path, tmp_path: Path) -> None:
    with listening("127.0.0.1", port=0) as listener:
        port = listener.getsockname()[1]
        for arguments, line in (((tmp_path,), "config.yaml"), ((tiny_run, "--port", port), f"port {port} is in use")):
            done = histoloom("atlas", *map(str, arguments), "--no-open")
            assert done.returncode == 2
            assert line in done.stderr
            assert done.stderr.count("\n") == 1

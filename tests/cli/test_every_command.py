"""Every command with a wrong path in each place, and on a machine that lacks a user, a home folder or UTF-8."""

from __future__ import annotations

import inspect
import io
import json
import os
import pwd
import shutil
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
from command_line import histoloom
from PIL import Image

from histoloom.autoencoder import lpips
from histoloom.cli import main
from histoloom.cli.app import COMMANDS
from histoloom.errors import UserError
from histoloom.evaluation import feature_cache
from histoloom.run.directory import disk_errors_explained
from histoloom.run.user import user_name
from histoloom.slides.inventory.pseudonyms import private_folder

OUTPUTS = {"out", "export"}
"""parameters that may name what is not there yet, as may the run of ``init``"""
PATHS_AS_TEXT = {("sample", "like")}
ALWAYS = {"init": ["slides"], "atlas": ["open_"]}
"""optional parameters without which a command does not reach its paths, or opens a browser"""
OPTIONS = {"from_": "--from", "import_": "--import", "open_": "--no-open", "n": "-n"}


def parameters(command: str) -> dict[str, tuple[object, typing.Any]]:
    """Type and typer's description of each parameter of a command."""
    hints = typing.get_type_hints(dict(COMMANDS)[command], include_extras=True)
    return {name: typing.get_args(hint)[:2] for name, hint in hints.items() if name != "return"}


def is_path(command: str, name: str) -> bool:
    return "Path" in str(parameters(command)[name][0]) or (command, name) in PATHS_AS_TEXT


PATHS = [(command, name) for command, _ in COMMANDS for name in parameters(command) if is_path(command, name)]


@pytest.fixture(scope="module")
def values(tiny_run: Path, tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Right values of all parameters that a command requires."""
    folder = tmp_path_factory.mktemp("values")
    for name in ("real", "synthetic", "train", "holdout"):
        (folder / name / "a").mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / "a" / f"{number}.png")
    np.save(folder / "features.npy", np.random.default_rng(0).normal(size=(20, 2)))
    np.save(folder / "labels.npy", np.arange(20) % 2)
    ring = [[0, 0], [64, 0], [64, 64], [0, 64], [0, 0]]
    area = {"geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {"classification": {"name": "0"}}}
    (folder / "layout.geojson").write_text(json.dumps({"type": "Feature", **area}))
    given = {name: str(folder / name) for name in ("real", "synthetic", "train", "holdout")}
    given |= {name: str(folder / f"{name}.npy") for name in ("features", "labels")}
    given |= {
        "layout": str(folder / "layout.geojson"),
        "run": str(tiny_run),
        "generator": str(tiny_run),
        "slides": str(tiny_slides),
    }
    return given | {"slide": str(next(tiny_slides.glob("*.tif"))), "cluster": "0", "name": "fat", "n": "1", "open_": ""}


@pytest.fixture(scope="module")
def wrong_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("not what was asked for")
    names = {"a file": "notes.txt", "below a file": "notes.txt/x", "too long": "x" * 300}
    names |= {"an empty folder": "empty", "absent, and not UTF-8": "caf\udce9"}
    return {kind: str(folder / name) for kind, name in names.items()}


def command_with(command: str, values: dict[str, str], *, wrong: str, path: str) -> list[str]:
    """A command with all that it requires, in which the parameter ``wrong`` has the value ``path``."""
    arguments, options = [], []
    for name, (_, described) in parameters(command).items():
        is_argument = type(described).__name__ == "ArgumentInfo"
        is_required = inspect.signature(dict(COMMANDS)[command]).parameters[name].default is inspect.Parameter.empty
        if not is_required and name not in (wrong, *ALWAYS.get(command, ())):
            continue
        value = path if name == wrong else values[name]
        if is_argument:
            arguments.append(value)
        else:
            options += [OPTIONS.get(name, f"--{name}"), *([value] if value else [])]
    return [command, *arguments, *options]


@pytest.mark.parametrize(("command", "name"), PATHS, ids=lambda part: part)
def test_a_wrong_path_gets_one_line(
    command: str, name: str, values: dict[str, str], wrong_paths: dict[str, str], tmp_path: Path
) -> None:
    may_be_new = name in OUTPUTS or (command, name) == ("init", "run")
    for kind, path in wrong_paths.items():
        if may_be_new and kind in ("an empty folder", "absent, and not UTF-8"):
            continue
        out = str(tmp_path / ("out.geojson" if command == "map" else "out"))
        done = histoloom(*command_with(command, values | {"out": out}, wrong=name, path=path))
        lines = done.stderr.splitlines()
        assert done.returncode == 2, f"{kind}: {done}"
        assert lines[-1].startswith("histoloom: "), f"{kind}: {done}"
        assert not any("Traceback" in line for line in lines)
        assert not list(tmp_path.iterdir()), f"{kind}: something was written"
    assert Path(wrong_paths["a file"]).read_text() == "not what was asked for"


@pytest.fixture
def unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as a bare user id: no entry in passwd, no home folder."""

    def missing(_: object) -> typing.NoReturn:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", missing)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in (feature_cache.ENVIRONMENT, "HISTOLOOM_PRIVATE", lpips.ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("unknown_user")
def test_without_a_user_and_a_home_folder_only_the_private_folder_is_missed(
    tiny_run: Path, tiny_slides: Path, values: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    assert histoloom("name", run, "0", "fat", "--k", "2").returncode == 0
    listed = json.loads(histoloom("names", run, "--latest", "--k", "2", "--json").stdout)
    assert listed["raters"] == [user_name()] == [f"user {os.getuid()}"]
    assert "not kept" in histoloom("evaluate", values["real"], values["synthetic"], "--extractor", "pixels").stderr
    refused = histoloom("init", tmp_path / "other", "--slides", tiny_slides, "--pseudonymise")
    assert (refused.returncode, "HISTOLOOM_PRIVATE" in refused.stderr) == (2, True)
    assert lpips.search_folders() == []
    assert lpips.find_weights("alex", download=True) is None
    for setting, folder in (
        ("HISTOLOOM_PRIVATE", private_folder),
        (feature_cache.ENVIRONMENT, feature_cache.user_cache),
    ):
        monkeypatch.setenv(setting, "~/somewhere")
        with pytest.raises(UserError, match=f"{setting}: no home folder"):
            folder()
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing is written to a folder called ~"


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_names_are_printed_in_any_encoding(
    tiny_run: Path, tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    printed = []
    for command in (
        ["name", run, "1", "组织 😀 ≥ fibrös", "--k", "2", "--rater", "Dr Å"],
        ["names", run, "--k", "2", "--json"],
    ):
        out = io.BytesIO()
        monkeypatch.setattr(sys, "argv", ["histoloom", *map(str, command)])
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
        with pytest.raises(SystemExit) as stop:
            main()
        sys.stdout.flush()
        assert not stop.value.code
        printed.append(out.getvalue())
    assert json.loads(printed[1])["clusters"][1]["name"] == "组织 😀 ≥ fibrös"
    assert (b"\\u7ec4" in printed[0]) == (encoding in ("cp1252", "latin-1"))


def test_a_map_replaces_no_picture_that_is_not_its_own(tiny_run: Path, tmp_path: Path) -> None:
    slide = tmp_path / "slide.png"
    slide.write_bytes(b"a slide")
    for has_annotations in (False, True):
        done = histoloom("map", tiny_run, slide, "--out", tmp_path / "slide.geojson")
        assert (done.returncode, "slide.png exists" in done.stderr) == (2, True), f"{has_annotations}: {done}"
        (tmp_path / "slide.geojson").write_text("the pathologist's annotations")
    assert slide.read_bytes() == b"a slide"
    assert (tmp_path / "slide.geojson").read_text() == "the pathologist's annotations"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("notes.txt/config.yaml", "notes.txt is a file, not a folder"),
        ("notes.txt/below/folder", "notes.txt is a file, not a folder"),
        (".", "is a folder, not a file"),
        ("x" * 300, "too long for this disk"),
    ],
)
def test_a_path_that_cannot_be_one_is_explained(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(UserError, match=words), disk_errors_explained(tmp_path):
        (tmp_path / path).read_text()
    with pytest.raises(UserError, match="is a file, not a folder"), disk_errors_explained(tmp_path):
        (tmp_path / "notes.txt").mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError), disk_errors_explained(tmp_path):
        (tmp_path / "absent").read_text()


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = histoloom("status", "run")
    assert done.returncode == 2
    assert (
        done.stderr == "histoloom: the current folder is gone; change to another one (cd) and type the command again\n"
    )


@pytest.mark.parametrize("command", [command for command, name in PATHS if name == "out"])
def test_an_output_that_may_not_be_written_is_refused_before_the_work(
    command: str, values: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def access(path: Path, mode: int) -> bool:
        return not (path == tmp_path and mode & os.W_OK)

    monkeypatch.setattr(os, "access", access)  # root may write everywhere
    done = histoloom(*command_with(command, values, wrong="out", path=str(tmp_path / "new" / "out.geojson")))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"histoloom: nothing may be written to {tmp_path}; ")
    assert not list(tmp_path.iterdir())

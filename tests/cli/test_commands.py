"""The commands, as a user types them, on a finished tiny run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import command_line
import numpy as np
import pandas as pd
import pytest
from forked import Forked
from PIL import Image


def histoloom(*arguments: str | Path) -> str:
    """What a command prints that succeeds."""
    done = command_line.histoloom(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


FROM_A_TERMINAL = """
import os
import signal
import sys
from histoloom.cli import main
os.setsid()
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "histoloom"
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups")
def test_ctrl_c_says_that_the_same_command_continues(run: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches the whole process group, as from a terminal, while the generator trains."""
    script = tmp_path / "terminal.py"
    script.write_text(FROM_A_TERMINAL)
    started = Forked(script, "run", run, "--set", "diffusion.training.phases.0.images=1000000")
    while started.process.is_alive() and not (run / ".building" / "diffusion" / "log.jsonl").exists():
        time.sleep(0.05)
    assert started.process.pid is not None
    os.killpg(started.process.pid, signal.SIGINT)
    done = started.finish(timeout=60)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "histoloom: stopped; the same command continues where it stopped"
    assert "Traceback" not in done.stderr


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.png"))}


def test_a_report_is_made_again_of_what_is_there_alone(run: Path) -> None:
    (run / "report.html").unlink()
    assert histoloom("report", run).strip() == str((run / "report.html").resolve())
    assert (run / "report.html").is_file()
    shutil.rmtree(run / "samples")
    before = sorted(run.rglob("*"))
    done = command_line.histoloom("report", run)
    assert done.returncode == 2
    assert done.stderr.strip() == (f"histoloom: the report needs samples up to date first: histoloom run {run}"), (
        "it draws nothing"
    )
    assert sorted(run.rglob("*")) == before


def test_status(tiny_run: Path) -> None:
    rows = json.loads(histoloom("status", tiny_run, "--json"))["stages"]
    assert [row["state"] for row in rows] == ["done"] * 8
    assert all(row["seconds"] >= 0 for row in rows)
    assert "diffusion" in histoloom("status", tiny_run)
    alone = command_line.histoloom_process("status", tiny_run)
    assert (alone.returncode, alone.stdout) == (0, histoloom("status", tiny_run))


def test_a_dry_run_does_nothing(run: Path) -> None:
    before = (run / "config.yaml").read_text()
    printed = histoloom("run", run, "--dry-run", "--set", "diffusion.dropout=0.1")
    assert [line.split()[1] for line in printed.splitlines()] == ["done"] * 4 + ["stale"] * 4
    assert (run / "config.yaml").read_text() == before


def test_images_do_not_depend_on_their_number_or_the_order_of_tissues(tiny_run: Path, tmp_path: Path) -> None:
    histoloom("sample", tiny_run, "-n", "2", "--out", tmp_path / "few", "--tissue", "0", "--tissue", "1", "--k", "2")
    histoloom("sample", tiny_run, "-n", "5", "--out", tmp_path / "many", "--tissue", "1", "--tissue", "0", "--k", "2")
    few, many = pictures(tmp_path / "few"), pictures(tmp_path / "many")
    assert (len(few), len(many)) == (4, 10)
    assert all(many[name] == data for name, data in few.items())
    assert len(set(many.values())) == 10


def test_an_interrupted_job_continues_and_a_larger_n_adds_images(tiny_run: Path, tmp_path: Path) -> None:
    job = ("sample", tiny_run, "--out", tmp_path / "job", "--seed", "3")
    histoloom(*job, "-n", "4")
    whole = pictures(tmp_path / "job")
    next(iter(sorted((tmp_path / "job").rglob("*.png")))).unlink()
    histoloom(*job, "-n", "4")
    assert pictures(tmp_path / "job") == whole
    histoloom(*job, "-n", "6")
    assert whole.items() <= pictures(tmp_path / "job").items()
    table = pd.read_csv(tmp_path / "job" / "metadata.csv")
    assert sorted(table["file_name"]) == sorted(pictures(tmp_path / "job"))


def test_seed_steps_and_guidance_change_the_image(tiny_run: Path, tmp_path: Path) -> None:
    results = []
    for number, extra in enumerate((("--seed", "0"), ("--seed", "1"), ("--steps", "2"), ("--guidance", "3"))):
        out = tmp_path / str(number)
        histoloom("sample", tiny_run, "-n", "1", "--out", out, "--tissue", "0", *extra)
        results.append(next(iter(pictures(out).values())))
    assert len(set(results)) == 4


def test_a_name_reaches_samples_report_and_sampling(run: Path, tmp_path: Path) -> None:
    histoloom("name", run, "1", "<b>voids</b> within the tissue", "--k", "2", "--rater", "Dr A")
    table = pd.read_csv(run / "samples" / "metadata.csv")
    named = table[(table["k"] == 2) & (table["cluster"] == 1)]
    assert set(named["tissue"]) == {"<b>voids</b> within the tissue"}
    histoloom("run", run, "--set", "report.k=2")
    page = (run / "report.html").read_text()
    assert "&lt;b&gt;voids&lt;/b&gt; within the tissue" in page
    assert "<b>voids" not in page
    out = tmp_path / "drawn"
    histoloom("sample", run, "-n", "1", "--out", out, "--tissue", "<b>Voids</b> within the tissue", "--k", "2")
    assert pd.read_csv(out / "metadata.csv")["cluster"].tolist() == [1]


def test_an_export_generates_the_same_images_and_diffusers_loads_it(run: Path, tmp_path: Path) -> None:
    histoloom("name", run, "0", "bone", "--k", "2", "--rater", "Dr A")
    histoloom("export", run, tmp_path / "generator")
    for source in (run, tmp_path / "generator"):
        out = tmp_path / f"drawn-{source.name}"
        histoloom("sample", source, "-n", "2", "--out", out, "--tissue", "bone", "--k", "2")
    assert pictures(tmp_path / "drawn-run") == pictures(tmp_path / "drawn-generator")
    from diffusers import DDPMScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(tmp_path / "generator", subfolder="unet", local_files_only=True)
    assert unet.config.in_channels == 16
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "generator", subfolder="scheduler", local_files_only=True)
    assert not scheduler.config.clip_sample
    everything = "".join(f.read_text(errors="ignore") for f in (tmp_path / "generator").rglob("*") if f.is_file())
    assert "Dr A" not in everything
    assert str(run) not in everything
    assert "Not for diagnosis" in (tmp_path / "generator" / "README.md").read_text()
    assert not list((tmp_path / "generator").rglob("*.bin"))


def test_map_of_a_slide(run: Path, tiny_slides: Path, tmp_path: Path) -> None:
    slide = next(iter(sorted(tiny_slides.glob("*.tif"))))
    histoloom("map", run, slide, "--out", tmp_path / "map.geojson", "--k", "3")
    features = json.loads((tmp_path / "map.geojson").read_text())["features"]
    assert features
    assert {f["geometry"]["type"] for f in features} == {"Polygon"}
    assert (tmp_path / "map.png").is_file()


def test_validity_prints_one_json_object(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(60, 3)) + np.repeat([[0], [5], [9]], 20, axis=0))
    np.save(tmp_path / "y.npy", np.repeat([0, 1, 2], 20))
    result = json.loads(histoloom("validity", tmp_path / "x.npy", tmp_path / "y.npy", "--json"))
    keys = {"n", "k", "calinski_harabasz", "c_index", "dunn", "hartigan", "mcclain_rao"}
    assert keys <= set(result)
    assert (result["n"], result["k"]) == (60, 3)
    assert "larger is better" in histoloom("validity", tmp_path / "x.npy", tmp_path / "y.npy")


def test_evaluate_prints_one_json_object(tmp_path: Path) -> None:
    for folder, seed in (("real", 0), ("synthetic", 1)):
        (tmp_path / folder).mkdir()
        for i in range(4):
            noise = np.random.default_rng([seed, i]).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / folder / f"{i}.png")
    result = json.loads(histoloom("evaluate", tmp_path / "real", tmp_path / "synthetic", "--json"))
    assert (result["n_real"], result["n_synthetic"]) == (4, 4)
    row = result["metrics"]["ssim"]
    assert row["interval"][0] <= row["value"] <= row["interval"][1]
    assert {"floor", "extractor"} <= set(row)


def test_doctor_answers() -> None:
    findings = json.loads(histoloom("doctor", "--json"))["findings"]
    assert {"packages", "device", "memory", "disk", "slides"} <= {finding["subject"] for finding in findings}


def test_names_are_listed_exchanged_and_compared(run: Path, tmp_path: Path) -> None:
    for rater, texts in (("Dr A", ("bone", "voids within the tissue")), ("Dr B", ("Bone", "fat"))):
        for cluster, name in enumerate(texts):
            histoloom("name", run, str(cluster), name, "--k", "2", "--rater", rater, "--flag", "unsure")
    listed = histoloom("names", run, "--k", "2")
    assert "'Dr A' and 'Dr B': Cohen's kappa" in listed
    table = tmp_path / "out" / "names.csv"
    histoloom("names", run, "--export", table)
    assert table.read_bytes().startswith(b"\xef\xbb\xbfk,cluster,name,colour,flag,rater,time,patches,clustering\r\n")
    assert "0 changes" in histoloom("names", run, "--import", table)
    histoloom("names", run, "--export", table, "--rater", "Dr B")
    histoloom("names", run, "--import", table, "--rater", "Dr C")
    histoloom("names", run, "--reference", "Dr A")
    listing = json.loads(histoloom("names", run, "--k", "2", "--json"))
    assert listing["reference"] == "Dr A"
    assert [cluster["name"] for cluster in listing["clusters"]] == ["bone", "voids within the tissue"]
    assert [entry["raters"] for entry in listing["agreement"]][-1] == ["Dr A", "Dr B", "Dr C"]
    metadata = pd.read_csv(run / "samples" / "metadata.csv", keep_default_na=False)
    assert set(metadata[metadata["k"] == 2]["tissue"]) == {"bone", "voids within the tissue"}
    assert "'bone' counts" in histoloom("name", run, "0", "other", "--k", "2", "--rater", "Dr B")
    histoloom("name", run, "0", "voids within the tissue", "--k", "2", "--rater", "Dr A")
    out = tmp_path / "drawn"
    histoloom("sample", run, "-n", "12", "--out", out, "--tissue", "voids within the tissue", "--k", "2")
    drawn = pd.read_csv(out / "metadata.csv")
    assert set(drawn["cluster"]) == {0, 1}, "one name is one tissue, drawn over all its clusters"
    assert set(drawn["flag"]) == {"unsure"}


def test_a_wrong_table_gives_one_line_per_error(run: Path, tmp_path: Path) -> None:
    table = tmp_path / "names.csv"
    table.write_text("k,cluster,name,patches\n2,0,bone,1\n9,9,bone,1\n", encoding="utf-8")
    before = (run / "names.jsonl").exists()
    for force, lines in (([], 1), (["--force"], 2)):
        done = command_line.histoloom("names", run, "--import", table, *force)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == lines
        assert done.stderr.startswith("histoloom: names.csv: row 2: ")
    assert (run / "names.jsonl").exists() == before

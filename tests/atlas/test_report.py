"""The report of a tiny run: whole, self-contained, truthful and inert."""

from __future__ import annotations

import base64
import csv
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from histoloom.atlas.report.page import render
from histoloom.atlas.report.paper import INDEX_TITLES, ROWS
from histoloom.atlas.report.read_run import STAGES, read_page
from histoloom.atlas.report.text import number
from histoloom.config import read_preset
from histoloom.evaluation.results import Check, Distribution, Verdict, Verdicts
from histoloom.names import add_label, add_name, merge
from histoloom.names.corrections import correct
from histoloom.run.directory import Run, read_json, write_json

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Document(HTMLParser):
    """Elements with their attributes, the rows of every table, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self.open: list[str] = []
        self._caption = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if tag in {"td", "th"}:
            self.tables[self._caption][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text += data
        if "caption" in self.open:
            self._caption += data
        elif "td" in self.open or "th" in self.open:
            self.tables[self._caption][-1][-1] += data

    def table(self, start: str) -> list[list[str]]:
        """The rows of the table whose caption starts so."""
        (rows,) = [rows for caption, rows in self.tables.items() if caption.startswith(start)]
        return rows

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element ``tag``."""
        return [attributes for name, attributes in self.elements if name == tag]


def write_map(run: Run, slide_id: str) -> None:
    """A drawn map as the stage leaves it."""
    folder = run.folder("report") / "maps"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (160, 128), "teal").save(folder / f"{slide_id}.png")
    write_json(folder / f"{slide_id}.json", {"slide_id": slide_id, "title": slide_id, "k": 4, "patches": 20})


def report(run: Run) -> Document:
    inputs = {stage: run.folder(stage) for stage in STAGES}
    page = read_page(run.path, config=run.config, inputs=inputs, maps=run.folder("report") / "maps")
    return Document(render(page))


@pytest.fixture(scope="module")
def document(published: Run) -> Document:
    write_map(published, "slide-1")
    return report(published)


def test_the_page_is_well_formed(document: Document) -> None:
    assert document.open == []
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in document.of("a")]
    assert links
    assert all(link and link[0] == "#" and link[1:] in ids for link in links)


def test_nothing_is_fetched_from_anywhere(document: Document) -> None:
    for tag, attributes in document.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), f"{tag} {name}={value[:60]}"
        assert "url(" not in (attributes.get("style") or "")
    assert not document.of("script")
    assert not document.of("link")
    policy = [a["content"] for a in document.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_picture_decodes_and_says_what_it_is(document: Document, published: Run) -> None:
    pictures = document.of("img")
    for attributes in pictures:
        head, _, data = (attributes["src"] or "").partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()
            assert [str(image.width), str(image.height)] == [attributes["width"], attributes["height"]]
        assert attributes["alt"]
    texts = [str(attributes["alt"]) for attributes in pictures]
    for cluster in range(4):
        real = [text for text in texts if text.startswith(f"Real patch of group {cluster},")]
        assert 0 < len(real) <= published.config.report.patches_per_cluster
        assert f"Real patch of group {cluster}" in texts, "beside a sample on the first screen"
        assert f"Synthetic patch of group {cluster}" in texts
        assert sum(text.startswith(f"Synthetic patch of group {cluster},") for text in texts) == 3
    assert sum(text.startswith("Reconstruction of patch") for text in texts) == 4
    assert sum(text.startswith("Tissue map") for text in texts) == 2, "on the first screen and in its section"
    assert sum(text.startswith("Where group") for text in texts) == 4


def test_the_table_over_k_holds_the_numbers_of_the_run(document: Document, published: Run) -> None:
    validity = read_json(published.folder("clusters") / "validity.json")
    by = {(entry["k"], entry["method"]): entry for entry in validity}
    rows = document.table("Five validity indices")[2:]
    expected = []
    for k, votes in ((2, "2"), (4, "3")):
        cells = [number(by[k, method][name]) for name in INDEX_TITLES for method in ("infomax", "kmeans")]
        expected.append([str(k), votes, *cells])
    assert [[cell.replace(" best", "").replace(" (chosen)", "") for cell in row] for row in rows] == expected
    marked = [[" best" in cell for cell in row[2:]] for row in rows]
    best_at_2 = [name in {"dunn", "mcclain_rao"} for name in INDEX_TITLES for _ in range(2)]
    assert marked == [best_at_2, [not best for best in best_at_2]]
    exact = {attributes["value"] for attributes in document.of("data")}
    assert {str(entry["dunn"]) for entry in validity} <= exact


def test_similarity_is_shown_with_its_floor_interval_and_pairs(document: Document) -> None:
    rows = {row[0].split()[0]: row[1:] for row in document.table("Similarity of image pairs of group 2")[1:]}
    assert rows["SSIM"] == [
        "0.5323 (0.5123 to 0.5523; 64 pairs)",
        "0.5187 (0.4987 to 0.5387; 64 pairs)",
        "0.7071 (0.6871 to 0.7271; 64 pairs)",
        "no difference from real pairs is seen with 64 pairs; no more alike than with other groups, so this number "
        "does not tell the groups apart",
    ]
    assert "MS-SSIM" not in rows
    reason = "MS-SSIM was not measured: patches of 32 px are smaller than its 161 px"
    assert document.text.count(reason) == 1, "once, not in every cluster"
    assert "LPIPS-squeeze" in document.text
    assert "as alike as" not in document.text


def test_the_summary_says_what_was_chosen_and_why(document: Document) -> None:
    assert "squares of 32 µm, were sorted, without labels, into 4 groups of similar tissue." in document.text
    assert "3 of 5 validity indices are best at k = 4 (Calinski-Harabasz, C index, Hartigan)" in document.text
    assert document.text.count("Synthetic patches are research material, not for diagnosis") == 2
    assert "PSNR 24.6 dB" in document.text
    assert "87.3 of 128 codes" in document.text
    assert "Its discriminator distinguishes patches from their reconstructions in 92 % of pairs" in document.text


def test_the_first_screen_has_four_lights_with_a_word_beside_the_colour(document: Document) -> None:
    levels = [item["class"] for item in document.of("li") if (item.get("class") or "").startswith("light ")]
    assert levels == ["light unknown"] * 4
    assert document.text.count("Not known") == 4
    assert document.text.count("Not measured; run the stage evaluation again") == 2, "and where samples are judged"


def test_a_cluster_has_its_verdict_its_place_and_the_scale(finished: Run) -> None:
    words = {0: "like real", 1: "different", 2: "too few"}
    check = Check(name="two-sample test", word="different", short="told", sentence="AUC 0.99 <b>of</b> 20.")
    verdicts = {
        cluster: Verdict(word=word, sentence=f"Verdict on {cluster}.", checks=(check,) if cluster == 1 else ())
        for cluster, word in words.items()
    }
    Verdicts(k=4, overall=Verdict(word="different", sentence="All told.", checks=(check,)), clusters=verdicts).save(
        finished.folder("evaluation")
    )
    originality: dict[str, Any] = {"n": 24, "n_test": 0, "membership": None, "notes": [], "samples": []}
    for place in range(3):
        sample = {"file": f"k4/cluster-02/{place:06d}.png", "nearest": "p", "score": 0.5, "copy": place == 1}
        originality["samples"].append(sample | {"too_plain": False})
    write_json(finished.folder("evaluation") / "originality.json", originality)
    Distribution(entries=(), missing={"lpips-alex": "no weights"}).save(finished.folder("evaluation"))
    document = report(finished)
    assert document.text.count("1 of 3 samples looks like a copy of a training patch") == 1
    assert document.text.count("Distances by lpips-alex were not measured: no weights") == 1
    assert document.text.count("Sets of patches were not compared: too few") == 1
    levels = [item["class"] for item in document.of("p") if (item.get("class") or "").startswith("verdict")]
    assert levels == [f"verdict {level}" for level in ("good", "bad", "unknown", "bad")]
    assert document.table("Checks of the samples of group 1")[1:] == [
        ["two-sample test", "different", "AUC 0.99 <b>of</b> 20."]
    ]
    assert document.text.count("Like real: verdict on 0.") == 1
    assert document.text.count("Different: verdict on 1.") == 1
    assert document.text.count("Different: all told.") == 2, "among the lights and where samples are judged"
    assert document.text.count("10 µm") == 1 + 2 * 4, "a patch is 32 µm wide"
    assert document.text.count("Place on a slide") == 4
    assert "most from slide-" in document.text


def test_every_plot_is_on_the_page_and_names_its_files(finished: Run) -> None:
    inputs = {stage: finished.folder(stage) for stage in STAGES}
    page = read_page(finished.path, config=finished.config, inputs=inputs, maps=finished.folder("report") / "maps")
    trainings = {f"training-{stage}" for stage in ("autoencoder", "clusters", "diffusion")}
    assert set(page.plots) == {"why-this-k", "pair-similarity"} | trainings
    text = Document(render(page)).text
    assert all(f"report/figures/{name}.svg and .csv" in text for name in page.plots)
    rows = list(csv.DictReader(io.StringIO(page.plots["pair-similarity"].csv)))
    (ssim,) = [
        row
        for row in rows
        if row["measure"].startswith("SSIM")
        and row["cluster"] == "2"
        and row["comparison"].startswith("sample and real patch of its group")
    ]
    assert [float(ssim[name]) for name in ("value", "95 % low", "95 % high")] == pytest.approx([0.5323, 0.5123, 0.5523])


def test_the_papers_tables_are_shown_beside_ours(document: Document, published: Run) -> None:
    validity = read_json(published.folder("clusters") / "validity.json")
    rows = {row[0]: row[1:] for row in document.table("Validity of the clusters")[2:]}
    assert list(rows) == ["2", "4", *map(str, ROWS)]
    assert rows["14"][:2] == ["3,367.7", "–"]
    assert rows["4"][:2] == ["–", number(validity[2]["calinski_harabasz"])]
    assert "they are not comparable as scores" in document.text


def test_slides_that_were_left_out_are_listed_and_inert(document: Document) -> None:
    rows = document.table("All files, with the reason")[1:]
    assert [row[-1] for row in rows] == ["used"] * 3 + ["left out: cannot be read: torn file"]
    assert rows[-1][1:3] == ["<b>bad</b>", "<img src=x onerror=alert(1)>.svs"]
    assert not document.of("b")
    assert not any("onerror" in attributes for attributes in document.of("img"))


def test_truth_costs_and_settings_are_shown(document: Document) -> None:
    assert document.table("These slides have a true tissue map")[1] == ["2", "infomax", "0.6300", "0.5000", "72", "3"]
    costs = document.table("Time and memory of each stage")
    assert costs[1] == ["patches", "10 s", "512 MB"]
    assert costs[-1][0] == "total"
    assert ["packages", "torch 2.13.0"] in document.table("Environment")
    assert f"per_cluster: {read_preset('cpu')['samples']['per_cluster']}" in document.text


def test_names_are_shown_and_cannot_become_markup(finished: Run) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    add_name(finished.path, cluster=1, name=evil, k=4, rater="A")
    add_name(finished.path, cluster=0, name="{{ 7 * 7 }} voids", k=4, rater="A")
    document = report(finished)
    assert not document.of("script")
    assert not any("onerror" in attributes for attributes in document.of("img"))
    assert document.text.count(f"1 · {evil}") == 2
    assert "0 · {{ 7 * 7 }} voids" in document.text
    assert any(evil in str(attributes["alt"]) for attributes in document.of("img"))


def test_clusters_with_one_name_are_one_group_and_artefacts_and_corrections_are_told(finished: Run) -> None:
    run, words = finished.path, {0: "like real", 1: "different", 2: "too few", 3: "different"}
    verdicts = {cluster: Verdict(word=word, sentence=f"Verdict on {cluster}.") for cluster, word in words.items()}
    overall = Verdict(word="different", sentence="All told.")
    Verdicts(k=4, overall=overall, clusters=verdicts).save(finished.folder("evaluation"))
    merge(run, clusters=[0, 2], k=4, rater="A", name="Stroma")
    add_label(run, cluster=3, k=4, rater="A", flag="artefact")
    index = pd.read_parquet(finished.folder("clusters") / "index.parquet")
    of_3 = index["patch_id"][index["k4"] == 3].tolist()
    correct(run, patches=of_3[:2], target="nerve", k=4, rater="A")
    correct(run, patches=of_3[2:3], target="", k=4, rater="A")
    document = report(finished)

    titles = [a["aria-labelledby"] for a in document.of("article")]
    assert titles == ["group-0", "group-1", "group-2", "group-3"], "stroma, 1, 3 and nerve"
    assert "One group of the clusters 0 and 2, which have the same name." in document.text
    assert "(those with the same name are one: 3 are shown)" in document.text
    assert document.text.count("Too few: verdict on 2.") == 1
    assert "Like real: verdict on 0." not in document.text, "the worst of the group's clusters counts"
    assert "The verdict on cluster 2, the worst of the group's clusters." in document.text
    assert document.table("Similarity of image pairs of cluster 2")
    sizes = {place: int((index["k4"].isin(place)).sum()) for place in ((0, 2), (1,), (3,))}
    counts = [sizes[0, 2], sizes[1,], sizes[3,] - 3, 2]
    assert [text for n in counts if (text := f"{n} patches (") not in document.text] == []
    assert "Flagged as artefact: left out of scores, mixtures and blinded readings." in document.text
    assert "Corrections of 3 patches, made one by one: 2 nerve, 1 (no tissue)." in document.text
    texts = [str(attributes["alt"]) for attributes in document.of("img")]
    assert "Real patch of Stroma" in texts, "on the first screen"
    assert sum(text.startswith("Synthetic patch of Stroma, ") for text in texts) == 6
    assert "Real patch of group 3" not in texts, "an artefact is no pair of the first screen"
    assert sum(text.startswith("Real patch of nerve, ") for text in texts) == 2


def test_the_agreement_of_raters_is_shown_where_there_are_two(finished: Run) -> None:
    for cluster, name in enumerate(("bone", "fat", "<b>fat</b>", "voids")):
        add_name(finished.path, cluster=cluster, name=name, k=4, rater="Dr A")
    assert "Several raters" not in report(finished).text
    for cluster, name in enumerate(("Bone", "fat ", "marrow")):
        add_name(finished.path, cluster=cluster, name=name, k=4, rater="Dr B")
    document = report(finished)
    assert "'Dr A' and 'Dr B': Cohen's kappa 0.57 (" in document.text
    assert "over 3 groups" in document.text
    assert "Group 2: '<b>fat</b>' (Dr A), 'marrow' (Dr B)" in document.text


def test_what_a_run_lacks_is_left_out_with_the_reason(finished: Run) -> None:
    folder = finished.folder("evaluation")
    (folder / "truth.json").unlink()
    reasons: dict[str, Any] = dict.fromkeys(("ssim", "ms_ssim", "lpips"), "no second slide")
    write_json(folder / "missing.json", reasons)
    write_json(folder / "similarity.json", [])
    (finished.folder("diffusion") / "log.jsonl").unlink()
    document = report(finished)
    assert "Agreement with the true tissue" not in document.text
    assert document.text.count("not measured: no second slide") == 3
    assert "The stage's log holds no curves." in document.text
    assert "No slide was mapped." in document.text
    assert not any("open" in attributes for attributes in document.of("details")), "numbers are folded"


def test_clusters_that_follow_slides_have_a_warning_and_others_have_none(finished: Run) -> None:
    entry = {"factor": "slide", "null": "patches", "n": 72, "levels": 3, "mi": 0.4, "nmi": 0.35, "ami": 0.3}
    entry |= {"share": 0.31, "excess": 0.298, "null_mean": 0.02, "null_high": 0.04, "z": 9.0, "p": 0.005, "warns": True}
    sentence = "Which slide a patch is from explains 30 % of the <clusters>."
    content = {"associations": [entry | {"k": k} for k in (2, 4)], "warnings": {"4": [sentence]}}
    path = finished.folder("clusters") / "confounding.json"
    write_json(path, content)
    document = report(finished)
    assert "The groups at k = 4 may follow slides rather than tissue." in document.text
    assert document.text.count(sentence) == 1
    rows = document.table("Mutual information of groups")[1:]
    expected = ["slide", "31.0 %", "29.8 %", "0.350", "0.300", "0.400", "0.020", "0.040", "0.005", "warning"]
    assert rows == [["2", *expected], ["4", *expected]]
    write_json(path, content | {"warnings": {"2": [sentence]}})
    assert "may follow slides" not in report(finished).text


def test_clusters_that_follow_colour_have_a_warning_and_old_runs_have_no_table(finished: Run) -> None:
    sentence = "Colour explains most of the <clusters>."
    rows = [{"k": k, "n": 72, "colour": 0.8125, "stain": 0.5, "warning": sentence if k == 4 else ""} for k in (2, 4)]
    slide = {"factor": "slide", "null": "patches", "n": 72, "levels": 3, "mi": 0.1, "nmi": 0.2, "ami": 0.05, "k": 4}
    slide |= {"share": 0.1, "excess": 0.01, "null_mean": 0.02, "null_high": 0.04, "z": 1.0, "p": 0.2, "warns": False}
    path = finished.folder("clusters") / "confounding.json"
    write_json(path, {"colour": rows, "associations": [slide]})
    document = report(finished)
    assert "The groups at k = 4 may follow colour rather than tissue." in document.text
    assert document.text.count(sentence) == 1
    table = document.table("Agreement of the groups with those that k-means finds in colour")[1:]
    assert table == [["2", "0.812", "0.500", "–", ""], ["4", "0.812", "0.500", "0.050", "warning"]]
    write_json(path, {"colour": rows[:1], "associations": [slide]})
    assert "may follow colour" not in report(finished).text
    write_json(path, {"associations": [slide]})
    assert "that k-means finds in colour" not in report(finished).text


def test_the_page_stays_small(finished: Run, tmp_path: Path) -> None:
    write_map(finished, "slide-0")
    inputs = {stage: finished.folder(stage) for stage in STAGES}
    html = render(read_page(finished.path, config=finished.config, inputs=inputs, maps=tmp_path))
    assert len(html) < 1_000_000

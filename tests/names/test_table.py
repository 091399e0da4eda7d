"""CSV out and in: the same names come back, nothing is computed by a spreadsheet, imports are all or nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from histoloom.names import add_label, add_name, folder_name, merge, read_label_state, undo
from histoloom.names.table import COLUMNS, MAX_ROWS, TableError, export_table, import_table, inert, read_rows

Sizes = dict[int, list[int]]
HOSTILE = ("=1+1", "+x", "-x", "@x", "'=x", "'quoted'", "''", 'a;b,c"d"', "<b>x</b>", "Größe “x”", "=cmd|' /C calc'!A0")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


def labels_of(run: Path, rater: str, *, k: int = 5) -> list[tuple[str, str, str]]:
    return [(label.name, label.colour, label.flag) for label in read_label_state(run, k=k).labels(rater).values()]


def refused(run: Path, text: str | bytes, sizes: Sizes, **how: object) -> list[str]:
    """The errors, after seeing that nothing was written."""
    path = run / "names.jsonl"
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(TableError) as raised:
        import_table(run, text if isinstance(text, bytes) else text.encode(), sizes=sizes, **how)  # type: ignore[arg-type]
    assert (path.read_bytes() if path.exists() else None) == before
    return raised.value.lines


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_cells_are_inert_and_come_back(make_run: Callable[..., Path], sizes: Sizes, name: str) -> None:
    run, other = make_run("run"), make_run("other")
    add_name(run, cluster=1, name=name, k=5, rater=name)
    text = export_table(run, sizes=sizes)
    cell = rows(text)[1]
    assert not cell["name"].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert not cell["rater"].startswith(("=", "+", "-", "@", "\t", "\r"))
    import_table(other, text.encode(), sizes=sizes)
    assert labels_of(other, name) == labels_of(run, name)
    assert inert("\t=1") == "'\t=1"


def test_a_round_trip_gives_the_same_bytes(make_run: Callable[..., Path], sizes: Sizes) -> None:
    run, other = make_run("run"), make_run("other")
    add_label(run, cluster=0, k=3, rater="Dr B", name="bone", colour="#0072b2", flag="mixed")
    add_name(run, cluster=1, name="fat", k=5, rater="Dr A")
    merge(run, clusters=[2, 3], k=5, rater="Dr B", name="voids within the tissue")
    add_name(run, cluster=2, name="taken back", k=3, rater="Dr A")
    undo(run, k=3, rater="Dr A")
    text = export_table(run, sizes=sizes)
    table = rows(text)
    assert tuple(table[0]) == COLUMNS
    assert [(row["k"], row["cluster"], row["rater"]) for row in table] == [
        *(("3", str(cluster), "Dr B") for cluster in range(3)),
        *(("5", str(cluster), "Dr A") for cluster in range(5)),
        *(("5", str(cluster), "Dr B") for cluster in range(5)),
    ]
    assert [row["patches"] for row in table[:3]] == ["50", "30", "20"]
    assert {row["clustering"] for row in table} == {"f1"}
    result = import_table(other, text.encode(), sizes=sizes)
    assert (result.rows, result.empty, result.changes) == (4, 9, 6)
    assert export_table(other, sizes=sizes) == text
    assert import_table(other, text.encode(), sizes=sizes).changes == 0
    assert import_table(run, text.encode(), sizes=sizes).changes == 0
    undo(other, k=5, rater="Dr B")
    assert labels_of(other, "Dr B") == [("", "", "")] * 5, "an import is undone as one"


def test_a_run_without_names_gives_a_form(run: Path, sizes: Sizes) -> None:
    assert len(rows(export_table(run, sizes=sizes))) == 8
    form = export_table(run, sizes=sizes, rater="Dr A", k=3)
    assert [row["rater"] for row in rows(form)] == ["Dr A"] * 3
    filled = form.replace("3,1,,", "3,1,bone,")
    assert import_table(run, filled.encode(), sizes=sizes).changes == 1
    assert [name for name, _, _ in labels_of(run, "Dr A", k=3)] == ["", "bone", ""]


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfK;Cluster;Name;Color;Flag;Patches\r\n5;1;fat;#ABCDEF;Unsure;20\r\n;;;;;\r\n",
        b"sep=;\r\nk;cluster;name;colour;flag;patches\r\n5;1;fat;#abcdef;unsure;20\r\n",
        b"k\tcluster\tname\tcolour\tflag\tpatches\tnotes\n5\t1.0\tfat\t#abcdef\tunsure\t20\tmine\n",
        b'"k","cluster","name","colour","flag","clustering"\r"5","1","fat","#abcdef","unsure","f1"\r',
        "k,cluster,name,colour,flag,patches\n5,1, fat ,#abcdef,unsure,20\n".encode("utf-16"),
    ],
    ids=["semicolons", "sep", "tabs", "carriage returns", "utf-16"],
)
def test_tables_of_other_programs(run: Path, sizes: Sizes, data: bytes) -> None:
    add_name(run, cluster=2, name="stays", k=5, rater="Dr A")
    import_table(run, data, sizes=sizes, rater="Dr A")
    assert labels_of(run, "Dr A")[1:3] == [("fat", "#abcdef", "unsure"), ("stays", "", "")]


def test_all_errors_are_listed_with_their_rows(run: Path, sizes: Sizes) -> None:
    table = (
        "k,cluster,name,colour,flag,rater,time,patches\n"
        "5,1,fat,,,A,,20\n"
        "7,1,fat,,,A,,20\n"
        "5,9,fat,,,A,,20\n"
        "5,x,fat,,,A,,\n"
        "5,1,again,,,A,,20\n"
        "5,2,bone,red,,A,,20\n"
        "5,2,bone,,odd,A,,20\n"
        "5,2,bone,,,,,20\n"
        "5,2,bone,,,A,yesterday,20\n"
        "5,2,3,,,A,,20\n"
        "\n"
        "5,2,a\x07b,,,A,,20\n"
    )
    lines = refused(run, table, sizes, force=True)
    assert [line.split(":")[0] for line in lines] == [f"row {n}" for n in (3, 4, 5, 6, 7, 8, 9, 10, 11, 13)]
    for line, part in zip(
        lines,
        (
            *("allowed: 3, 5", "allowed: 0 to 4", "'x'", "in row 2 already", "#rrggbb", "no flag", "no rater"),
            *("ISO 8601", "cluster's number", "control character"),
        ),
        strict=True,
    ):
        assert part in line
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"a,b\n1,2\n", "expected the columns"),
        (b"k,cluster\n5,1\n", "expected the columns"),
        (b"k,k,cluster,name\n", "twice"),
        (b"k,cluster,name\n5,1,Gr\xf6sse\n", "UTF-8"),
        (b'k,cluster,name\n5,1,"open\n', "not CSV"),
        (b"k,cluster,name\n5,1,a,b,c\n", "5 cells under 3 columns"),
        (b"\x00" * 5_000_000, "bytes"),
        (b"k,cluster,name\n" + b"5,1,x\n" * MAX_ROWS, "rows"),
        (b"PK\x03\x04\x00\x01", "expected the columns"),
    ],
    ids=range(10),
)
def test_an_invalid_table_is_refused(run: Path, sizes: Sizes, data: bytes, message: str) -> None:
    assert message in refused(run, data, sizes, rater="A", force=True)[0]


def test_rows_with_the_same_error_share_a_line(run: Path, sizes: Sizes) -> None:
    table = "k,cluster,name\n9,0,x\n9,1,x\n3,0,x\n9,2,x\n"
    assert refused(run, table, sizes, rater="A", force=True) == ["rows 2 to 3, 5: k is '9'; allowed: 3, 5"]


def test_many_errors_are_cut_short(run: Path, sizes: Sizes) -> None:
    table = "k,cluster,name\n" + "".join(f"3,{number},x\n" for number in range(10, 60))
    lines = refused(run, table, sizes, rater="A", force=True)
    assert (len(lines), lines[-1]) == (21, "and 30 more")


def test_a_table_of_another_clustering_is_refused_unless_forced(
    run: Path, sizes: Sizes, recluster: Callable[..., None]
) -> None:
    add_name(run, cluster=1, name="fat", k=5, rater="A")
    text = export_table(run, sizes=sizes)
    recluster(run, fingerprint="f2")
    assert "of the clustering 'f1'" in refused(run, text, sizes)[0]
    bare = "k,cluster,name,rater\n5,1,fat,A\n"
    assert "says which clustering" in refused(run, bare, sizes)[0]
    other = "k,cluster,name,rater,patches\n5,1,fat,A,21\n"
    assert "the numbers of patches are not those of the run" in refused(run, other, sizes)[0]
    assert import_table(run, text.encode(), sizes=sizes, force=True).changes == 1
    assert labels_of(run, "A")[1] == ("fat", "", "")


def test_a_rater_may_be_given(run: Path, sizes: Sizes) -> None:
    import_table(run, b"k,cluster,flag,rater,patches\n5,1,mixed,A,20\n", sizes=sizes, rater="B")
    assert (labels_of(run, "A")[1], labels_of(run, "B")[1]) == (("", "", ""), ("", "", "mixed"))


def test_rows_are_numbered_as_in_the_file() -> None:
    numbered = list(read_rows(b'sep=,\nk,cluster,name\n\n1,2,"x"\n'))
    assert [(row.number, row["name"], row["absent"]) for row in numbered] == [(4, "x", "")]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("Bone, dense", "bone-dense"),
        ("../..", "tissue"),
        ("脂肪" * 100, "脂肪" * 33),
        ("a" * 199 + "é", "a" * 199),
    ],
)
def test_a_tissue_has_a_folder_that_every_file_system_takes(name: str, folder: str) -> None:
    assert folder_name(name) == folder
    assert len(folder.encode()) <= 200

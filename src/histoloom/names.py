"""The expert's names of clusters: appended to ``RUN/names.jsonl``, never rewritten.

A cluster is addressed by (k, cluster): the same number means another group of patches under another k, and after
another clustering. A naming therefore carries the fingerprint of the clustering that the expert saw, and counts only
for it. The latest naming counts; the earlier ones stay in the file, with who gave them and when.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from histoloom.errors import UserError
from histoloom.store import Artifact, disk_errors_explained, write_text

logger = logging.getLogger(__name__)

MAX_LENGTH = 200

_FORBIDDEN_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
# They reorder the text around them, so that a name could be read as another one.
_DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NUMBER = re.compile(r"(?:cluster\s+)?(\d+)", flags=re.IGNORECASE)


@dataclass(frozen=True)
class Naming:
    """One line of ``names.jsonl``; ``time`` is ISO 8601 in UTC, ``clusters`` the clustering's fingerprint."""

    time: str
    rater: str
    k: int
    cluster: int
    name: str
    clusters: str = ""


def default_name(cluster: int) -> str:
    """What a cluster is called before an expert names it."""
    return f"cluster {cluster}"


def add_name(run: Path, *, cluster: int, name: str, k: int, rater: str) -> None:
    """Append one naming to ``RUN/names.jsonl`` and flush it to the disk.

    ``k`` must be one of the run's sweep, which the caller checks. ``UserError`` where the cluster, the name or the
    rater cannot be taken; nothing is written then.
    """
    if not 0 <= cluster < k:
        raise UserError(f"there is no cluster {cluster} at k = {k}; give a number from 0 to {k - 1}")
    naming = Naming(
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        rater=_valid(rater, what="rater"),
        k=k,
        cluster=cluster,
        name=_valid_name(name, cluster=cluster),
        clusters=_clustering(run),
    )
    with disk_errors_explained(run):
        _append(_file(run), json.dumps(asdict(naming), ensure_ascii=False))


def read_names(run: Path) -> list[Naming]:
    """All namings in the order in which they were given; a line torn by a crash is left out with a warning."""
    path = _file(run)
    if not path.is_file():
        return []
    namings = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            namings.append(_parse(line))
        except (ValueError, TypeError, KeyError):
            logger.warning("%s: line %d is torn and left out", path, number)
    return namings


def current_names(run: Path, *, k: int) -> dict[int, str]:
    """The latest name of each cluster of ``k``, in the clusters' order; ``cluster c`` where there is none."""
    names = {cluster: default_name(cluster) for cluster in range(k)}
    seen = _clustering(run)
    for naming in read_names(run):
        if naming.k == k and naming.cluster in names and naming.clusters in ("", seen):
            names[naming.cluster] = naming.name
    return names


def clusters_of(run_or_names: Path | Mapping[int, str], tissue: str, *, k: int) -> list[int]:
    """The clusters of ``k`` that ``tissue`` means: a name, in any case, or a cluster's number.

    Several clusters may share a name; all of them are returned, in rising order. ``UserError`` lists the names that
    there are and suggests the closest.
    """
    names = current_names(run_or_names, k=k) if isinstance(run_or_names, Path) else dict(run_or_names)
    wanted = _plain(tissue)
    found = sorted(cluster for cluster, name in names.items() if _plain(name) == wanted)
    if found:
        return found
    number = _NUMBER.fullmatch(wanted)
    if number and int(number[1]) in names:
        return [int(number[1])]
    raise UserError(_unknown(tissue, names=names, k=k))


def refresh_sample_names(run: Path) -> None:
    """Rewrite the column ``tissue`` of ``RUN/samples/metadata.csv`` with the current names, in one step.

    Nothing happens where the run has no samples yet.
    """
    path = run / "samples" / "metadata.csv"
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or []), list(reader)
    names = {k: current_names(run, k=k) for k in {int(row["k"]) for row in rows}}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"tissue": names[int(row["k"])][int(row["cluster"])]} for row in rows)
    with disk_errors_explained(run):
        write_text(path, text.getvalue())


def _clustering(run: Path) -> str:
    """The fingerprint of the run's clustering; empty where there is none, as in an exported generator."""
    artifact = Artifact.read(run / "clusters")
    return artifact.fingerprint if artifact else ""


def _file(run: Path) -> Path:
    return run / "names.jsonl"


def _append(path: Path, line: str) -> None:
    """One ``write`` on a file opened for appending: two raters at once cannot mix their lines."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (("\n" if torn else "") + line + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(line: bytes) -> Naming:
    value = json.loads(line)
    return Naming(
        time=str(value["time"]),
        rater=str(value["rater"]),
        k=int(value["k"]),
        cluster=int(value["cluster"]),
        name=str(value["name"]),
        clusters=str(value.get("clusters", "")),
    )


def _valid_name(name: str, *, cluster: int) -> str:
    """The trimmed name; one that would be taken for another cluster's number is refused."""
    text = _valid(name, what="name")
    if _NUMBER.fullmatch(text) and _plain(text) != default_name(cluster):
        raise UserError(f"the name {text!r} reads as a cluster's number; describe the tissue in words")
    return text


def _valid(text: str, *, what: str) -> str:
    trimmed = text.strip()
    if not trimmed:
        raise UserError(f"the {what} is empty; give at least one character")
    if len(trimmed) > MAX_LENGTH:
        raise UserError(f"the {what} has {len(trimmed)} characters; at most {MAX_LENGTH} are allowed")
    for character in trimmed:
        if unicodedata.category(character) in _FORBIDDEN_CATEGORIES or character in _DIRECTION_MARKS:
            raise UserError(f"the {what} holds the control character {character!r}; give it as one plain line")
    return trimmed


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _unknown(tissue: str, *, names: Mapping[int, str], k: int) -> str:
    choices = sorted(set(names.values()) - {default_name(cluster) for cluster in names})
    by_plain = {_plain(name): name for name in choices}
    near = difflib.get_close_matches(_plain(tissue), list(by_plain), n=1, cutoff=0.5)
    hint = f"did you mean {by_plain[near[0]]!r}? " if near else ""
    named = f"the names {', '.join(map(repr, choices))} or " if choices else ""
    return f"no tissue {tissue!r} at k = {k}; {hint}allowed: {named}a cluster's number from 0 to {k - 1}"

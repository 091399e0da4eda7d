"""A job's labelled folder as a ZIP file that is sent while it is read: never more than a picture is in memory."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from histoloom.atlas.jobs.job_log import Made
from histoloom.names.table import inert

README = """Synthetic patches, drawn by a model (Histoloom). Not for diagnosis.

Each folder is a tissue as it was named, or a cluster; metadata.csv says of each picture how it was drawn. Pictures that
were begun from a real patch ("source" in metadata.csv) show much of it, the more so the lower their strength: treat
them as you treat that patch. datasets.load_dataset("imagefolder", data_dir=...) reads this folder.
"""


class _Pipe(io.RawIOBase):
    """What is written, until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._at += len(part)
        return len(part)

    def tell(self) -> int:
        return self._at

    def taken(self) -> bytes:
        parts, self._parts = b"".join(self._parts), []
        return parts


def archive(folder: Path, *, pictures: Sequence[Made], name: str) -> Iterator[bytes]:
    """The ZIP file of ``pictures`` of a job, in pieces; all lies in a folder ``name``. What is gone is left out."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as file:
        file.writestr(f"{name}/README.txt", README)
        rows = []
        for made in pictures:
            path = folder / made.place
            if path.is_file():
                file.writestr(f"{name}/{made.place}", path.read_bytes())
                rows.append(made.row)
                yield pipe.taken()
        file.writestr(f"{name}/metadata.csv", table(rows))
    yield pipe.taken()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """``metadata.csv`` as a spreadsheet may open it: no cell is taken for a formula."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns or ["file_name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: inert(str(value)) for column, value in row.items()} for row in rows)
    return text.getvalue()

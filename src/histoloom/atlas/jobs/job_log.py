"""One drawing job on disk: ``RUN/drawn/JOB_ID.jsonl``, a line for each event, and the folder ``JOB_ID``.

The folder holds labelled pictures, or a painted field: its layout, and what ``histoloom paint`` makes of it.

Lines are only appended, each after what it reports: the line of a picture follows the picture. A job whose last state
is not final, and that no program draws, was interrupted. The folder can be downloaded as a ZIP file.
"""

from __future__ import annotations

import csv
import io
import logging
import shlex
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from histoloom.diffusion.generation.request import Request
from histoloom.names.table import inert
from histoloom.run.json_lines import append_lines, read_lines

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

logger = logging.getLogger(__name__)

State = Literal["waiting", "drawing", "done", "cancelled", "failed", "interrupted"]
ENDED: frozenset[State] = frozenset({"done", "cancelled", "failed", "interrupted"})
SUFFIX = ".jsonl"
WITHHELD = "withheld"
"""as in ``diffusion.generation.sample_folder``, which loads torch"""

FIELD_README = """A field of synthetic tissue, painted by a model (Histoloom). It is no patient's tissue, and not for
diagnosis.

layout.geojson says which tissue is where. The folder "field" holds the field (field.ome.tif), the tissue of each pixel
(mask, map.geojson) and its record (field.json). Should the field be unfinished, the page continues it, and so does

{command}
"""
README = """Synthetic patches, drawn by a model (Histoloom). Not for diagnosis.

Each folder holds the patches of a tissue with a name, or of a cluster. metadata.csv says how each picture was drawn.
Pictures that were drawn from a real patch ("source" in metadata.csv) show much of it; the lower their strength, the
more they show. Treat them as you treat that patch. datasets.load_dataset("imagefolder", data_dir=...) reads this
folder.
"""


@dataclass(frozen=True)
class JobPicture:
    """A picture of a job: its number there, its ``row`` of ``metadata.csv``, and whether it was withheld."""

    number: int
    row: Mapping[str, object]
    withheld: bool

    @property
    def path(self) -> str:
        """Its file, relative to the job's folder."""
        file = str(self.row["file_name"])
        return f"{WITHHELD}/{file}" if self.withheld else file


LAYOUT_FILE, FIELD_FOLDER = "layout.geojson", "field"
"""what the folder of a field holds"""


@dataclass(frozen=True)
class FieldSpec:
    """A field to be painted: (width, height), px; ``softness`` of the boundaries of its tissues (sd), um."""

    size: tuple[int, int]
    softness: float

    def command(self, generator: Path, request: Request, *, layout: Path, out: Path) -> str:
        """The command that paints a layout as the page does, for a shell."""
        words = ["histoloom", "paint", str(generator), "--layout", str(layout), "--out", str(out)]
        words += ["--size", *map(str, self.size), "--seed", str(request.seed), "--softness", str(self.softness)]
        for option in ("k", "method", "steps", "guidance"):
            value = getattr(request, option)
            if value is not None:
                words += [f"--{option}", str(value)]
        return shlex.join(words)


@dataclass(frozen=True)
class JobSpec:
    """What a job draws: ``total`` pictures, the request in words, and its time (ISO 8601 in UTC).

    ``field``: the field that it paints in place of pictures; the request then says of what tissues, and how.
    """

    request: Request
    total: int
    title: str
    time: str
    field: FieldSpec | None = None


@dataclass
class JobLog:
    """A job as its file describes it. A change is written to the file first, then made here."""

    job_id: str
    home: Path
    spec: JobSpec
    state: State = "waiting"
    message: str = ""
    pictures: list[JobPicture] = field(default_factory=list)
    deleted: bool = False
    share: float = 0.0
    """of a field, what was done when its job ended early, 0..1"""

    @property
    def folder(self) -> Path:
        """The labelled folder."""
        return self.home / self.job_id

    @property
    def file(self) -> Path:
        """The file of events."""
        return self.home / f"{self.job_id}{SUFFIX}"

    @property
    def visible(self) -> list[JobPicture]:
        """The pictures that were not withheld."""
        return [picture for picture in self.pictures if not picture.withheld]

    @staticmethod
    def create(home: Path, *, job_id: str, spec: JobSpec) -> JobLog:
        """A new job, waiting."""
        home.mkdir(parents=True, exist_ok=True)
        job = JobLog(job_id, home, spec)
        append_lines(job.file, [{"ask": asdict(spec)}])
        return job

    @staticmethod
    def read(file: Path) -> JobLog | None:
        """The job in ``file``; None where its first line was not written whole, or another version wrote it."""
        events = read_lines(file)
        if not events or "ask" not in events[0]:
            return None
        try:
            values: Any = events[0]["ask"]
            request = dict(values["request"])
            for name in ("spacing", "guidance_interval"):  # settings that earlier versions had
                request.pop(name, None)
            for name in ("tissues", "between"):
                request[name] = None if request[name] is None else tuple(request[name])
            of_field = values.get("field")
            spec = JobSpec(
                Request(**request),
                int(values["total"]),
                str(values["title"]),
                str(values["time"]),
                of_field and FieldSpec(tuple(of_field["size"]), float(of_field["softness"])),
            )
        except (KeyError, TypeError, ValueError):
            logger.warning("%s was written by another version of Histoloom and is left out", file)
            return None
        job = JobLog(file.stem, file.parent, spec)
        for event in events[1:]:
            job._apply(event)
        return job

    def set_state(self, state: State, *, message: str = "", share: float | None = None) -> None:
        """Change the state."""
        self._record({"state": state, "message": message} | ({} if share is None else {"share": share}))

    def set_share(self, share: float) -> None:
        """Record how much of a field is done."""
        self._record({"share": share})

    def add_picture(self, row: Mapping[str, object], *, withheld: bool) -> None:
        """Record a picture that was written."""
        self._record({"picture": dict(row), "withheld": withheld})

    def write_tables(self) -> None:
        """Write the tables of the pictures that are there, for a job that ended before it could write its own.

        A picture without an event is deleted; it will be drawn again.
        """
        from histoloom.diffusion.generation.sample_folder import write_table  # loads torch

        if self.spec.field is not None or not self.folder.is_dir():
            return
        known = {self.folder / picture.path for picture in self.pictures}
        for stray in (*self.folder.rglob(".*.part"), *(set(self.folder.rglob("*.png")) - known)):
            stray.unlink(missing_ok=True)
        with_init = bool(self.spec.request.init_images)
        for withheld, path in ((False, self.folder), (True, self.folder / WITHHELD)):
            rows = [picture.row for picture in self.pictures if picture.withheld == withheld]
            if rows or not withheld:
                write_table(path / "metadata.csv", rows=rows, with_init=with_init)

    def delete(self) -> None:
        """Delete the job and its pictures. If this is interrupted, it continues when jobs are read again."""
        self._record({"deleted": True})
        shutil.rmtree(self.folder, ignore_errors=True)
        self.file.unlink(missing_ok=True)

    def bytes(self) -> int:
        """The size on disk of its pictures, or of all that belongs to its field."""
        files = self.folder.rglob("*.png" if self.spec.field is None else "*")
        return sum(file.stat().st_size for file in files if file.is_file()) if self.folder.is_dir() else 0

    def _record(self, event: Mapping[str, object]) -> None:
        append_lines(self.file, [event])
        self._apply(event)

    def _apply(self, event: Mapping[str, object]) -> None:
        match event:
            case {"picture": dict(row), "withheld": withheld}:
                picture = JobPicture(len(self.pictures), row, bool(withheld))
                for position, earlier in enumerate(self.pictures):
                    if earlier.row["file_name"] == row["file_name"]:
                        # It is drawn again because its file was deleted, and keeps its number
                        self.pictures[position] = replace(picture, number=earlier.number)
                        return
                self.pictures.append(picture)
            case {"deleted": _}:
                self.deleted = True
            case {"state": state}:
                self.state, self.message = state, str(event.get("message", ""))  # type: ignore[assignment]
                self.share = float(str(event.get("share", self.share)))
            case {"share": share}:
                self.share = float(str(share))


class _Buffer(io.RawIOBase):
    """A file that is only written to; ``drain`` returns what was written since the last call."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def tell(self) -> int:
        return self._position

    def drain(self) -> bytes:
        parts, self._parts = b"".join(self._parts), []
        return parts


def archive(folder: Path, *, pictures: Sequence[JobPicture], name: str) -> Iterator[bytes]:
    """The ZIP file of a job's ``pictures``, in pieces of one picture; everything lies in a folder ``name``.

    Files that were deleted are left out. In its ``metadata.csv`` a spreadsheet takes no cell for a formula.
    """
    buffer = _Buffer()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr(f"{name}/README.txt", README)
        rows = []
        for picture in pictures:
            path = folder / picture.path
            if path.is_file():
                file.writestr(f"{name}/{picture.path}", path.read_bytes())
                rows.append(picture.row)
                yield buffer.drain()
        columns = list(dict.fromkeys(column for row in rows for column in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns or ["file_name"], lineterminator="\n")
        writer.writeheader()
        writer.writerows({column: inert(str(value)) for column, value in row.items()} for row in rows)
        file.writestr(f"{name}/metadata.csv", text.getvalue())
    yield buffer.drain()

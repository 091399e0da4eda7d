"""The run directory: stages published by one atomic rename, fingerprints, locks.

A stage is built in ``RUN/.building/STAGE`` and becomes ``RUN/STAGE`` by a rename. A stage whose settings or inputs
changed is moved to ``RUN/superseded/STAGE-FINGERPRINT`` and comes back from there, without work, when the settings
do: nothing that was computed is lost.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from histoloom.config import Config, dump_config, load_config
from histoloom.errors import UserError

State = Literal["done", "stale", "partial", "missing"]

_END_BYTES, _SAMPLE_BYTES = 65536, 4096
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def fingerprint(value: Any) -> str:
    """A 16-digit hexadecimal digest of JSON-like data; equal data gives equal digests on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path, *, samples: int = 0) -> str:
    """A digest of a file's size and of its first and last 64 KiB: quick on slides of gigabytes.

    ``samples``: further blocks of 4 KiB, at equal distances between the ends. A file that is not longer than all that
    is read whole.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        between = size - 2 * _END_BYTES
        if samples and 0 < between <= samples * _SAMPLE_BYTES:
            digest.update(file.read(between))
        elif samples and between > 0:
            for number in range(samples):
                file.seek(_END_BYTES + (between - _SAMPLE_BYTES) * number // max(1, samples - 1))
                digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return digest.hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a crash leaves the old one or the new one, never a part."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, atomically; NaN is an error rather than invalid JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and takes ``path``'s place.

    Not flushed, the file is whole after a kill, but may be torn by a power cut.
    """
    # Two machines of a cluster may write the same file at once, from processes of the same number. The name is
    # cut, so that it is not too long where the file's is as long as the disk allows.
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield temporary
        if flush:
            flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until the file's content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def disk_errors_explained(place: Path, *, cure: str = "choose another place, or change its rights") -> Iterator[None]:
    """Turn a full disk, missing rights and a path that cannot be one into one line for the user.

    ``place`` is named where the error names no path; ``cure`` is what to do about missing rights.
    """
    try:
        yield
    except OSError as error:
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else place
        if error.errno in _NO_SPACE:
            raise UserError(
                f"no space left for {place}; free some and run the same command again: "
                "finished stages and the last checkpoint are kept"
            ) from error
        if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise UserError(f"cannot use {path}: {error.strerror}; {cure}") from error
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"the path {str(path)[:60]}... is too long for this disk; choose a shorter name") from error
        if error.errno == errno.EISDIR:
            raise UserError(f"{path} is a folder, not a file; give a file") from error
        if error.errno in {errno.ENOTDIR, errno.EEXIST} and (file := file_in_the_way(path)) is not None:
            raise UserError(f"{file} is a file, not a folder; choose another place") from error
        raise


def file_in_the_way(path: Path) -> Path | None:
    """The file that ``path``, as a folder, is or would lie in; None where there is none."""
    there = (part for part in (path, *path.parents) if part.exists() or part.is_symlink())
    return next((part for part in there if not part.is_dir()), None)


@dataclass(frozen=True)
class Artifact:
    """What a published stage says of itself (``artifact.json``)."""

    stage: str
    format: int
    fingerprint: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    seconds: float
    peak_memory_mb: float

    @staticmethod
    def read(folder: Path) -> Artifact | None:
        """The artifact in ``folder``, or None where there is none."""
        path = folder / "artifact.json"
        return Artifact(**read_json(path)) if path.is_file() else None


class Run:
    """A run directory."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config

    @staticmethod
    def create(path: Path, config: Config) -> Run:
        """Make ``path`` a run of ``config``; the same config again is fine, another one is a ``UserError``."""
        target = path / "config.yaml"
        if target.exists():
            existing = load_config(target)
            if _results(existing) != _results(config):
                raise UserError(
                    f"{path} already holds a run with other settings ({_difference(existing, config)}); "
                    f"choose another directory, or change this run: histoloom run {path} --set key=value"
                )
            return Run(path, existing)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists and is not a run; choose a directory that is new or empty")
        with disk_errors_explained(path):
            path.mkdir(parents=True, exist_ok=True)
            run = Run(path, config)
            run.save_config()
        return run

    @staticmethod
    def open(path: Path) -> Run:
        """Open an existing run; ``UserError`` where ``path`` is none."""
        return Run(path, load_config(path / "config.yaml"))

    def save_config(self) -> None:
        """Write ``config.yaml``."""
        write_text(self.path / "config.yaml", dump_config(self.config))

    def folder(self, stage: str) -> Path:
        """Where the published stage lies, or will."""
        return self.path / stage

    def building(self, stage: str) -> Path:
        """Where the stage is built."""
        return self.path / ".building" / stage

    def artifact(self, stage: str) -> Artifact | None:
        """The published stage's artifact."""
        return Artifact.read(self.folder(stage))

    def require(self, stage: str) -> Path:
        """The published stage's folder; ``UserError`` says how to make it where it is missing."""
        if self.artifact(stage) is None:
            raise UserError(f"{self.path} has no {stage} yet; make them: histoloom run {self.path} --until {stage}")
        return self.folder(stage)

    def state(self, stage: str, *, wanted: str | None) -> State:
        """``wanted`` is the fingerprint that the stage should have; None where its inputs are not done."""
        artifact = self.artifact(stage)
        if artifact is not None:
            return "done" if artifact.fingerprint == wanted else "stale"
        return "partial" if self.building(stage).exists() else "missing"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing; a second process gets a ``UserError`` at once. A crash frees the lock."""
        with disk_errors_explained(self.path):
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise UserError(
                    f"another process is working on {self.path}; wait for it, or stop it, then run again"
                ) from None
            try:
                yield
            finally:
                lock.release()

    def begin(self, stage: str, *, wanted: str, but_schedule: str | None = None) -> Path:
        """The folder to build ``stage`` in; an unfinished build of the same fingerprint is continued.

        So is one that differs in learning rates and length alone: its fingerprint without them is ``but_schedule``
        too. A build of another fingerprint moves to ``superseded/``, and comes back from there as it was.
        """
        folder = self.building(stage)
        marker = folder / "building.json"
        if folder.exists():
            before = read_json(marker) if marker.is_file() else {}
            finished = Artifact.read(folder)
            same_but_schedule = but_schedule is not None and before.get("but_schedule") == but_schedule
            if finished is None and (before.get("fingerprint") == wanted or same_but_schedule):
                write_json(marker, before | {"fingerprint": wanted, "but_schedule": but_schedule})
            else:
                digest = finished.fingerprint if finished is not None else before.get("fingerprint", "unknown")
                self._move_aside(folder, stage=stage, digest=digest)
        kept = self._superseded(stage, wanted)
        if not folder.exists() and (kept / marker.name).is_file() and Artifact.read(kept) is None:
            kept.rename(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not marker.is_file():
            write_json(marker, {"fingerprint": wanted, "but_schedule": but_schedule, "seconds": 0.0})
        return folder

    def discard_if_empty(self, stage: str) -> None:
        """Remove the unfinished build of a stage if nothing was made in it, as after a refusal."""
        folder = self.building(stage)
        if [path.name for path in folder.iterdir()] == ["building.json"]:
            shutil.rmtree(folder)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()

    def spent(self, stage: str, *, seconds: float) -> float:
        """Add ``seconds`` to the time that the unfinished build took so far; returns the sum."""
        marker = self.building(stage) / "building.json"
        value = read_json(marker)
        value["seconds"] += seconds
        write_json(marker, value)
        return float(value["seconds"])

    def publish(self, stage: str, artifact: Artifact) -> None:
        """Give the finished build its place by a rename; what stood there moves to ``superseded/``.

        The build counts as finished once its ``artifact.json`` is written. Nothing of it is removed before the rename,
        so a crash at any point leaves a build that ``adopt`` publishes, or a published stage that ``adopt`` tidies.
        """
        write_json(self.building(stage) / "artifact.json", vars(artifact) | {"config": dict(artifact.config)})
        self.adopt(stage, wanted=artifact.fingerprint)

    def adopt(self, stage: str, *, wanted: str) -> bool:
        """Publish a finished build of fingerprint ``wanted``; False where there is none. May be called again."""
        building, folder = self.building(stage), self.folder(stage)
        finished = Artifact.read(building)
        is_wanted = finished is not None and finished.fingerprint == wanted
        if is_wanted:
            self.supersede(stage)
            building.rename(folder)
        self._tidy(stage)
        return is_wanted

    def _tidy(self, stage: str) -> None:
        """Remove a published stage's checkpoints: they need pickle, and have no use any more."""
        folder = self.folder(stage)
        marker = folder / "building.json"
        # The marker goes last: it says that tidying is not done.
        if marker.is_file():
            for checkpoints in sorted(folder.rglob("checkpoints")):
                shutil.rmtree(checkpoints)
            marker.unlink()

    def supersede(self, stage: str) -> None:
        """Move a published stage aside, under its fingerprint."""
        artifact = self.artifact(stage)
        if artifact is not None:
            self._move_aside(self.folder(stage), stage=stage, digest=artifact.fingerprint)

    def _move_aside(self, folder: Path, *, stage: str, digest: str) -> None:
        target = self._superseded(stage, digest)
        if Artifact.read(target) is not None and Artifact.read(folder) is None:
            shutil.rmtree(folder)  # unfinished, and a finished one of the same settings is there
            return
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)

    def restore(self, stage: str, *, wanted: str) -> bool:
        """Bring a superseded stage of fingerprint ``wanted`` back to its place; False where there is none."""
        source = self._superseded(stage, wanted)
        if Artifact.read(source) is None:
            return False
        self.supersede(stage)
        source.rename(self.folder(stage))
        self._tidy(stage)  # a finished build that a crash left unpublished came with its checkpoints
        return True

    def _superseded(self, stage: str, digest: str) -> Path:
        return self.path / "superseded" / f"{stage}-{digest}"


def environment() -> dict[str, object]:
    """What a result was made with: versions, platform, and git revision where the package is a checkout of its own."""
    packages = ("histoloom", "torch", "diffusers", "accelerate", "numpy", "scikit-learn", "openslide-python")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: metadata.version(name) for name in packages},
        "git": git_revision(Path(__file__)),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def git_revision(file: Path) -> str | None:
    """The revision of the checkout that tracks ``file``; None where git does not track it.

    A package that is installed below somebody's own repository lies in that checkout too, but is not tracked by it.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("describe", "--always", "--dirty", "--abbrev=12") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _results(config: Config) -> dict[str, Any]:
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in ("runtime", "preset")}


def _difference(old: Config, new: Config) -> str:
    """The first few settings in which two configurations differ."""
    flat_old, flat_new = _flat(_results(old)), _flat(_results(new))
    keys = [key for key in flat_old | flat_new if flat_old.get(key) != flat_new.get(key)]
    shown = [f"{key}: {flat_old.get(key)} there, {flat_new.get(key)} here" for key in keys[:2]]
    return "; ".join(shown) + (f"; and {len(keys) - 2} more" if len(keys) > 2 else "")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, item in value.items():
        result |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return result

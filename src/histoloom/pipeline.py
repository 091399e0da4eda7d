"""The order of the stages, and how a run moves through them. Nothing else knows that order."""

from __future__ import annotations

import importlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from histoloom.config import Config, identity
from histoloom.errors import UserError
from histoloom.names import journal_file, refresh_sample_names
from histoloom.run.directory import (
    Artifact,
    Run,
    State,
    disk_errors_explained,
    environment,
    fingerprint,
    write_bytes,
    write_json,
)
from histoloom.run.stage import EventLog, StageContext

logger = logging.getLogger("histoloom")


@dataclass(frozen=True)
class Stage:
    """One step of the method; ``entry`` is ``module:function``, imported when the stage runs.

    ``format`` rises when the stage's files change their meaning; several processes share what ``trains`` or ``draws``.
    ``beside``: stages that it reads too, which its ``inputs`` were made from and so stand for. ``judge``,
    ``module:function``, gives who looks at what it draws while it trains, or None.
    """

    name: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    entry: str
    format: int = 1
    trains: bool = False
    draws: bool = False
    beside: tuple[str, ...] = ()
    judge: str = ""


STAGES = (
    Stage("patches", ("patches",), (), "histoloom.slides.stage:run", format=2),
    Stage("autoencoder", ("autoencoder", "start"), ("patches",), "histoloom.autoencoder.stage:run", trains=True),
    Stage("latents", ("latents",), ("patches", "autoencoder"), "histoloom.autoencoder.latents_stage:run", format=2),
    Stage(
        "clusters",
        ("clusters",),
        ("patches", "latents"),
        "histoloom.clustering.stage:run",
        format=2,
        trains=True,
        beside=("autoencoder",),
    ),
    Stage(
        "diffusion",
        ("diffusion", "start"),
        ("latents", "clusters"),
        "histoloom.diffusion.stage:run",
        format=2,
        trains=True,
        beside=("patches", "autoencoder"),
        judge="histoloom.evaluation.originality.watch:of_run",
    ),
    Stage(
        "samples",
        ("samples",),
        ("autoencoder", "clusters", "diffusion"),
        "histoloom.diffusion.samples_stage:run",
        draws=True,
    ),
    Stage(
        "evaluation",
        ("evaluation",),
        ("patches", "clusters", "samples"),
        "histoloom.evaluation.stage:run",
        format=3,
        beside=("autoencoder", "latents"),
    ),
    Stage(
        "report",
        ("report",),
        ("patches", "autoencoder", "latents", "clusters", "diffusion", "samples", "evaluation"),
        "histoloom.atlas.stage:run",
    ),
)
MEMORY_SECONDS, NOTE_SECONDS = 0.25, 10.0
STAGE_NAMES = tuple(stage.name for stage in STAGES)


@dataclass(frozen=True)
class StageStatus:
    """Where a stage stands; ``seconds`` it took, None unless it is done or stale."""

    stage: str
    state: State
    seconds: float | None


def wanted_fingerprints(run: Run) -> dict[str, str]:
    """The fingerprint that each stage has when it is up to date with the configuration, the slides and the names."""
    from histoloom.slides.inventory.find import inventory_fingerprint

    config = identity(run.config)
    wanted: dict[str, str] = {}
    for stage in STAGES:
        value = {
            "stage": stage.name,
            "format": stage.format,
            "seed": run.config.seed,
            "config": {section: config[section] for section in stage.sections if config[section] is not None},
            "inputs": {name: wanted[name] for name in stage.inputs},
        }
        if stage.name == "patches":
            value["slides"] = inventory_fingerprint(run.config.slides)
        if stage.name == "report":
            value["names"] = _names_digest(run)
            value |= _readings_digest(run)
        wanted[stage.name] = fingerprint(value)
    return wanted


def status(run: Run) -> list[StageStatus]:
    """Where each stage stands; where the slides cannot be read, done stages count as up to date."""
    try:
        wanted: Mapping[str, str | None] = wanted_fingerprints(run)
    except UserError as error:
        logger.warning("%s; taking finished stages as they are", error)
        artifacts = {name: run.artifact(name) for name in STAGE_NAMES}
        wanted = {name: artifact.fingerprint if artifact else None for name, artifact in artifacts.items()}
    result = []
    for name in STAGE_NAMES:
        artifact = run.artifact(name)
        state = run.state(name, wanted=wanted[name])
        result.append(StageStatus(name, state, artifact.seconds if artifact else None))
    return result


def execute(run: Run, *, until: str = STAGE_NAMES[-1]) -> None:
    """Bring every stage up to date, to ``until`` included; continues what an earlier call left unfinished.

    Raises ``UserError`` where the input is wrong or another process works on the run.
    """
    if until not in STAGE_NAMES:
        raise UserError(f"no stage {until!r}; there are: {', '.join(STAGE_NAMES)}")
    from histoloom.training.devices import is_main_process

    with disk_errors_explained(run.path):
        if is_main_process():
            with run.locked():
                write_json(run.path / "environment.json", environment())
                _execute(run, until=until, main=True)
                refresh_sample_names(run.path)
                _surface_report(run)
        else:
            _execute(run, until=until, main=False)


def _execute(run: Run, *, until: str, main: bool) -> None:
    """The main process does the work and the writing; the others share trainings and sampling and wait else."""
    wanted = wanted_fingerprints(run)
    for stage in STAGES[: STAGE_NAMES.index(until) + 1]:
        if not _agreed(run, main and _is_needed(run, stage, wanted=wanted[stage.name])):
            continue
        if main:
            _build(run, stage, wanted=wanted)
        elif stage.trains or stage.draws:
            with tempfile.TemporaryDirectory(prefix="histoloom-") as scratch:
                _named(stage.entry)(_context(run, stage, out=Path(scratch)))
        _agreed(run, True)


def _surface_report(run: Run) -> None:
    """Put the published report at ``RUN/report.html``, also when it came back from ``superseded/``."""
    page = run.folder("report") / "report.html"
    if page.is_file():
        write_bytes(run.path / "report.html", page.read_bytes())


def _is_needed(run: Run, stage: Stage, *, wanted: str) -> bool:
    """Whether the stage has to be built: it is neither up to date nor among the superseded."""
    if run.state(stage.name, wanted=wanted) == "done":
        return False
    if run.restore(stage.name, wanted=wanted):
        logger.info("%s: taken back from superseded/", stage.name)
        return False
    return True


def _agreed(run: Run, value: bool) -> bool:  # noqa: FBT001 - the one thing that it is about
    """The main process's ``value``, on every process; all wait for it."""
    from histoloom.training.devices import process_count

    if process_count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    from histoloom.training.devices import accelerator

    accelerator(run.config.runtime).wait_for_everyone()
    box = [value]
    broadcast_object_list(box)
    return box[0]


def _build(run: Run, stage: Stage, *, wanted: Mapping[str, str]) -> None:
    out = run.begin(stage.name, wanted=wanted[stage.name])
    logger.info("%s: started", stage.name)
    with _watched(run, stage.name) as usage:
        _named(stage.entry)(_context(run, stage, out=out))
    artifact = Artifact(
        stage=stage.name,
        format=stage.format,
        fingerprint=wanted[stage.name],
        config=_slice(run.config, stage),
        inputs={name: wanted[name] for name in stage.inputs},
        seconds=round(usage.seconds, 1),
        peak_memory_mb=round(usage.peak_mb, 1),
    )
    run.publish(stage.name, artifact)
    logger.info("%s: done in %.0f s, peak memory %.0f MB", stage.name, usage.seconds, usage.peak_mb)


def _named(entry: str) -> Any:
    module, _, function = entry.partition(":")
    return getattr(importlib.import_module(module), function)


def _context(run: Run, stage: Stage, *, out: Path) -> StageContext:
    inputs = {name: run.require(name) for name in (*stage.inputs, *stage.beside)}
    log = EventLog(out / "log.jsonl")
    judge = _named(stage.judge)(run) if stage.judge else None
    return StageContext(run=run.path, config=run.config, out=out, inputs=inputs, log=log, judge=judge)


def _slice(config: Config, stage: Stage) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    return {"seed": config.seed} | {section: values[section] for section in stage.sections}


def _names_digest(run: Run) -> str:
    path = journal_file(run.path)
    return fingerprint(path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "")


def _readings_digest(run: Run) -> dict[str, Any]:
    """What blinded readings found so far; nothing where none was finished, as in runs from before there were any."""
    paths = sorted((run.path / "readings").glob("*/results.json"))
    return {"readings": [fingerprint(path.read_text(encoding="utf-8")) for path in paths]} if paths else {}


@dataclass
class Usage:
    """What a stage took: ``seconds`` over all its calls, killed ones too; ``peak_mb`` of memory in this one."""

    seconds: float = 0.0
    peak_mb: float = 0.0


@contextmanager
def _watched(run: Run, stage: str) -> Iterator[Usage]:
    """Measure the block; the time is noted as it passes, so that a kill loses little of it."""
    usage, stop, noted = Usage(), threading.Event(), time.monotonic()

    def note() -> None:
        nonlocal noted
        now = time.monotonic()
        usage.seconds = run.spent(stage, seconds=now - noted)
        noted = now

    def watch() -> None:
        while not stop.wait(MEMORY_SECONDS):
            usage.peak_mb = max(usage.peak_mb, _resident_mb())
            if time.monotonic() - noted > NOTE_SECONDS:
                with suppress(OSError):  # a full disk is the stage's to report
                    note()

    usage.peak_mb = _resident_mb()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        stop.set()
        thread.join()
        note()


def _resident_mb() -> float:
    process = psutil.Process()
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20

"""The order of the stages, and how a run moves through them. Nothing else knows that order."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from histoloom.config import Config, identity
from histoloom.errors import SlidesAbsent, UserError
from histoloom.names import artefacts_of, journal_file, read_events, refresh_sample_names
from histoloom.names.corrections import FILE as CORRECTIONS
from histoloom.names.corrections import CorrectedTissues, corrected_tissues
from histoloom.processes import is_main_process, process_count
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
from histoloom.run.stage import EventLog, ImageCheck, StageContext

logger = logging.getLogger("histoloom")


# The stages' functions are imported when a stage runs: the command line starts without torch.


def run_patches(context: StageContext) -> None:
    from histoloom.slides.stage import run

    run(context)


def run_autoencoder(context: StageContext) -> None:
    from histoloom.autoencoder.stage import run

    run(context)


def run_latents(context: StageContext) -> None:
    from histoloom.autoencoder.latents_stage import run

    run(context)


def run_clusters(context: StageContext) -> None:
    if context.config.clusters.joint is not None:
        from histoloom.diffusion import joint

        joint.run_clusters(context)
        return
    from histoloom.clustering.stage import run

    run(context)


def run_diffusion(context: StageContext) -> None:
    if context.config.clusters.joint is not None:
        from histoloom.diffusion import joint

        joint.run_diffusion(context)
        return
    from histoloom.diffusion.stage import run

    run(context)


def run_samples(context: StageContext) -> None:
    from histoloom.diffusion.samples_stage import run

    run(context)


def run_evaluation(context: StageContext) -> None:
    from histoloom.evaluation.stage import run

    run(context)


def run_report(context: StageContext) -> None:
    from histoloom.atlas.stage import run

    run(context)


def copy_check(run: Run) -> ImageCheck | None:
    from histoloom.evaluation.originality.gate import CopyCheck

    return CopyCheck.of_run(run)


@dataclass(frozen=True)
class Stage:
    """One step of the method.

    ``run`` does it. ``sections`` of the configuration and the stages ``inputs`` are part of its fingerprint;
    ``extra_inputs`` are stages that it reads too, and from which its inputs were made. ``format`` rises when the
    stage's files change their meaning. ``on_all_processes``: all processes of torchrun share its work; every other
    stage runs on the main process alone, while the others wait. ``image_check`` gives the check of what the stage
    generates while it trains, or None where the run asks for none.
    """

    name: str
    run: Callable[[StageContext], None]
    sections: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    extra_inputs: tuple[str, ...] = ()
    format: int = 1
    on_all_processes: bool = False
    image_check: Callable[[Run], ImageCheck | None] | None = None

    def sections_of(self, config: Config) -> tuple[str, ...]:
        """The sections on which the stage depends in a run: clusters may be trained with the diffusion model."""
        joint = self.name == "clusters" and config.clusters.joint is not None
        return (*self.sections, "diffusion") if joint else self.sections


STAGES = (
    Stage("patches", run_patches, ("patches",), format=2),
    Stage("autoencoder", run_autoencoder, ("autoencoder", "start"), ("patches",), on_all_processes=True),
    Stage("latents", run_latents, ("latents",), ("patches", "autoencoder"), format=2),
    Stage(
        "clusters",
        run_clusters,
        ("clusters",),
        ("patches", "latents"),
        extra_inputs=("autoencoder",),
        format=2,
        on_all_processes=True,
    ),
    Stage(
        "diffusion",
        run_diffusion,
        ("diffusion", "start"),
        ("latents", "clusters"),
        extra_inputs=("patches", "autoencoder"),
        format=2,
        on_all_processes=True,
        image_check=copy_check,
    ),
    Stage("samples", run_samples, ("samples",), ("autoencoder", "clusters", "diffusion"), on_all_processes=True),
    Stage(
        "evaluation",
        run_evaluation,
        ("evaluation",),
        ("patches", "clusters", "samples"),
        extra_inputs=("autoencoder", "latents"),
        format=4,
    ),
    Stage(
        "report",
        run_report,
        ("report",),
        ("patches", "autoencoder", "latents", "clusters", "diffusion", "samples", "evaluation"),
        format=2,
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
    return {name: digests.whole for name, digests in _stage_digests(run).items()}


class StageDigests(NamedTuple):
    """A stage's fingerprint, ``whole``, and what it would be without its training's learning rates and length.

    Both are the same for a stage that is not one training: half of it would keep the rates before.
    """

    whole: str
    but_schedule: str


def _stage_digests(run: Run) -> dict[str, StageDigests]:
    config = identity(run.config)
    wanted: dict[str, str] = {}
    digests: dict[str, StageDigests] = {}
    for stage in STAGES:
        value = {
            "stage": stage.name,
            "format": stage.format,
            "seed": run.config.seed,
            "config": {
                section: config[section] for section in stage.sections_of(run.config) if config[section] is not None
            },
            "inputs": {name: wanted[name] for name in stage.inputs},
        }
        if stage.name == "patches":
            wanted[stage.name] = _patches_fingerprint(run, value)
            digests[stage.name] = StageDigests(wanted[stage.name], wanted[stage.name])
            continue
        one_training = stage.name in ("autoencoder", "diffusion")
        if stage.name == "diffusion" and (corrections := training_corrections(run, clustering=wanted["clusters"])):
            value["corrections"] = {str(k): asdict(corrected) for k, corrected in corrections.items()}
        if stage.name == "evaluation":
            artefacts = artefacts_of(read_events(run.path), clustering=wanted["clusters"])
            if artefacts:  # no key without any, as in runs made before they were left out
                value["artefacts"] = artefacts
        if stage.name == "report":
            names = journal_file(run.path)
            value["names"] = fingerprint(names.read_text(encoding="utf-8", errors="replace") if names.is_file() else "")
            # Without corrections or finished readings there is no key, as in runs made before there were any.
            journal = run.path / CORRECTIONS
            if journal.is_file():
                value["corrections"] = fingerprint(journal.read_text(encoding="utf-8", errors="replace"))
            readings = sorted((run.path / "readings").glob("*/results.json"))
            if readings:
                value["readings"] = [fingerprint(path.read_text(encoding="utf-8")) for path in readings]
        wanted[stage.name] = fingerprint(value)
        digests[stage.name] = StageDigests(
            wanted[stage.name], fingerprint(_without_schedule(value) if one_training else value)
        )
    return digests


def _without_schedule(value: Any) -> Any:
    """Settings without learning rates and lengths of phases, at any depth."""
    if isinstance(value, Mapping):
        return {key: _without_schedule(one) for key, one in value.items() if key not in ("lr", "images", "epochs")}
    return [_without_schedule(one) for one in value] if isinstance(value, list | tuple) else value


def training_corrections(run: Run, *, clustering: str) -> dict[int, CorrectedTissues]:
    """The corrections of single patches that the diffusion model is trained on, by k; none unless the run asks for it.

    ``clustering``: the fingerprint of the clusters that are corrected.
    """
    ks = run.config.clusters.k if run.config.diffusion.corrections else ()
    found = {k: corrected_tissues(run.path, k=k, clustering=clustering) for k in ks}
    return {k: corrected for k, corrected in found.items() if corrected.numbers}


def _patches_fingerprint(run: Run, value: dict[str, object]) -> str:
    """The fingerprint of the patches, from all but the slides in ``value``.

    Where the slides are not at hand, finished patches of the same settings keep theirs: all that is made of patches
    needs no slides. Raises ``SlidesAbsent`` where there are none.
    """
    from histoloom.slides.inventory.find import inventory_fingerprint
    from histoloom.slides.patch_set import PatchSetInfo

    if run.config.clusters.surroundings:  # no key without them, as in runs made before there were any
        value["surroundings"] = True
    artifact = run.artifact("patches")
    try:
        current = fingerprint(value | {"slides": inventory_fingerprint(run.config.slides)})
        if artifact is None or artifact.fingerprint == current:
            return current
        # Runs of before have read both ends of each slide's file, and nothing between.
        before = fingerprint(value | {"slides": inventory_fingerprint(run.config.slides, samples=0)})
    except SlidesAbsent as error:
        cure = f"to say where the slides are: histoloom run {run.path} --set slides.paths=[FOLDER]"
        if artifact is None:
            raise SlidesAbsent(f"{error}; {cure}") from error
        drawn = run.config.model_copy(update={"patches": type(run.config.patches)(**artifact.config["patches"])})
        with_surroundings = PatchSetInfo.load(run.folder("patches")).surroundings is not None
        if (
            identity(drawn)["patches"] != identity(run.config)["patches"]
            or artifact.config["seed"] != run.config.seed
            or with_surroundings != bool(run.config.clusters.surroundings)
        ):
            raise SlidesAbsent(f"the settings of patches changed, and {error}; {cure}") from error
        logger.warning("%s; the finished patches stay as they are; %s", error, cure)
        return artifact.fingerprint
    return before if artifact.fingerprint == before else current


def status(run: Run) -> list[StageStatus]:
    """Where each stage stands; where a table of slides is wrong, done stages count as up to date."""
    try:
        wanted: Mapping[str, str | None] = wanted_fingerprints(run)
    except SlidesAbsent as error:
        logger.warning("%s", error)
        wanted = dict.fromkeys(STAGE_NAMES)
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
    with disk_errors_explained(run.path):
        if not is_main_process():
            _execute(run, until=until, main=False)
            return
        with run.locked():
            write_json(run.path / "environment.json", environment())
            _execute(run, until=until, main=True)
            refresh_sample_names(run.path)
            # Also when the published report came back from superseded/.
            page = run.folder("report") / "report.html"
            if page.is_file():
                write_bytes(run.path / "report.html", page.read_bytes())


def refresh_report(run: Run) -> None:
    """Make the report again, with the present names and readings.

    The evaluation is brought up to date first: it changes with the clusters that are flagged as artefact. ``UserError``
    where an earlier stage is not done: nothing is trained or drawn.
    """
    states = {entry.stage: entry.state for entry in status(run)}
    missing = [stage for stage in STAGES[-1].inputs if stage != "evaluation" and states[stage] != "done"]
    if missing:
        raise UserError(f"the report needs {', '.join(missing)} up to date first: histoloom run {run.path}")
    execute(run)


def _execute(run: Run, *, until: str, main: bool) -> None:
    """The main process decides, works and writes; the others share what is for all processes, and wait else."""
    digests = _stage_digests(run)
    wanted = {name: both.whole for name, both in digests.items()}
    # As in the fingerprint, whatever is corrected while earlier stages are built.
    corrections = training_corrections(run, clustering=wanted["clusters"])
    for stage in STAGES[: STAGE_NAMES.index(until) + 1]:
        if not _shared(run, main and _is_needed(run, stage, wanted=wanted[stage.name])):
            continue
        if main:
            out = run.begin(stage.name, wanted=wanted[stage.name], but_schedule=digests[stage.name].but_schedule)
            _build(run, stage, out=out, wanted=wanted, corrections=corrections)
        elif stage.on_all_processes:
            with tempfile.TemporaryDirectory(prefix="histoloom-") as scratch:
                stage.run(_context(run, stage, out=Path(scratch), corrections=corrections))
        _shared(run, True)


def _is_needed(run: Run, stage: Stage, *, wanted: str) -> bool:
    """Whether the stage has to be built: it is not up to date, nor finished, nor among the superseded."""
    if run.adopt(stage.name, wanted=wanted):
        logger.info("%s: was finished before the run was stopped", stage.name)
    if run.state(stage.name, wanted=wanted) == "done":
        return False
    if run.restore(stage.name, wanted=wanted):
        logger.info("%s: restored from superseded/", stage.name)
        return False
    return True


def _shared(run: Run, value: bool) -> bool:  # noqa: FBT001 - the one thing that it is about
    """The main process's ``value``, on every process; all wait for it."""
    from histoloom.training import distributed

    if process_count() == 1:
        return value
    from histoloom.training.devices import accelerator

    accelerator(run.config.runtime)  # joins the processes
    distributed.wait_for_all()
    return distributed.shared(value)


def _build(
    run: Run, stage: Stage, *, out: Path, wanted: Mapping[str, str], corrections: Mapping[int, CorrectedTissues]
) -> None:
    from histoloom.training import distributed

    logger.info("%s: started (stage %d of %d)", stage.name, STAGE_NAMES.index(stage.name) + 1, len(STAGE_NAMES))
    # What trains in a stage of the main process alone must not wait for the other processes.
    together = stage.on_all_processes or process_count() == 1
    with _measured(run, stage.name) as usage, nullcontext() if together else distributed.alone():
        stage.run(_context(run, stage, out=out, corrections=corrections))
    settings = run.config.model_dump(mode="json")
    artifact = Artifact(
        stage=stage.name,
        format=stage.format,
        fingerprint=wanted[stage.name],
        config={"seed": run.config.seed} | {section: settings[section] for section in stage.sections_of(run.config)},
        inputs={name: wanted[name] for name in stage.inputs},
        seconds=round(usage.seconds, 1),
        peak_memory_mb=round(usage.peak_mb, 1),
    )
    run.publish(stage.name, artifact)
    logger.info("%s: done in %.0f s, peak memory %.0f MB", stage.name, usage.seconds, usage.peak_mb)


def _context(run: Run, stage: Stage, *, out: Path, corrections: Mapping[int, CorrectedTissues]) -> StageContext:
    return StageContext(
        run=run.path,
        config=run.config,
        out=out,
        inputs={name: run.require(name) for name in (*stage.inputs, *stage.extra_inputs)},
        log=EventLog(out / "log.jsonl"),
        image_check=stage.image_check(run) if stage.image_check is not None else None,
        corrections=corrections,
    )


@dataclass
class Usage:
    """What a stage took: ``seconds`` over all its calls, killed ones too; ``peak_mb`` of memory in this one."""

    seconds: float = 0.0
    peak_mb: float = 0.0


@contextmanager
def _measured(run: Run, stage: str) -> Iterator[Usage]:
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

"""``histoloom sample``: a request for patches becomes a labelled folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.from_images import check_variation, check_way, orders_between, orders_like
from histoloom.diffusion.generation.generator import STUDENT, Generator, SampleSpec
from histoloom.diffusion.generation.request import Request, strength_of
from histoloom.diffusion.generation.sample_folder import Follow, Gate, Job, write_samples
from histoloom.diffusion.generation.source_images import Picture, Source
from histoloom.errors import UserError
from histoloom.run.directory import disk_errors_explained, read_json, write_json
from histoloom.training.distributed import rank, wait_for_all


def draw_request(path: Path, request: Request, *, out: Path, gate: Gate | None = None) -> Path:
    """Draw into ``out`` and return it; the same request again continues, a larger ``n`` adds to it.

    What ``gate`` withholds goes to ``out/withheld``.

    Several processes (torchrun) share the work. Raises ``UserError`` for unknown tissues or steps, where ``out`` holds
    something else, and while another job writes to it.
    """
    return draw_into(Generator.load(path), request, out=out, gate=gate)


def draw_into(
    generator: Generator,
    request: Request,
    *,
    out: Path,
    gate: Gate | None = None,
    pictures: Mapping[str, Picture] | None = None,
    follow: Follow | None = None,
) -> Path:
    """As ``draw_request``, with a generator that is loaded; ``follow`` is told how the job goes, and may end it.

    ``pictures``: those that ``request.like`` and ``request.between`` name beside patches and files.
    """
    check_request(request)
    sampler = student_of(request, generator) or sampler_of(request, default=generator.facts.sampler)
    sources = _sources(generator, request, pictures=pictures or {})
    wanted = _wanted(generator, request, sampler=sampler, sources=sources, gated=gate is not None)
    orders, tissue_of = _orders(generator, request, sources=sources)
    job = Job(orders, lambda order: _file(order, tissue_of=tissue_of), sampler, gate, sources)
    with disk_errors_explained(out), _claimed(out, wanted=wanted):
        write_samples(generator, job, folder=out, follow=follow)
    return out.resolve()


def _wanted(
    generator: Generator, request: Request, *, sampler: SamplerConfig, sources: Sequence[Source], gated: bool
) -> dict[str, object]:
    """What tells this job from others that might be given the same folder; n may grow, except between two pictures."""
    begun = {
        "sources": [source.name for source in sources],
        "strength": strength_of(request),
        "pictures": request.n if request.between else 0,
    }
    plain = {key: value for key, value in asdict(request).items() if key not in ("like", "between", "strength")}
    return plain | {
        "n": 0,
        "tissues": list(request.tissues),
        "guidance_interval": request.guidance_interval and list(request.guidance_interval),
        **({"gate": True} if gated else {}),
        **(begun if sources else {}),
        "generator": generator.student.digest if sampler.method == STUDENT else generator.digest(),
        "sampler": sampler.model_dump(mode="json"),
    }


def check_request(request: Request) -> None:
    """``UserError`` for what is wrong with a request by itself, such as settings that would have no effect."""
    if request.like is not None and request.between is not None:
        raise UserError("a picture is drawn like one other or between two; give --like or --between, not both")
    if request.like is None and request.between is None:
        if request.strength is not None:
            raise UserError("a strength has no effect without a picture to begin from; add --like or --between")
        return
    if request.between is None:
        check_variation(strength_of(request))
        return
    check_way(strength_of(request), n=request.n)
    if request.tissues:
        raise UserError("between two pictures each image is of the nearer one's tissue; leave --tissue out")


def _sources(generator: Generator, request: Request, *, pictures: Mapping[str, Picture]) -> list[Source]:
    """The pictures that a request begins from."""
    return [generator.source(pictures.get(name, name)) for name in request.begun_from]


def student_of(request: Request, generator: Generator) -> SamplerConfig | None:
    """The student's sampler where the request asks for it; ``UserError`` for what the student has fixed."""
    if request.method != STUDENT:
        return None
    student = generator.student
    if {request.guidance, request.guidance_interval, request.spacing} != {None}:
        raise UserError(
            f"the student has learnt guidance {student.guidance:g} and its steps; leave --guidance and --spacing out, "
            "or distil again"
        )
    return SamplerConfig(method="student", steps=request.steps or student.steps, guidance=student.guidance)


def sampler_of(request: Request, *, default: SamplerConfig) -> SamplerConfig:
    """The sampler of a request: its own words, else the generator's default; ``UserError`` where they do not fit."""
    said = {key: value for key, value in asdict(request).items() if key in SamplerConfig.model_fields}
    given = {key: value for key, value in said.items() if value is not None}
    if request.guidance in (0.0, 1.0):
        given.setdefault("guidance_interval", None)  # a default that this request leaves without effect
    try:
        return SamplerConfig.model_validate(default.model_dump() | given)
    except ValidationError as error:
        raise UserError(f"sampler: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _orders(
    generator: Generator, request: Request, *, sources: Sequence[Source]
) -> tuple[list[SampleSpec], dict[SampleSpec, str]]:
    """All orders of a request, and the tissue that each is asked as."""
    tissue_of: dict[SampleSpec, str] = {}
    names = generator.names(generator.facts.chosen_k if request.k is None else request.k)
    for tissue in request.tissues or (None,):
        for order in _orders_of(generator, request, tissue=tissue, sources=sources):
            tissue_of[order] = names[order.cluster] if tissue is None else tissue
    return list(tissue_of), tissue_of


def _orders_of(
    generator: Generator, request: Request, *, tissue: str | None, sources: Sequence[Source]
) -> list[SampleSpec]:
    n, seed, k, strength = request.n, request.seed, request.k, strength_of(request)
    if request.between:
        return orders_between(generator, sources[0], sources[1], strength=strength, n=n, seed=seed, k=k)
    if sources:
        return orders_like(generator, sources[0], strength=strength, n=n, seed=seed, tissue=tissue, k=k)
    return generator.orders(tissue, n=n, seed=seed, k=k)


def _file(order: SampleSpec, *, tissue_of: dict[SampleSpec, str]) -> str:
    """``bone/c03-000000.png``: a folder a tissue, as readers of labelled folders expect."""
    words = re.sub(r"[^\w]+", "-", tissue_of[order].casefold()).strip("-") or "tissue"
    return f"{words}/c{order.cluster:02d}-{order.index:06d}.png"


@contextmanager
def _claimed(out: Path, *, wanted: dict[str, object]) -> Iterator[None]:
    """Hold ``out`` for this request; the first process does, the others come after it."""
    if rank() > 0:
        wait_for_all()
        yield
        return
    _claim(out, wanted=wanted)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process draws into {out}; wait for it, or give another folder with --out") from None
    try:
        for torn in out.rglob(".*.part"):
            torn.unlink(missing_ok=True)
        wait_for_all()
        yield
    finally:
        lock.release()


def _claim(out: Path, *, wanted: dict[str, object]) -> None:
    """Make ``out`` the place of this request, or see that it already is."""
    job_file = out / "job.json"
    if job_file.is_file():
        if read_json(job_file) != wanted:
            raise UserError(f"{out} holds the samples of another request; give another folder with --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give a new folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(job_file, wanted)

"""``histoloom sample``: a request for patches becomes a labelled folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from histoloom.config import SamplerConfig
from histoloom.diffusion.generator import STUDENT, Generator, Order
from histoloom.diffusion.sample_folder import Gate, Job, write_samples
from histoloom.errors import UserError
from histoloom.processes import rank, wait_for_all
from histoloom.store import disk_errors_explained, read_json, write_json


@dataclass(frozen=True)
class Request:
    """``n`` images a tissue (in all, where none is named); None means the generator's own default."""

    n: int
    tissues: tuple[str, ...] = ()
    k: int | None = None
    method: str | None = None
    steps: int | None = None
    spacing: float | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    seed: int = 0


def draw_request(path: Path, request: Request, *, out: Path, gate: Gate | None = None) -> Path:
    """Draw into ``out`` and return it; the same request again continues, a larger ``n`` adds to it.

    What ``gate`` withholds goes to ``out/withheld``.

    Several processes (torchrun) share the work. Raises ``UserError`` for unknown tissues or steps, where ``out`` holds
    something else, and while another job writes to it.
    """
    generator = Generator.load(path)
    sampler = student_of(request, generator) or sampler_of(request, default=generator.facts.sampler)
    wanted = asdict(request) | {
        "n": 0,
        "tissues": list(request.tissues),
        "guidance_interval": request.guidance_interval and list(request.guidance_interval),
        **({} if gate is None else {"gate": True}),
        "generator": generator.student.digest if sampler.method == STUDENT else generator.digest(),
        "sampler": sampler.model_dump(mode="json"),
    }
    orders, tissue_of = _orders(generator, request)
    with disk_errors_explained(out), _claimed(out, wanted=wanted):
        job = Job(orders=orders, file_of=lambda order: _file(order, tissue_of=tissue_of), sampler=sampler, gate=gate)
        write_samples(generator, job, folder=out)
    return out.resolve()


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


def _orders(generator: Generator, request: Request) -> tuple[list[Order], dict[Order, str]]:
    if not request.tissues:
        orders = generator.orders(None, n=request.n, seed=request.seed, k=request.k)
        names = generator.names(orders[0].k)
        return orders, {order: names[order.cluster] for order in orders}
    parts = [
        (tissue, generator.orders(tissue, n=request.n, seed=request.seed, k=request.k)) for tissue in request.tissues
    ]
    tissue_of = {order: tissue for tissue, orders in parts for order in orders}
    return list(tissue_of), tissue_of


def _file(order: Order, *, tissue_of: dict[Order, str]) -> str:
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

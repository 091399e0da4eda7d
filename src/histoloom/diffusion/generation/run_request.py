"""``histoloom sample``: a request for patches becomes a labelled folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import ValidationError

from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import STUDENT
from histoloom.diffusion.generation.request import Request
from histoloom.diffusion.generation.sample_folder import Gate, JobCallbacks, SampleJob, write_samples
from histoloom.diffusion.generation.sample_spec import (
    InitImage,
    SampleSpec,
    check_interpolation,
    check_variation,
    specs_between,
    specs_of_tissue,
)
from histoloom.diffusion.generation.source_images import EncodedPicture, Picture
from histoloom.errors import UserError
from histoloom.names import clusters_of_tissue, folder_name
from histoloom.run.claimed_folder import claimed
from histoloom.run.directory import disk_errors_explained
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
    callbacks: JobCallbacks | None = None,
) -> Path:
    """As ``draw_request``, with a generator that is loaded.

    ``pictures``: those that ``request.like`` and ``request.between`` may name besides patches and files. ``callbacks``
    follow the job, and may end it.
    """
    check_request(request)
    sampler = sampler_of(request, generator)
    sources = [generator.encode((pictures or {}).get(name, name)) for name in request.init_images]
    tissue_of = request_specs(generator, request, sources=sources)

    def file_of(sample: SampleSpec) -> str:
        # A folder for each tissue, as readers of labelled folders expect: ``bone/c03-000000.png``.
        return f"{folder_name(tissue_of[sample])}/c{sample.cluster:02d}-{sample.index:06d}.png"

    # What tells this job from others in the same folder. n may grow, except between two pictures.
    identity: dict[str, object] = {
        **{key: value for key, value in asdict(request).items() if key not in ("like", "between", "strength")},
        "n": 0,
        "tissues": list(request.tissues),
        "generator": generator.student.digest if sampler.method == STUDENT else generator.digest(),
        "sampler": sampler.model_dump(mode="json"),
    }
    if generator.autoencoder.config.trained == "decoder":  # the diffusion model is that of the generator before
        identity["decoder"] = generator.decoder_digest()
    if gate is not None:
        identity["gate"] = True
    if sources:
        identity["sources"] = [source.name for source in sources]
        identity["strength"] = request.init_strength
        identity["pictures"] = request.n if request.between else 0
        if request.like is not None:
            identity["noise"] = "of the source"  # an earlier version drew with the numbers of plain samples

    job = SampleJob(list(tissue_of), file_of, sampler, gate, sources)
    with disk_errors_explained(out), claimed_by_all(out, identity=identity):
        write_samples(generator, job, folder=out, callbacks=callbacks)
    return out.resolve()


def check_request(request: Request) -> None:
    """``UserError`` for what is wrong with a request by itself, such as settings that would have no effect."""
    if request.like is not None and request.between is not None:
        raise UserError("a picture is drawn like one other or between two; give --like or --between, not both")
    if request.like is not None:
        check_variation(request.init_strength)
    elif request.between is not None:
        check_interpolation(request.init_strength, n=request.n)
        if request.tissues:
            raise UserError("between two pictures each image is of the nearer one's tissue; leave --tissue out")
    elif request.strength is not None:
        raise UserError("a strength has no effect without a picture to start from; add --like or --between")


def sampler_of(request: Request, generator: Generator) -> SamplerConfig:
    """The sampler of a request: the student's, or the generator's own with the settings that the request names."""
    if request.method == STUDENT:
        return student_sampler(request, generator)
    return requested_sampler(request, default=generator.spec.sampler)


def student_sampler(request: Request, generator: Generator) -> SamplerConfig:
    """The sampler of a request for the student; ``UserError`` for settings that its training has fixed."""
    student = generator.student.record
    if request.guidance is not None:
        raise UserError(
            f"the student has learned guidance {student.guidance:g} and its steps; leave --guidance out, "
            "or distil again"
        )
    return SamplerConfig(method="student", steps=request.steps or student.steps, guidance=student.guidance)


def requested_sampler(request: Request, *, default: SamplerConfig) -> SamplerConfig:
    """The default sampler with the settings that the request names; ``UserError`` where they do not fit."""
    named = {"method": request.method, "steps": request.steps, "guidance": request.guidance}
    changes = {key: value for key, value in named.items() if value is not None}
    try:
        return SamplerConfig.model_validate(default.model_dump() | changes)
    except ValidationError as error:
        raise UserError(f"sampler: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def request_specs(
    generator: Generator, request: Request, *, sources: Sequence[EncodedPicture]
) -> dict[SampleSpec, str]:
    """The samples of a request, each with the tissue that it was requested as."""
    spec, n, seed = generator.spec, request.n, request.seed
    k = spec.chosen_k if request.k is None else request.k
    spec.conditions.offset(k)
    labels, names = generator.labels(k), generator.names(k)
    if request.between:
        ends = (sources[0], sources[1])
        between = specs_between(spec, ends=ends, strength=request.init_strength, n=n, seed=seed, k=k)
        return {sample: names[sample.cluster] for sample in between}

    # Where two of the tissues share a cluster (a name and its number, say), their samples take turns in the clusters'
    # random streams: they are different images, and the same ones for every n.
    clusters = [cluster for tissue in request.tissues for cluster in clusters_of_tissue(names, tissue, k=k)]
    turns = len(request.tissues) if len(set(clusters)) < len(clusters) else 1
    init = InitImage(sources[0].name, request.init_strength) if sources else None
    own_tissue = str(sources[0].cluster(k)) if sources and not request.tissues else None
    tissue_of: dict[SampleSpec, str] = {}
    for turn, tissue in enumerate(request.tissues or (own_tissue,)):
        for sample in specs_of_tissue(spec, labels, tissue=tissue, n=n, seed=seed, k=k, init=init):
            sample = sample if turns == 1 else replace(sample, index=sample.index * turns + turn)
            tissue_of[sample] = tissue if request.tissues and tissue is not None else names[sample.cluster]
    return tissue_of


@contextmanager
def claimed_by_all(out: Path, *, identity: Mapping[str, object]) -> Iterator[None]:
    """Hold ``out`` for this job: the first process claims it, the others come after it."""
    with claimed(out, identity=identity) if rank() == 0 else nullcontext():
        wait_for_all()
        yield

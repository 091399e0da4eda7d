"""Commands that draw, map and export with a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from histoloom.cli.paths import RunArgument, check_out_file, check_out_folder, check_run
from histoloom.cli.runs import OtherK, Seed, continues_after_interrupt
from histoloom.config import SamplerMethod
from histoloom.errors import UserError


def sample(
    generator: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_GENERATOR", help="A run, an exported generator, or `starter`.", callback=check_run
        ),
    ],
    n: Annotated[int, typer.Option("-n", min=1, help="Images per named tissue, or in all where none is named.")],
    out: Annotated[Path, typer.Option(help="Folder for the images.", callback=check_out_folder)],
    tissue: Annotated[list[str] | None, typer.Option(help="A name or a cluster's number; may be repeated.")] = None,
    k: OtherK = None,
    method: Annotated[SamplerMethod | None, typer.Option(help="Sampler.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluations of the network; odd for heun."),
    ] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Strength of guidance; 1: none.")] = None,
    seed: Seed = 0,
    like: Annotated[str | None, typer.Option(metavar="PATCH_OR_FILE", help="Start from a patch or picture.")] = None,
    between: Annotated[
        tuple[str, str] | None, typer.Option(metavar="PATCH_OR_FILE...", help="Draw between two pictures.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps that is noised and drawn again, 0 to 1; 0.7 if not given, 0.5 between two."
        ),
    ] = None,
) -> None:
    """Draw synthetic patches into a labelled folder of PNG files."""
    from histoloom.diffusion.generation.run_request import Request, draw_request
    from histoloom.evaluation.originality.gate import Gate
    from histoloom.processes import is_main_process

    request = Request(
        n=n,
        tissues=tuple(tissue or ()),
        k=k,
        method=method,
        steps=steps,
        guidance=guidance,
        seed=seed,
        like=like,
        between=between,
        strength=strength,
    )
    gate = Gate.of_home(generator)
    gate = gate and gate.with_patches(generator, names=request.init_images)
    folder = draw_request(generator, request, out=out, gate=gate)
    if is_main_process():
        typer.echo(folder)


def distil(
    run: RunArgument,
    steps: Annotated[int, typer.Option(help="Evaluations of the network per image, 1 to 8.")] = 4,
    images: Annotated[int, typer.Option(min=1, help="Length of the training, in images seen.")] = 20_000,
    guidance: Annotated[float | None, typer.Option(min=0, help="Strength of guidance; the run's if not given.")] = None,
) -> None:
    """Train a student that draws in a few steps: `sample --method student`."""
    from histoloom.diffusion.distillation import DistillConfig
    from histoloom.diffusion.distillation import distil as make
    from histoloom.run.directory import Run

    with continues_after_interrupt():
        student = make(Run.open(run), DistillConfig(steps=steps, images=images, guidance=guidance))
    typer.echo(f"{student}; draw with it: histoloom sample {run} --method student")


def map_slide(
    run: RunArgument,
    slide: Annotated[Path, typer.Argument(metavar="SLIDE", help="A slide, of the run or any other.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.geojson", help="File for the map; a PNG is written beside it.", callback=check_out_file
        ),
    ],
    k: OtherK = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            help="um/px of the slide; else the run's for a slide of the run, the file's, or slides.mpp of the run."
        ),
    ] = None,
) -> None:
    """Map the tissues of a slide as a GeoJSON that QuPath opens."""
    from histoloom.atlas.maps.tissue_map import map_slide as make_map

    make_map(run, slide, out=out, k=k, mpp=mpp)
    typer.echo(out.resolve())


def patches(
    run: RunArgument,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the patches and metadata.csv.", callback=check_out_folder)
    ],
    tissue: Annotated[list[str] | None, typer.Option(help="A name or a cluster's number; may be repeated.")] = None,
    k: OtherK = None,
    format_: Annotated[
        Literal["png", "jpeg", "webdataset"], typer.Option("--format", help="png and jpeg: a file each; tar shards.")
    ] = "png",
) -> None:
    """Write the real patches of a run with their clusters and names, for other programs."""
    from histoloom.run.directory import Run
    from histoloom.sharing.patch_folder import write_patches

    with continues_after_interrupt():
        write_patches(Run.open(run), out, tissues=tissue or (), k=k, image_format=format_)
    typer.echo(out.resolve())


def export(
    run: RunArgument,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A new folder; with --to h5ad a new file.", callback=check_out_folder),
    ],
    to: Annotated[
        Literal["generator", "h5ad", "trident", "clam"],
        typer.Option(
            help="The generator; an AnnData with a row a patch: clusters, names, features, places; or places and "
            "clusters as HDF5 files that TRIDENT or CLAM read."
        ),
    ] = "generator",
    half: Annotated[bool, typer.Option("--half", help="Weights in half precision: half the size.")] = False,
    licence: Annotated[str | None, typer.Option(metavar="ID", help="Licence of the folder, such as cc-by-4.0.")] = None,
    data: Annotated[str | None, typer.Option(metavar="TEXT", help="Source and licence of the slides.")] = None,
) -> None:
    """Export the generator (weights, configuration, names and model card), or what is known of the patches."""
    from histoloom.run.directory import Run

    if to != "generator" and (half or licence is not None or data is not None):
        raise UserError(f"--half, --licence and --data describe a generator; leave them out with --to {to}")
    if to == "h5ad":
        from histoloom.sharing.anndata_file import export_anndata

        export_anndata(Run.open(run), out)
    elif to != "generator":
        from histoloom.sharing.coordinate_files import export_coordinates

        export_coordinates(Run.open(run), out, program=to)
    else:
        from histoloom.sharing.export import Terms, export_generator

        export_generator(Run.open(run), out, half=half, terms=Terms(licence=licence, data=data))
    typer.echo(out.resolve())


def paint(
    generator: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_GENERATOR", help="A run, an exported generator, or `starter`.", callback=check_run
        ),
    ],
    layout: Annotated[
        Path, typer.Option(metavar="MAP", help="GeoJSON with tissue names, or an indexed PNG with NAME.json as legend.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the field.", callback=check_out_folder)],
    size: Annotated[
        tuple[int, int] | None, typer.Option(metavar="W H", help="px of the field; else what the layout covers.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(min=0.001, help="um/px of the layout; else those of the generator.")
    ] = None,
    background: Annotated[str | None, typer.Option(help="The tissue where the layout has none.")] = None,
    softness: Annotated[float, typer.Option(min=0, help="Width of the boundaries of tissues (sd), um.")] = 8.0,
    k: OtherK = None,
    method: Annotated[SamplerMethod | None, typer.Option(help="Sampler; student where it was distilled.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Evaluations of the network; odd for heun.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Strength of guidance; 1: none.")] = None,
    seed: Seed = 0,
) -> None:
    """Paint a large field of tissue from a drawn map, with its labels."""
    from histoloom.diffusion.generation.generator import Generator
    from histoloom.diffusion.generation.request import Request
    from histoloom.diffusion.generation.run_request import sampler_of
    from histoloom.diffusion.painting.job import PaintSettings, paint_file
    from histoloom.processes import is_main_process

    loaded = Generator.load(generator)
    sampler = sampler_of(Request(n=1, method=method, steps=steps, guidance=guidance), loaded)
    settings = PaintSettings(seed=seed, k=k, softness=softness, background=background, sampler=sampler)
    with continues_after_interrupt():
        field = paint_file(loaded, layout, out=out, settings=settings, size_px=size, mpp=mpp)
    if is_main_process():
        typer.echo(field)

"""``histoloom export``: the generator as a folder of its own, with a model card.

``Generator.load`` reads the folder, and so does diffusers by itself (docs/how-to/share-a-generator.md): the folder
carries the two files of code that diffusers has no part for. Half precision halves the size of the weights; they are
loaded in single precision.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import diffusers
import torch
from diffusers import DDPMScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save

from histoloom import sharing
from histoloom.config import DiffusionConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import (
    STUDENT,
    GeneratorSpec,
    StudentRecord,
    generator_home,
    model_folders,
    weights_digest,
)
from histoloom.diffusion.model.process import alphas_cumprod
from histoloom.diffusion.model.unet import open_diffusers_unet
from histoloom.errors import UserError
from histoloom.names import Event, Kind, current_labels, default_name, journal_file, read_events
from histoloom.run.directory import Run, disk_errors_explained, write_bytes, write_json, write_text
from histoloom.sharing.model_card import Terms, model_card

logger = logging.getLogger("histoloom")

EXPORT = "export"
"""the rater of every name in an exported folder"""

SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "data": "sample"}
SCHEDULERS = {"ddpm": "DDPMScheduler", "unipc": "UniPCMultistepScheduler"}
"""diffusers' scheduler that draws as a sampler does; DPM-Solver++ is closest to the others"""


def export_generator(run: Run, out: Path, *, half: bool = False, terms: Terms | None = None) -> None:
    """Write the folder; ``UserError`` where ``out`` is not new or the run has no generator yet.

    ``half``: weights of two bytes instead of four.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give a new folder")
    diffusion = run.require("diffusion")
    open_diffusers_unet(diffusion)
    generator = Generator.load(run.path)
    with disk_errors_explained(out):
        part = out.with_name(f".{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        copy_weights(diffusion=diffusion, autoencoder=run.require("autoencoder"), out=part, half=half)
        generator.spec.save(part)

        # The student, where the run has one of these weights.
        student = StudentRecord.load(run.folder(STUDENT))
        if student is not None and student.teacher == weights_digest(diffusion):
            (part / STUDENT).mkdir()
            student.save(part / STUDENT)
            _copy_unet(run.folder(STUDENT), part / STUDENT, half=half)
        elif student is not None:
            logger.warning(
                "the student in %s was distilled from other weights and is not exported: histoloom distil %s",
                run.folder(STUDENT),
                run.path,
            )

        _write_names(run, part)
        write_diffusers_files(generator, part)
        card = model_card(run, generator=generator, terms=terms or Terms(), precision="half" if half else "single")
        write_text(part / "README.md", card)
        if out.exists():
            out.rmdir()
        part.rename(out)


def copy_generator(source: Path, out: Path) -> None:
    """Weights and specification of a run or an export, with its card where it has one.

    ``UserError`` for neither, and for networks that are not one U-Net of diffusers'.
    """
    diffusion, autoencoder = model_folders(generator_home(source))
    GeneratorSpec.load(diffusion)
    open_diffusers_unet(diffusion)
    out.mkdir(parents=True)
    copy_weights(diffusion=diffusion, autoencoder=autoencoder, out=out, half=False)
    for name in ("generator.json", "README.md"):
        if (diffusion / name).is_file():
            shutil.copy2(diffusion / name, out / name)


def copy_weights(*, diffusion: Path, autoencoder: Path, out: Path, half: bool) -> None:
    """Put ``unet/`` and ``autoencoder/`` into ``out``, from the folders of a run or an export."""
    _copy_unet(diffusion, out, half=half)
    (out / "autoencoder").mkdir()
    shutil.copy2(autoencoder / "autoencoder.json", out / "autoencoder" / "autoencoder.json")
    name = "autoencoder.safetensors"
    copy_tensors(autoencoder / name, out / "autoencoder" / name, half=half)


def _copy_unet(source: Path, out: Path, *, half: bool) -> None:
    """``unet/`` of one folder into another."""
    (out / "unet").mkdir()
    shutil.copy2(source / "unet" / "config.json", out / "unet" / "config.json")
    weights = "diffusion_pytorch_model.safetensors"
    copy_tensors(source / "unet" / weights, out / "unet" / weights, half=half)


def copy_tensors(source: Path, target: Path, *, half: bool) -> None:
    """Copy a file of weights, in half precision where asked; what its header says of the model stays."""
    if not half:
        shutil.copy2(source, target)
        return
    tensors = load_file(source)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    for name, value in halved.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{name} of {source.name} is too large for half precision; export without --half")
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata() or {}
    write_bytes(target, save(halved, metadata={"format": "pt"} | metadata))


def _write_names(run: Run, folder: Path) -> None:
    """The label that counts for each cluster, without the raters, whose names stay in the run."""
    lines = []
    for k in sorted({event.k for event in read_events(run.path)} - {0}):
        for cluster, label in current_labels(run.path, k=k).items():
            name = "" if label.name == default_name(cluster) else label.name
            values: dict[Kind, str] = {"name": name, "colour": label.colour, "flag": label.flag}
            for kind, value in values.items():
                if value:
                    event = Event(kind, EXPORT, time=label.time, k=k, members=(cluster,), value=value)
                    lines.append(json.dumps(event.as_json(), ensure_ascii=False))
    if lines:
        write_text(journal_file(folder), "\n".join(lines) + "\n")


def write_diffusers_files(generator: Generator, folder: Path) -> None:
    """What diffusers needs: ``model_index.json``, ``scheduler/`` and the code of pipeline and decoder."""
    spec = generator.spec
    make_scheduler(spec.diffusion).save_pretrained(folder / "scheduler")
    sweep = {
        str(k): {
            "first": spec.conditions.offset(k),
            "names": {str(cluster): name for cluster, name in generator.names(k).items()},
        }
        for k in spec.ks
    }
    index = {
        "_class_name": ["pipeline", "TissuePipeline"],
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", SCHEDULERS.get(spec.sampler.method, "DPMSolverMultistepScheduler")],
        "autoencoder": ["tissue_decoder", "TissueDecoder"],
        "tissues": {"chosen_k": spec.chosen_k, "null": spec.conditions.null, "k": sweep},
        "latents": {**spec.space.model_dump(mode="json", include={"mean", "leave"}), "shape": list(spec.shape)},
        "sampling": {"steps": spec.sampler.steps, "guidance": spec.sampler.guidance},
    }
    write_json(folder / "model_index.json", index)
    code = Path(sharing.__file__).parent
    shutil.copy2(code / "pipeline.py", folder / "pipeline.py")
    shutil.copy2(code / "tissue_decoder.py", folder / "autoencoder" / "tissue_decoder.py")


def make_scheduler(config: DiffusionConfig) -> DDPMScheduler:
    """The diffusion process as a diffusers scheduler, with all of its steps.

    ``clip_sample`` is off: latents are not bounded by 1. Schedulers of diffusers' other samplers are made from it:
    ``DPMSolverMultistepScheduler.from_config(scheduler.config)``.
    """
    betas = None
    if config.shift != 1:  # none of diffusers' schedules
        alpha_bars = alphas_cumprod(config).tolist()
        betas = [1 - here / before for before, here in zip([1.0, *alpha_bars], alpha_bars, strict=False)]
    return DDPMScheduler(
        num_train_timesteps=config.steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=SCHEDULES[config.schedule],
        trained_betas=betas,
        prediction_type=PREDICTIONS[config.prediction],
        timestep_spacing="trailing",
        clip_sample=False,
    )

"""``histoloom export``: the generator as a folder of its own, with a model card.

``Generator.load`` reads the folder, and so does diffusers by itself (docs/how-to/share-a-generator.md): the folder
carries the two files of code that diffusers has no part for.
Half precision halves the weights; they are computed with in single precision.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save

from histoloom import sharing
from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.generator import (
    STUDENT,
    Generator,
    GeneratorSpec,
    folders_of,
    home_of,
    weights_digest,
)
from histoloom.diffusion.samplers.guided import levels_visited
from histoloom.errors import UserError
from histoloom.names import Event, Kind, Label, current_labels, default_name, journal_file, read_events
from histoloom.run.directory import Run, disk_errors_explained, read_json, write_bytes, write_json, write_text
from histoloom.sharing.model_card import Terms, model_card
from histoloom.sharing.scheduler import make_scheduler

logger = logging.getLogger("histoloom")

EXPORT = "export"
"""The rater of every name in an exported folder."""


def export_generator(run: Run, out: Path, *, half: bool = False, terms: Terms | None = None) -> None:
    """Write the folder; ``UserError`` where ``out`` is not new or the run has no generator yet.

    ``half``: weights of two bytes instead of four.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give a new folder")
    generator = Generator.load(run.path)
    precision = "half" if half else "single"
    with disk_errors_explained(out):
        part = out.with_name(f".{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        copy_weights(diffusion=run.require("diffusion"), autoencoder=run.require("autoencoder"), out=part, half=half)
        write_json(part / "generator.json", generator.facts.as_json())
        _write_pipeline(generator, part)
        _copy_student(run, part, half=half)
        _write_names(run, part)
        card = model_card(run, generator=generator, terms=terms or Terms(), precision=precision)
        write_text(part / "README.md", card)
        if out.exists():
            out.rmdir()
        part.rename(out)


def copy_generator(source: Path, out: Path) -> None:
    """Weights and facts of a run or an export, with its card where it has one; ``UserError`` where it is neither."""
    diffusion, autoencoder = folders_of(home_of(source))
    GeneratorSpec.from_json(read_json(diffusion / "generator.json"))
    out.mkdir(parents=True)
    copy_weights(diffusion=diffusion, autoencoder=autoencoder, out=out, half=False)
    for name in ("generator.json", "README.md"):
        if (diffusion / name).is_file():
            shutil.copy2(diffusion / name, out / name)


def copy_weights(*, diffusion: Path, autoencoder: Path, out: Path, half: bool) -> None:
    """Put ``unet/`` and ``autoencoder/`` into ``out``, from where a run or an export has them."""
    _copy_unet(diffusion, out, half=half)
    (out / "autoencoder").mkdir()
    shutil.copy2(autoencoder / "autoencoder.json", out / "autoencoder" / "autoencoder.json")
    name = "autoencoder.safetensors"
    _copy_tensors(autoencoder / name, out / "autoencoder" / name, half=half)


def _copy_student(run: Run, out: Path, *, half: bool) -> None:
    """``student/``, where the run has one of these weights."""
    source = run.folder(STUDENT)
    if not (source / "student.json").is_file():
        return
    if read_json(source / "student.json")["teacher"] != weights_digest(run.require("diffusion")):
        logger.warning("the student in %s learnt from other weights and stays behind: histoloom distil", source)
        return
    target = out / STUDENT
    target.mkdir()
    shutil.copy2(source / "student.json", target / "student.json")
    _copy_unet(source, target, half=half)


def _copy_unet(source: Path, out: Path, *, half: bool) -> None:
    """``unet/`` of one folder into another."""
    (out / "unet").mkdir()
    shutil.copy2(source / "unet" / "config.json", out / "unet" / "config.json")
    weights = "diffusion_pytorch_model.safetensors"
    _copy_tensors(source / "unet" / weights, out / "unet" / weights, half=half)


def _copy_tensors(source: Path, target: Path, *, half: bool) -> None:
    if not half:
        shutil.copy2(source, target)
        return
    tensors = load_file(source)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    wrong = [name for name, value in halved.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if wrong:
        raise UserError(f"{wrong[0]} of {source.name} is too large for half precision; export without --half")
    write_bytes(target, save(halved, metadata={"format": "pt"}))


def _write_pipeline(generator: Generator, folder: Path) -> None:
    """What diffusers needs: ``model_index.json``, ``scheduler/`` and the code of pipeline and decoder."""
    facts = generator.facts
    make_scheduler(facts.config).save_pretrained(folder / "scheduler")
    sweep = {
        str(k): {
            "first": facts.conditions.offset(k),
            "names": {str(cluster): name for cluster, name in generator.names(k).items()},
        }
        for k in facts.conditions.ks
    }
    index = {
        "_class_name": ["pipeline", "TissuePipeline"],
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", _scheduler(facts.sampler)],
        "autoencoder": ["tissue_decoder", "TissueDecoder"],
        "tissues": {"chosen_k": facts.chosen_k, "null": facts.conditions.null, "k": sweep},
        "latents": {key: facts.space.as_json()[key] for key in ("mean", "leave", "fold")}
        | {"shape": list(facts.shape)},
        "sampling": _sampling(facts),
    }
    write_json(folder / "model_index.json", index)
    code = Path(sharing.__file__).parent
    shutil.copy2(code / "pipeline.py", folder / "pipeline.py")
    shutil.copy2(code / "tissue_decoder.py", folder / "autoencoder" / "tissue_decoder.py")


def _scheduler(sampler: SamplerConfig) -> str:
    """diffusers' class that draws as ``sampler`` does, or nearly; its UniPC makes even steps only."""
    if sampler.method == "ddpm":
        return "DDPMScheduler"
    is_unipc = sampler.method == "unipc" and sampler.spacing == 1
    return "UniPCMultistepScheduler" if is_unipc else "DPMSolverMultistepScheduler"


def _sampling(facts: GeneratorSpec) -> dict[str, Any]:
    """How the exported pipeline draws where nothing is asked."""
    sampler = facts.sampler
    uneven = sampler.spacing != 1
    steps = [level.step for level in levels_visited(sampler, config=facts.config)[:-1]] if uneven else None
    interval = list(sampler.guidance_interval) if sampler.guidance_interval else None
    return {"steps": sampler.steps, "guidance": sampler.guidance, "interval": interval, "timesteps": steps}


def _write_names(run: Run, folder: Path) -> None:
    """What counts of each cluster; who said it stays in the run."""
    lines = [
        json.dumps(event.as_json(), ensure_ascii=False)
        for k in sorted({event.k for event in read_events(run.path)} - {0})
        for cluster, label in current_labels(run.path, k=k).items()
        for event in _anonymous(label, k=k, cluster=cluster)
    ]
    if lines:
        write_text(journal_file(folder), "\n".join(lines) + "\n")


def _anonymous(label: Label, *, k: int, cluster: int) -> list[Event]:
    name = "" if label.name == default_name(cluster) else label.name
    said: dict[Kind, str] = {"name": name, "colour": label.colour, "flag": label.flag}
    return [
        Event(kind, EXPORT, time=label.time, k=k, members=(cluster,), value=value)
        for kind, value in said.items()
        if value
    ]

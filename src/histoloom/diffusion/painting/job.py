"""``histoloom paint``: a layout becomes a folder with a field of tissue, its labels, and a record.

``field.ome.tif`` is the field, a tiled pyramid. ``mask.png`` (``mask.tif`` for large fields) has the tissue of each of
its pixels, ``mask.json`` the names, and ``map.geojson`` the same as areas. ``field.json`` is the record. A job that was
stopped continues, and processes (torchrun) share the bands of a field.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.generator import BATCH_SIZE, Generator
from histoloom.diffusion.generation.generator_spec import STUDENT
from histoloom.diffusion.generation.run_request import claimed_by_all
from histoloom.diffusion.model.unet import SweepUNet
from histoloom.diffusion.painting.conditions import ConditionMap, condition_map
from histoloom.diffusion.painting.field import FieldDiffusion, Windows, decode_band
from histoloom.diffusion.painting.layout import Canvas, Layout, layout_size, read_layout
from histoloom.diffusion.painting.output import FIELD_FILE, RECORD_FILE, write_field, write_labels
from histoloom.errors import UserError
from histoloom.progress import meter
from histoloom.run.directory import disk_errors_explained, write_json, write_text
from histoloom.training.devices import autocast
from histoloom.training.distributed import rank, size, wait_for_all

WORK = "work"
"""the folder, inside the job's, of what a stopped job needs to continue"""

OnProgress = Callable[[float, float], None]
"""Called before each batch of windows with the bands that are done and of how many; what it raises ends the job."""


@dataclass(frozen=True)
class PaintSettings:
    """How a field is painted.

    ``softness``: standard deviation of the boundaries between tissues, um. ``background``: the tissue where the layout
    has none. ``sampler``: the generator's own if None.
    """

    seed: int = 0
    k: int | None = None
    softness: float = 8.0
    background: str | None = None
    sampler: SamplerConfig | None = None


def paint_file(
    generator: Generator,
    layout: Path,
    *,
    out: Path,
    settings: PaintSettings,
    size_px: tuple[int, int] | None = None,
    mpp: float | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Paint a layout file into the folder ``out``, and return the field's file.

    ``size_px``: (width, height) of the field, px; None: what the layout covers. ``mpp``: um/px of the layout; None:
    those of the generator. ``UserError`` for a layout that cannot be painted, before anything is written.
    """
    spec = generator.spec
    if not layout.is_file():
        raise UserError(f"{layout} does not exist; give a GeoJSON, or an indexed PNG with a legend, as --layout")
    layout_mpp = spec.mpp if mpp is None else mpp
    wanted = size_px or layout_size(layout, mpp=layout_mpp, field_mpp=spec.mpp)
    canvas = Canvas.of(wanted, factor=spec.size // spec.shape[1], mpp=spec.mpp, window=spec.size)
    tissues = read_layout(layout, canvas, mpp=layout_mpp).with_background(settings.background)
    painting = Painting.of(generator, tissues, canvas=canvas, settings=settings)
    with disk_errors_explained(out), claimed_by_all(out, identity=painting.record):
        if (out / FIELD_FILE).is_file() and (out / RECORD_FILE).is_file():
            return (out / FIELD_FILE).resolve()
        painting.draw(out / WORK, on_progress=on_progress)
        if rank() == 0:
            write_labels(out, tissues, canvas=canvas)
            write_field(out / FIELD_FILE, painting.pixel_file(out / WORK), mpp=canvas.mpp, tissues=tissues.names)
            write_json(out / RECORD_FILE, painting.record | {"layout": layout.name, "layout_mpp": layout_mpp})
            shutil.rmtree(out / WORK)
        wait_for_all()
    return (out / FIELD_FILE).resolve()


@dataclass(frozen=True)
class PaintedField:
    """A field, uint8 (H, W, 3), and the place in ``names`` of the tissue of each pixel, uint8 (H, W)."""

    image: np.ndarray
    mask: np.ndarray
    names: tuple[str, ...]


def paint_array(
    generator: Generator,
    labels_HW: np.ndarray,
    *,
    names: Sequence[str],
    settings: PaintSettings,
    on_progress: OnProgress | None = None,
) -> PaintedField:
    """Paint a map of tissues, integers (H, W), places in ``names``, -1 for none, at the px of the generator.

    The field is held in memory; the sides are rounded to the autoencoder's factor. ``UserError`` for tissues that the
    generator does not have, and for a field smaller than a patch.
    """
    spec = generator.spec
    labels_HW = np.asarray(labels_HW)
    if labels_HW.ndim != 2 or not np.issubdtype(labels_HW.dtype, np.integer):
        raise UserError(f"a layout is whole numbers (H, W), got {labels_HW.dtype} {labels_HW.shape}")
    if labels_HW.size and not -1 <= int(labels_HW.min()) <= int(labels_HW.max()) < len(names):
        raise UserError(f"a layout has values from -1 to {len(names) - 1}, places in its names")
    size_px = labels_HW.shape[1], labels_HW.shape[0]
    canvas = Canvas.of(size_px, factor=spec.size // spec.shape[1], mpp=spec.mpp, window=spec.size)
    tissues = Layout.of(labels_HW, names=names, canvas=canvas).with_background(settings.background)
    painting = Painting.of(generator, tissues, canvas=canvas, settings=settings)
    with TemporaryDirectory() as folder:
        painting.draw(Path(folder), on_progress=on_progress)
        image_HW3 = np.load(painting.pixel_file(Path(folder)))
    mask_HW = tissues.tissue_hw.astype(np.uint8).repeat(canvas.factor, axis=0).repeat(canvas.factor, axis=1)
    return PaintedField(image_HW3, mask_HW, tissues.names)


@dataclass(frozen=True)
class Painting:
    """One field to be painted: the generator, the condition of each position, and how."""

    generator: Generator
    tissues: Layout
    conditions: ConditionMap
    canvas: Canvas
    settings: PaintSettings
    k: int
    sampler: SamplerConfig

    @staticmethod
    def of(generator: Generator, tissues: Layout, *, canvas: Canvas, settings: PaintSettings) -> Painting:
        """``UserError`` for tissues that the generator does not have, and for a sampler that it cannot use."""
        k = generator.spec.chosen_k if settings.k is None else settings.k
        sampler = settings.sampler or generator.spec.sampler
        if isinstance(generator.unet, SweepUNet) and sampler.guidance != 1:
            raise UserError(f"{generator.home} has no null condition, and so no guidance: set guidance to 1")
        conditions = condition_map(
            tissues,
            spec=generator.spec,
            labels=generator.labels(k),
            k=k,
            seed=settings.seed,
            softness=settings.softness / canvas.mpp / canvas.factor,
        )
        return Painting(generator, tissues, conditions, canvas, settings, k, sampler)

    @property
    def record(self) -> dict[str, object]:
        """What the field depends on, and from which it can be drawn again with the layout."""
        student = self.sampler.method == STUDENT
        width, height = self.canvas.size
        return {
            "synthetic": True,
            "generator": self.generator.student.digest if student else self.generator.digest(),
            "size": [width, height],
            "mpp": self.canvas.mpp,
            "k": self.k,
            "tissues": list(self.tissues.names),
            "clusters": hashlib.sha256(self.conditions.cluster_hw.tobytes()).hexdigest()[:16],
            "settings": {**asdict(self.settings), "sampler": self.sampler.model_dump(mode="json")},
        }

    @property
    def windows(self) -> Windows:
        """The windows of the field's latents."""
        return Windows(self.canvas.shape_hw, self.generator.spec.shape[1])

    def pixel_file(self, work: Path) -> Path:
        """The field's pixels, uint8 (H, W, 3), while the job runs."""
        return work / "pixels.npy"

    def draw(self, work: Path, *, on_progress: OnProgress | None = None) -> None:
        """Paint the field's pixels in ``work``: every evaluation of the network band by band, then the decoder."""
        generator = self.generator
        spec, device = generator.spec, generator.device
        unet, sampler = generator.unet, self.sampler
        maps = spec.diffusion.condition_maps
        if sampler.method == STUDENT:  # its guidance is in its weights: it is evaluated once a step
            unet, sampler = generator.student.unet, sampler.model_copy(update={"guidance": 1.0})
            maps = generator.student.record.condition_maps
        elif isinstance(unet, SweepUNet):
            unet = unet.only([self.k])
        work.mkdir(exist_ok=True)
        done = total = 0  # bands

        def on_batch(share: float) -> None:
            if on_progress is not None:
                on_progress(done + share, total)

        diffusion = FieldDiffusion(
            unet=unet,
            config=spec.diffusion,
            sampler=sampler,
            conditions=self.conditions,
            condition_number=lambda cluster: spec.conditions.number(k=self.k, cluster=cluster),
            null=spec.conditions.null,
            channels=spec.shape[0],
            side=spec.shape[1],
            seed=self.settings.seed,
            folder=work,
            device=device,
            batch_size=BATCH_SIZE[device.type],
            on_batch=on_batch,
            maps=maps,
        )
        if rank() == 0:
            diffusion.create_files()
            self._create_pixels(work)
        wait_for_all()

        windows, evaluations = diffusion.windows, len(diffusion.evaluations)
        total = (evaluations + 1) * len(windows.bands)
        done = sum((work / _done(e, b)).is_file() for e in range(evaluations + 1) for b in range(len(windows.bands)))
        with meter("painting bands", total=total, done=done) as progress:
            for evaluation in range(evaluations + 1):
                for number in range(rank(), len(windows.bands), size()):
                    finished = work / _done(evaluation, number)
                    if finished.is_file():
                        continue
                    band = windows.bands[number]
                    with autocast(generator.runtime):
                        if evaluation < evaluations:
                            diffusion.evaluate(evaluation, band)
                        else:
                            self._decode(diffusion, band, file=self.pixel_file(work))
                    write_text(finished, "")
                    done += 1
                    progress.advance(1)
                wait_for_all()

    def _create_pixels(self, work: Path) -> None:
        file, (width, height) = self.pixel_file(work), self.canvas.size
        if not file.is_file():
            temporary = file.with_suffix(".new")
            np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(height, width, 3)).flush()
            temporary.replace(file)

    def _decode(self, diffusion: FieldDiffusion, band: tuple[int, int], *, file: Path) -> None:
        """Write the pixels of a band."""
        generator, factor = self.generator, self.canvas.factor

        batches = 0

        @torch.no_grad()
        def decode(x_NDSS: Tensor) -> Tensor:
            nonlocal batches
            diffusion.on_batch(batches * diffusion.batch_size / len(diffusion.windows.in_band(band)))
            batches += 1
            z_NCSS = generator.spec.space.decode(x_NDSS.to(generator.device))
            return generator.autoencoder.decode(z_NCSS)

        pixels_RW3 = decode_band(
            decode,
            diffusion.latents,
            windows=diffusion.windows,
            band=band,
            factor=factor,
            batch_size=BATCH_SIZE[generator.device.type],
        )
        pixels = np.lib.format.open_memmap(file, mode="r+")
        pixels[band[0] * factor : band[1] * factor] = pixels_RW3
        pixels.flush()


def _done(evaluation: int, band: int) -> str:
    """The file that says that a band of an evaluation, or of the decoder after the last one, is finished."""
    return f"done-{evaluation:03d}-{band:05d}"

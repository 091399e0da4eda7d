"""The latents of a field: overlapping windows, mixed at every evaluation of the network.

At each evaluation the network predicts the data in windows of the size of a patch, half a window apart. A network that
was trained on maps of conditions predicts a window once, under the map of its conditions. Any other predicts it under
each condition that the layout has there, and the predictions are mixed by the soft masks of the conditions (Jimenez
2023). The predictions of overlapping windows are mixed by sine-squared weights, and the sampler takes its step with the
mixture (MultiDiffusion: Bar-Tal et al. 2023). So no window ends anywhere.

A field is worked on in bands of window rows. A sampler acts on each position by itself, given the data predicted there
so far. Therefore only these predictions are kept, in a file for each evaluation, and the noisy latents of a band are
computed from them whenever they are needed: memory is bounded by a band, a killed job continues with the next band, and
processes share the bands. The result depends neither on batches nor on processes.

Shapes: C x h x w normalised latents of the field, S the side of a window, R rows of a band, E evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from histoloom.config import DiffusionConfig, SamplerConfig
from histoloom.diffusion.model.process import predicted_data
from histoloom.diffusion.painting.conditions import ConditionMap
from histoloom.diffusion.samplers import SAMPLERS, Level
from histoloom.diffusion.sampling import guided_prediction, sampling_levels
from histoloom.seeding import torch_generator

BAND = 8
"""window rows of a band; one more is evaluated twice, by the bands on both sides"""
NOISE_ROWS = 64
"""rows of latents that share a random stream"""


@dataclass(frozen=True)
class Windows:
    """Where windows of ``side`` positions lie on a field of (h, w): half a window apart, the last ones at its end."""

    shape_hw: tuple[int, int]
    side: int

    @property
    def tops(self) -> list[int]:
        """The first row of each row of windows."""
        return window_starts(self.shape_hw[0], side=self.side)

    @property
    def lefts(self) -> list[int]:
        """The first column of each column of windows."""
        return window_starts(self.shape_hw[1], side=self.side)

    @property
    def bands(self) -> list[tuple[int, int]]:
        """The rows of each band, from and to; together they are all rows of the field."""
        starts = self.tops[::BAND]
        return list(zip(starts, [*starts[1:], self.shape_hw[0]], strict=True))

    def in_band(self, band: tuple[int, int]) -> list[tuple[int, int]]:
        """The (top, left) of all windows that cover a row of the band, in their order."""
        first, last = band
        return [(top, left) for top in self.tops if first - self.side < top < last for left in self.lefts]

    @property
    def weight_SS(self) -> np.ndarray:
        """The weight of each position of a window, float32, above 0."""
        weight_S = np.sin(np.pi * (np.arange(self.side) + 0.5) / self.side) ** 2
        return np.outer(weight_S, weight_S).astype(np.float32)

    def total_weight(self, band: tuple[int, int]) -> np.ndarray:
        """The sum of the weights of all windows at the positions of a band, float32 (R, w)."""
        weight_S = np.sin(np.pi * (np.arange(self.side) + 0.5) / self.side) ** 2
        sums = []
        for length, starts in zip(self.shape_hw, (self.tops, self.lefts), strict=True):
            sum_L = np.zeros(length)
            for start in starts:
                sum_L[start : start + self.side] += weight_S
            sums.append(sum_L)
        return np.outer(sums[0][band[0] : band[1]], sums[1]).astype(np.float32)


def window_starts(length: int, *, side: int) -> list[int]:
    """Where windows begin on a line: half a window apart, the last one at its end."""
    starts = list(range(0, length - side + 1, side // 2))
    return starts if starts[-1] == length - side else [*starts, length - side]


@dataclass(frozen=True)
class WindowInput:
    """A window of which the network predicts the data once, at (``row``, ``column``) of the rows at hand.

    ``shares_PSS``: of its ``clusters`` at each position; ``weight_SS``: of the prediction in the mixture.
    """

    row: int
    column: int
    clusters: tuple[int, ...]
    shares_PSS: np.ndarray
    weight_SS: np.ndarray


class _Reached(Exception):
    """A replay came to the evaluation that was asked for; carries x there."""

    def __init__(self, x_1Crw: Tensor) -> None:
        self.x_1Crw = x_1Crw


@dataclass
class FieldDiffusion:
    """The sampling of one field's latents in ``folder``, which keeps the predicted data of each evaluation.

    ``condition_number``: the network's number of a cluster. ``null``: that of no condition. ``maps``: whether the
    network takes maps of conditions.
    """

    unet: nn.Module
    config: DiffusionConfig
    sampler: SamplerConfig
    conditions: ConditionMap
    condition_number: Callable[[int], int]
    null: int
    channels: int
    side: int
    seed: int
    folder: Path
    device: torch.device
    batch_size: int
    maps: bool = False
    on_batch: Callable[[float], None] = lambda _share: None
    """called before each batch with the share of its band that is done, 0..1; what it raises ends the sampling"""
    windows: Windows = field(init=False)
    evaluations: list[Level] = field(init=False)

    def __post_init__(self) -> None:
        height, width = self.conditions.cluster_hw.shape
        self.windows = Windows((height, width), self.side)
        self._levels = sampling_levels(self.sampler, config=self.config)
        self.evaluations = []

        def counted(x: Tensor, level: Level) -> Tensor:
            self.evaluations.append(level)
            return torch.zeros_like(x)

        self._draw(counted, torch.ones(1, 1, 1, 1), noise=lambda: torch.zeros(1, 1, 1, 1))

    def data_file(self, evaluation: int) -> Path:
        """The file of the data predicted at an evaluation, float32 (C, h, w)."""
        return self.folder / f"data-{evaluation:03d}.npy"

    def create_files(self) -> None:
        """Make the files that are not there yet."""
        for number in range(len(self.evaluations)):
            if not self.data_file(number).is_file():
                temporary = self.data_file(number).with_suffix(".new")
                shape = (self.channels, *self.windows.shape_hw)
                np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape).flush()
                temporary.replace(self.data_file(number))

    def latents(self, rows: tuple[int, int]) -> Tensor:
        """The finished latents of some rows, (1, C, R, w)."""
        return self._replay(rows, until=len(self.evaluations))

    @torch.no_grad()
    def evaluate(self, number: int, band: tuple[int, int]) -> None:
        """Predict the data of a band at evaluation ``number``, from those of all bands at the ones before."""
        places = self.windows.in_band(band)
        top, bottom = places[0][0], places[-1][0] + self.side
        x_1Crw = self._replay((top, bottom), until=number)
        level = self.evaluations[number]
        step = torch.tensor(level.step, device=self.device)
        weight_SS = self.windows.weight_SS
        sum_CRw = np.zeros((self.channels, bottom - top, self.windows.shape_hw[1]), np.float32)

        done = started = 0  # windows

        def inputs() -> Iterator[WindowInput]:
            nonlocal started
            for row, column in places:
                masks = self.conditions.masks(row, column, side=self.side)
                if self.maps:
                    yield WindowInput(row - top, column, tuple(masks), np.stack(list(masks.values())), weight_SS)
                else:
                    for cluster, mask_SS in masks.items():
                        whole_1SS = np.ones_like(mask_SS[None])
                        yield WindowInput(row - top, column, (cluster,), whole_1SS, mask_SS * weight_SS)
                started += 1

        waiting = inputs()
        while batch := list(islice(waiting, self.batch_size)):
            self.on_batch(done / len(places))
            done = started
            padded = batch + [batch[-1]] * (self.batch_size - len(batch))
            x_NCSS = torch.cat([x_1Crw[..., w.row : w.row + self.side, w.column :][..., : self.side] for w in padded])
            x_NCSS = x_NCSS.to(self.device)
            # As many conditions for each window; the further ones have no share anywhere.
            count = max(len(window.clusters) for window in batch)
            shares_NPSS = np.zeros((len(padded), count, self.side, self.side), np.float32)
            numbers_NP = torch.full((len(padded), count), self.null)
            for place, window in enumerate(padded):
                shares_NPSS[place, : len(window.clusters)] = window.shares_PSS
                for number_in_window, cluster in enumerate(window.clusters):
                    numbers_NP[place, number_in_window] = self.condition_number(cluster)
            output_NCSS = guided_prediction(
                self.unet,
                x_NCSS,
                step=step,
                conditions_N=(numbers_NP if self.maps else numbers_NP[:, 0]).to(self.device),
                null=self.null,
                guidance=self.sampler.guidance,
                shares_NPHW=torch.from_numpy(shares_NPSS).to(self.device) if self.maps else None,
            )
            data_NCSS = predicted_data(
                output_NCSS,
                x_NCHW=x_NCSS,
                signal=level.signal,
                noise=level.noise,
                prediction=self.config.prediction,
            )
            for window, data_CSS in zip(batch, data_NCSS.cpu().numpy(), strict=False):
                part_CRw = sum_CRw[:, window.row : window.row + self.side, window.column : window.column + self.side]
                part_CRw += window.weight_SS * data_CSS

        first, last = band
        mixed_CRw = sum_CRw[:, first - top : last - top] / self.windows.total_weight(band)
        file = np.lib.format.open_memmap(self.data_file(number), mode="r+")
        file[:, first:last] = mixed_CRw
        file.flush()

    def _replay(self, rows: tuple[int, int], *, until: int) -> Tensor:
        """x at some rows when evaluation ``until`` asks for it, or at the end, from the noise and the data so far."""
        first, last = rows
        number, draws = 0, 0

        def noise() -> Tensor:
            nonlocal draws
            draws += 1
            return field_noise(self.seed, draw=draws - 1, rows=rows, shape=(self.channels, self.windows.shape_hw[1]))

        def known(x_1Crw: Tensor, _level: Level) -> Tensor:
            nonlocal number
            if number == until:
                raise _Reached(x_1Crw)
            file = np.load(self.data_file(number), mmap_mode="r")
            number += 1
            return torch.from_numpy(np.array(file[:, first:last]))[None]

        try:
            return self._draw(known, noise(), noise=noise)
        except _Reached as reached:
            return reached.x_1Crw

    def _draw(self, denoise: Callable[[Tensor, Level], Tensor], x: Tensor, *, noise: Callable[[], Tensor]) -> Tensor:
        return SAMPLERS[self.sampler.method].draw(denoise, x, levels=self._levels, noise=noise)


def field_noise(seed: int, *, draw: int, rows: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """The ``draw``-th unit noise of a field at some rows, (1, C, R, w); ``shape``: (C, w) of the field."""
    first, last = rows
    channels, width = shape
    parts: list[Tensor] = []
    for part in range(first // NOISE_ROWS, -(-last // NOISE_ROWS)):
        generator = torch_generator(seed, "painting", draw, part)
        noise_CRw = torch.randn(channels, NOISE_ROWS, width, generator=generator)
        start = part * NOISE_ROWS
        parts.append(noise_CRw[:, max(first - start, 0) : last - start])
    return torch.cat(parts, dim=1)[None]


def decode_band(
    decode: Callable[[Tensor], Tensor],
    latents: Callable[[tuple[int, int]], Tensor],
    *,
    windows: Windows,
    band: tuple[int, int],
    factor: int,
    batch_size: int,
) -> np.ndarray:
    """The pixels of a band, uint8 (f R, f w, 3): windows are decoded as patches are, and mixed by the same weights.

    ``decode``: latents (N, C, S, S) to images (N, 3, f S, f S) in -1..1; ``latents``: those of some rows. The
    decoder's normalisations see a window at a time, as they saw patches in training.
    """
    places = windows.in_band(band)
    top, bottom = places[0][0], places[-1][0] + windows.side
    z_1Crw, side = latents((top, bottom)), windows.side
    fine = Windows((windows.shape_hw[0] * factor, windows.shape_hw[1] * factor), side * factor)
    weight_SS1 = fine.weight_SS[..., None]
    sum_RW3 = np.zeros(((bottom - top) * factor, fine.shape_hw[1], 3), np.float32)
    weights_R, weights_W = np.zeros(len(sum_RW3)), np.zeros(fine.shape_hw[1])
    line_S = np.sin(np.pi * (np.arange(fine.side) + 0.5) / fine.side) ** 2
    for row in {row for row, _ in places}:
        weights_R[(row - top) * factor : (row - top) * factor + fine.side] += line_S
    for column in {column for _, column in places}:
        weights_W[column * factor : column * factor + fine.side] += line_S

    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        padded = [*batch] + [batch[-1]] * (batch_size - len(batch))
        z_NCSS = torch.cat([z_1Crw[..., r - top : r - top + side, c : c + side] for r, c in padded])
        images_N3SS = decode(z_NCSS).clamp(-1, 1).float().cpu()
        for (r, c), image_SS3 in zip(batch, images_N3SS.permute(0, 2, 3, 1).numpy(), strict=False):
            y, x = (r - top) * factor, c * factor
            sum_RW3[y : y + fine.side, x : x + fine.side] += weight_SS1 * image_SS3

    first, last = ((edge - top) * factor for edge in band)
    mixed_RW3 = sum_RW3[first:last] / np.outer(weights_R[first:last], weights_W)[..., None]
    return np.rint((mixed_RW3 + 1) * 127.5).astype(np.uint8)

"""What a few-step student learns: multistep consistency (Heek et al. 2024, algorithm 1) with a guided teacher.

The way from noise to data is cut into as many segments as the student has steps, and each segment into fine steps. From
any level in a segment the student names the data that lead, by one DDIM step, to the point of the segment's end where
the teacher's fine DDIM steps would arrive. To know that point, it takes one fine step with the teacher and asks itself
from there. The teacher speaks under classifier-free guidance, which the student so learns as well: it needs one
evaluation a step where the guided teacher needs two. Shapes: B images, L levels with the clean one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from histoloom.config import DiffusionConfig
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.noise_schedule import alphas_cumprod, data_of
from histoloom.diffusion.samplers.levels import keep_and_add, levels_of
from histoloom.training.loop import StepContext

FINE = 64
"""fine steps of all segments together"""


@dataclass(frozen=True)
class Grid:
    """Levels from noise to data; the factors of x and of the data (see ``keep_and_add``) to the next level and to the
    segment's end, (L - 1,) each; whether the next level is that end."""

    step_L: Tensor
    signal_L: Tensor
    noise_L: Tensor
    next_M2: Tensor
    end_M2: Tensor
    last_M: Tensor

    @staticmethod
    def of(config: DiffusionConfig, *, segments: int) -> Grid:
        """The levels of ``segments`` segments; their ends are the levels of a DDIM sampling of as many steps."""
        fine = min(FINE, config.steps) // segments
        levels = levels_of(alphas_cumprod(config), count=segments * fine)
        ends = [levels[(i // fine + 1) * fine] for i in range(segments * fine)]
        return Grid(
            step_L=torch.tensor([level.step for level in levels]),
            signal_L=torch.tensor([level.signal for level in levels]),
            noise_L=torch.tensor([level.noise for level in levels]),
            next_M2=torch.tensor([keep_and_add(here, there=there) for here, there in pairwise(levels)]),
            end_M2=torch.tensor([keep_and_add(here, there=there) for here, there in zip(levels, ends, strict=False)]),
            last_M=torch.tensor([there is end for there, end in zip(levels[1:], ends, strict=True)]),
        )


class DistillationLoss:
    """Batches as for ``DiffusionLoss``: normalised latents (B, C, h, w), condition numbers at every k (B, S)."""

    def __init__(
        self,
        config: DiffusionConfig,
        *,
        student: nn.Module,
        teacher: nn.Module,
        conditions: Conditions,
        segments: int,
        guidance: float,
    ) -> None:
        self.config, self.conditions, self.guidance = config, conditions, guidance
        self.student = student
        self.teacher = teacher.eval().requires_grad_(False)
        self.grid = Grid.of(config, segments=segments)

    def __call__(self, batch: tuple[Tensor, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the student's data at a random level, weighted as that of v is (by 1 / noise^2)."""
        z_BCHW, numbers_BS = batch
        B, S = numbers_BS.shape
        self.teacher.to(z_BCHW.device)
        conditions_B = numbers_BS.gather(1, context.randint(S, (B, 1)))[:, 0]
        at_B = context.randint(len(self.grid.next_M2), (B,)).cpu()
        noise_BCHW = context.randn(tuple(z_BCHW.shape))
        x_BCHW = self._at(self.grid.signal_L, at_B, like=z_BCHW) * z_BCHW
        x_BCHW = x_BCHW + self._at(self.grid.noise_L, at_B, like=z_BCHW) * noise_BCHW
        wanted_BCHW = self._wanted(x_BCHW, at_B=at_B, conditions_B=conditions_B)
        said_BCHW = self._data(self.student, x_BCHW, at_B=at_B, conditions_B=conditions_B)
        error_B = (said_BCHW - wanted_BCHW).pow(2).mean(dim=(1, 2, 3))
        weight_B = self.grid.noise_L.to(error_B)[at_B.to(error_B.device)].pow(-2)
        return (weight_B * error_B).mean(), {"mse": error_B.mean()}

    @torch.no_grad()
    def _wanted(self, x_BCHW: Tensor, *, at_B: Tensor, conditions_B: Tensor) -> Tensor:
        """The data that lead from x straight to where a fine step of the teacher, then the student, would arrive."""
        null_B = torch.full_like(conditions_B, self.conditions.null)
        data_BCHW = self._data(self.teacher, x_BCHW, at_B=at_B, conditions_B=conditions_B)
        if self.guidance != 1.0:
            plain_BCHW = self._data(self.teacher, x_BCHW, at_B=at_B, conditions_B=null_B)
            data_BCHW = plain_BCHW + self.guidance * (data_BCHW - plain_BCHW)
        next_BCHW = self._moved(x_BCHW, data_BCHW, factors_M2=self.grid.next_M2, at_B=at_B)
        # Where the fine step ends the segment, the student's word is not used; it is asked at a level that exists.
        there_B = (at_B + 1).clamp(max=len(self.grid.end_M2) - 1)
        named_BCHW = self._data(self.student, next_BCHW, at_B=there_B, conditions_B=conditions_B)
        beyond_BCHW = self._moved(next_BCHW, named_BCHW, factors_M2=self.grid.end_M2, at_B=there_B)
        last_B111 = self.grid.last_M[at_B].to(x_BCHW.device)[:, None, None, None]
        end_BCHW = torch.where(last_B111, next_BCHW, beyond_BCHW)
        keep_B111, add_B111 = (self._at(self.grid.end_M2[:, i], at_B, like=x_BCHW) for i in (0, 1))
        return (end_BCHW - keep_B111 * x_BCHW) / add_B111

    def _data(self, network: nn.Module, x_BCHW: Tensor, *, at_B: Tensor, conditions_B: Tensor) -> Tensor:
        """The data that a network names."""
        step_B = self.grid.step_L[at_B].to(x_BCHW.device)
        said_BCHW = network(x_BCHW, step_B, class_labels=conditions_B).sample.float()
        signal, noise = (self._at(of, at_B, like=x_BCHW) for of in (self.grid.signal_L, self.grid.noise_L))
        return data_of(said_BCHW, x_NCHW=x_BCHW, signal=signal, noise=noise, prediction=self.config.prediction)

    def _moved(self, x_BCHW: Tensor, data_BCHW: Tensor, *, factors_M2: Tensor, at_B: Tensor) -> Tensor:
        keep_B111, add_B111 = (self._at(factors_M2[:, i], at_B, like=x_BCHW) for i in (0, 1))
        return keep_B111 * x_BCHW + add_B111 * data_BCHW

    @staticmethod
    def _at(values: Tensor, at_B: Tensor, *, like: Tensor) -> Tensor:
        return values[at_B].to(like)[:, None, None, None]

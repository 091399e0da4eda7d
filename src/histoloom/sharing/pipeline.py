"""Synthetic tissue patches from an exported Histoloom generator, with diffusers alone.

Shapes: N images, D channels and h x w positions of what the U-Net sees, C channels of the decoder's latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle


class TissuePipeline(DiffusionPipeline):
    """U-Net, scheduler and decoder; ``tissues`` says which condition a name is, ``latents`` leaves the U-Net's space.

    ``tissues``: {"chosen_k", "null", "k": {k: {"first": condition of cluster 0, "names": {cluster: name}}}};
    ``latents``: {"mean": [C], "leave": [C][D], "fold": F, "shape": [F * F * D, h / F, w / F]};
    ``sampling``: {"steps", "guidance", "interval", "timesteps"}: ``interval`` [low, high] of sigma in which guidance
    acts, None for all of it; ``timesteps`` the unevenly spaced steps where the generator has such, else None.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: Any,
        autoencoder: nn.Module,
        tissues: Mapping[str, Any] | None = None,
        latents: Mapping[str, Any] | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, autoencoder=autoencoder)
        self.register_to_config(tissues=tissues, latents=latents, sampling=sampling)

    @torch.no_grad()
    def __call__(
        self,
        tissue: str | int,
        *,
        n: int = 1,
        k: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> list[Image.Image]:
        """Draw ``n`` images of ``tissue``: a name, or a cluster's number at ``k`` (else the chosen one).

        ``generator`` is one, or one an image; ``ValueError`` lists the tissues where ``tissue`` is none of them.
        Clusters that share the name take turns.
        """
        latents, sampling = self.config.latents, self.config.sampling
        conditions = self.conditions(tissue, k=k)
        conditions_N = torch.tensor([conditions[i % len(conditions)] for i in range(n)], device=self.device)
        self._set_steps(steps)
        scale = sampling["guidance"] if guidance is None else guidance
        x_NDhw = randn_tensor((n, *latents["shape"]), generator=generator, device=self.device, dtype=self.unet.dtype)
        x_NDhw = x_NDhw * self.scheduler.init_noise_sigma
        draws = {"generator": generator} if "generator" in signature(self.scheduler.step).parameters else {}
        for step in self.progress_bar(self.scheduler.timesteps):
            said_NDhw = self._guided(x_NDhw, step=step, conditions_N=conditions_N, guidance=scale)
            x_NDhw = self.scheduler.step(said_NDhw, step, x_NDhw, **draws).prev_sample
        images_N3HW = self.autoencoder(left(x_NDhw, latents=latents))
        return [Image.fromarray(image) for image in _bytes(images_N3HW)]

    def conditions(self, tissue: str | int, *, k: int | None = None) -> list[int]:
        """The U-Net's numbers of a tissue: one a cluster of that name."""
        tissues = self.config.tissues
        sweep = tissues["k"]
        asked = str(tissues["chosen_k"] if k is None else k)
        if asked not in sweep:
            raise ValueError(f"no k = {asked} in this generator; there are {', '.join(sweep)}")
        first, names = int(sweep[asked]["first"]), sweep[asked]["names"]
        wanted = str(tissue).casefold()
        found = [int(cluster) for cluster, name in names.items() if wanted in (name.casefold(), cluster)]
        if not found:
            raise ValueError(f"no tissue {tissue!r} at k = {asked}; there are {', '.join(names.values())}")
        return [first + cluster for cluster in found]

    def _set_steps(self, steps: int | None) -> None:
        """The generator's own steps where none are asked for and the scheduler takes such; else evenly spaced ones."""
        sampling = self.config.sampling
        listed = sampling.get("timesteps") if steps in (None, sampling["steps"]) else None
        if listed and "timesteps" in signature(self.scheduler.set_timesteps).parameters:
            self.scheduler.set_timesteps(timesteps=list(listed))
        else:
            self.scheduler.set_timesteps(steps or sampling["steps"])

    def _guided(self, x_NDhw: Tensor, *, step: Tensor, conditions_N: Tensor, guidance: float) -> Tensor:
        """Classifier-free guidance (Ho and Salimans 2022): null + g (conditional - null), once where g is 1."""
        if guidance == 1 or not self._within(step):
            return self.unet(x_NDhw, step, class_labels=conditions_N).sample
        null_N = torch.full_like(conditions_N, self.config.tissues["null"])
        both = self.unet(torch.cat([x_NDhw] * 2), step, class_labels=torch.cat([conditions_N, null_N])).sample
        conditional_NDhw, plain_NDhw = both.chunk(2)
        return plain_NDhw + guidance * (conditional_NDhw - plain_NDhw)

    def _within(self, step: Tensor) -> bool:
        """Whether guidance acts at a step: its sigma is in the interval (Kynkaanniemi et al. 2024)."""
        interval = self.config.sampling.get("interval")
        if not interval:
            return True
        share = float(self.scheduler.alphas_cumprod[int(step)])
        sigma = math.sqrt((1 - share) / share) if share > 0 else math.inf
        return bool(interval[0] < sigma <= interval[1])


def left(x_NDhw: Tensor, *, latents: Mapping[str, Any]) -> Tensor:
    """What the U-Net drew, as latents of the decoder: positions unfolded, directions turned back, the mean added."""
    x_NDhw = pixel_shuffle(x_NDhw, latents.get("fold", 1))
    z_NChw = torch.einsum("cd,ndhw->nchw", torch.tensor(latents["leave"]).to(x_NDhw), x_NDhw)
    return z_NChw + torch.tensor(latents["mean"]).to(x_NDhw)[:, None, None]


def _bytes(images_N3HW: Tensor) -> Any:
    whole = images_N3HW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return whole.permute(0, 2, 3, 1).cpu().numpy()

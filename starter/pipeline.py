"""Synthetic tissue patches from an exported Histoloom generator, with diffusers alone.

Shapes: N images, D channels and h x w positions of what the U-Net sees, C channels of the decoder's latents.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    ``sampling``: {"steps", "guidance"}.
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
        """
        latents, sampling = self.config.latents, self.config.sampling
        conditions_N = torch.full((n,), self.condition(tissue, k=k), device=self.device)
        self.scheduler.set_timesteps(steps or sampling["steps"])
        scale = sampling["guidance"] if guidance is None else guidance
        x_NDhw = randn_tensor((n, *latents["shape"]), generator=generator, device=self.device, dtype=self.unet.dtype)
        x_NDhw = x_NDhw * self.scheduler.init_noise_sigma
        for step in self.progress_bar(self.scheduler.timesteps):
            said_NDhw = self._guided(x_NDhw, step=step, conditions_N=conditions_N, guidance=scale)
            x_NDhw = self.scheduler.step(said_NDhw, step, x_NDhw, generator=generator).prev_sample
        images_N3HW = self.autoencoder(left(x_NDhw, latents=latents))
        return [Image.fromarray(image) for image in _bytes(images_N3HW)]

    def condition(self, tissue: str | int, *, k: int | None = None) -> int:
        """The U-Net's number of a tissue; the first cluster where several share the name."""
        tissues = self.config.tissues
        sweep = tissues["k"]
        asked = str(tissues["chosen_k"] if k is None else k)
        if asked not in sweep:
            raise ValueError(f"no k = {asked} in this generator; there are {', '.join(sweep)}")
        names = sweep[asked]["names"]
        for cluster, name in names.items():
            if str(tissue).casefold() in (name.casefold(), cluster):
                return int(sweep[asked]["first"]) + int(cluster)
        raise ValueError(f"no tissue {tissue!r} at k = {asked}; there are {', '.join(names.values())}")

    def _guided(self, x_NDhw: Tensor, *, step: Tensor, conditions_N: Tensor, guidance: float) -> Tensor:
        """Classifier-free guidance (Ho and Salimans 2022): null + g (conditional - null)."""
        null_N = torch.full_like(conditions_N, self.config.tissues["null"])
        both = self.unet(torch.cat([x_NDhw] * 2), step, class_labels=torch.cat([conditions_N, null_N])).sample
        conditional_NDhw, plain_NDhw = both.chunk(2)
        return plain_NDhw + guidance * (conditional_NDhw - plain_NDhw)


def left(x_NDhw: Tensor, *, latents: Mapping[str, Any]) -> Tensor:
    """What the U-Net drew, as latents of the decoder: positions unfolded, directions turned back, the mean added."""
    x_NDhw = pixel_shuffle(x_NDhw, latents.get("fold", 1))
    z_NChw = torch.einsum("cd,ndhw->nchw", torch.tensor(latents["leave"]).to(x_NDhw), x_NDhw)
    return z_NChw + torch.tensor(latents["mean"]).to(x_NDhw)[:, None, None]


def _bytes(images_N3HW: Tensor) -> Any:
    whole = images_N3HW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return whole.permute(0, 2, 3, 1).cpu().numpy()

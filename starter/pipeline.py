"""Synthetic tissue patches from an exported Histoloom generator, with diffusers alone.

Shapes: N images, D channels and h x w positions of what the U-Net sees, C channels of the decoder's latents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature

import torch
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor, nn


class TissuePipeline(DiffusionPipeline):
    """U-Net, scheduler and decoder of a generator.

    ``tissues``, the U-Net's conditions: {"chosen_k", "null", "k": {k: {"first": condition of cluster 0, "names":
    {cluster: name}}}}; ``latents``, from the U-Net's space to the decoder's: {"mean": [C], "leave": [C][D], "shape":
    [D, h, w]}; ``sampling``, the defaults: {"steps", "guidance"}.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        autoencoder: nn.Module,
        tissues: Mapping[str, object] | None = None,
        latents: Mapping[str, object] | None = None,
        sampling: Mapping[str, object] | None = None,
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

        Clusters that share the name take turns. ``generator`` is one, or one for each image. ``ValueError`` lists the
        tissues where ``tissue`` is none of them.
        """
        latents, sampling = self.config.latents, self.config.sampling
        guidance = sampling["guidance"] if guidance is None else guidance
        conditions = self.conditions(tissue, k=k)
        conditions_N = torch.tensor([conditions[i % len(conditions)] for i in range(n)], device=self.device)
        null_N = torch.full_like(conditions_N, self.config.tissues["null"])

        self.scheduler.set_timesteps(steps or sampling["steps"])
        x_NDhw = randn_tensor((n, *latents["shape"]), generator=generator, device=self.device, dtype=self.unet.dtype)
        x_NDhw = x_NDhw * self.scheduler.init_noise_sigma
        # Only stochastic schedulers take a generator.
        random = {"generator": generator} if "generator" in signature(self.scheduler.step).parameters else {}
        for step in self.progress_bar(self.scheduler.timesteps):
            if guidance == 1:
                output_NDhw = self.unet(x_NDhw, step, class_labels=conditions_N).sample
            else:
                # Classifier-free guidance (Ho and Salimans 2022): null + g (conditional - null).
                both = self.unet(torch.cat([x_NDhw] * 2), step, class_labels=torch.cat([conditions_N, null_N])).sample
                conditional_NDhw, unconditional_NDhw = both.chunk(2)
                output_NDhw = unconditional_NDhw + guidance * (conditional_NDhw - unconditional_NDhw)
            x_NDhw = self.scheduler.step(output_NDhw, step, x_NDhw, **random).prev_sample

        images_N3HW = self.autoencoder(decoder_latents(x_NDhw, mean=latents["mean"], leave=latents["leave"]))
        images_N3HW = images_N3HW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        return [Image.fromarray(image) for image in images_N3HW.permute(0, 2, 3, 1).cpu().numpy()]

    def conditions(self, tissue: str | int, *, k: int | None = None) -> list[int]:
        """The U-Net's conditions of a tissue: one for each cluster of that name."""
        sweep = self.config.tissues["k"]
        k_key = str(self.config.tissues["chosen_k"] if k is None else k)
        if k_key not in sweep:
            raise ValueError(f"no k = {k_key} in this generator; there are {', '.join(sweep)}")
        first, names = int(sweep[k_key]["first"]), sweep[k_key]["names"]
        wanted = str(tissue).casefold()
        clusters = [int(cluster) for cluster, name in names.items() if wanted in (name.casefold(), cluster)]
        if not clusters:
            raise ValueError(f"no tissue {tissue!r} at k = {k_key}; there are {', '.join(names.values())}")
        return [first + cluster for cluster in clusters]


def decoder_latents(x_NDhw: Tensor, *, mean: Sequence[float], leave: Sequence[Sequence[float]]) -> Tensor:
    """What the U-Net drew, as latents (N, C, h, w) of the decoder: scaled back, rotated back, the mean added."""
    z_NChw = torch.einsum("cd,ndhw->nchw", torch.tensor(leave).to(x_NDhw), x_NDhw)
    return z_NChw + torch.tensor(mean).to(x_NDhw)[:, None, None]

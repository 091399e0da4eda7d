"""An encoder of the run's own, trained without labels on the patches of its training split (``clustering.vicreg``).

Legend of shapes: N patches, B a block of pictures, H x W px, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from histoloom.autoencoder.vqgan import to_float
from histoloom.clustering.features.base import Features, Kind, Sources
from histoloom.clustering.features.pictures import PictureFeatures, Pictures
from histoloom.clustering.features.vicreg import Expander, PatchEncoder, VicregLoss
from histoloom.config import SelfsupConfig
from histoloom.run.directory import write_bytes
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import derive
from histoloom.training.devices import accelerator
from histoloom.training.loop import Objective, Task, train

WEIGHTS = "encoder.safetensors"


class Selfsup(PictureFeatures):
    """Features of a trained ``PatchEncoder``."""

    def __init__(
        self, encoder: PatchEncoder, *, channels: int, pictures: Pictures | None, device: torch.device
    ) -> None:
        super().__init__(pictures=pictures, device=device)
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        self.channels = channels

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.encoder.features,)

    def of_block(self, x_BHW3: Tensor) -> Tensor:
        return self.encoder(to_float(x_BHW3))

    def save(self, folder: Path) -> dict[str, Any]:
        weights = save({name: value.cpu().contiguous() for name, value in self.encoder.state_dict().items()})
        write_bytes(folder / WEIGHTS, weights)
        return {"channels": self.channels}


def make(context: StageContext) -> Features:
    """Train the encoder; a killed training continues from its checkpoint."""
    config = context.config.clusters.selfsup
    assert config is not None, "settled by the configuration for this kind"
    pictures = Pictures.of(context)
    encoder = _trained(context, config=config, pictures=pictures)
    device = accelerator(context.config.runtime).device
    return Selfsup(encoder, channels=config.channels, pictures=pictures, device=device)


def _trained(context: StageContext, *, config: SelfsupConfig, pictures: Pictures) -> PatchEncoder:
    patches, rows = pictures.patches, pictures.patches.rows(split="train")
    seed = derive(context.config.seed, "clusters", "selfsup")
    torch.manual_seed(derive(seed, "weights"))
    encoder = PatchEncoder(config.channels)
    expander = Expander(encoder.features)
    loss = VicregLoss(config, encoder=encoder, expander=expander, stain=context.config.latents.stain_jitter)
    task = Task(
        name="clusters.selfsup",
        modules={"encoder": encoder, "expander": expander},
        objectives=(Objective("encoder", ("encoder", "expander"), loss, config.training.phases),),
        n=len(rows),
        batch=lambda places: torch.from_numpy(patches.images(rows[places])),
        ema=("encoder",) if config.training.averages else (),
        setting="clusters.selfsup.training",
    )
    out = context.out / "selfsup"
    out.mkdir(exist_ok=True)
    runtime = context.config.runtime
    log = EventLog(out / "log.jsonl")
    trained = train(task, config=config.training, runtime=runtime, seed=seed, out=out, log=log).modules["encoder"]
    assert isinstance(trained, PatchEncoder), "the task's module keeps its kind"
    return trained


def load(sources: Sources) -> Features:
    """The encoder that the stage ``clusters`` published, for prediction."""
    channels = int(sources.said["channels"])
    encoder = PatchEncoder(channels)
    encoder.load_state_dict(load_file(sources.folder / WEIGHTS))
    return Selfsup(encoder, channels=channels, pictures=None, device=sources.device)


KIND = Kind(make, load)

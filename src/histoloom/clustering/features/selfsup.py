"""An encoder of the run's own, trained without labels on the patches of its training split (``features.vicreg``).

Shapes: N patches, B a block of images, H x W px, D features.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from histoloom.autoencoder.vqgan import to_float
from histoloom.clustering.features.base import EncoderRecord, Features, Sources
from histoloom.clustering.features.images import ImageFeatures, PatchImages
from histoloom.clustering.features.vicreg import Expander, PatchEncoder, VicregLoss
from histoloom.run.directory import write_bytes
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import derive
from histoloom.training.devices import accelerator
from histoloom.training.loop import Objective, Task, train

WEIGHTS = "encoder.safetensors"


class Selfsup(ImageFeatures):
    """Features of a trained ``PatchEncoder``."""

    def __init__(self, encoder: PatchEncoder, *, images: PatchImages | None, device: torch.device) -> None:
        super().__init__(images=images, device=device)
        self.encoder = encoder.to(device).eval().requires_grad_(False)

    @classmethod
    def make(cls, context: StageContext) -> Features:
        """Train the encoder; a killed training continues from its checkpoint."""
        images = PatchImages.of(context)
        return cls(_train(context, images), images=images, device=accelerator(context.config.runtime).device)

    @classmethod
    def load(cls, sources: Sources) -> Features:
        assert sources.encoder.channels is not None, "save returns the encoder's channels"
        encoder = PatchEncoder(sources.encoder.channels)
        encoder.load_state_dict(load_file(sources.folder / WEIGHTS))
        return cls(encoder, images=None, device=sources.device)

    def save(self, folder: Path) -> EncoderRecord:
        weights = save({name: value.cpu().contiguous() for name, value in self.encoder.state_dict().items()})
        write_bytes(folder / WEIGHTS, weights)
        return EncoderRecord(channels=self.encoder.channels)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.encoder.features,)

    def of_block(self, x_BHW3: Tensor) -> Tensor:
        return self.encoder(to_float(x_BHW3))


def _train(context: StageContext, images: PatchImages) -> PatchEncoder:
    config = context.config.clusters.selfsup
    assert config is not None, "the configuration fills it in for this kind"
    patches, rows = images.patches, images.patches.rows(split="train")
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
        batch=lambda indices: torch.from_numpy(patches.images(rows[indices])),
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

"""An independent judge of patches: a small network that learns to tell a run's clusters apart, from pixels alone.

It shares nothing with the run's VQ-GAN or its clusterer but the labels. Shapes: N patches, B of a batch, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.autoencoder.vqgan import to_float
from histoloom.clustering.features.vicreg import PatchEncoder
from histoloom.config import ClusterClassifierConfig, RuntimeConfig
from histoloom.run.stage import EventLog
from histoloom.seeding import derive
from histoloom.training.devices import accelerator, full_precision
from histoloom.training.loop import Objective, StepContext, Task, train

BLOCK = 32
Reader = Callable[[np.ndarray], np.ndarray]
"""Reads the images of an int array of numbers, in its order: uint8 (n, H, W, 3)."""


class ClusterClassifier(nn.Module):
    """Pixels to logits of K clusters."""

    def __init__(self, channels: int, *, clusters: int) -> None:
        super().__init__()
        self.encoder = PatchEncoder(channels)
        self.head = nn.Linear(self.encoder.features, clusters)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Logits (B, K) of pictures, float -1..1."""
        return self.head(self.encoder(x_B3HW))


@dataclass(frozen=True)
class LabelledSet:
    """Labelled patches to learn from: ``labels_N``, and ``read``, which knows them by their number 0..N-1."""

    name: str
    labels_N: np.ndarray
    read: Reader


def learn(
    lesson: LabelledSet, *, config: ClusterClassifierConfig, clusters: int, runtime: RuntimeConfig, seed: int, out: Path
) -> ClusterClassifier:
    """Train a judge, continuing where a killed call stopped; every cluster counts the same, whatever its size."""
    torch.manual_seed(derive(seed, "judge", "weights"))
    judge = ClusterClassifier(config.channels, clusters=clusters)
    counts_K = np.bincount(lesson.labels_N, minlength=clusters)
    present = (counts_K > 0).sum()
    weights_K = torch.tensor(np.where(counts_K > 0, len(lesson.labels_N) / (present * np.maximum(counts_K, 1)), 0.0))
    labels_N = torch.from_numpy(lesson.labels_N)

    def loss(batch: tuple[Tensor, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        images_BHW3, labels_B = batch
        x_B3HW = dihedral(to_float(images_BHW3), context.randint(DIHEDRAL, (len(images_BHW3),)))
        logits_BK = judge(x_B3HW).float()
        right_B = (logits_BK.argmax(1) == labels_B).float()
        each_B = F.cross_entropy(logits_BK, labels_B, reduction="none")
        return (weights_K.to(each_B)[labels_B] * each_B).mean(), {"accuracy": right_B.mean()}

    task = Task(
        name=f"judge, {lesson.name}",
        modules={"judge": judge},
        objectives=(Objective("judge", ("judge",), loss, config.training.phases),),
        n=len(labels_N),
        batch=lambda rows: (torch.from_numpy(lesson.read(rows)), labels_N[rows]),
        ema=("judge",) if config.training.averages else (),
        setting="evaluation.cluster_classifier.training",
    )
    out.mkdir(parents=True, exist_ok=True)
    log = EventLog(out / "log.jsonl")
    trained = train(task, config=config.training, runtime=runtime, seed=derive(seed, "judge"), out=out, log=log)
    found = trained.modules["judge"]
    assert isinstance(found, ClusterClassifier), "the task's module keeps its kind"
    return found


@torch.no_grad()
def judged(judge: ClusterClassifier, read: Reader, *, n: int, runtime: RuntimeConfig) -> np.ndarray:
    """The cluster that the judge sees in each of ``n`` images, int64 (n,)."""
    device = accelerator(runtime).device
    parts = []
    for start in range(0, n, BLOCK):
        images_BHW3 = read(np.arange(start, min(n, start + BLOCK)))
        filled = np.concatenate([images_BHW3, np.repeat(images_BHW3[-1:], BLOCK - len(images_BHW3), axis=0)])
        with full_precision():
            logits_BK = judge(to_float(torch.from_numpy(filled).to(device)))
        parts.append(logits_BK.argmax(1)[: len(images_BHW3)].cpu().numpy())
    return np.concatenate([np.empty(0, np.int64), *parts])

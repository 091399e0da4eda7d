"""The cluster classifier: a small network that predicts a run's clusters from pixels alone.

It is an independent check of samples: it shares nothing with the run's VQ-GAN or its clusterer but the labels. Shapes:
N images, B of a batch, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.autoencoder.vqgan import to_float
from histoloom.config import ClusterClassifierConfig, RuntimeConfig
from histoloom.evaluation.images import Reader
from histoloom.evaluation.patch_encoder import PatchEncoder
from histoloom.run.stage import EventLog
from histoloom.seeding import derive
from histoloom.training.devices import accelerator, full_precision
from histoloom.training.loop import Objective, StepContext, Task, train
from histoloom.training.memory import in_fitting_parts
from histoloom.training.transfers import put_array

BLOCK = 32
"""images that are classified at once, always: sums differ in the last bit between batch sizes"""


class ClusterClassifier(nn.Module):
    """Pixels to logits of K clusters."""

    def __init__(self, channels: int, *, clusters: int) -> None:
        super().__init__()
        self.encoder = PatchEncoder(channels)
        self.head = nn.Linear(self.encoder.features, clusters)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Logits (B, K) of images, float -1..1."""
        return self.head(self.encoder(x_B3HW))


@dataclass(frozen=True)
class LabelledSet:
    """Images with their cluster: ``read`` reads the images of indices 0..N-1."""

    labels_N: np.ndarray
    read: Reader

    def __len__(self) -> int:
        return len(self.labels_N)

    def __add__(self, other: LabelledSet) -> LabelledSet:
        """The images of both sets, one after the other."""

        def read(indices: np.ndarray) -> np.ndarray:
            is_first = indices < len(self)
            parts = ((self, indices[is_first]), (other, indices[~is_first] - len(self)))
            images = np.concatenate([labelled.read(some) for labelled, some in parts if len(some)])
            return images[np.argsort(np.argsort(~is_first, kind="stable"))]  # back in the order of ``indices``

        return LabelledSet(np.concatenate([self.labels_N, other.labels_N]), read)


def train_classifier(
    images: LabelledSet,
    *,
    name: str,
    config: ClusterClassifierConfig,
    clusters: int,
    runtime: RuntimeConfig,
    seed: int,
    out: Path,
) -> ClusterClassifier:
    """Train a classifier, continuing where a killed call stopped; every cluster counts the same, whatever its size.

    ``name`` says what it is trained on; ``out`` gets the log and the checkpoints.
    """
    torch.manual_seed(derive(seed, "cluster classifier", "weights"))
    classifier = ClusterClassifier(config.channels, clusters=clusters)
    labels_N = torch.from_numpy(images.labels_N)
    counts_K = np.bincount(images.labels_N, minlength=clusters)
    present = (counts_K > 0).sum()
    weights = np.where(counts_K > 0, len(images) / (present * np.maximum(counts_K, 1)), 0.0)
    weights_K = put_array(weights.astype(np.float32), accelerator(runtime).device)

    def loss(batch: tuple[Tensor, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        images_BHW3, labels_B = batch
        x_B3HW = dihedral(to_float(images_BHW3), context.randint(DIHEDRAL, (len(images_BHW3),)))
        logits_BK = classifier(x_B3HW).float()
        is_right_B = (logits_BK.argmax(1) == labels_B).float()
        loss_B = F.cross_entropy(logits_BK, labels_B, reduction="none")
        return (weights_K[labels_B] * loss_B).mean(), {"accuracy": is_right_B.mean()}

    task = Task(
        name=f"cluster classifier, {name}",
        modules={"classifier": classifier},
        objectives=(Objective("classifier", ("classifier",), loss, config.training.phases),),
        n=len(labels_N),
        batch=lambda rows: (torch.from_numpy(images.read(rows)), labels_N[rows]),
        ema=("classifier",) if config.training.averages else (),
        setting="evaluation.cluster_classifier.training",
    )
    out.mkdir(parents=True, exist_ok=True)
    log = EventLog(out / "log.jsonl")
    seed = derive(seed, "cluster classifier")
    trained = train(task, config=config.training, runtime=runtime, seed=seed, out=out, log=log)
    result = trained.modules["classifier"]
    assert isinstance(result, ClusterClassifier), "the task's module keeps its class"
    return result


@torch.no_grad()
def predict_clusters(classifier: ClusterClassifier, read: Reader, *, n: int, runtime: RuntimeConfig) -> np.ndarray:
    """The most probable cluster of each of the ``n`` images that ``read`` reads, int64 (n,)."""
    device = accelerator(runtime).device

    def of_block(images_BHW3: np.ndarray) -> Tensor:
        return classifier(to_float(put_array(images_BHW3, device))).argmax(1)

    parts = [torch.empty(0, dtype=torch.int64, device=device)]
    for start in range(0, n, BLOCK):
        images_BHW3 = read(np.arange(start, min(n, start + BLOCK)))
        padded = np.concatenate([images_BHW3, np.repeat(images_BHW3[-1:], BLOCK - len(images_BHW3), axis=0)])
        with full_precision():
            blocks = in_fitting_parts(of_block, padded, name="telling clusters of images")
        parts.append(torch.cat(blocks)[: len(images_BHW3)])
    return torch.cat(parts).cpu().numpy()

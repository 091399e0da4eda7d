"""The stage ``clusters``: latents or other features in; for every k of a sweep, clusters, indices, a choice out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save
from torch import Tensor

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clusterer import Architecture, Clusterer, build
from histoloom.clustering.confounding.report import examine
from histoloom.clustering.features.bank import Bank, make_bank
from histoloom.clustering.features.validity import features_of
from histoloom.clustering.independence import IndependentLoss, slide_share
from histoloom.clustering.infomax import Network, mutual_information
from histoloom.clustering.kmeans import kmeans_labels
from histoloom.clustering.losses import InfoMaxLoss
from histoloom.clustering.validity.decision import choose_with_nulls, with_evidence
from histoloom.clustering.validity.index_vote import Choice, choose_k
from histoloom.clustering.validity.indices import INDICES, validity_indices
from histoloom.clustering.validity.sweep import agreement_of_restarts
from histoloom.errors import UserError
from histoloom.progress import meter
from histoloom.run.directory import read_json, write_bytes, write_json
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import derive, numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import accelerator
from histoloom.training.distributed import is_main_process
from histoloom.training.loop import Objective, Task, train

CHUNK = 256
RENEWAL = 1024  # patches that decide which outputs start again

Probabilities = dict[int, np.ndarray]


def run(context: StageContext) -> None:
    """Train on the training split, keep the best restart, predict every patch, choose k."""
    latents = LatentSet.open(context.inputs["latents"])
    _check_enough(context, n=len(latents.rows(split="train")))
    bank = make_bank(context, latents=latents)
    restarts = range(context.config.clusters.restarts)
    trained = [_train(context, latents=latents, bank=bank, restart=restart) for restart in restarts]
    if not is_main_process():
        return
    train_rows = latents.rows(split="train")
    predicted = [predict(clusterer, bank, rows=train_rows) for clusterer in trained]
    objectives = [_worth(context, probabilities, latents=latents, rows=train_rows) for probabilities in predicted]
    best = int(np.argmax(objectives))
    for event in EventLog(context.out / f"restart-{best}" / "log.jsonl").read():
        context.log.write(event)
    context.say(f"restart {best} of {len(trained)} kept: information {objectives[best]:.3f} of 1")
    clusterer = trained[best]
    sizes = {k: torch.from_numpy(_sizes(p_NK, k=k)) for k, p_NK in predicted[best].items()}
    clusterer.sort_by_size(sizes)
    clusterer.save(context.out)
    _write_predictions(context, latents=latents, bank=bank, clusterer=clusterer)
    labels = [{k: p_NK.argmax(axis=1) for k, p_NK in probabilities.items()} for probabilities in predicted]
    _write_validity(context, latents=latents, restarts=agreement_of_restarts(labels))
    _write_confounding(context)


def _check_enough(context: StageContext, *, n: int) -> None:
    largest = max(context.config.clusters.k)
    if n <= largest:
        raise UserError(
            f"{n} training patches cannot make {largest} clusters; "
            "raise patches.count, lower clusters.k, or lower patches.split.holdout"
        )


def _train(context: StageContext, *, latents: LatentSet, bank: Bank, restart: int) -> Clusterer:
    config = context.config.clusters
    seed = derive(context.config.seed, "clusters", "restart", restart)
    rows = latents.rows(split="train")
    torch.manual_seed(derive(seed, "weights"))
    clusterer = build(Architecture(bank.shape[0], config.channels, config.k, vectors=len(bank.shape) == 1))
    loss, batch = _objective(context, latents=latents, bank=bank, rows=rows, network=clusterer.network)
    task = Task(
        name="clusters",
        setting="clusters.training",
        modules={"network": clusterer.network},
        objectives=(Objective("network", ("network",), loss, config.training.phases),),
        n=len(rows),
        batch=batch,
        whole=True,
    )
    out = context.out / f"restart-{restart}"
    out.mkdir(exist_ok=True)
    log = EventLog(out / "log.jsonl")
    train(task, config=config.training, runtime=context.config.runtime, seed=seed, out=out, log=log)
    return clusterer.eval()


def _objective(
    context: StageContext, *, latents: LatentSet, bank: Bank, rows: np.ndarray, network: Network
) -> tuple[Any, Any]:
    """What is minimised, and the reader of its batches: of features, and of slides where these are to be ignored."""
    config = context.config.clusters
    looked_at = np.sort(numpy_generator(context.config.seed, "clusters", "renewal").permutation(len(rows))[:RENEWAL])

    def read(places: np.ndarray) -> Tensor:
        return bank.versions(rows[places])

    def sample() -> Iterator[Tensor]:
        return (read(looked_at[start : start + CHUNK]) for start in range(0, len(looked_at), CHUNK))

    inner = InfoMaxLoss(config, network=network, sample=sample)

    if not config.independence:
        return inner, read
    slides_N = _slides(context, latents=latents)[rows]

    def read_with_slides(places: np.ndarray) -> tuple[Tensor, Tensor]:
        return read(places), torch.from_numpy(slides_N[places])

    return IndependentLoss(inner, weight=config.independence, slides=int(slides_N.max()) + 1), read_with_slides


def _slides(context: StageContext, *, latents: LatentSet) -> np.ndarray:
    """Each latent's slide as a number from 0, int64 (n,): the table's slide, of which several files may be fields."""
    named = PatchSet.open(context.inputs["patches"]).columns("patch_id", "slide").set_index("patch_id")["slide"]
    return pd.factorize(named.loc[latents.table["patch_id"]], sort=True)[0].astype(np.int64)


def _worth(context: StageContext, predicted: Probabilities, *, latents: LatentSet, rows: np.ndarray) -> float:
    """The objective, less what the clusters share with the slide where that is a cost."""
    weight = context.config.clusters.independence
    if not weight:
        return objective(predicted)
    return objective(predicted) - weight * slide_share(predicted, slides_N=_slides(context, latents=latents)[rows])


def objective(predicted: Probabilities) -> float:
    """Mutual information of patch and cluster as a share of its maximum log k, averaged over the sweep, 0..1."""
    shares = [float(mutual_information(torch.from_numpy(p_NK))) / np.log(k) for k, p_NK in predicted.items()]
    return float(np.mean(shares))


@torch.no_grad()
def predict(clusterer: Clusterer, bank: Bank, *, rows: np.ndarray) -> Probabilities:
    """Probabilities of ``rows`` for every k, float32 (len(rows), k)."""
    device = next(clusterer.network.parameters()).device
    parts: dict[int, list[np.ndarray]] = {k: [] for k in clusterer.architecture.ks}
    for start in range(0, len(rows), CHUNK):
        z_NChw = bank.own(rows[start : start + CHUNK]).to(device)
        for k, p_NK in clusterer.to(device).probabilities(z_NChw).items():
            parts[k].append(p_NK.cpu().numpy())
    return {k: np.concatenate(chunks) for k, chunks in parts.items()}


def _sizes(p_NK: np.ndarray, *, k: int) -> np.ndarray:
    return np.bincount(p_NK.argmax(axis=1), minlength=k)


def _write_predictions(context: StageContext, *, latents: LatentSet, bank: Bank, clusterer: Clusterer) -> None:
    """``probabilities.safetensors`` and ``index.parquet``."""
    predicted = predict(clusterer, bank, rows=np.arange(len(latents)))
    stored = save({f"k{k}": np.ascontiguousarray(p_NK) for k, p_NK in predicted.items()})
    write_bytes(context.out / "probabilities.safetensors", stored)
    labels = {f"k{k}": p_NK.argmax(axis=1).astype(np.int32) for k, p_NK in predicted.items()}
    table = pd.DataFrame({"patch_id": latents.table["patch_id"], **labels})
    table.to_parquet(context.out / "index.parquet", index=False)


def _write_validity(context: StageContext, *, latents: LatentSet, restarts: dict[int, list[float]]) -> None:
    """``validity.json`` and ``choice.json``, on the training split. ``restarts``: how far they agree, by k."""
    config, seed = context.config.clusters, context.config.seed
    rows = latents.rows(split="train")
    chosen = np.sort(numpy_generator(seed, "clusters", "validity").permutation(rows)[: config.validity_points])
    x_ND = features_of(latents, chosen, kind=config.validity_features, clusters=context.out)
    table = pd.read_parquet(context.out / "index.parquet")
    device = accelerator(context.config.runtime).device
    entries: list[dict[str, Any]] = []
    with meter("validity indices", total=2 * len(config.k)) as progress:
        for k in config.k:
            methods = {
                "infomax": table[f"k{k}"].to_numpy()[chosen],
                "kmeans": kmeans_labels(x_ND, k=k, seed=seed),
            }
            for method, labels_N in methods.items():
                entries.append(_entry(x_ND, labels_N, k=k, method=method, device=device))
                progress.advance(1)
    write_json(context.out / "validity.json", entries)
    plain = _plain_choice([entry for entry in entries if entry["method"] == "infomax"])
    evidence = choose_with_nulls(
        x_ND,
        ks=config.k,
        seed=seed,
        draws=config.null_draws,
        points=config.null_points,
        passed_over=plain.passed_over,
    )
    choice = with_evidence(plain, evidence=evidence, chooser=config.chooser) | {"restarts": restarts}
    write_json(context.out / "choice.json", choice)
    context.say(f"k = {choice['k']}: {choice['evidence']}")


def _plain_choice(entries: list[dict[str, Any]]) -> Choice:
    found = {e["k"]: None if e[INDICES[0]] is None else {index: e[index] for index in INDICES} for e in entries}
    return choose_k(found, empty={entry["k"]: entry["sizes"].count(0) for entry in entries})


def _entry(x_ND: np.ndarray, labels_N: np.ndarray, *, k: int, method: str, device: torch.device) -> dict[str, Any]:
    """A row of ``validity.json``; its indices are None where all patches are in one cluster."""
    sizes = np.bincount(labels_N, minlength=k)
    values: dict[str, float | None] = dict.fromkeys(INDICES)
    if np.count_nonzero(sizes) > 1:
        result = validity_indices(torch.from_numpy(x_ND).to(device), torch.from_numpy(np.asarray(labels_N, np.int64)))
        values = {index: getattr(result, index) for index in INDICES}
    return {"k": k, "method": method, **values, "n": len(x_ND), "sizes": sizes.tolist()}


def _write_confounding(context: StageContext) -> None:
    """``confounding.json``, over all patches; says what is wrong at the chosen k, and nothing where nothing is."""
    table = pd.read_parquet(context.out / "index.parquet")
    found = examine(table, patches=PatchSet.open(context.inputs["patches"]), seed=context.config.seed)
    write_json(context.out / "confounding.json", found)
    k = read_json(context.out / "choice.json")["k"]
    for sentence in found["warnings"].get(str(k), []):
        context.say(f"warning, clusters at k = {k}: {sentence}")

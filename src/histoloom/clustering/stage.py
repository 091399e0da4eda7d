"""The stage ``clusters``: latents or other features in; for every k of a sweep, clusters and indices, and one k, out.

Shapes: N patches, D features, K clusters; h x w positions of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, get_args

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save
from sklearn.cluster import KMeans
from torch import Tensor

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clusterer import Architecture, Clusterer, build
from histoloom.clustering.confounding.report import examine
from histoloom.clustering.features.bank import Bank, make_bank, validity_features
from histoloom.clustering.independence import IndependentLoss, slide_share
from histoloom.clustering.infomax import Network, mutual_information
from histoloom.clustering.losses import InfoMaxLoss
from histoloom.clustering.neighbours import KMEANS_POINTS, LinearNet, NeighbourLoss, slide_neighbours
from histoloom.clustering.patch_alone import MOST_PATCHES, teach
from histoloom.clustering.results import Decision, Method, PatchAlone, ValidityEntry, ValidityTable
from histoloom.clustering.validity.decision import decide, decide_by_nulls, vote_by_indices
from histoloom.clustering.validity.indices import INDICES, validity_indices
from histoloom.clustering.validity.null_comparison import agreement_of_restarts
from histoloom.errors import UserError
from histoloom.processes import is_main_process
from histoloom.progress import meter
from histoloom.run.directory import write_bytes
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import derive, numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import accelerator
from histoloom.training.loop import Objective, Task, train
from histoloom.training.transfers import hold, to_device

BATCH_SIZE = 256
KMEANS_STARTS = 4
REINIT_PATCHES = 1024  # patches that decide which outputs are initialised again

Probabilities = dict[int, np.ndarray]


class TrainRestart(Protocol):
    """Trains the clusterer of one restart on ``rows``; ``slides_N``: make the clusters independent of these slides."""

    def __call__(
        self, context: StageContext, *, bank: Bank, rows: np.ndarray, slides_N: np.ndarray | None, restart: int
    ) -> Clusterer: ...


def run(context: StageContext, *, train_restart: TrainRestart | None = None) -> None:
    """Train on the training split, keep the best restart, predict every patch, decide on k.

    ``train_restart``: how the clusterer is trained; None: by information maximisation alone.
    """
    config, seed = context.config.clusters, context.config.seed
    patches = PatchSet.open(context.inputs["patches"])
    latents = LatentSet.open(context.inputs["latents"])
    train_rows = latents.rows(split="train")
    if len(train_rows) <= max(config.k):
        raise UserError(
            f"{len(train_rows)} training patches cannot make {max(config.k)} clusters; "
            "raise patches.count, lower clusters.k, or lower patches.split.holdout"
        )

    # Train each restart for all k at once
    bank = make_bank(context, latents=latents)
    slides_N: np.ndarray | None = None
    if config.independence:  # each slide as a number from 0; several files may be fields of one slide
        slide_by_id = patches.columns("patch_id", "slide").set_index("patch_id")["slide"]
        numbers_N = pd.factorize(slide_by_id.loc[latents.table["patch_id"]], sort=True)[0]
        slides_N = numbers_N.astype(np.int64)[train_rows]
    trained = [
        (train_restart or _train)(context, bank=bank, rows=train_rows, slides_N=slides_N, restart=restart)
        for restart in range(config.restarts)
    ]
    if not is_main_process():
        return

    # Keep the one whose objective is best on the training split
    predicted = [predict(clusterer, bank, rows=train_rows) for clusterer in trained]
    objectives = [objective(probabilities) for probabilities in predicted]
    if slides_N is not None:
        shares = [slide_share(probabilities, slides_N=slides_N) for probabilities in predicted]
        objectives = [value - config.independence * share for value, share in zip(objectives, shares, strict=True)]
    best = int(np.argmax(objectives))
    for event in EventLog(context.out / f"restart-{best}" / "log.jsonl").read():
        context.log.write(event)
    context.say(f"restart {best} of {len(trained)} kept: information {objectives[best]:.3f} of 1")
    clusterer = trained[best]
    alone = _teach_patch_alone(context, clusterer, bank=bank, latents=latents, predicted=predicted[best])
    labels = [{k: p_NK.argmax(axis=1) for k, p_NK in probabilities.items()} for probabilities in predicted]
    clusterer.sort_by_size({k: torch.from_numpy(np.bincount(x_N, minlength=k)) for k, x_N in labels[best].items()})
    clusterer.save(context.out)

    # Predict every patch: probabilities.safetensors, index.parquet
    predicted_all = predict(clusterer, bank, rows=np.arange(len(latents)))
    stored = save({f"k{k}": np.ascontiguousarray(p_NK) for k, p_NK in predicted_all.items()})
    write_bytes(context.out / "probabilities.safetensors", stored)
    table = pd.DataFrame(
        {"patch_id": latents.table["patch_id"]}
        | {f"k{k}": p_NK.argmax(axis=1).astype(np.int32) for k, p_NK in predicted_all.items()}
    )
    table.to_parquet(context.out / "index.parquet", index=False)

    # Compare the k on some training patches: validity.json, choice.json
    shuffled = numpy_generator(seed, "clusters", "validity").permutation(train_rows)
    rows = np.sort(shuffled[: config.validity_points])
    x_ND = validity_features(latents, rows, kind=config.validity_features, clusters=context.out)
    validity = _validity(context, x_ND, labels={k: table[f"k{k}"].to_numpy()[rows] for k in config.k})
    validity.save(context.out)
    decision = _decide(context, x_ND, validity=validity, restarts=agreement_of_restarts(labels))
    decision.save(context.out)
    context.say(f"k = {decision.k}: {decision.text}")
    if alone is not None:
        context.say(f"a patch alone, without its slide, shows its cluster in {alone.agreement[decision.k]:.0%}")

    # What the clusters share with slide, patient, stain and colour: confounding.json
    confounding = examine(table, patches=patches, seed=seed)
    confounding.save(context.out)
    colour, slides = confounding.colour_of(decision.k), confounding.ami_with_slides(decision.k)
    if colour is not None:
        with_slides = "" if slides is None else f", with slides {slides:.2f}"
        context.say(
            f"agreement of the clusters at k = {decision.k} (AMI, 1 is the same partition): with k-means on colour "
            f"{colour.colour:.2f}, on stain {colour.stain:.2f}{with_slides}"
        )
    for sentence in (*confounding.warnings.get(decision.k, ()), *filter(None, [colour and colour.warning])):
        context.say(f"warning, clusters at k = {decision.k}: {sentence}")


def _train(
    context: StageContext, *, bank: Bank, rows: np.ndarray, slides_N: np.ndarray | None, restart: int
) -> Clusterer:
    """One restart on the training split; ``slides_N``: make the clusters independent of these slides."""
    config = context.config.clusters
    assert config.training is not None, "the clusters have a training of their own"
    seed = derive(context.config.seed, "clusters", "restart", restart)
    torch.manual_seed(derive(seed, "weights"))
    vectors, linear = len(bank.shape) == 1, config.positives == "neighbours"
    of_patch = bank.of_patch if bank.of_patch < bank.shape[0] else 0
    clusterer = build(
        Architecture(
            bank.shape[0],
            config.channels,
            config.k,
            vectors=vectors,
            linear=linear,
            of_patch=of_patch,
            unseen=bank.unseen,
        )
    )
    assert isinstance(clusterer.network, Network), "one network for all k"
    if isinstance(clusterer.network, LinearNet):
        some = numpy_generator(seed, "kmeans").permutation(len(rows))[:KMEANS_POINTS]
        clusterer.network.start_from_kmeans(bank.own(rows[np.sort(some)]).numpy(), seed=derive(seed, "kmeans"))
    loss, batch = _loss(context, bank=bank, rows=rows, slides_N=slides_N, network=clusterer.network)
    task = Task(
        name="clusters",
        setting="clusters.training",
        modules={"network": clusterer.network},
        objectives=(Objective("network", ("network",), loss, config.training.phases),),
        n=len(rows),
        batch=batch,
        whole_batch=True,
        compiled=loss.compiled,
    )
    out = context.out / f"restart-{restart}"
    out.mkdir(exist_ok=True)
    log = EventLog(out / "log.jsonl")
    train(task, config=config.training, runtime=context.config.runtime, seed=seed, out=out, log=log)
    return clusterer.eval()


def _teach_patch_alone(
    context: StageContext, clusterer: Clusterer, *, bank: Bank, latents: LatentSet, predicted: Probabilities
) -> PatchAlone | None:
    """Teach the heads for the patch alone, and write how often they agree; None without surroundings.

    ``predicted``: the training split's probabilities with the surroundings.
    """
    network = clusterer.network
    if not isinstance(network, LinearNet) or not network.heads_alone:
        return None
    train_rows, held_out = latents.rows(split="train"), latents.rows(split="holdout")
    order = numpy_generator(context.config.seed, "clusters", "patch alone").permutation(len(train_rows))
    some = np.sort(order[:MOST_PATCHES])
    device = next(network.parameters()).device
    teach(
        network,
        bank.own(train_rows[some])[:, : bank.of_patch].to(device),
        targets={k: torch.from_numpy(p_NK[some]).to(device) for k, p_NK in predicted.items()},
    )
    rows = held_out if len(held_out) else train_rows
    alone, whole = (predict(clusterer, bank, rows=rows, alone=alone) for alone in (True, False))
    shares = {k: float(np.mean(p_NK.argmax(axis=1) == whole[k].argmax(axis=1))) for k, p_NK in alone.items()}
    record = PatchAlone(n=len(rows), split="holdout" if len(held_out) else "train", agreement=shares)
    record.save(context.out)
    return record


def _loss(
    context: StageContext, *, bank: Bank, rows: np.ndarray, slides_N: np.ndarray | None, network: Network
) -> tuple[InfoMaxLoss | NeighbourLoss | IndependentLoss, Callable[[np.ndarray], Tensor | tuple[Tensor, Tensor]]]:
    """The loss, and the function that reads its batches: features, and slides where there are ``slides_N``."""
    config = context.config.clusters
    device = accelerator(context.config.runtime).device
    read: Callable[[np.ndarray], Tensor]
    inner: InfoMaxLoss | NeighbourLoss
    if config.positives == "neighbours":
        place = PatchSet.open(context.inputs["patches"]).columns("patch_id", "slide_id", "x", "y", "extent")
        place = place.set_index("patch_id").loc[LatentSet.open(context.inputs["latents"]).table["patch_id"]].iloc[rows]
        side_N = place["extent"].to_numpy(np.float64)
        neighbours_NM = slide_neighbours(
            pd.factorize(place["slide_id"])[0],
            middle_N2=place[["x", "y"]].to_numpy(np.float64) + side_N[:, None] / 2,
            side_N=side_N,
        )
        held = hold(lambda numbers: bank.own(rows[numbers]), n=len(rows), device=device)

        def vectors(numbers_B: Tensor) -> Tensor:
            if held is not None:
                return held(numbers_B)
            return to_device(bank.own(rows[numbers_B.cpu().numpy()]), numbers_B.device)

        def with_neighbours(indices: np.ndarray) -> Tensor:
            return torch.from_numpy(np.concatenate([indices[:, None], neighbours_NM[indices]], axis=1))

        read = with_neighbours
        inner = NeighbourLoss(network, vectors=vectors)
    else:
        shuffled = numpy_generator(context.config.seed, "clusters", "renewal").permutation(len(rows))
        sample_N = np.sort(shuffled[:REINIT_PATCHES])

        def versions(indices: np.ndarray) -> Tensor:
            return bank.versions(rows[indices])

        def sample() -> Iterator[Tensor]:
            return (versions(sample_N[start : start + BATCH_SIZE]) for start in range(0, len(sample_N), BATCH_SIZE))

        held = hold(versions, n=len(rows), device=device)
        read = versions if held is None else torch.from_numpy
        inner = InfoMaxLoss(config, network=network, sample=sample, versions=held)
    if slides_N is None:
        return inner, read

    def read_with_slides(indices: np.ndarray) -> tuple[Tensor, Tensor]:
        return read(indices), torch.from_numpy(slides_N[indices])

    return IndependentLoss(inner, weight=config.independence, slides=int(slides_N.max()) + 1), read_with_slides


def objective(predicted: Probabilities) -> float:
    """Mutual information of patch and cluster as a share of its maximum log k, averaged over the sweep, 0..1."""
    shares = [float(mutual_information(torch.from_numpy(p_NK))) / np.log(k) for k, p_NK in predicted.items()]
    return float(np.mean(shares))


@torch.no_grad()
def predict(clusterer: Clusterer, bank: Bank, *, rows: np.ndarray, alone: bool = False) -> Probabilities:
    """Probabilities of ``rows`` for every k, float32 (len(rows), k); ``alone``: without the patches' surroundings."""
    device = next(clusterer.network.parameters()).device
    parts: dict[int, list[np.ndarray]] = {k: [] for k in clusterer.architecture.ks}
    for start in range(0, len(rows), BATCH_SIZE):
        z_NChw = bank.own(rows[start : start + BATCH_SIZE]).to(device)
        z_NChw = z_NChw[:, : bank.of_patch] if alone else z_NChw
        for k, p_NK in clusterer.to(device).probabilities(z_NChw).items():
            parts[k].append(p_NK.cpu().numpy())
    return {k: np.concatenate(chunks) for k, chunks in parts.items()}


def _validity(context: StageContext, x_ND: np.ndarray, *, labels: dict[int, np.ndarray]) -> ValidityTable:
    """The five indices of the clusters ``labels``, (N,) by k, and of k-means on the same features (N, D)."""
    device = accelerator(context.config.runtime).device
    entries: list[ValidityEntry] = []
    with meter("validity indices", total=len(get_args(Method)) * len(labels)) as progress:
        for k, infomax_N in labels.items():
            methods: dict[Method, np.ndarray] = {
                "infomax": infomax_N,
                "kmeans": kmeans_labels(x_ND, k=k, seed=context.config.seed),
            }
            for method, labels_N in methods.items():
                sizes = np.bincount(labels_N, minlength=k)
                values: dict[str, float] = {}
                if np.count_nonzero(sizes) > 1:  # the indices of a single cluster are not defined
                    codes_N = torch.from_numpy(np.asarray(labels_N, np.int64))
                    result = validity_indices(torch.from_numpy(x_ND).to(device), codes_N)
                    values = {index: getattr(result, index) for index in INDICES}
                entries.append(ValidityEntry(k=k, method=method, n=len(x_ND), sizes=tuple(sizes.tolist()), **values))
                progress.advance(1)
    return ValidityTable(entries=tuple(entries))


def kmeans_labels(x_ND: np.ndarray, *, k: int, seed: int) -> np.ndarray:
    """k-means (Lloyd 1982; Arthur and Vassilvitskii 2007): labels 0..k-1, numbered by falling size.

    The best of ``KMEANS_STARTS`` seeded starts by inertia.

    Features are not standardised: on pooled latents, giving every feature the same deviation made the agreement with
    true tissue worse.
    """
    model = KMeans(n_clusters=k, n_init=KMEANS_STARTS, random_state=derive(seed, "kmeans", k) % 2**32)
    return by_falling_size(model.fit_predict(x_ND), k=k)


def by_falling_size(labels_N: np.ndarray, *, k: int) -> np.ndarray:
    """The same clusters, numbered so that cluster 0 is the largest."""
    order_K = np.argsort(-np.bincount(labels_N, minlength=k), kind="stable")
    number_K = np.empty(k, dtype=np.int64)
    number_K[order_K] = np.arange(k)
    return number_K[labels_N]


def _decide(
    context: StageContext, x_ND: np.ndarray, *, validity: ValidityTable, restarts: dict[int, list[float]]
) -> Decision:
    """Which k: by the comparison with data without clusters, or by the vote of the five indices."""
    config = context.config.clusters
    values: dict[int, dict[str, float] | None] = {}
    for k, entry in validity.of("infomax").items():
        indices = {name: value for name in INDICES if (value := entry.index(name)) is not None}
        values[k] = indices or None
    empty = {k: entry.sizes.count(0) for k, entry in validity.of("infomax").items()}
    vote = vote_by_indices(values, empty=empty)
    by_nulls = decide_by_nulls(
        x_ND,
        ks=config.k,
        seed=context.config.seed,
        draws=config.null_draws,
        points=config.null_points,
        passed_over=vote.passed_over,
    )
    return decide(vote, by_nulls=by_nulls, chooser=config.chooser, restarts=restarts)

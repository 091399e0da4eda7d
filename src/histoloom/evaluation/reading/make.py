"""A new reading: which pictures it shows, drawn from the run, balanced and seeded.

As many real pictures as samples of each tissue, so that the tissue says nothing about the truth; no picture twice and
no two patches that overlap; pictures that no reading showed before, and of these patches of held-out slides first. The
order on the screen is each reader's own (``session.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import numpy as np

from histoloom.errors import UserError
from histoloom.evaluation.reading.folder import Reading, publish, readings
from histoloom.evaluation.reading.material import Material, Tissue, allot, distinct
from histoloom.evaluation.reading.plan import Kind, Plan, Request, Trial, choices_of
from histoloom.run.directory import Run
from histoloom.seeding import numpy_generator

SHOWN_STAGES = ("patches", "autoencoder", "clusters", "samples")
"""the stages whose fingerprints say which pictures were shown"""


def create_reading(run: Run, request: Request) -> Reading:
    """Draw the pictures of a new reading and write its folder; ``UserError`` where the run has too few.

    The same seed in the same run, after the same earlier readings, shows the same pictures.
    """
    material = Material(run, k=request.k)
    earlier = readings(run.path)
    number = 1 + max((reading.number for reading in earlier), default=0)
    seed = number if request.seed is None else request.seed
    tissues = material.tissues(request.kind)
    used = Counter(trial.name for reading in earlier for trial in reading.plan.trials)
    rng = numpy_generator(seed, "reading", request.kind, material.k)
    drawn = _draw_pictures(material, tissues, pairs=request.trials // 2, used=used, rng=rng)
    trials = []
    for (synthetic, tissue), row in drawn:
        name, cluster, split = material.named(row, synthetic=synthetic)
        trials.append(Trial(synthetic, name, cluster, tissue, split))
    names = tuple(tissue.name for tissue in tissues)
    artifacts = {stage: run.artifact(stage) for stage in SHOWN_STAGES}
    plan = Plan(
        id=f"{number:03d}-{request.kind}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=request.kind,
        k=material.k,
        seed=seed,
        feedback=request.feedback,
        names=names,
        choices=choices_of(request.kind, names=names),
        fingerprints={stage: artifact.fingerprint for stage, artifact in artifacts.items() if artifact is not None},
        notes=_notes(trials, names=names, artefacts=material.artefacts),
        trials=tuple(trials),
    )
    return publish(run.path, plan, pictures=_read_pictures(material, drawn, kind=request.kind))


Pool = tuple[bool, int]
"""Whether the pictures are samples, and of which tissue."""


def _draw_pictures(
    material: Material, tissues: Sequence[Tissue], *, pairs: int, used: Mapping[str, int], rng: np.random.Generator
) -> list[tuple[Pool, int]]:
    """``pairs`` real pictures and as many samples, as many of each tissue, each with its row, in a random order."""
    pools: dict[Pool, list[int]] = {}
    for number, tissue in enumerate(tissues):
        # More than are needed: some may be the same picture.
        pools[False, number] = material.real(tissue, most=2 * pairs, used=used, rng=rng)
        pools[True, number] = material.synthetic(tissue, used=used, rng=rng)
    capacities = _pairs_by_tissue(pools)
    while sum(capacities) >= pairs:
        quotas = allot(pairs, capacities=capacities, rng=rng)
        seen: set[str] = set()
        drawn = {
            pool: distinct(rows, n=quotas[pool[1]], digest=partial(material.digest, synthetic=pool[0]), seen=seen)
            for pool, rows in pools.items()
        }
        counts = _pairs_by_tissue(drawn)
        if counts == quotas:
            flat = [(pool, row) for pool, rows in drawn.items() for row in rows]
            return [flat[place] for place in rng.permutation(len(flat))]
        limits = zip(capacities, counts, quotas, strict=True)
        capacities = [limit if count == quota else count for limit, count, quota in limits]
    raise UserError(
        f"at k = {material.k} there are pictures for {2 * sum(capacities)} trials, as many real ones as samples of "
        "each tissue; ask for fewer, or raise samples.per_cluster"
    )


def _pairs_by_tissue(pools: Mapping[Pool, Sequence[int]]) -> list[int]:
    """Of each tissue the number of pairs of a real picture and a sample."""
    tissues = sorted({tissue for _, tissue in pools})
    return [min(len(pools[False, tissue]), len(pools[True, tissue])) for tissue in tissues]


def _read_pictures(material: Material, drawn: Sequence[tuple[Pool, int]], *, kind: Kind) -> np.ndarray:
    """What the reader sees, uint8 (N, H, W, 3): real patches as they are, or after a pass through the VQ-GAN."""
    images = np.stack([material.picture(row, synthetic=synthetic) for (synthetic, _), row in drawn])
    if kind == "reconstruction-or-synthetic":
        # The other kinds need no torch.
        from histoloom.autoencoder.vqgan import Autoencoder
        from histoloom.evaluation.faithfulness import reconstruct
        from histoloom.training.devices import accelerator

        run = material.run
        device = accelerator(run.config.runtime).device
        autoencoder = Autoencoder.load(run.require("autoencoder")).to(device)
        is_real_N = np.array([not synthetic for (synthetic, _), _ in drawn])
        images[is_real_N] = reconstruct(autoencoder, images[is_real_N], device=device)
    return images


def _notes(trials: Sequence[Trial], *, names: Sequence[str], artefacts: Sequence[int]) -> tuple[str, ...]:
    real = [trial for trial in trials if not trial.synthetic]
    trained = [trial for trial in real if trial.split != "holdout"]
    notes = []
    if not trained:
        notes.append("All real patches are of held-out slides.")
    elif len(trained) == len(real):
        notes.append("No real patch is of a held-out slide: there are none of these tissues.")
    else:
        short = [names[tissue] for tissue in sorted({trial.tissue for trial in trained})]
        notes.append(
            f"{len(real) - len(trained)} of {len(real)} real patches are of held-out slides; the rest is of "
            f"training slides, for want of held-out ones that no reading showed: {_quoted(short)}."
        )
    absent = [name for tissue, name in enumerate(names) if all(trial.tissue != tissue for trial in trials)]
    if absent:
        notes.append(f"Not shown: {_quoted(absent)}.")
    if artefacts:
        notes.append(f"Left out as artefacts: groups {', '.join(map(str, artefacts))}.")
    return tuple(notes)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"“{name}”" for name in names)

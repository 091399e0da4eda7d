"""The stage ``samples``: synthetic patches of every cluster."""

from __future__ import annotations

from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.sample_folder import SampleJob, cluster_file, write_samples
from histoloom.diffusion.generation.sample_spec import SampleSpec
from histoloom.run.stage import StageContext
from histoloom.training.distributed import shared_path


def run(context: StageContext) -> None:
    """Draw ``samples.per_cluster`` patches of each cluster, for every k of the sweep or the chosen one.

    Several processes share them.
    """
    config = context.config
    generator = Generator.load(context.run, runtime=config.runtime)
    specs = [
        SampleSpec(k=k, cluster=cluster, index=index, seed=config.seed)
        for k in (generator.spec.ks if config.samples.k == "all" else (generator.spec.chosen_k,))
        for cluster in range(k)
        for index in range(config.samples.per_cluster)
    ]
    job = SampleJob(specs=specs, file_of=cluster_file, sampler=config.samples.sampler)
    count = write_samples(generator, job, folder=shared_path(context.out))
    context.say(f"drew {count:,} patches with {job.sampler.method}, {job.sampler.steps} steps")

"""What tests share: where the real data lies, and tiny settings."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
SLOWEST = (
    "test_pipeline.py",
    "test_decision.py",
    "test_tissue.py",
    "test_processes.py",
    "test_feature_kinds.py",
    "test_fake_cuda.py",
    "test_hostile.py",
    "test_kill.py",
    "test_long_jobs.py",
    "test_browser_axe.py",
    "test_run.py",
    "test_gpu_day.py",
    "test_pseudonyms.py",
    "test_commands.py",
    "test_jobs.py",
    "test_browser_naming.py",
    "test_memory_cost.py",
    "test_copy_check.py",
    "test_compiling.py",
)


FORKING = (
    "test_pipeline.py",
    "test_long_jobs.py",
    "test_processes.py",
    "test_training.py",
    "test_commands.py",
    "test_jobs.py",
    "test_kill.py",
    "test_reading_benchmark.py",
)
"""Files that fork processes from one which has imported everything (tests/cli/forked.py)."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile``, one test process runs all files that fork, and one all that need a browser.

    Another would import everything once more for its forks, and start a browser of its own.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class FewScopes(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            name = Path(file).name
            return "forking" if name in FORKING else "browsing" if name.startswith("test_browser_") else file

    return FewScopes(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that at the end no test process is alone with one of them.

    The second and the third need no run, which is made for the first meanwhile.
    """
    rank = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(SLOWEST)))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors do not gain from threads, and the machine has other work."""
    import torch  # not above: the process that hands out the tests needs none of it

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _quick_garbage_collection() -> None:
    """What is imported by now is never garbage: without it a collection, of which each training makes one, is quick."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or written to the user's cache."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HISTOLOOM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real slides and weights; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("HISTOLOOM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}; set HISTOLOOM_TEST_DATA")
    return folder


TINY = (
    "patches.size=32",
    "patches.count=96",
    "patches.split.holdout=0.3",
    "autoencoder.channels=8",
    "autoencoder.perceptual=pyramid",
    "autoencoder.training.batch_size=8",
    "autoencoder.training.warmup_images=0",
    "autoencoder.training.phases.0.images=320",
    "clusters.k=[2, 3]",
    "clusters.channels=16",
    "clusters.validity_points=60",
    "clusters.null_draws=2",
    "clusters.training.batch_size=32",
    "clusters.training.phases.0.images=960",
    "diffusion.channels=[16, 32]",
    "diffusion.attention=[false, true]",
    "diffusion.training.batch_size=8",
    "diffusion.training.warmup_images=0",
    "diffusion.training.phases.0.images=320",
    "samples.per_cluster=3",
    "samples.sampler.steps=3",
    "evaluation.pairs=4",
    "evaluation.bootstrap=50",
    "evaluation.cluster_classifier.channels=8",
    "evaluation.cluster_classifier.training={batch_size: 16, phases: [{optimizer: adamw, lr: 0.002, images: 64}]}",
    "evaluation.extractors=[pixels, encoder]",
    "evaluation.distribution_patches=40",
    "report.map_slides=1",
    "report.map_patches=20",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.workers=1",
)
"""The demo preset, made so small that the whole pipeline takes seconds."""


BRIEF = ("diffusion.training.phases.0.images=64", "evaluation.originality=off")
"""After TINY: a fifth of the generator's training and no search for copies, where a test is about other stages."""


@pytest.fixture(scope="session")
def brief_settings() -> tuple[str, ...]:
    return BRIEF


@pytest.fixture(scope="session")
def tiny_settings() -> tuple[str, ...]:
    return TINY


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the test processes of this session share; whoever writes into it holds a lock."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def tiny_slides(shared_folder: Path) -> Path:
    """Three small procedural slides with their truth."""
    from histoloom.slides.procedural.slides import make_slides

    folder = shared_folder / "tiny-slides"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make_slides(folder, seed=0, count=3, size=512, mpp=1.0)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path, tiny_slides: Path) -> Path:
    """A whole run, finished; tests must not change it. It is made once, and each test process has a copy."""
    from histoloom import pipeline
    from histoloom.setup import init_run

    made = shared_folder / "tiny-run"
    with FileLock(f"{made}.lock"):
        if not (made / "report.html").exists():
            pipeline.execute(init_run(made, slides=[tiny_slides], preset="demo", settings=TINY))
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("tiny") / "run"))

"""Making a run, and changing its settings."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from histoloom.config import LPIPS_MIN_SIZE, Config, Values, load_config, make_config, read_preset, with_settings
from histoloom.errors import UserError
from histoloom.processes import is_main_process
from histoloom.run.directory import Run, disk_errors_explained
from histoloom.run.pretrained import FOLDER, generator_digest, is_start, require_fit, with_start
from histoloom.run.user import expand_home

logger = logging.getLogger("histoloom")

TUNE = "tune"


def init_run(
    path: Path,
    *,
    slides: Sequence[Path],
    preset: str = "modern",
    table: Path | None = None,
    regions: Path | None = None,
    mpp: float | None = None,
    settings: Sequence[str] = (),
    pseudonymise: bool = False,
    start: Path | None = None,
) -> Run:
    """Make ``path`` a run over ``slides``. The slides are opened, so that a problem with them shows now.
    Features from files are looked up for the same reason.

    ``pseudonymise`` keeps every name of a slide or patient out of the run. ``start``, a run or an exported generator,
    is copied into the run, which begins with its weights.
    Raises ``UserError`` for a wrong preset or setting, slides that cannot be used, or a directory in other use.
    """
    from histoloom.slides.inventory.find import find_slides
    from histoloom.slides.inventory.pseudonyms import pseudonymised

    if preset == TUNE and start is None:
        raise UserError("the preset tune begins with a generator's weights: add --from starter, or an export or a run")
    absent = [place for place in slides if not place.exists()]
    if absent:
        raise UserError(f"no such file or folder: {absent[0]}; give slides or folders of slides after --slides")
    values = read_preset(preset)
    values["slides"] = {
        "paths": [str(place.resolve()) for place in slides],
        "table": None if table is None else str(table.resolve()),
        "regions": None if regions is None else str(regions.resolve()),
        "mpp": mpp,
    }
    with _copied_start(start, near=path) as copy:
        if copy is not None:
            values = with_start(values, copy)
        previous = load_config(path / "config.yaml") if (path / "config.yaml").is_file() else None
        config = resolve_auto(_make_config(with_settings(values, settings)), previous=previous)
        config = _with_absolute_files(config, settings=settings)
        if copy is not None:
            require_fit(config, copy)
        if pseudonymise:
            config = config.model_copy(update={"slides": pseudonymised(config.slides, run=path)})
        entries = [entry for entry in find_slides(config.slides) if entry.usable]
        if config.clusters.files is not None:
            from histoloom.clustering.features.from_files import find_features
            from histoloom.clustering.features.tile_files import TileFiles

            files = TileFiles(Path(config.clusters.files), obsm=config.clusters.obsm)
            find_features({entry.slide_id: (entry.stored_file, entry.slide) for entry in entries}, files=files)
        if any(path.resolve().is_relative_to(place.resolve()) for place in slides):
            logger.warning("%s lies in a folder of slides; what is written there is never taken for slides", path)
        run = Run.create(path, config)

        # The generator goes where the run looks for it, unless it is there, whole.
        target = path / FOLDER
        if copy is not None and not (is_start(target) and generator_digest(target) == generator_digest(copy)):
            shutil.rmtree(target, ignore_errors=True)
            copy.rename(target)
    return run


@contextmanager
def _copied_start(source: Path | None, *, near: Path) -> Iterator[Path | None]:
    """A copy of the weights of ``source`` beside ``near``, until it is given its place; None where there is none."""
    if source is None:
        yield None
        return
    from histoloom.sharing.export import copy_generator

    parent = near.resolve().parent
    with disk_errors_explained(near):
        parent.mkdir(parents=True, exist_ok=True)
    with disk_errors_explained(near), TemporaryDirectory(prefix=f".{near.name}.", dir=parent) as folder:
        copy = Path(folder) / FOLDER
        copy_generator(source, copy)
        yield copy


def _make_config(values: Values) -> Config:
    """The configuration of these settings, with the latent space of a ready autoencoder where they name one."""
    from histoloom.autoencoder.diffusers_model import with_pretrained_autoencoder  # it loads diffusers

    pretrained = (values.get("autoencoder") or {}).get("pretrained")
    return make_config(with_pretrained_autoencoder(values) if pretrained else values)


def resolve_auto(config: Config, *, previous: Config | None = None) -> Config:
    """``config`` with every ``auto`` that decides about results replaced by what it means on this machine.

    What it meant before, in the ``previous`` configuration of the same run, stays: weights that appeared since then do
    not change the run.
    """
    auto = config.autoencoder
    if auto.perceptual != "auto":
        return config
    before = None if previous is None else previous.autoencoder
    if before is not None and before.perceptual in ("lpips", "pyramid"):
        perceptual = before.perceptual
    elif config.patches.size < LPIPS_MIN_SIZE:
        perceptual = "pyramid"
    else:
        from histoloom.autoencoder.lpips import find_weights

        perceptual = "lpips" if find_weights(auto.perceptual_trunk, download=False) is not None else "pyramid"
        if perceptual == "pyramid":
            logger.info(
                "no LPIPS weights (%s) on this machine: the autoencoder's perceptual loss is pyramid",
                auto.perceptual_trunk,
            )
    return config.model_copy(update={"autoencoder": auto.model_copy(update={"perceptual": perceptual})})


def _with_absolute_files(config: Config, *, settings: Sequence[str]) -> Config:
    """``config`` with the paths that are among ``settings`` made absolute: of slides, regions, places and features.

    Raises ``UserError`` where nothing is there: the clusters come hours later.
    """
    if any(setting.startswith("slides.paths=") for setting in settings) and config.slides.pseudonyms is None:
        paths = [Path(text).resolve() for text in config.slides.paths]
        if absent := [path for path in paths if not path.exists()]:
            raise UserError(f"slides.paths: {absent[0]} does not exist; give slides or folders of slides")
        slides = config.slides.model_copy(update={"paths": tuple(map(str, paths))})
        config = config.model_copy(update={"slides": slides})
    for name in ("regions", "places"):
        text = getattr(config.slides, name)
        if text is not None and any(setting.startswith(f"slides.{name}=") for setting in settings):
            place = expand_home(text, setting=f"slides.{name}").resolve()
            slides = config.slides.model_copy(update={name: str(place)})
            config = config.model_copy(update={"slides": slides})
    if config.clusters.files is None or not any(setting.startswith("clusters.files=") for setting in settings):
        return config
    files = expand_home(config.clusters.files, setting="clusters.files").resolve()
    if not files.exists():
        raise UserError(f"clusters.files: {files} does not exist; give a folder or a file of features")
    return config.model_copy(update={"clusters": config.clusters.model_copy(update={"files": str(files)})})


def change_settings(run: Run, settings: Sequence[str], *, save: bool) -> Run:
    """``run`` with other settings; stages that depend on them become stale, and none is lost.

    Of processes that torchrun started together the main one saves them. Raises ``UserError`` when another process works
    on the run.
    """
    values = with_settings(run.config.model_dump(mode="json"), settings)
    changed = Run(run.path, _with_absolute_files(resolve_auto(_make_config(values)), settings=settings))
    if save and is_main_process():
        with run.locked():
            changed.save_config()
    return changed

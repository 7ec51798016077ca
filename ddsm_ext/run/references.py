"""Statistics of the real images that samples are compared with, kept in the run folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ddsm_ext.run.compose import Progress, counter
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.features import check_comparable
from ddsm_ext.run.images import load_pixels
from ddsm_ext.run.latents import data_of
from ddsm_ext.settings import Refusal

BATCH = 512  # images whose features are computed together
# Of fewer images so few are held out that a distance to them says more of their number than of what
# was learnt by heart.
LEAST_IMAGES = 10_000
log = logging.getLogger(__name__)


def reference_for(
    config: RunConfig,
    extractor: Any,
    dataset: Any,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Any:
    """Return the statistics that samples are compared with: a file's, or the data set's.

    Args:
        config: of the run.
        extractor: images -> features.
        dataset: the images that samples are compared with.
        folder: the run folder, where statistics are kept for the next command; None keeps none.
        progress: told how far it is; None for silence.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, or statistics of other features.
    """
    from ddsm_ext.eval.metrics import check_reference
    from ddsm_ext.eval.statistics import load_statistics

    if config.eval.reference is not None:
        statistics = load_statistics(config.eval.reference)
        check_reference(statistics, extractor, f"eval.reference {config.eval.reference}")
        return statistics
    return _statistics(dataset, extractor, folder, progress)


def held_out_for(
    config: RunConfig,
    extractor: Any,
    dataset: Any,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Any:
    """Return the statistics of the images that training left out.

    A network that gives back its training images is near those, and farther from these.

    Args:
        config: of the run.
        extractor: images -> features.
        dataset: the images that samples are compared with.
        folder: as of `reference_for`.
        progress: as of `reference_for`.

    Returns:
        The statistics; None where nothing is held out, of less than LEAST_IMAGES images, or fewer
        images than a Fréchet distance of these features needs (`enough_images`).
    """
    from ddsm_ext.eval.distances import enough_images

    if not dataset.has_held_out or len(dataset) < LEAST_IMAGES:
        return None
    try:
        test = replace(data_of(config, dataset), split="test")
        other = load_pixels(config, test, progress)
    except Refusal as error:  # such as CIFAR-10 without its test batch
        log.info("no distance to held-out images: %s", error)
        return None
    if not enough_images(len(other), extractor.dim):
        log.info(
            "no distance to held-out images: there are %d, %d features need %d",
            len(other),
            extractor.dim,
            2 * extractor.dim,
        )
        return None
    return _statistics(other, extractor, folder, progress)


def _statistics(
    dataset: Any, extractor: Any, folder: Path | None, progress: Progress | None
) -> Any:
    from ddsm_ext.eval.metrics import reference_statistics
    from ddsm_ext.eval.statistics import load_statistics, save_statistics

    file = None
    if folder is not None:
        what = hashlib.sha256(f"{dataset.digest} {extractor.digest}".encode()).hexdigest()
        file = folder / "statistics" / f"{what[:16]}.npz"
        with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one is made again
            return load_statistics(file)
    check_comparable(dataset)
    told = counter(progress, f"features of {dataset.name}", "image")

    def batches() -> Any:
        done = 0
        for images in dataset.batches(BATCH):
            yield torch.from_numpy(images)
            done += len(images)
            told(done, len(dataset))

    statistics = reference_statistics(batches(), extractor)
    if file is not None:
        save_statistics(file, statistics)
    return statistics

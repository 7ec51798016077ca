"""The images of a run: what it is trained on, and what its samples are compared with."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.latents import LatentManifest, is_latent_archive
from ddsm_ext.run.classes import save_classes
from ddsm_ext.run.compose import Progress, counter
from ddsm_ext.run.config import RunConfig
from ddsm_ext.run.folder import config_of
from ddsm_ext.run.latents import check_images, check_shape, image_shape
from ddsm_ext.settings import Refusal

log = logging.getLogger(__name__)

ENCODED_FILE = "encoded.json"  # the manifest of a run's latents


def load_images(config: RunConfig, progress: Progress | None = None) -> Any:
    """Return what a run is trained on: images at its network's size and channels, or latents.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: what is there is refused, or is not of the network's size, channels or codec.
    """
    if not config.codec.of_latents:
        if is_latent_archive(config.data.source):
            raise Refusal(
                f"{config.data.source}: holds latents, codec.kind is 'pixels'; need the section "
                "codec of its manifest, which configure() takes"
            )
        check_images(config)
        return load_pixels(config, config.data, progress)
    if not is_latent_archive(config.data.source):
        raise FileNotFoundError(
            f"{config.data.source}: holds no latents.json, the network takes latents; need "
            "data.source, their folder, which ddsm encode made"
        )
    from ddsm_ext.data.latent_dataset import LatentDataset

    told = counter(progress, "checking latents", "image")
    dataset = LatentDataset.load(config.data, config.codec, told)
    model = config.model
    check_shape(config.data.source, dataset.shape, model.image_channels, model.image_size)
    return dataset


def load_pixels(config: RunConfig, data: DataConfig, progress: Progress | None = None) -> Any:
    """Return images like those that a run makes.

    Args:
        config: of the run.
        data: which ones.
        progress: told how far it is; None for silence.
    """
    from ddsm_ext.data.dataset import load_dataset

    channels, side, _ = image_shape(config)
    told = counter(progress, "reading images", "image")
    return load_dataset(replace(data, image_size=side, channels=channels), told)


def real_images(config: RunConfig, dataset: Any, run: Path | None = None) -> Any:
    """Return the images that samples are compared with: those of the run, or of its latents.

    Args:
        config: of the run.
        dataset: images of the run; of a run of latents it is not looked at.
        run: the run folder, which knows what its latents are of, where the archive is gone too;
            None asks the archive.

    Raises:
        FileNotFoundError: there is no archive.
        ValueError: what says what the latents are of is damaged.
    """
    if not config.codec.of_latents:
        return dataset
    from ddsm_ext.data.streamed_images import StreamedImages

    if run is not None and (run / ENCODED_FILE).exists() and config.data == config_of(run).data:
        manifest = LatentManifest.load(run / ENCODED_FILE)
    else:
        manifest = LatentManifest.of_archive(config.data.source)
    return StreamedImages(manifest.images, config.codec.images)


def images_of(run: Path, config: RunConfig, progress: Progress | None = None) -> Any:
    """Return a run's images as `load_images` does; says so where they changed since training."""
    from ddsm_ext.io.checkpoint import load_newest

    dataset = load_images(config, progress)
    if config.data != config_of(run).data:
        return dataset  # the user's own choice
    newest = load_newest(run, (), on_damage=lambda _: None)
    if newest is None:
        return dataset
    trained = newest.state.get("identity", {}).get("data")
    if trained is not None and trained != dataset.digest:
        log.warning(
            "%s: the images of %s are not those that it was trained on (SHA-256 %.12s, then %.12s)",
            run, dataset.name, dataset.digest, trained,
        )  # fmt: skip
    return dataset


def keep_images(dataset: Any, folder: Path) -> None:
    """Write into a run folder what it keeps of its images: the names of their classes, and of
    latents the manifest, which says what they are of where the archive is gone."""
    save_classes(dataset, folder)
    if (manifest := getattr(dataset, "manifest", None)) is not None:
        manifest.save(folder / ENCODED_FILE)

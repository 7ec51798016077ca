"""What a run of latents has beside others: the settings of its archive, and what these exclude.

Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ddsm_ext.data.latents import LatentManifest, is_latent_archive
from ddsm_ext.settings import Refusal, shown

if TYPE_CHECKING:
    from ddsm_ext.data.config import DataConfig
    from ddsm_ext.run.config import RunConfig


def with_latents(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with those that their archive of latents decides.

    They are the section codec, and the network's image_size and image_channels; what is given
    already stays. Of other images the settings come back as they are.

    Args:
        values: section -> key -> value; `data.source` may be an archive.

    Raises:
        ValueError: the archive is damaged, not whole, or of another shape than the network's
            images.
    """
    sections = {name: values.get(name, {}) for name in ("data", "codec", "model")}
    if not all(isinstance(section, Mapping) for section in sections.values()):
        return dict(values)
    source = sections["data"].get("source")
    if not isinstance(source, str | os.PathLike) or not is_latent_archive(os.fspath(source)):
        return dict(values)
    manifest = LatentManifest.of_archive(os.fspath(source))
    channels, side, _ = manifest.shape
    model = {"image_size": side, "image_channels": channels, **sections["model"]}
    check_shape(os.fspath(source), manifest.shape, model["image_channels"], model["image_size"])
    codec = {**manifest.codec.to_dict(), **sections["codec"]}
    return {**values, "codec": codec, "model": model}


def check_latents(config: RunConfig) -> None:
    """Refuse settings that latents cannot have.

    Raises:
        ValueError: naming the setting.
    """
    data = config.data
    encoded = "as the latents are of the images that they are of; need it with ddsm encode"
    for name, value, allowed, why in (
        (
            "sampler.clip_denoised", config.sampler.clip_denoised, (False,),
            "with latents, which go beyond [-1, 1]; need false, which it is where nobody says it",
        ),
        ("train.augment", config.train.augment, (0,), "with latents; need 0, as it moves pixels"),
        ("data.held_out", data.held_out, (0,), encoded),
        ("data.limit", data.limit, (None,), encoded),
        ("data.split", data.split, ("train", "all"), encoded),
    ):  # fmt: skip
        if value not in allowed:
            raise Refusal(f"{name} is {shown(value)} {why}")


def check_shape(source: str, shape: tuple[int, ...], channels: object, side: object) -> None:
    """Refuse latents of another shape than a network's images.

    Args:
        source: of the latents.
        shape: of a latent, (c, h, w).
        channels, side: of the network's images.
    """
    if (channels, side) != shape[:2]:
        raise Refusal(
            f"{source}: holds latents of {shape[0]} channels and {shape[1]}x{shape[2]}, the "
            f"network takes {shown(channels)} and {shown(side)}x{shown(side)}; need "
            f"model.image_channels={shape[0]} and model.image_size={shape[1]}"
        )


def check_images(config: RunConfig, otherwise: str = "") -> None:
    """Refuse a network of latents where no autoencoder is known.

    Args:
        config: of the run.
        otherwise: what else would do, for the error.

    Raises:
        ValueError: its images have other than 1 or 3 channels, and nothing decodes them.
    """
    if image_shape(config)[0] not in (1, 3):
        raise Refusal(
            f"data.source is {shown(config.data.source)}, the network takes "
            f"{config.model.image_channels} channels, as latents have; need the folder of "
            f"latents that ddsm encode made{otherwise}"
        )


def image_shape(config: RunConfig) -> tuple[int, int, int]:
    """Return (C, H, W) of the images that a run makes: of its network's, or decoded ones."""
    model, codec = config.model, config.codec
    side = model.image_size * codec.factor
    return codec.image_channels or model.image_channels, side, side


def data_of(config: RunConfig, images: Any) -> DataConfig:
    """Return the settings of the images that samples are compared with.

    Args:
        config: of the run.
        images: them, as of `run.images.real_images`.
    """
    found: DataConfig = images.config if config.codec.of_latents else config.data
    return found

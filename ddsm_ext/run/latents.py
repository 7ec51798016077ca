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
        ValueError: the archive is damaged, or not whole.
    """
    sections = {name: values.get(name, {}) for name in ("data", "codec", "model")}
    if not all(isinstance(section, Mapping) for section in sections.values()):
        return dict(values)
    source = sections["data"].get("source")
    if not isinstance(source, str | os.PathLike) or not is_latent_archive(os.fspath(source)):
        return dict(values)
    manifest = LatentManifest.of_archive(os.fspath(source))
    channels, side, _ = manifest.shape
    return {
        **values,
        "codec": {**manifest.codec.to_dict(), **sections["codec"]},
        "model": {"image_size": side, "image_channels": channels, **sections["model"]},
    }


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

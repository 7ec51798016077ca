"""Archives of latents without diffusers: an autoencoder of averages, whose latents are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ddsm_ext.data.config import CodecConfig, DataConfig
from ddsm_ext.data.encoding import EncodeOptions, encode
from ddsm_ext.data.latents import LatentManifest
from ddsm_ext.data.stream import ImageStream

FOLDER = "no-such-folder"


@dataclass
class Averages:
    """Encodes 2x2 pixels as their mean, from -1 to 1, and half of it; log-variance -2 and -4."""

    kind: str = "kl"
    calls: int = 0

    @property
    def config(self) -> CodecConfig:
        numbers = {"scale": 0.5, "shift": 0.25, "factor": 2, "image_channels": 1}
        return CodecConfig(self.kind, FOLDER, f"averages-{self.kind}", **numbers)

    def latent_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        return 2, image_shape[1] // 2, image_shape[2] // 2

    def settings_for(self, image_size: int) -> CodecConfig:
        return replace(self.config, decode_macs=1000)

    def encode(self, images: Tensor) -> Tensor:
        self.calls += 1
        mean = F.avg_pool2d(images.float(), 2) / 127.5 - 1.0
        mean = torch.cat([mean, 0.5 * mean], dim=1)
        if self.kind == "vq":
            return mean[:, None]
        spread = torch.tensor([-2.0, -4.0]).view(1, 2, 1, 1).expand_as(mean)
        return torch.stack([mean, spread], dim=1)


def write_photos(folder: Path, count: int = 10, size: int = 8, classes: int = 2) -> Path:
    """Write grey images in a folder a class, or with no class in one."""
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (size, size), dtype=np.uint8)
        path = (folder / f"class-{index % classes}" if classes else folder) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def write_archive(
    folder: Path, photos: Path, kind: str = "kl", codec: Any = None, **options: Any
) -> LatentManifest:
    """Encode images by `Averages`; shards of 4 unless said."""
    settings = {"flips": True, "shard_images": 4, "batch_size": 3, **options}
    made = {name: settings.pop(name) for name in ("stopped", "scale", "shift") if name in settings}
    stream = ImageStream.open(DataConfig(source=str(photos)))
    return encode(stream, codec or Averages(kind), folder, EncodeOptions(**settings), **made)

"""Samples as PNG files: a folder holds those of one way of making them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ddsm_ext.data.images import image_grid, save_png
from ddsm_ext.diffusion.config import DiffusionConfig
from ddsm_ext.io.digest import json_digest
from ddsm_ext.io.document import Document
from ddsm_ext.run.compose import Sampler, weights_digest
from ddsm_ext.sampling.config import SamplerConfig
from ddsm_ext.sampling.strategy import Strategy
from ddsm_ext.settings import Refusal

SETTINGS_FILE = "samples.json"
GRID_SIDE = 64  # pixels that a smaller image is enlarged to in a grid, by a whole factor


@dataclass(frozen=True)
class Samples:
    """Images that a run made.

    Args:
        images: uint8 [N, H, W, C], one a seed.
        labels: class of each [N]; None: the network takes no labels.
        folder: holds each as seed-000000.png, and all in grid.png.
        ms_per_image: time that they took.
        macs_per_image: MACs of one, over all steps.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    folder: Path
    ms_per_image: float
    macs_per_image: int


@dataclass(frozen=True)
class SampleSettings(Document):
    """What an image depends on beside its seed.

    Args:
        weights: one of `weights_of(config)`.
        weights_digest: SHA-256 of the weights themselves.
        widths: of the strategy, from noisy to clean.
        cuts: of the strategy.
        sampler: of the sampler.
        diffusion: of the diffusion process.
    """

    what: ClassVar[str] = "file of sample settings"

    weights: str
    weights_digest: str
    widths: tuple[float, ...]
    cuts: tuple[float, ...]
    sampler: SamplerConfig
    diffusion: DiffusionConfig

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        sections = {"sampler": self.sampler.to_dict(), "diffusion": self.diffusion.to_dict()}
        own = {"weights": self.weights, "weights_digest": self.weights_digest}
        return {**own, "widths": list(self.widths), "cuts": list(self.cuts), **sections}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the settings from `to_dict()` output."""
        strategy = Strategy(values["widths"], values["cuts"])
        return cls(
            str(values["weights"]),
            str(values["weights_digest"]),
            strategy.widths,
            strategy.cuts,
            SamplerConfig.from_dict(values["sampler"]),
            DiffusionConfig.from_dict(values["diffusion"]),
        )

    def check_folder(self, folder: Path) -> None:
        """Refuse a folder that holds samples of other settings, or of settings that it lacks."""
        if (folder / SETTINGS_FILE).exists():
            theirs, mine = self.load(folder / SETTINGS_FILE).to_dict(), self.to_dict()
            other = [name for name in mine if mine[name] != theirs[name]]
            if not other:
                return
            was, now = theirs[other[0]], mine[other[0]]
            raise Refusal(
                f"{folder}: holds samples with {other[0]} {was!r}, now it is {now!r}; need another "
                "folder"
            )
        if next(folder.glob("seed-*.png"), None) is not None:
            raise Refusal(
                f"{folder}: holds samples without their {SETTINGS_FILE}; need another folder"
            )


def write_samples(
    sampler: Sampler,
    name: str,
    strategy: Strategy,
    seeds: Sequence[int],
    *,
    weights: str,
    parent: Path,
    out: str | Path | None = None,
) -> Samples:
    """Make one image a seed and write them as PNG files.

    Args:
        sampler: of a run.
        name: of the strategy.
        strategy: width by noise level.
        seeds: of the images.
        weights: which ones the sampler has, one of `weights_of(config)`.
        parent: gets a folder for these settings.
        out: the folder itself in its place.

    Raises:
        ValueError: the folder holds samples of other settings.
    """
    config = sampler.config
    digest = weights_digest(sampler.network)
    settings = SampleSettings(
        weights, digest, strategy.widths, strategy.cuts, config.sampler, config.diffusion
    )
    if out is None:
        steps = config.sampler.steps or config.diffusion.timesteps
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)  # a file of any name may hold a strategy
        label = f"{plain[:60]}-{config.sampler.kind}-{steps}"
        out = parent / f"{label}-{json_digest(settings.to_dict())[:8]}"
    out = Path(out)
    settings.check_folder(out)
    settings.save(out / SETTINGS_FILE)  # first: another process with others hears of it
    images, ms = sampler.timed_images(strategy, list(seeds), f"sampling {name}")
    pixels = np.asarray(images).transpose(0, 2, 3, 1)  # [N, H, W, C]
    for seed, image in zip(seeds, pixels, strict=True):
        save_png(out / f"seed-{seed:06d}.png", image)
    of_seeds = sampler.labels(seeds)
    labels = None if of_seeds is None else np.array(of_seeds, dtype=np.int64)  # [N]
    save_png(out / "grid.png", _grid(pixels, labels))
    return Samples(pixels, labels, out, ms, sampler.macs_per_image(strategy))


def _grid(pixels: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> NDArray[np.uint8]:
    """All images [N, H, W, C] in a picture: a row a class, where all have as many of several."""
    scale = max(1, GRID_SIDE // max(pixels.shape[1:3]))
    if labels is None:
        return image_grid(pixels, scale=scale)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < counts.max():
        return image_grid(pixels, scale=scale)
    return image_grid(pixels[np.argsort(labels, kind="stable")], int(counts[0]), scale=scale)

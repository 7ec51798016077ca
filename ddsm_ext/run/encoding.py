"""Encodes images into an archive of latents, and says what that takes."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ddsm_ext.data.codec import Codec
from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.encoding import EncodeOptions, encode, planned
from ddsm_ext.data.latents import LatentManifest
from ddsm_ext.data.stream import ImageStream
from ddsm_ext.run.compose import Progress, counter
from ddsm_ext.training.session import StopRequest

# A network learns from latents of about this standard deviation, as it does from noise.
USUAL_DEVIATIONS = (0.5, 2.0)
log = logging.getLogger(__name__)


@dataclass
class Encoding:
    """Images and the autoencoder that encodes them.

    Args:
        stream: the images.
        codec: the autoencoder.
        options: of the archive.
    """

    stream: ImageStream
    codec: Codec
    options: EncodeOptions

    @classmethod
    def open(
        cls,
        data: DataConfig,
        autoencoder: str | Path,
        options: EncodeOptions,
        *,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> Encoding:
        """Read an autoencoder, and the names of the images.

        Args:
            data: which images.
            autoencoder: folder, as diffusers' save_pretrained writes it.
            options: of the archive.
            device: where to encode.
            progress: told how far it is where damaged images are looked for.

        Raises:
            ImportError: diffusers is not installed.
            FileNotFoundError: the images or the autoencoder are missing.
            ValueError: they are damaged, or do not fit each other.
        """
        codec = Codec.load(autoencoder, device, what="ddsm encode")
        stream = ImageStream.open(data, counter(progress, "looking for damaged images", "image"))
        codec.latent_shape(stream.shape())
        return cls(stream, codec, options)

    def write(
        self,
        folder: str | Path,
        *,
        scale: float | None = None,
        shift: float | None = None,
        progress: Progress | None = None,
    ) -> LatentManifest:
        """Write what an archive lacks, until Ctrl-C, which ends the shard; see `data.encode`.

        Args:
            folder: the archive.
            scale, shift: as of `data.encode`.
            progress: told how far it is; None for silence.
        """
        with StopRequest() as stop:
            manifest = encode(
                self.stream,
                self.codec,
                folder,
                self.options,
                scale=scale,
                shift=shift,
                progress=counter(progress, "encoding", "image"),
                stopped=lambda: stop.wanted,
            )
        if None not in manifest.shards:
            _say_deviation(folder, manifest)
        return manifest

    def estimate(self) -> tuple[LatentManifest, float, float]:
        """Return the manifest that an archive begins with, its bytes, and the seconds that encoding
        on this machine takes: of one image, times all."""
        manifest = planned(self.stream, self.codec, self.options)
        count = len(self.stream)
        values = int(np.prod(manifest.row_shape)) * count
        _, first = next(self.stream.read(range(1)))
        image = torch.from_numpy(np.ascontiguousarray(first))[None]
        self.codec.encode(image)  # the first call is slower
        started = time.perf_counter()
        self.codec.encode(image).cpu()
        seconds = time.perf_counter() - started
        turns = 1 + manifest.flips
        return manifest, float(values * np.dtype(manifest.dtype).itemsize), seconds * count * turns


def _say_deviation(folder: str | Path, manifest: LatentManifest) -> None:
    """Say so where latents are far from what a network learns well."""
    deviation = manifest.deviation * manifest.codec.scale
    low, high = USUAL_DEVIATIONS
    if not low <= deviation <= high:
        log.warning(
            "%s: the latents have the standard deviation %.3g as a network has them; need about 1: "
            "the same ddsm encode with --scale std, which encodes nothing again",
            folder, deviation,
        )  # fmt: skip

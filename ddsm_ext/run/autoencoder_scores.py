"""What an autoencoder makes of images: reconstructions, what they lost, the spread of latents."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ddsm_ext.data.images import image_grid
from ddsm_ext.data.pixels import from_uint8, to_uint8
from ddsm_ext.run.compose import Progress, counter
from ddsm_ext.settings import MissingLibrary
from ddsm_ext.training.autoencoder import moments

PICTURED = 16  # images that are shown beside their reconstructions
_PAIRS = 4  # of them in a row
_SMALLEST_TILE = 64  # pixels a side of an image in the picture
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoder:
    """An autoencoder, in eval mode, at work on images of any number.

    Args:
        net: diffusers' AutoencoderKL.
        device: where it is.
        batch_size: images that run together.
    """

    net: Any
    device: torch.device
    batch_size: int

    @torch.no_grad()
    def each(
        self, images: NDArray[np.uint8], use: Callable[[Tensor], None], told: Callable[..., None]
    ) -> None:
        """Hand images [N, C, H, W], in [-1, 1], to `use`, batch by batch."""
        for start in range(0, len(images), self.batch_size):
            part = torch.from_numpy(images[start : start + self.batch_size])
            x = from_uint8(part, self.device).contiguous(memory_format=torch.channels_last)
            use(x)
            told(min(start + self.batch_size, len(images)), len(images))

    def reconstructed(self, images: NDArray[np.uint8], progress: Progress | None = None) -> Tensor:
        """Return the reconstructions, of the means of their latents, of uint8 [N, C, H, W]."""
        made: list[Tensor] = []

        def use(x: Tensor) -> None:
            made.append(to_uint8(self.net.decode(moments(self.net, x)[0]).sample).cpu())

        self.each(images, use, counter(progress, "reconstructing held-out images", "image"))
        return torch.cat(made)  # [N, C, H, W]

    def latent_moments(
        self, images: NDArray[np.uint8], progress: Progress | None = None
    ) -> tuple[float, float]:
        """Return mean and standard deviation of latents, as drawn from what images encode to.

        Args:
            images: uint8 [N, C, H, W].
            progress: told how far it is.
        """
        from ddsm_ext.eval.distances import StreamingMoments

        means, variances = StreamingMoments(1), StreamingMoments(1)

        def use(x: Tensor) -> None:
            mean, logvar = moments(self.net, x)  # [n, c, h, w]
            means.update(mean.reshape(-1, 1))
            variances.update(logvar.exp().reshape(-1, 1))

        self.each(images, use, counter(progress, "measuring latents", "image"))
        variance = float(means.covariance()[0, 0]) + float(variances.mean[0])
        return float(means.mean[0]), math.sqrt(variance)

    def picture(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the first images of uint8 [N, C, H, W], each beside its reconstruction."""
        originals = images[:PICTURED]
        both = np.stack([originals, self.reconstructed(originals).numpy()], axis=1)
        tiles = both.reshape(-1, *originals.shape[1:]).transpose(0, 2, 3, 1)  # [2n, H, W, C]
        scale = max(1, _SMALLEST_TILE // tiles.shape[1])
        return image_grid(tiles, 2 * min(_PAIRS, len(originals)), scale=scale)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """10 log10(255^2 / mean squared error), in dB, of each image.

    Two that are equal count as if one value of theirs differed by 1.

    Args:
        images: uint8 [N, C, H, W].
        others: uint8 [N, C, H, W].

    Returns:
        float64 [N].
    """
    errors = (images.double() - others.double()).square().flatten(1)  # [N, CHW]
    return 10.0 * torch.log10(255.0**2 / errors.mean(1).clamp(min=1.0 / errors.shape[1]))


def made_small(images: Tensor, factor: int) -> Tensor:
    """Return images that were brought to 1 / factor of their size and back, both bicubic.

    Args:
        images: uint8 [N, C, H, W].
        factor: of a side.
    """
    resize = partial(F.interpolate, mode="bicubic", antialias=True, align_corners=False)
    size = images.shape[2:]
    small = resize(images.float(), [side // factor for side in size]).round().clamp(0, 255)
    return resize(small, size).round().clamp(0, 255).to(torch.uint8)


def reconstruction_scores(
    encoder: Encoder,
    images: NDArray[np.uint8],
    factor: int,
    features: str,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return what reconstructions lose.

    Args:
        encoder: the autoencoder.
        images: uint8 [N, C, H, W], which it was not trained on.
        factor: pixels along the side of a latent's.
        features: as `make_extractor` takes them.
        progress: told how far it is.

    Returns:
        images, how many; psnr and, of images brought to the size of a latent and back,
        bicubic_psnr, means in dB; features and frechet, the distance of the reconstructions from
        the images, None where the features are not installed or want more images.
    """
    originals, made = torch.from_numpy(images), encoder.reconstructed(images, progress)
    both = zip(originals.split(encoder.batch_size), made.split(encoder.batch_size), strict=True)
    rows = [(psnr(x, y), psnr(x, made_small(x, factor))) for x, y in both]
    mean, bicubic = (float(torch.cat(row).mean()) for row in zip(*rows, strict=True))
    frechet = _frechet(originals, made, features, progress)
    return {
        "images": len(images),
        "psnr": mean,
        "bicubic_psnr": bicubic,
        "features": features if frechet is not None else None,
        "frechet": frechet,
    }


def _frechet(
    originals: Tensor, made: Tensor, features: str, progress: Progress | None
) -> float | None:
    """Fréchet distance of the features of both; None: it is not to be had."""
    from ddsm_ext.eval.distances import StreamingMoments, enough_images, frechet_distance
    from ddsm_ext.eval.features import make_extractor

    try:
        extractor = make_extractor(features)
    except MissingLibrary as error:
        log.info("no Fréchet distance of the reconstructions: %s", error)
        return None
    if not enough_images(len(originals), extractor.dim):
        log.info(
            "no Fréchet distance of the reconstructions: %d images are held out, %d features need "
            "%d", len(originals), extractor.dim, 2 * extractor.dim,
        )  # fmt: skip
        return None
    told, done, both = counter(progress, "features of held-out images", "image"), 0, []
    for images in (originals, made):
        seen = StreamingMoments(extractor.dim)
        for part in images.split(64):
            seen.update(extractor(part))
            done += len(part)
            told(done, 2 * len(originals))
        both += [seen.mean, seen.covariance()]
    return frechet_distance(*both)

"""Scores of images: features -> moments -> distances, each with its N, features and seed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from ddsm_ext.eval.features import Extractor
from ddsm_ext.eval.frechet import frechet_distance
from ddsm_ext.eval.kid import kernel_distance
from ddsm_ext.eval.moments import StreamingMoments, gather_moments
from ddsm_ext.eval.statistics import ReferenceStatistics
from ddsm_ext.settings import Refusal

# The names FID and KID belong to Inception's features alone.
_INCEPTION = "inception"
_KEEP_ROWS = 10_000


def score_names(features: str | None) -> tuple[str, str]:
    """Return the keys of the Fréchet and the kernel distance for an extractor's name."""
    if features is not None and features.split("-")[0] == _INCEPTION:
        return "fid", "kid"
    return "frechet_distance", "kernel_distance"


def _accumulate(
    images: Iterable[Any], extractor: Extractor, keep_rows: int
) -> tuple[StreamingMoments, np.ndarray]:
    moments = StreamingMoments(extractor.dim)
    kept = [np.empty((0, extractor.dim), dtype=np.float32)]
    room = keep_rows
    # one whole array counts as a single batch
    for batch in [images] if isinstance(images, (Tensor, np.ndarray)) else images:
        rows = extractor(batch).cpu().numpy()  # [B, D]
        moments.update(rows)
        if room > 0:
            kept.append(rows[:room])
            room -= len(kept[-1])
    return moments, np.concatenate(kept)  # [min(N, keep_rows), D]


def reference_statistics(
    images: Iterable[Any],
    extractor: Extractor,
    *,
    keep_rows: int = _KEEP_ROWS,
) -> ReferenceStatistics:
    """Return the statistics of a reference set, ready for `save_statistics`.

    Args:
        images: batches of uint8 [B, C, H, W], or one such array.
        extractor: as made by `make_extractor`.
        keep_rows: feature rows kept for the kernel distance (the first ones).

    Raises:
        ValueError: fewer than two images.
    """
    moments, rows = _accumulate(images, extractor, keep_rows)
    return ReferenceStatistics(
        mu=moments.mean,
        sigma=moments.covariance(),
        n=moments.count,
        features=extractor.name,
        digest=extractor.digest,
        rows=rows,
    )


def evaluate(
    images: Iterable[Any],
    reference: ReferenceStatistics,
    extractor: Extractor,
    *,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    seed: int = 2020,
) -> dict[str, Any]:
    """Return the distances of images to a reference, and what they depend on.

    Under torch.distributed every rank passes its own share: the Fréchet distance is that of all
    ranks' images, the kernel distance that of rank 0's rows.

    Args:
        images: batches of uint8 [B, C, H, W], or one such array.
        reference: statistics of the same extractor.
        extractor: as made by `make_extractor`.
        kid_subsets: subsets of the kernel distance.
        kid_subset_size: rows a subset; a smaller set lowers it to its own size.
        seed: seed of the kernel distance's subsets.

    Returns:
        JSON-ready: 'frechet_distance' ('fid' with Inception's features), 'kernel_distance' ('kid')
        and its '_std' (None when the reference holds no rows), 'n_images', 'n_reference',
        'features', 'features_digest', 'seed', 'kid_subsets', 'kid_subset_size'.

    Raises:
        ValueError: a reference of other features, or fewer than two images.
    """
    frechet, n_images, rows = _compared(images, reference, extractor, _KEEP_ROWS)
    frechet_key, kernel_key = score_names(extractor.name)
    scores: dict[str, Any] = {
        frechet_key: frechet,
        kernel_key: None,
        f"{kernel_key}_std": None,
        "n_images": n_images,
        "n_reference": reference.n,
        "features": extractor.name,
        "features_digest": extractor.digest,
        "seed": seed,
    }
    if reference.rows is not None and min(len(rows), len(reference.rows)) >= 2:
        size = min(kid_subset_size, len(rows), len(reference.rows))
        distance = kernel_distance(
            rows, reference.rows, subsets=kid_subsets, subset_size=size, seed=seed
        )
        scores[kernel_key], scores[f"{kernel_key}_std"] = distance.mean, distance.std
        scores["kid_subsets"], scores["kid_subset_size"] = kid_subsets, size
    return scores


def frechet_to_reference(
    images: Iterable[Any], reference: ReferenceStatistics, extractor: Extractor
) -> float:
    """Return the Fréchet distance of images to a reference: the search's costly quality.

    Args:
        images: batches of uint8 [B, C, H, W], or one such array.
        reference: statistics of the same extractor.
        extractor: as made by `make_extractor`.

    Raises:
        ValueError: a reference of other features, or fewer than two images.
    """
    return _compared(images, reference, extractor, keep_rows=0)[0]


def _compared(
    images: Iterable[Any], reference: ReferenceStatistics, extractor: Extractor, keep_rows: int
) -> tuple[float, int, np.ndarray]:
    """Return the Fréchet distance and the number of all ranks' images, and this rank's rows."""
    if reference.dim != extractor.dim:
        raise Refusal(
            f"evaluate: the reference has {reference.dim} features, {extractor.name} gives "
            f"{extractor.dim}; need statistics of the same extractor"
        )
    if reference.digest is not None and reference.digest != extractor.digest:
        raise Refusal(
            f"evaluate: the reference was made with {reference.features} "
            f"({reference.digest[:8]}), the extractor is {extractor.name} "
            f"({extractor.digest[:8]}); need statistics of the same extractor"
        )
    moments, rows = _accumulate(images, extractor, keep_rows)
    moments = gather_moments(moments)
    distance = frechet_distance(moments.mean, moments.covariance(), reference.mu, reference.sigma)
    return distance, moments.count, rows

"""Scores of images: features -> moments -> distances, each with its N, features and seed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddsm_ext.eval.distances import (
    StreamingMoments,
    frechet_distance,
    gather_moments,
    kernel_distance,
)
from ddsm_ext.eval.features import Extractor
from ddsm_ext.eval.fidelity import (
    NEIGHBOURS,
    SPLITS,
    inception_score,
    precision_recall,
    torch_fidelity_is_there,
)
from ddsm_ext.eval.reservoir import Reservoir
from ddsm_ext.eval.statistics import ReferenceStatistics
from ddsm_ext.settings import Refusal

# The names FID and KID belong to Inception's features alone.
_INCEPTION = "inception"
_KEEP_ROWS = 10_000
_ROWS_SEED = 0  # of which rows are kept


def score_names(features: str | None) -> tuple[str, str]:
    """Return the keys of the Fréchet and the kernel distance for an extractor's name."""
    if features is not None and _is_inception(features):
        return "fid", "kid"
    return "frechet_distance", "kernel_distance"


def _is_inception(features: str) -> bool:
    return features.split("-")[0] == _INCEPTION


def _check_count(what: str, moments: StreamingMoments) -> None:
    if moments.count < 2:
        raise Refusal(
            f"{what}: the number of images is {moments.count}; need at least 2 for a covariance"
        )


@dataclass
class _Seen:
    """What is kept of images that went through an extractor."""

    moments: StreamingMoments
    reservoir: Reservoir
    logits: list[Tensor]  # [B, classes] a batch, of extractors that have such


def _see(
    images: Iterable[Any], extractor: Extractor, keep_rows: int, *, logits: bool = False
) -> _Seen:
    reservoir = Reservoir(keep_rows, extractor.dim, _ROWS_SEED)
    seen = _Seen(StreamingMoments(extractor.dim), reservoir, [])
    # one whole array counts as a single batch
    for batch in [images] if isinstance(images, (Tensor, np.ndarray)) else images:
        features = extractor(batch)  # [B, D]
        rows = features.cpu().numpy()
        seen.moments.update(rows)
        seen.reservoir.update(rows)
        if logits and hasattr(extractor, "logits"):
            seen.logits.append(extractor.logits(features))
    return seen


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
        keep_rows: feature rows kept for the kernel distance, a random sample in random order.

    Raises:
        ValueError: fewer than two images.
    """
    seen = _see(images, extractor, keep_rows)
    _check_count("reference", seen.moments)
    return ReferenceStatistics(
        mu=seen.moments.mean,
        sigma=seen.moments.covariance(),
        n=seen.moments.count,
        features=extractor.name,
        digest=extractor.digest,
        rows=seen.reservoir.rows,
        rows_drawn=seen.reservoir.drawn,
    )


def check_reference(
    reference: ReferenceStatistics, extractor: Extractor, what: str = "reference"
) -> None:
    """Refuse a reference of other features than an extractor's; warn if it may be one.

    What says neither features nor digest, as the files of ADM and EDM, is taken for Inception's.

    Args:
        reference: statistics of the real images.
        extractor: what computes the samples' features.
        what: what messages call the reference, e.g. its file.

    Raises:
        ValueError: the number of features, or what computed them, differs.
    """
    if reference.dim != extractor.dim:
        raise Refusal(
            f"{what}: it has {reference.dim} features, {extractor.name} gives "
            f"{extractor.dim}; need statistics of the same extractor"
        )
    name, digest = reference.features, reference.digest
    by_name = name is not None and name != extractor.name
    if by_name if digest is None else digest != extractor.digest:
        known = "" if digest is None else f" ({digest[:8]})"
        raise Refusal(
            f"{what}: it was made with {name}{known}, the extractor is {extractor.name} "
            f"({extractor.digest[:8]}); need statistics of the same extractor"
        )
    if name is None and digest is None and not _is_inception(extractor.name):
        # Without `what`: a command that checks one file in several places warns of it once.
        warnings.warn(
            f"the reference statistics do not say what computed their {reference.dim} features; "
            f"distances to them mean nothing unless that was {extractor.name}",
            stacklevel=1,
        )


def evaluate(
    images: Iterable[Any],
    reference: ReferenceStatistics,
    extractor: Extractor,
    *,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    seed: int = 2020,
    held_out: ReferenceStatistics | None = None,
) -> dict[str, Any]:
    """Return the distances of images to a reference, and what they depend on.

    Under torch.distributed every rank passes its own share: the Fréchet distances are those of all
    ranks' images, the other scores those of rank 0's.

    Args:
        images: batches of uint8 [B, C, H, W], or one such array.
        reference: statistics of the same extractor.
        extractor: as made by `make_extractor`.
        kid_subsets: subsets of the kernel distance.
        kid_subset_size: rows a subset; a smaller set lowers it to its own size.
        seed: seed of the kernel distance's subsets and of the Inception Score's splits.
        held_out: statistics of images that no training saw, or None.

    Returns:
        JSON-ready: 'frechet_distance' ('fid' with Inception's features), the same with '_held_out'
        where there is such a reference, 'kernel_distance' ('kid') and its '_std', the spread over
        subsets that overlap, which is no error of the mean, 'precision', 'recall' (None when the
        reference holds no rows), 'inception_score' (Inception alone; these three None without
        torch-fidelity), 'n_images', 'n_reference', 'features', 'features_digest', 'seed',
        'kid_subsets', 'kid_subset_size'.

    Raises:
        ValueError: a reference of other features, or fewer than two images.
    """
    frechet, seen = _compared(images, reference, extractor, _KEEP_ROWS, logits=True)
    frechet_key, kernel_key = score_names(extractor.name)
    scores: dict[str, Any] = {
        frechet_key: frechet,
        kernel_key: None,
        f"{kernel_key}_std": None,
        **_torch_fidelity_scores(seen, reference.rows, seed),
        "n_images": seen.moments.count,
        "n_reference": reference.n,
        "features": extractor.name,
        "features_digest": extractor.digest,
        "seed": seed,
    }
    if held_out is not None:
        check_reference(held_out, extractor)
        scores[f"{frechet_key}_held_out"] = _frechet(seen.moments, held_out)
    rows = seen.reservoir.rows
    if reference.rows is not None and min(len(rows), len(reference.rows)) >= 2:
        size = min(kid_subset_size, len(rows), len(reference.rows))
        distance = kernel_distance(
            rows, reference.rows, subsets=kid_subsets, subset_size=size, seed=seed
        )
        scores[kernel_key], scores[f"{kernel_key}_std"] = distance.mean, distance.std
        scores["kid_subsets"], scores["kid_subset_size"] = kid_subsets, size
    return scores


def _torch_fidelity_scores(
    seen: _Seen, reference_rows: np.ndarray | None, seed: int
) -> dict[str, float | None]:
    scores: dict[str, float | None] = {"precision": None, "recall": None}
    rows = seen.reservoir.rows
    if seen.logits:
        scores["inception_score"] = None
    if not torch_fidelity_is_there():
        return scores
    if reference_rows is not None and min(len(rows), len(reference_rows)) > NEIGHBOURS:
        scores |= precision_recall(rows, reference_rows)
    if seen.logits and seen.moments.count >= SPLITS:
        scores["inception_score"] = inception_score(torch.cat(seen.logits), seed)
    return scores


def frechet_to_reference(
    images: Iterable[Any], reference: ReferenceStatistics, extractor: Extractor
) -> float:
    """Return the Fréchet distance of images to a reference, and no other score.

    Args:
        images: batches of uint8 [B, C, H, W], or one such array.
        reference: statistics of the same extractor.
        extractor: as made by `make_extractor`.

    Raises:
        ValueError: a reference of other features, or fewer than two images.
    """
    return _compared(images, reference, extractor, keep_rows=0)[0]


def _compared(
    images: Iterable[Any],
    reference: ReferenceStatistics,
    extractor: Extractor,
    keep_rows: int,
    *,
    logits: bool = False,
) -> tuple[float, _Seen]:
    """Return the Fréchet distance of all ranks' images, and what was seen of them.

    Its moments are those of all ranks, its rows and logits this rank's.
    """
    check_reference(reference, extractor)
    seen = _see(images, extractor, keep_rows, logits=logits)
    seen.moments = gather_moments(seen.moments)
    return _frechet(seen.moments, reference), seen


def _frechet(moments: StreamingMoments, reference: ReferenceStatistics) -> float:
    _check_count("samples", moments)
    return frechet_distance(moments.mean, moments.covariance(), reference.mu, reference.sigma)

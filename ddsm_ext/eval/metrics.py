"""Scores of images: features -> moments -> distances, each with its N, features and seed.

Reference statistics are .npz files with the keys `mu` and `sigma` that ADM and EDM use.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ddsm_ext.eval.distances import (
    StreamingMoments,
    frechet_distance,
    gather_moments,
    kernel_distance,
)
from ddsm_ext.eval.features import Extractor
from ddsm_ext.io.files import write_atomic
from ddsm_ext.settings import Refusal

# The names FID and KID belong to Inception's features alone.
_INCEPTION = "inception"
_KEEP_ROWS = 10_000
# InceptionV3 has 2048 features: 33.6 MB of fp64 covariance. The caps leave room for more and stop
# a small archive from unpacking into all of the memory.
_MAX_FEATURES = 16384
_MAX_ENTRY_BYTES = 8 * _MAX_FEATURES**2 + 4096
_DTYPES = {  # what a file may hold, and as what it is written
    "mu": np.float64,
    "sigma": np.float64,
    "n": np.int64,
    "features": np.str_,
    "digest": np.str_,
    "rows": np.float32,
}


@dataclass(frozen=True)
class ReferenceStatistics:
    """Moments of the features of a reference set.

    Args:
        mu: mean, fp64 [D].
        sigma: unbiased covariance, fp64 [D, D].
        n: number of images, None when the file does not say (ADM and EDM files do not).
        features: name of the extractor, None when unknown.
        digest: SHA-256 of what computed the features, None when unknown.
        rows: feature rows fp32 [M, D] of some of the images for the kernel distance, or None.
    """

    mu: np.ndarray
    sigma: np.ndarray
    n: int | None = None
    features: str | None = None
    digest: str | None = None
    rows: np.ndarray | None = None

    @property
    def dim(self) -> int:
        """Number of features D."""
        return int(self.mu.size)


def save_statistics(path: str | Path, statistics: ReferenceStatistics) -> Path:
    """Write reference statistics, atomically.

    Args:
        path: the file; its name must end in .npz.
        statistics: what to write; fields that are None are left out.

    Raises:
        ValueError: another ending, or moments that do not fit each other.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise Refusal(f"statistics {path}: the name does not end in .npz; need a .npz file")
    _check_moments(path, statistics.mu, statistics.sigma)
    values = {key: value for key, value in vars(statistics).items() if value is not None}
    arrays: dict[str, Any] = {k: np.asarray(v, dtype=_DTYPES[k]) for k, v in values.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return write_atomic(path, buffer.getvalue())


def load_statistics(path: str | Path) -> ReferenceStatistics:
    """Read reference statistics; nothing in the file is ever executed.

    Args:
        path: a .npz with `mu` [D] and `sigma` [D, D], and optionally n, features, digest, rows.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a .npz, arrays of Python objects, missing keys, or moments that do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"statistics {path}: no such file; need a .npz with mu and sigma")
    arrays = _read_arrays(path)
    missing = [key for key in ("mu", "sigma") if key not in arrays]
    if missing:
        held = ", ".join(sorted(arrays)[:8])
        raise Refusal(
            f"statistics {path}: it holds {held}, not {' and '.join(missing)}; "
            "need the keys mu and sigma"
        )
    _check_moments(path, arrays["mu"], arrays["sigma"])
    rows = arrays.get("rows")
    dim = arrays["mu"].size
    if rows is not None and (rows.ndim != 2 or rows.shape[1] != dim or rows.dtype.kind != "f"):
        raise Refusal(
            f"statistics {path}: rows are {rows.dtype} {rows.shape}; need floats [M, {dim}]"
        )
    return ReferenceStatistics(
        mu=arrays["mu"].astype(np.float64),
        sigma=arrays["sigma"].astype(np.float64),
        n=_scalar(path, arrays, "n", "iu"),
        features=_scalar(path, arrays, "features", "U"),
        digest=_scalar(path, arrays, "digest", "U"),
        rows=rows,
    )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        if largest.file_size <= _MAX_ENTRY_BYTES:
            with np.load(path, allow_pickle=False) as archive:
                # Other keys (ADM adds mu_s, sigma_s) are listed but never read.
                arrays = {k: archive[k] if k in _DTYPES else np.empty(0) for k in archive.files}
    except Exception as error:
        # Foreign bytes make zipfile, zlib and numpy's header parser raise a dozen types.
        raise Refusal(
            f"statistics {path}: not a readable .npz of plain numbers; "
            "need a .npz with mu and sigma, without Python objects"
        ) from error
    if largest.file_size > _MAX_ENTRY_BYTES:
        raise Refusal(
            f"statistics {path}: entry {largest.filename!r} unpacks to {largest.file_size} bytes; "
            f"need at most {_MAX_ENTRY_BYTES}"
        )
    for key, value in arrays.items():
        # numpy hands out an entry that is no array as its bytes
        if not isinstance(value, np.ndarray):
            raise Refusal(f"statistics {path}: entry {key!r} is no array; need arrays only")
    return arrays


def _check_moments(path: Path, mu: np.ndarray, sigma: np.ndarray) -> None:
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise Refusal(f"statistics {path}: mu is {mu.dtype}, sigma is {sigma.dtype}; need floats")
    if mu.ndim != 1 or not 1 <= mu.size <= _MAX_FEATURES or sigma.shape != (mu.size, mu.size):
        raise Refusal(
            f"statistics {path}: mu has shape {mu.shape}, sigma {sigma.shape}; "
            f"need [D] and [D, D] with 1 <= D <= {_MAX_FEATURES}"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise Refusal(
            f"statistics {path}: mu or sigma has a value that is not finite; need finite moments"
        )


def _scalar(path: Path, arrays: dict[str, np.ndarray], key: str, kinds: str) -> Any:
    if key not in arrays:
        return None
    value = arrays[key]
    if value.shape != () or value.dtype.kind not in kinds:
        raise Refusal(
            f"statistics {path}: {key} is {value.dtype} {value.shape}; need one "
            f"{'text' if kinds == 'U' else 'integer'}"
        )
    return value.item()


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


def check_reference(reference: ReferenceStatistics, extractor: Extractor) -> None:
    """Refuse a reference of other features than an extractor's.

    Raises:
        ValueError: their number or what computed them differs.
    """
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
    check_reference(reference, extractor)
    moments, rows = _accumulate(images, extractor, keep_rows)
    moments = gather_moments(moments)
    distance = frechet_distance(moments.mean, moments.covariance(), reference.mu, reference.sigma)
    return distance, moments.count, rows

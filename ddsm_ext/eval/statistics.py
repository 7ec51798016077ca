"""Statistics of a reference set in .npz files with the keys `mu` and `sigma` of ADM and EDM."""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddsm_ext.eval.distances import check_moments
from ddsm_ext.io.files import naming, system_error, write_atomic
from ddsm_ext.settings import Refusal

log = logging.getLogger(__name__)

# InceptionV3 has 2048 features: 33.6 MB of fp64 covariance. The caps leave room for more and stop
# a small archive from unpacking into all of the memory.
_MAX_FEATURES = 16384
_MAX_ENTRY_BYTES = 8 * _MAX_FEATURES**2 + 4096
_MAX_SCALAR_BYTES = 4096  # of n and features, by whose names others may keep arrays
_ORDER_SEED = 0  # of rows in an unknown order
_DTYPES = {  # what a file may hold, and as what it is written
    "mu": np.float64,
    "sigma": np.float64,
    "n": np.int64,
    "features": np.str_,
    "digest": np.str_,
    "rows": np.float32,
    "rows_drawn": np.str_,
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
        rows_drawn: how these were chosen, None when unknown (earlier versions kept the first ones,
            in the order of the images). As they are loaded, rows are in random order.
    """

    mu: np.ndarray
    sigma: np.ndarray
    n: int | None = None
    features: str | None = None
    digest: str | None = None
    rows: np.ndarray | None = None
    rows_drawn: str | None = None

    @property
    def dim(self) -> int:
        """Number of features D."""
        return int(self.mu.size)

    @property
    def content_digest(self) -> str:
        """SHA-256 of moments and rows: what the distances to this reference depend on."""
        found = hashlib.sha256()
        for key in ("mu", "sigma", "rows"):
            value = getattr(self, key)
            if value is not None:
                array: np.ndarray = np.ascontiguousarray(value, dtype=_DTYPES[key])
                found.update(f"{key} {array.shape}".encode())
                found.update(array.tobytes())
        return found.hexdigest()


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

    Rows that may be the first ones of sorted images alone are warned about: the kernel distance to
    these is one to some of the classes. Rows in an unknown order, perhaps sorted by class, are
    shuffled by a fixed seed, as scores take the first ones where they need fewer.

    Args:
        path: a .npz with `mu` [D] and `sigma` [D, D], and optionally n, features, digest, rows,
            rows_drawn. An n or features of another kind, as others may keep by these names, is
            passed over with a note.

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
        held = ", ".join(sorted(arrays)[:8]) or "nothing"
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
    n, drawn = _noted(path, arrays, "n", "iu"), _scalar(path, arrays, "rows_drawn", "U")
    if rows is not None:
        if not (np.abs(rows) <= np.finfo(np.float32).max).all():
            raise Refusal(
                f"statistics {path}: rows have a value that is not finite in float32; need finite "
                "rows"
            )
        rows = rows.astype(np.float32)
        rows = rows if drawn else _shuffled(path, rows, n)
    return ReferenceStatistics(
        mu=arrays["mu"].astype(np.float64),
        sigma=arrays["sigma"].astype(np.float64),
        n=n,
        features=_noted(path, arrays, "features", "U"),
        digest=_scalar(path, arrays, "digest", "U"),
        rows=rows,
        rows_drawn=drawn,
    )


def _shuffled(path: Path, rows: np.ndarray, n: int | None) -> np.ndarray:
    """Rows in random order that lie in an unknown one; warns unless they are of all images."""
    if n != len(rows):
        log.warning(
            "statistics %s: they do not say how their %d rows were drawn; earlier versions kept "
            "the first, so the kernel distance may be one to a few classes: make them again",
            path,
            len(rows),
        )
    return rows[np.random.default_rng(_ORDER_SEED).permutation(len(rows))]


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {e.filename.removesuffix(".npy"): e.file_size for e in archive.infolist()}
        foreign = [k for k in ("n", "features") if sizes.get(k, 0) > _MAX_SCALAR_BYTES]
        read = [key for key in sizes if key in _DTYPES and key not in foreign]
        largest = max(read, key=sizes.__getitem__, default=None)
        if largest is None or sizes[largest] <= _MAX_ENTRY_BYTES:
            with np.load(path, allow_pickle=False) as archive:
                # Other keys (ADM adds its images, mu_s and sigma_s) are listed but never read.
                arrays = {k: archive[k] if k in read else np.empty(0) for k in archive.files}
    except Exception as error:
        if cause := system_error(error):
            with naming(path, "need a file of statistics that can be read"):
                raise cause from None
        # Foreign bytes make zipfile, zlib and numpy's header parser raise a dozen types.
        raise Refusal(
            f"statistics {path}: not a readable .npz of plain numbers; "
            "need a .npz with mu and sigma, without Python objects"
        ) from error
    if largest is not None and sizes[largest] > _MAX_ENTRY_BYTES:
        raise Refusal(
            f"statistics {path}: entry '{largest}.npy' unpacks to {sizes[largest]} bytes; "
            f"need at most {_MAX_ENTRY_BYTES}"
        )
    for key in foreign:
        log.warning("statistics %s: %s has %d bytes; passed over", path, key, sizes[key])
        arrays.pop(key, None)
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
    check_moments(f"statistics {path}", mu, sigma)


def _noted(path: Path, arrays: dict[str, np.ndarray], key: str, kinds: str) -> Any:
    """As `_scalar`, but None with a note where the key holds what others may call so."""
    try:
        return _scalar(path, arrays, key, kinds)
    except Refusal as error:
        log.warning("%s: passed over", error)
        return None


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

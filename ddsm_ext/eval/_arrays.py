"""The one way in which feature rows enter the metrics: fp64, two axes, finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from ddsm_ext.settings import Refusal, TypeRefusal


def as_rows(features: Any, caller: str) -> np.ndarray:
    """Return features as a finite fp64 array [N, D].

    Args:
        features: tensor (any device) or array [N, D], float dtype.
        caller: name that opens the error sentence.

    Raises:
        TypeError: not a tensor or array of floats.
        ValueError: not two axes, or a value that is not finite.
    """
    if hasattr(features, "detach") and features.is_floating_point():
        # bf16 has no numpy dtype, hence the cast before .numpy()
        features = features.detach().cpu().double().numpy()
    if not isinstance(features, np.ndarray) or features.dtype.kind != "f":
        kind = getattr(features, "dtype", type(features).__name__)
        raise TypeRefusal(f"{caller}: features are {kind}; need a float tensor or array [N, D]")
    if features.ndim != 2:
        raise Refusal(f"{caller}: features have shape {features.shape}; need [N, D]")
    rows = np.asarray(features, dtype=np.float64)
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=1)).argmax())
        raise Refusal(f"{caller}: row {bad} has a value that is not finite; need finite features")
    return rows

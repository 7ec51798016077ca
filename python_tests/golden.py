"""Numbers that reference code computed, outside the repository; skips where they are not."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

SHARED = Path(os.environ.get("DDSM_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@lru_cache
def golden(name: str) -> dict[str, NDArray]:
    """The arrays of a golden file by key."""
    path = SHARED / "golden" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there: set DDSM_SHARED to the folder that holds golden/")
    with np.load(path, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}

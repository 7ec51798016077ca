"""The digits as the product reads them."""

from __future__ import annotations

import numpy as np

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import load_dataset


def digits_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [1797, 1, 8, 8] and labels [1797]."""
    dataset = load_dataset(DataConfig(source="digits", split="all"))
    assert dataset.labels is not None
    return dataset.images, dataset.labels

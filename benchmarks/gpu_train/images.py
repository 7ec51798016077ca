"""Decodes the images of a run and sums up their features, once: python -m gpu_train.images CONFIG.

Both are kept in the work folder; every later command reads them within a second.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ddsm_ext.data.config import DataConfig
from ddsm_ext.data.dataset import load_dataset
from ddsm_ext.eval.features import make_extractor
from ddsm_ext.eval.metrics import reference_statistics
from ddsm_ext.eval.statistics import load_statistics, save_statistics
from ddsm_ext.io.files import read_json


def prepare(config_file: str) -> str:
    """Do both where they are not done yet, and return what there is."""
    config = read_json(config_file)
    dataset = load_dataset(DataConfig.from_dict(config["data"]))
    extractor = make_extractor(config["eval"]["features"])
    reference = Path(config["eval"]["reference"])
    if not reference.exists() or load_statistics(reference).digest != extractor.digest:
        save_statistics(reference, reference_statistics(dataset.images, extractor))
    return f"{len(dataset)} images of {dataset.name}, features of {extractor.name}"


if __name__ == "__main__":
    print(prepare(sys.argv[1]))

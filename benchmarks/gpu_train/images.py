"""Decodes the images of a run once, into its cache: python -m gpu_train.images CONFIG_JSON."""

from __future__ import annotations

import sys

from ddsm_ext.io.files import read_json
from ddsm_ext.training.config import DataConfig
from ddsm_ext.training.data import load_dataset

if __name__ == "__main__":
    dataset = load_dataset(DataConfig.from_dict(read_json(sys.argv[1])["data"]))
    print(f"{len(dataset)} images of {dataset.name}, {len(dataset.class_names)} classes")

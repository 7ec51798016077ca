"""Small autoencoders of diffusers as folders, with weights by seed or by the goldens' formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddsm_ext._optional import import_diffusers
from ddsm_ext.settings import MissingLibrary

try:
    DIFFUSERS: Any = import_diffusers("the tests")
except MissingLibrary as error:
    pytest.skip(str(error), allow_module_level=True)

CLASSES = {"kl": "AutoencoderKL", "vq": "VQModel"}


def small_settings(kind: str, channels: int = 1) -> dict[str, Any]:
    """Settings of an autoencoder of half the side, 2 or 3 latent channels, about 10,000 weights."""
    return {
        "in_channels": channels, "out_channels": channels, "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 2 if kind == "kl" else 3,
        **({"scaling_factor": 0.7, "shift_factor": 0.1} if kind == "kl" else {}),
        **({"num_vq_embeddings": 32} if kind == "vq" else {}),
    }  # fmt: skip


def save_autoencoder(folder: Path, kind: str = "kl", channels: int = 1, seed: int = 0) -> Path:
    """Write an autoencoder of random weights, as diffusers does; returns the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = getattr(DIFFUSERS, CLASSES[kind])(**small_settings(kind, channels))
        for name, tensor in network.named_parameters():
            if name == "quantize.embedding.weight":
                nn.init.normal_(tensor)
    network.save_pretrained(folder)
    return folder


def formula_network(config: str) -> Any:
    """The autoencoder of a golden file, in float64, by the formula in the goldens' README."""
    settings = json.loads(config)
    network = getattr(DIFFUSERS, settings["_class_name"]).from_config(settings)
    for k, (name, p) in enumerate(sorted(network.named_parameters())):
        i = np.arange(p.numel(), dtype=np.float64)
        v = torch.from_numpy(np.sin(0.7 * i * (1 + 0.001 * (k % 17)) + k)).view(p.shape)
        if p.ndim > 1:
            p.data = v * (2.0 / p[0].numel()) ** 0.5
        else:
            p.data = 1.0 + 0.2 * v if name.endswith("weight") else 0.1 * v
    return network

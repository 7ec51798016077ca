"""Networks of guided-diffusion and its kin with the references' outputs and gradients."""

from __future__ import annotations

import copy
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compat.official_weights import formula_weights
from torch import Tensor

from ddsm_ext.compat import (
    diffusers_state_dict_shapes,
    guided_diffusion_state_dict_shapes,
    latent_diffusion_state_dict_shapes,
    load_diffusers,
    load_guided_diffusion,
    load_latent_diffusion,
)
from ddsm_ext.models import SlimmableNetwork

SHARED = Path(os.environ.get("DDSM_SHARED", Path(__file__).resolve().parents[3] / "shared"))
# File -> widths that it holds.
CASES: dict[str, tuple[float, ...]] = {
    "adm_legacy_updown": (1.0, 0.5),
    "adm_neworder_updown": (1.0, 0.75, 0.5, 0.25),
    "adm_plain_convresample": (1.0, 0.5),
    "ldm_uncond": (1.0, 0.5),
    "ldm_crossattn": (1.0, 0.5),
    "ldm_fixedheads_updown": (1.0, 0.5),
    "diffusers_ddpm_cifar10_family": (1.0, 0.75, 0.5, 0.25),
    "diffusers_unet_resnet_updown": (1.0, 0.5),
}


def read(name: str) -> dict[str, Any]:
    path = SHARED / "golden" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there: set DDSM_SHARED to the folder that holds golden/")
    with np.load(path, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


def shapes_of(name: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a case's parameters, as our code has them."""
    if name.startswith("ldm"):
        return latent_diffusion_state_dict_shapes(config)
    if name.startswith("diffusers"):
        return diffusers_state_dict_shapes(config)
    return guided_diffusion_state_dict_shapes(config)


@lru_cache
def loaded(name: str) -> tuple[dict[str, Any], dict[str, Any], SlimmableNetwork]:
    data = read(name)
    config = json.loads(str(data["config"]))
    state = formula_weights(shapes_of(name, config), torch.float64)
    if name.startswith("diffusers"):
        return data, config, load_diffusers(state, config)
    load = load_latent_diffusion if name.startswith("ldm") else load_guided_diffusion
    return data, config, load(state, config)


class Golden:
    """A golden file, a copy of its network, and what that is called with."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64) -> None:
        self.name = name
        self.data, self.config, net = loaded(name)
        self.net = copy.deepcopy(net).to(dtype)
        self.x = torch.from_numpy(self.data["x"]).to(dtype)
        self.t = torch.from_numpy(self.data["t"])
        labels = self.data.get("y_labels", self.data.get("class_labels"))
        self.y = None if labels is None else torch.from_numpy(labels)
        self.context = None
        if "context" in self.data:
            self.context = torch.from_numpy(self.data["context"]).to(dtype)

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.data[key])

    def at(self, key: str, width: float) -> Tensor:
        return self[key if width == 1.0 else f"{key}_{width:g}"]

    def __call__(self, width: float, **more: bool) -> Tensor:
        return self.net(self.x, self.t, width, self.y, context=self.context, **more)


def relative(y: Tensor, expected: Tensor) -> float:
    return ((y.double() - expected).abs().max() / expected.abs().max()).item()

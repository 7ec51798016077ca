"""What the suite's scripts share: device, network, arithmetic, and how they report.

DDSM_TEST_DEVICE=cpu tries the scripts themselves on the CPU, with a small network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.bench.conditions import Setting
from ddsm_ext.bench.network import random_inputs, random_network
from ddsm_ext.bench.shapes import REFERENCE_CIFAR10
from ddsm_ext.io.files import write_json
from ddsm_ext.models.config import UNetConfig
from ddsm_ext.models.graph_steps import run_step
from ddsm_ext.models.unet import SlimmableUNet
from ddsm_ext.ops._fused import make_tickets

DEVICE = os.environ.get("DDSM_TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
WIDTHS = (1.0, 0.5, 0.25)
_SMALL = UNetConfig(
    image_size=8, ch=64, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=16,
    norm="fixed_groups", concat_slicing="prefix", time_table_rows=1000,
)  # fmt: skip
CONFIG = REFERENCE_CIFAR10 if ON_GPU else _SMALL
BATCHES = (128, 1, 16, 512) if ON_GPU else (2, 1)


def setting(dtype: str = "bfloat16") -> Setting:
    """Return the device and an arithmetic."""
    return Setting(dtype, 1, DEVICE)


def network(dtype: torch.dtype = torch.bfloat16) -> SlimmableUNet:
    """Return the network with random weights, laid out as on a GPU."""
    net = random_network(CONFIG).to(DEVICE, dtype)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def inputs(batch: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """Return images [N, C, H, W], channels_last, and timesteps [N]."""
    x, t = random_inputs(CONFIG, batch, dtype, device=DEVICE)
    return x.contiguous(memory_format=torch.channels_last), t


def step_of(net: SlimmableUNet, width: float, x: Tensor, t: Tensor) -> Callable[[], Tensor]:
    """Return a step by the kernels that a graph captures; on the CPU as the module."""
    if ON_GPU:
        tickets = make_tickets(x.device)
        return lambda: run_step(net, width, x, t, tickets)
    return lambda: net(x, t, width)


def synchronise() -> None:
    """Wait for the device."""
    if ON_GPU:
        torch.cuda.synchronize()


def sm90a() -> bool:
    """True unless the environment turns the sm_90a path off."""
    return os.environ.get("DDSM_SM90A") != "0"


def report(path: Path | None, content: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Write all to a file, and what the summary shows as a last line of JSON."""
    if path is not None:
        write_json(path, dict(content))
    print(json.dumps(figures), flush=True)

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
from published.grid import ADM_IMAGENET64
from torch import Tensor

from ddsm_ext.bench.conditions import REFERENCE_CIFAR10, Setting
from ddsm_ext.bench.steps import channels_last, random_inputs, random_network
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.io.files import write_json
from ddsm_ext.models.adm import ADMConfig
from ddsm_ext.models.edm import SongUNetConfig
from ddsm_ext.models.families import preset
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.models.unet import UNetConfig
from ddsm_ext.ops._fused import make_tickets
from ddsm_ext.runtime.cuda import run_step

DEVICE = os.environ.get("DDSM_TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
WIDTHS = (1.0, 0.5, 0.25)
_SMALL = UNetConfig(
    image_size=8, ch=64, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=16,
    norm="fixed_groups", concat_slicing="prefix", time_table_rows=1000,
)  # fmt: skip
CONFIG = REFERENCE_CIFAR10 if ON_GPU else _SMALL
BATCHES = (128, 1, 16, 512) if ON_GPU else (2, 1)
# Scale-shift norms, halved and enlarged images, labels, several heads: what CONFIG has not.
ADM = ADMConfig(
    image_size=16, ch=64, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=16, num_classes=10,
)  # fmt: skip
# Sums times a factor, filters, a ring, random frequencies: what neither of them has.
NCSN = SongUNetConfig(
    image_size=16, ch=64, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=16, time_mult=2,
    fourier=True, aux_residual=True, taps=4, num_classes=10,
)  # fmt: skip
# Transformers: a layer norm, blocks, geglu, a class as a token.
LDM = ADMConfig(
    image_size=16, ch=64, ch_mult=(1, 2), attn=(1,), num_res_blocks=1, groups=16, head_channels=32,
    scale_shift=False, resample_blocks=False, context_channels=96, num_classes=10,
)  # fmt: skip
NETWORKS: dict[str, NetworkConfig] = {"U-Net": CONFIG, "ADM": ADM, "NCSN++": NCSN, "LDM": LDM}
# What is timed as a graph beside CONFIG: key of the results -> network and batches.
TIMED: dict[str, tuple[NetworkConfig, tuple[int, ...]]] = {
    "ms_a_step": (CONFIG, BATCHES),
    "adm_ms_a_step": (ADM_IMAGENET64, (16,)) if ON_GPU else (ADM, (2,)),
    "ddpmpp_ms_a_step": (preset("edm-cifar10-vp"), (128, 1)) if ON_GPU else (NCSN, (2,)),
    "ldm_ms_a_step": (preset("ldm4-imagenet"), (16, 1)) if ON_GPU else (LDM, (2,)),
}


def setting() -> Setting:
    """Return the device and its arithmetic."""
    return Setting("bfloat16", 1, DEVICE)


def network(config: NetworkConfig = CONFIG) -> SlimmableNetwork:
    """Return a network with random weights in bfloat16, laid out as on a GPU."""
    net = random_network(config).to(DEVICE, torch.bfloat16)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def inputs_of(net: SlimmableNetwork, batch: int) -> dict[str, Tensor]:
    """Return a network's random inputs by name, images of the weights' dtype, channels_last."""
    dtype = next(net.parameters()).dtype
    return channels_last(random_inputs(net.config, batch, dtype, device=DEVICE))


def step_of(
    net: SlimmableNetwork, width: float, inputs: Mapping[str, Tensor]
) -> Callable[[], Tensor]:
    """Return a step by the kernels that a graph captures; on the CPU by the modules."""
    if ON_GPU:
        tickets = make_tickets(inputs["x"].device)
        return lambda: run_step(net, width, inputs, tickets)
    return lambda: net.run_modules(**inputs, width=width)


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

"""What the training of an autoencoder takes on this machine, before it is begun."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.bench.timing import interleaved
from ddsm_ext.machine import memory_bytes
from ddsm_ext.run.autoencoder import build_autoencoder
from ddsm_ext.run.costs import TIMED_MACS, TRAINING_COPIES, TRAINING_PASSES
from ddsm_ext.settings import Refusal
from ddsm_ext.training.autoencoder import moments
from ddsm_ext.training.autoencoder_config import AutoencoderConfig


@dataclass(frozen=True)
class AutoencoderEstimate:
    """What an autoencoder takes.

    Args:
        parameters: of encoder and decoder.
        macs: multiply-accumulates of an image, there and back.
        n_bytes: memory of a training: weights, gradients, moments, average, activations.
    """

    parameters: int
    macs: int
    n_bytes: int


def estimate_autoencoder(
    config: AutoencoderConfig, image_channels: int, image_size: int
) -> AutoencoderEstimate:
    """Return what an autoencoder takes; nothing of it is allocated or computed.

    Args:
        config: of the autoencoder.
        image_channels: 1 or 3.
        image_size: pixels a side.

    Raises:
        ImportError: diffusers is not installed, or too old.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = build_autoencoder(config, image_channels, image_size)
        x = torch.empty(1, image_channels, image_size, image_size)  # [1, C, H, W]
    weights = {t.untyped_storage()._cdata for t in net.state_dict().values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        _there_and_back(net, x)
    parameters = sum(p.numel() for p in net.parameters())
    activations = config.batch_size * sum(storage.nbytes() for storage in kept.values())
    n_bytes = 4 * TRAINING_COPIES * parameters + activations
    return AutoencoderEstimate(parameters, counter.get_total_flops() // 2, n_bytes)


def training_seconds(config: AutoencoderConfig, image_channels: int, image_size: int) -> float:
    """Return about how long a training takes on this processor, by a few forward passes.

    Of larger images smaller ones are timed in their place: of so few MACs, and as many pixels as
    they have.

    Args:
        config: of the autoencoder.
        image_channels: 1 or 3.
        image_size: pixels a side.
    """
    macs = estimate_autoencoder(config, image_channels, image_size).macs
    shrink = 2 ** math.ceil(max(0.0, math.log(macs / TIMED_MACS, 4)))
    side = max(1, image_size // config.factor // shrink) * config.factor
    timed = estimate_autoencoder(config, image_channels, side).macs
    net = build_autoencoder(config, image_channels, side)
    net.to(memory_format=torch.channels_last)
    batch = max(1, min(config.batch_size, int(2e9 / timed)))
    x = torch.zeros(batch, image_channels, side, side, dtype=torch.float32, device="cpu")
    with torch.inference_mode():
        calls = {"step": lambda: _there_and_back(net, x)}
        times = interleaved(calls, rounds=3, warmup_rounds=1)
    each = times["step"].min_ms / 1e3 / (timed * batch)
    return TRAINING_PASSES * each * macs * config.batch_size * config.steps


def check_autoencoder_memory(
    config: AutoencoderConfig, image_channels: int, image_size: int, device: torch.device
) -> None:
    """Refuse a training that this machine's memory cannot hold, before any of it is allocated.

    A GPU says itself what it cannot hold.

    Raises:
        ValueError: it is more than twice the machine's memory.
    """
    if device.type != "cpu":
        return
    needed = estimate_autoencoder(config, image_channels, image_size).n_bytes
    if needed > 2 * memory_bytes():
        raise Refusal(
            f"batch_size is {config.batch_size} with images of {image_size} pixels: the training "
            f"takes about {needed / 1e9:,.0f} GB of memory, there are {memory_bytes() / 1e9:,.0f}; "
            "need a smaller batch or network"
        )


def _there_and_back(net: Any, x: Tensor) -> Tensor:
    """Images [N, C, H, W] in [-1, 1], encoded and decoded."""
    decoded: Tensor = net.decode(moments(net, x)[0]).sample
    return decoded

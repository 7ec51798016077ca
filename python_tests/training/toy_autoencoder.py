"""diffusers' AutoencoderKL of a few thousand weights, and short trainings of it."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training.toy_net import toy_data

from ddsm_ext.run.autoencoder import build_autoencoder
from ddsm_ext.training.autoencoder import train_autoencoder
from ddsm_ext.training.autoencoder_config import AutoencoderConfig
from ddsm_ext.training.session import TrainResult

# Where the tests are run for a submission nothing may be passed over unseen.
needs_diffusers = pytest.mark.skipif(
    importlib.util.find_spec("diffusers") is None and "CI" not in os.environ,
    reason="needs the diffusers extra",
)
TINY = {"block_out_channels": (4, 8), "norm_groups": 2, "latent_channels": 2}


def config(**changes: Any) -> AutoencoderConfig:
    settings = {"steps": 16, "batch_size": 4, "log_every": 4, "checkpoint_every": 6, "seed": 3}
    return AutoencoderConfig(**{**TINY, **settings, "warmup_steps": 4, **changes})


def toy_autoencoder(seed: int = 0) -> Any:
    return build_autoencoder(config(seed=seed), 1, 6)


def decoding(net: Any, change: Any) -> Any:
    """Let `change(call, images)` stand for what the network decodes in training."""
    decode, calls = net.decode, iter(range(10**9))

    def changed(z: Tensor) -> Any:
        made = decode(z)
        if net.training:
            made.sample = change(next(calls), made.sample)
        return made

    net.decode = changed
    return net


def stop_at(step: int, seed: int = 0) -> Any:
    """An autoencoder that sends SIGINT to the own process within a step, as Ctrl-C does."""

    def stop(call: int, images: Tensor) -> Tensor:
        if call == step:
            os.kill(os.getpid(), signal.SIGINT)
        return images

    return decoding(toy_autoencoder(seed), stop)


def poisoned(steps: range, value: float, where: str) -> Any:
    """An autoencoder whose decoder gives, or is given back, non-finite values in some steps."""

    def poison(call: int, images: Tensor) -> Tensor:
        if call not in steps:
            return images
        if where == "loss":
            return images * value
        images.register_hook(lambda gradient: gradient * value)
        return images

    return decoding(toy_autoencoder(), poison)


def run_training(
    run: Path, settings: AutoencoderConfig, net: Any = None, **options: Any
) -> TrainResult:
    net = toy_autoencoder() if net is None else net
    return train_autoencoder(net, toy_data(), settings, run, **options)


def weights_of(net: Any) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in net.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)

"""What is compared for a whole U-Net step: slicing, dense weights, torch.compile and ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch._dynamo.config
from torch import Tensor

from ddsm_ext.bench.network import random_inputs, random_network
from ddsm_ext.bench.shapes import config_at
from ddsm_ext.bench.slicing_unet import SlicingUNet
from ddsm_ext.models.config import UNetConfig
from ddsm_ext.models.dense import DenseUNet
from ddsm_ext.models.step import UNetStepRunner
from ddsm_ext.models.unet import SlimmableUNet

STEP_CANDIDATES = ("slicing", "dense", "dense_cl", "compiled", "ours", "ours_module")
DEFAULT_CANDIDATES = ("slicing", "dense_cl", "ours")  # compiling takes a minute a width
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Step:
    """A candidate at a width, ready to run: weights cut out, compiled, rearranged.

    `setup_s` is how long that took, `held_bytes` the memory for activations that it keeps from one
    step to the next, `panel_bytes` its rearranged weights of all widths.
    """

    call: Call
    setup_s: float
    held_bytes: int
    panel_bytes: int


def prepare_steps(
    config: UNetConfig,
    widths: Sequence[float],
    names: Sequence[str],
    batch: int,
    dtype: torch.dtype,
) -> dict[tuple[float, str], Step]:
    """Return (width, candidate) -> Step; all of a width compute one function of one input.

    Call it and the steps without gradients and on the threads that will be timed.

    Args:
        config: the network, filled with random weights; see `config_at`.
        widths: widths to run.
        names: some of STEP_CANDIDATES.
        batch: images.
        dtype: type of weights and images.
    """
    steps: dict[tuple[float, str], Step] = {}
    for variant in dict.fromkeys(config_at(config, width) for width in widths):
        x, t = random_inputs(variant, batch, dtype)
        own = [width for width in widths if config_at(config, width) == variant]
        builder = _Builder(random_network(variant).to(dtype), own, x, t)
        for width in own:
            for name in names:
                start = time.perf_counter()
                call: Call = getattr(builder, name)(width)
                setup_s = time.perf_counter() - start
                steps[width, name] = Step(
                    call, setup_s, builder.held_bytes(name, width), builder.panel_bytes(name)
                )
    return steps


class _Builder:
    """One method a candidate, named as in STEP_CANDIDATES."""

    def __init__(self, net: SlimmableUNet, widths: Sequence[float], x: Tensor, t: Tensor) -> None:
        self.net, self.widths, self.x, self.t = net, tuple(widths), x, t
        self.x_cl = x.contiguous(memory_format=torch.channels_last)
        n, c, image_height, image_width = x.shape
        self.shape = (n, c, image_height, image_width)

    def slicing(self, width: float) -> Call:
        network = SlicingUNet(self.net)
        return lambda: network(self.x, self.t, width)

    def dense(self, width: float) -> Call:
        network = self.net.export_subnet(width)
        return lambda: network(self.x, self.t)

    def dense_cl(self, width: float) -> Call:
        network = self._export_channels_last(width)
        return lambda: network(self.x_cl, self.t)

    def compiled(self, width: float) -> Call:
        network = torch.compile(
            self._export_channels_last(width),
            fullgraph=True,
            dynamic=False,
            options={"freezing": True},
        )
        # All widths share the code of one forward, which is compiled at most 8 times by default.
        with torch._dynamo.config.patch(recompile_limit=256):
            network(self.x_cl, self.t)
        return lambda: network(self.x_cl, self.t)

    def _export_channels_last(self, width: float) -> DenseUNet:
        dense = self.net.export_subnet(width)
        return dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @cached_property
    def runner(self) -> UNetStepRunner:
        runner = self.net.step_runner()
        reason = runner.reason_against(self.x.dtype, self.x.device)
        if reason is not None:
            raise ValueError(f"run_unet_step: ours would run uncompiled, {reason}")
        runner.prepare(self.widths, self.shape, self.x.dtype, self.x.device)
        return runner

    def ours(self, width: float) -> Call:
        runner = self.runner
        runner(self.x_cl, self.t, width)  # rearranges the weights
        return lambda: runner(self.x_cl, self.t, width)

    def ours_module(self, width: float) -> Call:
        return lambda: self.net(self.x_cl, self.t, width)

    def held_bytes(self, name: str, width: float) -> int:
        if name != "ours":
            return 0
        return self.runner.activation_bytes(width, self.shape, self.x.dtype)

    def panel_bytes(self, name: str) -> int:
        return self.runner.panel_bytes() if name == "ours" else 0

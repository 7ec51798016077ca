"""What is compared for a whole U-Net step: slicing, dense weights, torch.compile and ours."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch._dynamo.config
from torch import Tensor

from ddsm_ext.bench.conditions import Setting
from ddsm_ext.bench.memory import held_gpu_bytes
from ddsm_ext.bench.network import as_reference, random_inputs, random_network
from ddsm_ext.bench.shapes import config_at
from ddsm_ext.bench.slicing_unet import SlicingUNet
from ddsm_ext.models.config import UNetConfig
from ddsm_ext.models.dense import DenseUNet
from ddsm_ext.models.step import UNetStepRunner
from ddsm_ext.models.unet import SlimmableUNet

STEP_CANDIDATES = ("slicing", "dense", "dense_cl", "compiled", "ours", "ours_module")
DEFAULT_CANDIDATES = ("slicing", "dense_cl", "ours")  # compiling takes a minute a width
Call = Callable[[], Tensor]
_COMPILE_S = 30.0  # less than this is not tried for the first width


@dataclass(frozen=True)
class Step:
    """A candidate at a width, ready to run: weights cut out, compiled, rearranged, captured.

    `setup_s` is how long that took. On the CPU the steps of ours share `arena_bytes` for their
    activations and `panel_bytes` of rearranged weights of all widths; on a GPU every candidate
    keeps `held_bytes` of weights of its own and graphs. `uncompiled` says why ours runs as the
    module, if it does.
    """

    call: Call
    setup_s: float
    arena_bytes: int = 0
    panel_bytes: int = 0
    held_bytes: int = 0
    uncompiled: str | None = None


@dataclass
class Steps:
    """(width, candidate) -> Step, and why some are missing."""

    ready: dict[tuple[float, str], Step] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def prepare_steps(
    config: UNetConfig,
    widths: Sequence[float],
    names: Sequence[str],
    batch: int,
    setting: Setting,
    compile_limit_s: float = math.inf,
) -> Steps:
    """Return the candidates at each width; all of a width compute one function of one input.

    Call it and the steps without gradients and with the setting active.

    Args:
        config: the network, filled with random weights; see `config_at`.
        widths: widths to run, in the order in which they are compiled.
        names: some of STEP_CANDIDATES.
        batch: images.
        setting: device and arithmetic.
        compile_limit_s: "compiled" is left out at widths that would probably end later after the
            start of this call.
    """
    start = time.perf_counter()
    last_s = _COMPILE_S
    steps = Steps()
    builders = {}
    for variant in dict.fromkeys(config_at(config, width) for width in widths):
        net = random_network(variant).to(setting.device, setting.kind)
        own = [width for width in widths if config_at(config, width) == variant]
        inputs = random_inputs(variant, batch, setting.kind, device=setting.device)
        builders[variant] = _Builder(net, own, *inputs, on_gpu=setting.on_gpu)
    # Compiling may take minutes and fail: all else is ready before.
    for name in sorted(names, key=lambda name: name == "compiled"):
        for width in widths:
            spent_s = time.perf_counter() - start
            if name == "compiled" and spent_s + last_s > compile_limit_s:
                steps.left_out.append(f"{name} at width {width:g}: no time left to compile")
                continue
            try:
                step = builders[config_at(config, width)].step(name, width)
            except RuntimeError as error:
                if name != "compiled":
                    raise
                steps.failed.append(f"{name} at width {width:g}: {error}")
                continue
            steps.ready[width, name] = step
            if name == "compiled":
                last_s = step.setup_s
    return steps


class _Builder:
    """One method a candidate, named as in STEP_CANDIDATES; `step` calls it."""

    def __init__(
        self, net: SlimmableUNet, widths: Sequence[float], x: Tensor, t: Tensor, *, on_gpu: bool
    ) -> None:
        self.net, self.widths, self.x, self.t = net, tuple(widths), x, t
        self.x_cl = x.contiguous(memory_format=torch.channels_last)
        n, c, image_height, image_width = x.shape
        self.shape = (n, c, image_height, image_width)
        self.on_gpu = on_gpu
        self.reference = SlicingUNet(as_reference(net))

    def step(self, name: str, width: float) -> Step:
        before = held_gpu_bytes() if self.on_gpu else 0
        start = time.perf_counter()
        call: Call = getattr(self, name)(width)
        step = Step(call, time.perf_counter() - start)
        if self.on_gpu:
            step = replace(step, held_bytes=held_gpu_bytes() - before)
        if name != "ours":
            return step
        if not self.on_gpu:
            arena_bytes = self.runner.activation_bytes(width, self.shape, self.x.dtype)
            step = replace(step, arena_bytes=arena_bytes, panel_bytes=self.runner.panel_bytes())
        return replace(step, uncompiled=self.uncompiled)

    def slicing(self, width: float) -> Call:
        cudnn = torch.backends.cudnn

        def call() -> Tensor:
            # As the reference code leaves it. Every width has its own shapes: to time cuDNN's
            # algorithms for all of them takes minutes.
            before, cudnn.benchmark = cudnn.benchmark, False
            try:
                return self.reference(self.x, self.t, width)
            finally:
                cudnn.benchmark = before

        return call

    def dense(self, width: float) -> Call:
        network = self.net.export_subnet(width)
        return lambda: network(self.x, self.t)

    def dense_cl(self, width: float) -> Call:
        network = self._export_channels_last(width)
        return lambda: network(self.x_cl, self.t)

    def compiled(self, width: float) -> Call:
        dense = self._export_channels_last(width)
        options: dict[str, Any] = (
            {"mode": "max-autotune"} if self.on_gpu else {"options": {"freezing": True}}
        )
        network = torch.compile(dense, fullgraph=True, dynamic=False, **options)

        def call() -> Tensor:
            # On a GPU the output lies in a graph's memory, which the next step may use again.
            torch.compiler.cudagraph_mark_step_begin()
            return network(self.x_cl, self.t)

        # All widths share the code of one forward, which is compiled at most 8 times by default.
        with torch._dynamo.config.patch(recompile_limit=256):
            for _ in range(3 if self.on_gpu else 1):  # compiles, records a graph, replays it
                call()
        return call

    def _export_channels_last(self, width: float) -> DenseUNet:
        dense = self.net.export_subnet(width)
        return dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @cached_property
    def runner(self) -> UNetStepRunner:
        return self.net.step_runner()

    @cached_property
    def uncompiled(self) -> str | None:
        """Why the runner runs steps as the module; None: it makes them ready."""
        reason = self.runner.reason_against(self.x.dtype, self.x.device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.runner.prepare(self.widths, self.shape, self.x.dtype, self.x.device)
        said = [str(warning.message) for warning in caught]
        reason = reason or next((text for text in said if "uncompiled" in text), None)
        if reason is not None and not self.on_gpu:
            raise ValueError(f"run_unet_step: ours would run uncompiled, {reason}")
        return reason

    def ours(self, width: float) -> Call:
        if self.uncompiled is not None:
            return self.ours_module(width)
        runner = self.runner
        runner(self.x_cl, self.t, width)  # rearranges the weights, or captures
        return lambda: runner(self.x_cl, self.t, width)

    def ours_module(self, width: float) -> Call:
        return lambda: self.net(self.x_cl, self.t, width)

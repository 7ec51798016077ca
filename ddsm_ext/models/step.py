"""A U-Net step made ready per width: what the sampler runs by default."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddsm_ext.models.dense import check_inputs
from ddsm_ext.models.graph_steps import GraphSteps
from ddsm_ext.models.plan_steps import PlanSteps
from ddsm_ext.models.step_key import StepError, StepKey, Steps
from ddsm_ext.models.unet import SlimmableUNet
from ddsm_ext.nn import blocks, embedding, layers
from ddsm_ext.ops._panels import panel_bytes

# What a step is made from; anything else in the network (a wrapped layer, say) is not known.
_KNOWN = (
    SlimmableUNet,
    nn.ModuleList,
    blocks.AttentionBlock,
    blocks.OutputBlock,
    blocks.ResampleBlock,
    blocks.ResidualBlock,
    embedding.TimeEmbedding,
    layers.SlicedConv2d,
    layers.SlicedGroupNorm,
    layers.SlicedLinear,
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def _problem(net: SlimmableUNet, device: torch.device, steps: Steps) -> str | None:
    """Return why the network is not what steps can be made from, or None."""
    for name, module in net.named_modules():
        if type(module) not in _KNOWN:
            return f"{name or 'the network'} is a {type(module).__name__}"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return f"{name or 'the network'} has forward hooks"
    for name, parameter in net.named_parameters():
        if parameter.device != device:
            return f"{name} is on {parameter.device}"
        if parameter.dtype != net.head.weight.dtype:
            return f"{name} is of another dtype than the rest"
    return steps.reason_against(net)


class UNetStepRunner:
    """Runs a `SlimmableUNet` as steps made ready per (width, batch, size, dtype); see `StepRunner`.

    On the CPU a step is a compiled plan (`PlanSteps`), on an NVIDIA GPU a CUDA graph
    (`GraphSteps`). A step is made ready at its first use and again when that needs it. All steps
    share one piece of memory, so calls from several threads take turns. What cannot be made ready
    runs as the module, with one warning that says why. A module or hook that was added or replaced
    is noticed by `prepare`, which the sampler calls before each batch.

    Args:
        net: the network; its parameters are used where they are.
    """

    def __init__(self, net: SlimmableUNet) -> None:
        self._net = weakref.ref(net)
        self._lock = threading.Lock()
        self._device: torch.device | None = None
        self._steps: Steps | None = None
        self._problem: str | None = None
        self._warned: set[str] = set()

    def prepare(
        self,
        widths: Sequence[float],
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Make the steps at `widths` ready for x of `shape` [N, C, H, W], `dtype` and `device`."""
        net = self._module()
        device = _with_index(device)
        with self._lock:
            steps = self._steps_on(net, device)
            steps.renew(net)
            self._problem = _problem(net, device, steps)
        if self.reason_against(dtype, device) is not None or shape[0] == 0:
            return
        with self._lock, torch.no_grad():
            for width in widths:
                key = StepKey(net.config.check_width(width), shape[0], shape[2], shape[3], dtype)
                try:
                    steps.prepare(net, key)
                except StepError as error:
                    self._warn(str(error))

    def __call__(self, x: Tensor, t: Tensor, width: float) -> Tensor:
        """Return the prediction [N, C, H, W] for x [N, C, H, W] at timesteps t [N]."""
        net = self._module()
        width = net.config.check_width(width)
        reason = self.reason_against(x.dtype, x.device)
        if reason is not None:
            self._warn(reason)
            return net(x, t, width)
        if len(x) == 0:
            return net(x, t, width)
        x, t = check_inputs("UNetStepRunner", net.config, x, t, net.head.weight)
        key = StepKey(width, x.shape[0], x.shape[2], x.shape[3], x.dtype)
        with self._lock, torch.no_grad():
            try:
                return self._steps_on(net, x.device).run(net, key, x, t)
            except StepError as error:
                self._warn(str(error))
        return net(x, t, width)

    def activation_bytes(
        self, width: float, shape: tuple[int, int, int, int], dtype: torch.dtype
    ) -> int:
        """Return the peak memory of a step's activations for x of `shape`, as if it were alone."""
        net = self._module()
        key = StepKey(width, shape[0], shape[2], shape[3], dtype)
        with self._lock, torch.no_grad():
            return self._steps_on(net, net.head.weight.device).activation_bytes(net, key)

    def held_bytes(self) -> int:
        """Return the memory that all steps made ready so far hold together, weights excepted."""
        return 0 if self._steps is None else self._steps.held_bytes()

    def panel_bytes(self) -> int:
        """Return the memory of the rearranged weights that exist now, for all widths together."""
        return panel_bytes(self._module().parameters())

    def reason_against(self, dtype: torch.dtype, device: torch.device) -> str | None:
        """Return why steps of this dtype and device run as the module; None: they do not."""
        net = self._module()
        if device.type not in ("cpu", "cuda"):
            return f"device is {device}, steps run on the CPU or on CUDA"
        steps = self._steps_on(net, _with_index(device))
        if dtype not in steps.dtypes:
            names = ", ".join(str(d).removeprefix("torch.") for d in steps.dtypes)
            return f"dtype is {dtype}, steps on {device.type} take {names}"
        if torch.is_autocast_enabled(device.type):
            return "autocast is on, steps compute in the dtype of x"
        weight = net.head.weight
        if weight.dtype not in (dtype, torch.float32):
            return f"the weights are {weight.dtype}, x is {dtype}"
        if net.training and net.config.dropout:
            return "the network is in training mode with dropout"
        return self._problem

    def _module(self) -> SlimmableUNet:
        net = self._net()
        if net is None:
            raise RuntimeError("UNetStepRunner: its network no longer exists; need a living one")
        return net

    def _steps_on(self, net: SlimmableUNet, device: torch.device) -> Steps:
        """Return what runs steps on a device; those on another one are forgotten."""
        if self._steps is None or device != self._device:
            self._device = device
            cuda = device.type == "cuda"
            self._steps = GraphSteps(net, device) if cuda else PlanSteps(net)
            self._problem = _problem(net, device, self._steps)
        return self._steps

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"ddsm_ext: steps run uncompiled: {reason}", stacklevel=3)


def _with_index(device: torch.device) -> torch.device:
    """ "cuda" as the device that it stands for."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device

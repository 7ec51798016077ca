"""`StepRunner`: a network's steps made ready per width, batch, size and dtype."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from ddsm_ext._fixed_weights import found_good
from ddsm_ext._locks import ForkSafeLock
from ddsm_ext.graph.count import layers
from ddsm_ext.ops._packed import packed_bytes
from ddsm_ext.ops._weights import is_plain
from ddsm_ext.runtime.backend import Network, StepError, StepKey, Steps
from ddsm_ext.runtime.cpu import PlanSteps
from ddsm_ext.runtime.cuda import GraphSteps
from ddsm_ext.runtime.inputs import check_inputs, named_inputs
from ddsm_ext.width import check_width

_AS_IT_IS = nullcontext()
_DTYPES = {"cpu": PlanSteps.dtypes, "cuda": GraphSteps.dtypes}


def serves(net: Network, x: Tensor) -> bool:
    """True if a compiled step may stand for the modules: nothing else watches or transforms them.

    False with gradients, autocast, forward-mode derivatives, functorch's transforms, torch.compile,
    tracing, modes that see functions or operators, a CUDA graph being captured, tensor subclasses,
    and where steps do not exist: for other devices and dtypes.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(x) is not Tensor:
        return False
    device, dtype = x.device.type, x.dtype
    return (
        dtype in _DTYPES.get(device, ())
        and _parameter_dtype(net) in (dtype, torch.float32)
        and not torch.is_autocast_enabled(device)
        and not torch._C._len_torch_dispatch_stack()
        and not _functions_are_seen()
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not torch.jit.is_tracing()
        and not (device == "cuda" and torch.cuda.is_current_stream_capturing())
    )


def _functions_are_seen() -> bool:
    """True if a mode sees torch's functions, other than torch.set_default_device's."""
    depth = torch._C._len_torch_function_stack()
    if not depth:
        return False
    modes = map(torch._C._get_function_stack_at, range(depth))
    return not all(type(mode) is DeviceContext for mode in modes)


def _parameter_dtype(net: Network) -> torch.dtype | None:
    first = net.first_parameter()
    return None if first is None else first.dtype


def _problem(net: Network, device: torch.device, steps: Steps) -> str | None:
    """Return why the parameters are not what steps can be made from, or None."""
    parameters = dict(net.named_parameters(remove_duplicate=False))
    dtype = _parameter_dtype(net)
    for name, parameter in parameters.items():
        if not is_plain(parameter):
            return f"{name} is a {type(parameter).__name__} of layout {parameter.layout}"
        if parameter.device != device:
            return f"{name} is on {parameter.device}"
        if parameter.dtype != dtype:
            return f"{name} is of another dtype than the rest"
    for layer in layers(net.graph):
        for suffix in layer.suffixes:
            found = parameters.get(f"{layer.name}.{suffix}")
            if found is None or found.shape != layer.shape(suffix):
                return f"{layer.name}.{suffix} is not as described"
    return steps.reason_against(net)


def _signature(given: Tensor | None) -> tuple[Any, ...] | None:
    """Return all that `check_inputs` looks at in an argument."""
    return (given.shape, given.dtype, given.device) if isinstance(given, Tensor) else None


def _mode_against(device: torch.device) -> str | None:
    """Return which mode of torch steps cannot follow, or None; modes come and go between steps."""
    if device.type in _DTYPES and torch.is_autocast_enabled(device.type):
        return "autocast is on, steps compute in the dtype of x"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives are taken, steps have none"
    return None


def steps_for(net: Network, device: torch.device) -> Steps:
    """Return what makes a network's steps ready on a device."""
    return GraphSteps(net, device) if device.type == "cuda" else PlanSteps(net)


class StepRunner:
    """Runs a `SlimmableNetwork` as steps made ready per (width, batch, size, dtype).

    On the CPU a step is a compiled plan (`cpu.PlanSteps`), on an NVIDIA GPU a CUDA graph
    (`cuda.GraphSteps`). A step is made ready at its first use and again when that needs it. All
    steps share one piece of memory, so calls from several threads take turns. What cannot be made
    ready runs as the modules, with one warning that says why.

    Args:
        net: the network; its parameters are used where they are.
        make_steps: returns what makes steps ready on a device.
    """

    def __init__(
        self, net: Network, make_steps: Callable[[Network, torch.device], Steps] = steps_for
    ) -> None:
        self._net = weakref.ref(net)
        self._make_steps = make_steps
        self._lock = ForkSafeLock()
        self._made_for: tuple[torch.device, int] | None = None
        self._steps: Steps | None = None
        self._problem: str | None = None
        self._warned: set[str] = set()

    def prepare(
        self,
        widths: Iterable[float],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Make the steps at `widths` ready for x of `shape` [N, C, H, W], `dtype` and `device`.

        Those of a network that attends to a context are made for as many tokens as it counts.
        """
        net = self._module()
        if shape[0] == 0:
            return
        with self._lock, torch.no_grad():
            if self._reason_against(net, dtype, device) is not None:
                return
            for width in widths:
                key = _key(net, net.config.check_width(width), shape, dtype)
                try:
                    self._steps_on(net, device).prepare(net, key)
                except StepError as error:
                    self._warn(str(error))

    def is_found_good(self, x: Tensor) -> bool:
        """True if weights are fixed now and steps for such images were found to serve."""
        return (self, x.dtype, x.device) in (found_good() or ())

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        width: float,
        y: Tensor | None = None,
        context: Tensor | None = None,
        *,
        known_to_serve: bool = False,
    ) -> Tensor:
        """Return the prediction [N, C', H, W]; arguments as `SlimmableNetwork.forward`'s.

        known_to_serve: the caller has just found that it `serves` and no `structure_problem`.
        """
        net, width = self._module(), check_width(width)
        good, call = found_good(), (self, width, *map(_signature, (x, t, y, context)))
        with self._lock, torch.no_grad() if torch.is_grad_enabled() else _AS_IT_IS:
            if good is not None and call in good:
                reason = None if known_to_serve else _mode_against(x.device)
            else:
                net.config.counts(width)  # refuses a width that cannot be used
                reason = self._reason_against(net, x.dtype, x.device, known_to_serve)
                if reason is None:
                    weight = net.first_parameter()
                    assert weight is not None
                    owner = type(net).__name__
                    check_inputs(
                        owner, net.graph, x, t, y, weight, context=context, several=True
                    )
                    if good is not None:
                        good |= {call, (self, x.dtype, x.device)}
            if reason is None and x.numel():
                labels = 1 if y is None else len(y) // len(x)
                tokens = 0 if context is None else context.shape[1]
                key = StepKey(width, x.shape[0], x.shape[2], x.shape[3], x.dtype, labels, tokens)
                try:
                    assert self._steps is not None
                    return self._steps.run(net, key, named_inputs(x, t, y, context))
                except StepError as error:
                    reason = str(error)
        if reason is not None:
            self._warn(reason)
        return net.run_modules(x, t, width, y, context=context)

    def activation_bytes(self, width: float, shape: Sequence[int], dtype: torch.dtype) -> int:
        """Return the peak memory of a step's activations for x of `shape`, as if it were alone."""
        net = self._module()
        key = _key(net, width, shape, dtype)
        with self._lock, torch.no_grad():
            weight = net.first_parameter()
            assert weight is not None
            return self._steps_on(net, weight.device).activation_bytes(net, key)

    def held_bytes(self) -> int:
        """Return the memory that all steps made ready so far hold together, weights excepted."""
        return 0 if self._steps is None else self._steps.held_bytes()

    def packed_bytes(self) -> int:
        """Return the memory of the packed weights that exist now, for all widths together."""
        return packed_bytes(self._module().parameters())

    def reason_against(self, dtype: torch.dtype, device: torch.device) -> str | None:
        """Return why steps of this dtype and device run as the modules; None: they do not."""
        with self._lock:
            return self._reason_against(self._module(), dtype, device)

    def _reason_against(
        self,
        net: Network,
        dtype: torch.dtype,
        device: torch.device,
        known_to_serve: bool = False,
    ) -> str | None:
        if device.type not in _DTYPES:
            return f"device is {device}, steps run on the CPU or on CUDA"
        if dtype not in _DTYPES[device.type]:
            names = ", ".join(str(d).removeprefix("torch.") for d in _DTYPES[device.type])
            return f"dtype is {dtype}, steps on {device.type} take {names}"
        mode = None if known_to_serve else _mode_against(device)
        if mode is not None:
            return mode
        weights = _parameter_dtype(net)
        if weights not in (dtype, torch.float32):
            return f"the weights are {weights}, x is {dtype}"
        if net.training and any(node.op == "dropout" for node in net.graph.nodes):
            return "the network is in training mode with dropout"
        problem = None if known_to_serve else net.structure_problem()
        if problem is None:
            self._steps_on(net, device)
            problem = self._problem
        return problem

    def _module(self) -> Network:
        net = self._net()
        if net is None:
            raise RuntimeError("StepRunner: its network no longer exists; need a living one")
        return net

    def _steps_on(self, net: Network, device: torch.device) -> Steps:
        """Return what runs steps on a device with the weights as they are now."""
        device = _with_index(device)
        made_for = (device, net.structure_version())
        fresh = self._steps is None or made_for != self._made_for
        if fresh:
            self._made_for = made_for
            self._steps = self._make_steps(net, device)
        assert self._steps is not None
        if self._steps.renew(net, whole=found_good() is not None) or fresh:
            self._problem = _problem(net, device, self._steps)
        return self._steps

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"ddsm_ext: steps run uncompiled: {reason}", stacklevel=3)


def _key(net: Network, width: float, shape: Sequence[int], dtype: torch.dtype) -> StepKey:
    """Return what a step for x of `shape` is made for, with as many tokens as are counted."""
    context = net.graph.inputs.get("context")
    tokens = (context and context.tokens) or 0
    return StepKey(width, shape[0], shape[2], shape[3], dtype, tokens=tokens)


def _with_index(device: torch.device) -> torch.device:
    """ "cuda" as the device that it stands for."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device

"""What the ops share: argument checks, the path a call takes, its gradients, tf32.

An error is one sentence with the op, what it got and what it needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddsm_ext import _library
from ddsm_ext.settings import Refusal, TypeRefusal

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)


def check_tensor(op: str, name: str, value: Any, ndim: int | None = None) -> None:
    """Refuse anything but a dense floating-point tensor with `ndim` dimensions (None: any)."""
    if not isinstance(value, Tensor):
        raise TypeRefusal(f"{op}: {name} is {type(value).__name__}, need a torch.Tensor")
    if value.layout != torch.strided:
        raise TypeRefusal(f"{op}: {name} has layout {value.layout}, need torch.strided")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeRefusal(
            f"{op}: {name} has dtype {value.dtype}, need float32, bfloat16, float64 or float16"
        )
    if ndim is not None and value.dim() != ndim:
        raise Refusal(f"{op}: {name} has shape {shape_text(value)}, need {ndim} dimensions")


def check_flag(op: str, name: str, value: Any) -> None:
    """Refuse anything but a bool."""
    if not isinstance(value, bool):
        raise TypeRefusal(f"{op}: {name} is {value!r}, need True or False")


def check_int(op: str, name: str, value: Any) -> None:
    """Refuse anything but an int (bool excluded; a traced SymInt is an int)."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeRefusal(f"{op}: {name} is {value!r}, need an int")


def check_c_out(op: str, c_out: Any, weight: Tensor) -> None:
    """Refuse an output count outside the weight's first dimension."""
    check_int(op, "c_out", c_out)
    if not 1 <= c_out <= weight.shape[0]:
        raise Refusal(
            f"{op}: c_out is {c_out}, weight has {weight.shape[0]} output channels; "
            f"need 1 <= c_out <= {weight.shape[0]}"
        )


def check_weight_match(op: str, x: Tensor, weight: Tensor) -> None:
    """Refuse a weight on another device, or of a dtype that the kernels do not pair with x's."""
    if weight.device != x.device:
        raise Refusal(f"{op}: x is on {x.device}, weight on {weight.device}; need one device")
    dtype, other = x.dtype, weight.dtype
    mixed = dtype in (torch.bfloat16, torch.float16) and other == torch.float32
    if other != dtype and not mixed:
        raise TypeRefusal(
            f"{op}: x has dtype {dtype}, weight {other}; need equal dtypes, "
            "or a float32 weight with a 16-bit x"
        )


def check_bias(op: str, bias: Any, weight: Tensor) -> None:
    """Refuse a bias that does not belong to the weight: [c_out_max], same dtype and device."""
    if bias is None:
        return
    check_tensor(op, "bias", bias, 1)
    if bias.shape[0] != weight.shape[0]:
        raise Refusal(
            f"{op}: bias has {bias.shape[0]} elements, weight has {weight.shape[0]} output "
            "channels; need one bias element per output channel"
        )
    if bias.dtype != weight.dtype or bias.device != weight.device:
        raise TypeRefusal(
            f"{op}: bias is {bias.dtype} on {bias.device}, weight {weight.dtype} on "
            f"{weight.device}; need the same dtype and device"
        )


def check_second_source(
    op: str, name: str, x: Tensor, x2: Any, offset: Any, channels_max: int
) -> int:
    """Refuse a second source that does not go with x; return where its parameters start.

    x is [N, c, H, W], x2 [N, c2, H, W] or None; `name` is that of `offset`, where None means c.
    """
    c = x.shape[1]
    if x2 is None:
        if offset is not None:
            raise Refusal(f"{op}: {name} is {offset!r} but x2 is None; need both or neither")
        return c
    check_tensor(op, "x2", x2, 4)
    if x2.dtype != x.dtype:
        raise TypeRefusal(f"{op}: x2 has dtype {x2.dtype}, x {x.dtype}; need the same dtype")
    if x2.device != x.device:
        raise Refusal(f"{op}: x2 is on {x2.device}, x on {x.device}; need the same device")
    if x2.shape[0] != x.shape[0] or x2.shape[2:] != x.shape[2:] or x2.shape[1] < 1:
        raise Refusal(
            f"{op}: x2 has shape {shape_text(x2)}, x {shape_text(x)}; need the same N, H and W "
            "and at least one channel"
        )
    if offset is None:
        offset = c
    check_int(op, name, offset)
    last = channels_max - x2.shape[1]
    if not c <= offset <= last:
        raise Refusal(
            f"{op}: {name} is {offset}, x has {c} and x2 {x2.shape[1]} channels, weight "
            f"{channels_max}; need {c} <= {name} <= {last}"
        )
    return offset


def check_accumulate(op: str, flag: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse gradient accumulation into tensors that have no `.grad` of their own."""
    check_flag(op, "accumulate_grad", flag)
    if not flag:
        return
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.requires_grad and not value.is_leaf:
            raise Refusal(
                f"{op}: accumulate_grad=True but {name} is computed from other tensors; "
                "need a leaf tensor such as a parameter"
            )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype that an enabled autocast wants for x, or None for x's own.

    Weights keep their dtype, and their gradients with it; see `factor_beside`.
    """
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return None
    dtype = torch.get_autocast_dtype(device)
    return None if dtype == x.dtype else dtype


def factor_beside(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    """Return a weight or bias as the kernels multiply and add it beside x.

    The CPU's read a float32 one beside a 16-bit x directly. On CUDA tensor cores multiply equal
    dtypes and bulk copies convert nothing: there it would be read element by element, so that a
    copy in x's dtype, a few microseconds, takes its place.
    """
    if parameter is None or parameter.dtype == x.dtype or not x.is_cuda:
        return parameter
    return parameter.detach().to(x.dtype)


def shape_text(value: Tensor) -> str:
    """Return a tensor's shape as `[2, 3]`."""
    return "[" + ", ".join(str(size) for size in value.shape) + "]"


def empty_nhwc(like: Tensor, *shape: int) -> Tensor:
    """Return memory for [N, C, H, W] in channels_last, of like's dtype and device."""
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


# ---- which path a call takes: a compiled kernel, or the plain-torch reference -------------------

# Backward ops that a training call needs beside the forward one.
_BACKWARD = {
    "sliced_conv2d": ("sliced_conv2d_grad_x", "sliced_conv2d_grad_weight"),
    "sliced_linear": ("sliced_linear_grad_x", "sliced_linear_grad_weight"),
    "sliced_group_norm": ("sliced_group_norm_backward",),
    "sliced_attention": ("sliced_attention_backward",),
    "resample": (),
}
_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16, torch.float64),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


# (op, device type, gradient needed) -> first op that the call needs without a compiled kernel, or
# None: a plain table, so that torch.compile can trace the choice.
_MISSING = {
    (op, device_type, needs_grad): next(
        (name for name in needed if not _library.has_kernel(name, device_type)), None
    )
    for op, backward in _BACKWARD.items()
    for needs_grad, needed in ((False, (op,)), (True, (op, *backward)))
    for device_type in _DTYPES
}


def why_no_library(device_type: str) -> str:
    """Return " (why it is not loaded; what builds it)" for want of the CUDA library, else ""."""
    reason = _library.cuda_missing_reason
    return f" ({reason})" if device_type == "cuda" and reason else ""


def runs_native(op: str, x: Tensor, *, needs_grad: bool, warn: bool = True) -> bool:
    """True if compiled kernels of `op` serve x's device and dtype.

    Args:
        op: name without namespace, such as "sliced_conv2d".
        x: the input that decides device and dtype.
        needs_grad: whether the backward kernels are needed too.
        warn: say so, once, where they do not.
    """
    device_type = x.device.type
    missing = _MISSING.get((op, device_type, needs_grad), op)
    if missing is None and x.dtype in _DTYPES[device_type]:
        return True
    if warn and not torch.compiler.is_compiling():
        _warn_once(op, missing, device_type, x.dtype)
    return False


@cache
def _warn_once(op: str, missing: str | None, device_type: str, dtype: torch.dtype) -> None:
    what = f"{op} has no {dtype} kernel" if missing is None else f"{missing} has no kernel"
    where = device_type + why_no_library(device_type)
    warnings.warn(f"ddsm_ext: {what} for {where}; plain torch runs instead", stacklevel=4)


def needs_grad(*tensors: Tensor | None) -> bool:
    """True if autograd will want a gradient of one of these inputs."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # any() over a generator takes twice as long
            if tensor is not None and tensor.requires_grad:
                return True
    return False


# Past the autograd layer that register_autograd gave an op, which on a 4x4 image took 22 of 31 us:
# for calls that need no gradient.
below_autograd = torch._C._AutoDispatchBelowAutograd


def differentiable(
    op: str,
    save: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., dict[int, Tensor | None]],
    *,
    parameters: Mapping[str, int] | None = None,
    run: Callable[..., Any] | None = None,
    once: bool = True,
) -> Callable[..., Any]:
    """Give a raw op its gradients, in eager calls and under torch.compile.

    Returns call(*inputs, needs_grad=..., accumulate_grad=False) -> the raw op's outputs.

    Args:
        op: name without namespace.
        save: (ctx, inputs of the raw op, output) keeps what the backward reads.
        backward: (ctx, *gradients of the outputs) -> {position of an input: its gradient}; those of
            parameters are the tensors of `grad_targets`.
        parameters: name -> position among the inputs of what `accumulate_grad` is about.
        run: (training, *inputs) is what an eager call does; None: calls the raw op.
        once: the backward itself has no gradient.
    """
    raw = getattr(torch.ops.ddsm_ext, op)
    if run is None:
        kernel = raw.default

        def run(training: bool, *inputs: Any) -> Any:
            with below_autograd():
                return kernel(*inputs)

    function = eager_function(op, run, save, backward, parameters=parameters, once=once)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        function.setup_context(ctx, (*inputs, False), output)

    torch.library.register_autograd(
        f"ddsm_ext::{op}", partial(_gradients, backward), setup_context=setup_context
    )

    def call(*inputs: Any, needs_grad: bool, accumulate_grad: bool = False) -> Any:
        if torch.compiler.is_compiling():
            return raw(*inputs)
        if needs_grad:
            return function.apply(*inputs, accumulate_grad)
        return run(False, *inputs)

    return call


def eager_function(
    op: str,
    run: Callable[..., Any],
    save: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., dict[int, Tensor | None]],
    *,
    parameters: Mapping[str, int] | None = None,
    once: bool = True,
) -> type[torch.autograd.Function]:
    """Return the autograd function of eager calls: arguments as `differentiable`'s.

    It takes a fifth of register_autograd's time a call; its last input is `accumulate_grad`.
    """
    positions = dict(parameters or {})
    gradients = partial(_gradients, backward)
    called: Callable[..., Any] = once_differentiable(gradients) if once else gradients

    class Eager(torch.autograd.Function):
        @classmethod
        def apply(cls, *inputs: Any) -> Any:
            if torch._C._are_functorch_transforms_active():
                return super().apply(*inputs)
            # Function's own first binds the inputs to forward's signature, 9 of 40 us a call.
            # mypy: the base is torch's own in C, which its stubs leave out.
            return super(torch.autograd.Function, cls).apply(*inputs)  # type: ignore[misc]

        @staticmethod
        def forward(*inputs: Any) -> Any:
            return run(True, *inputs[:-1])

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.op, ctx.parameters, ctx.accumulate_grad = op, positions, inputs[-1]
            # The leaves themselves: saved_tensors may give other objects with the same values.
            held = [inputs[position] for position in positions.values()]
            ctx.owners = [t if t is not None and t.is_leaf else None for t in held]
            save(ctx, inputs[:-1], output)

        backward = staticmethod(called)

    Eager.__name__ = Eager.__qualname__ = op
    return Eager


def _gradients(backward: Callable[..., Any], ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Return the gradient of every input that was given, None for most."""
    found: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for position, grad in backward(ctx, *grads).items():
        if grad is not None and not (ctx.accumulate_grad and position in ctx.parameters.values()):
            found[position] = grad
    return tuple(found)


def grad_targets(ctx: Any, *parameters: Tensor | None) -> list[Tensor | None]:
    """Return the full-size tensors to whose prefixes a backward adds the parameters' gradients.

    Args:
        ctx: of an op that `differentiable` or `eager_function` made.
        parameters: as saved for the backward, in the order said there.

    Returns:
        `.grad` of each parameter itself with accumulate_grad (made of zeros where there is none;
        autograd is not told), else new zeros; None for what nobody wants. Vectors are contiguous.

    Raises:
        ValueError: `.grad` is a vector that is not contiguous.
    """
    targets: list[Tensor | None] = [None] * len(parameters)
    for i, (name, position) in enumerate(ctx.parameters.items()):
        parameter = parameters[i]
        if parameter is None or not ctx.needs_input_grad[position]:
            continue
        if not ctx.accumulate_grad:
            targets[i] = torch.zeros_like(parameter)
        else:
            own = ctx.owners[i]
            if own.grad is None:
                own.grad = torch.zeros_like(own)
            if own.dim() == 1 and not own.grad.is_contiguous():
                got = f"{name}.grad has stride {own.grad.stride(0)}"
                raise Refusal(f"{ctx.op}: {got}; need a contiguous one")
            targets[i] = own.grad
    return targets


@torch.compiler.assume_constant_result
def is_tf32(operation: str) -> bool:
    """True if torch's switch for "conv" or "matmul" on CUDA says tf32.

    `torch.backends.cudnn.conv.fp32_precision` and `torch.backends.cuda.matmul.fp32_precision` read
    the same, as do the older `allow_tf32`, which refuses to be read once both kinds were set. A
    function compiled by torch.compile keeps the choice of its compilation.
    """
    return torch._C._get_fp32_precision_getter("cuda", operation) == "tf32"


def conv_tf32(x: Tensor) -> bool:
    """True if a convolution of x may form tf32 products, torch's default for float32 on CUDA."""
    return x.is_cuda and x.dtype == torch.float32 and is_tf32("conv")


def matmul_tf32(x: Tensor) -> bool:
    """True if a matrix product with x may form tf32 products; by torch's default it may not."""
    return x.is_cuda and x.dtype == torch.float32 and is_tf32("matmul")

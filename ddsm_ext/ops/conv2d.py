"""Convolution with a prefix of a larger weight, over one or two sources."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from ddsm_ext.ops._autograd import (
    Replayed,
    below_autograd,
    differentiable,
    grad_targets,
    needs_grad,
)
from ddsm_ext.ops._call import (
    autocast_dtype,
    channels_last,
    check_accumulate,
    check_bias,
    check_c_out,
    check_flag,
    check_int,
    check_second_source,
    check_tensor,
    check_weight_match,
    conv_tf32,
    empty_nhwc,
    factor_beside,
    runs_native,
    shape_text,
    uncast,
)
from ddsm_ext.ops._packed import (
    DIRECT,
    ConvProblem,
    check_algorithm,
    packed_weight,
    resolve_algorithm,
)
from ddsm_ext.settings import Refusal

_OP = "sliced_conv2d"


def sliced_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c_out: int,
    *,
    stride: int = 1,
    padding: int = 0,
    x2: Tensor | None = None,
    c_in2_offset: int | None = None,
    upsample: bool = False,
    accumulate_grad: bool = False,
    algo: str = "auto",
    pad_end: bool = False,
) -> Tensor:
    """Compute `conv2d(x, weight[:c_out, :c_in]) + bias[:c_out]` without copying the slice.

    Args:
        x: [N, c_in, H, W], any strides; fp32, bf16, or fp64 (CPU) or fp16 (CUDA).
        weight: [c_out_max, c_in_max, k, k], x's dtype, or float32 with a 16-bit x.
        bias: [c_out_max] of weight's dtype; None adds nothing.
        c_out: active output channels; stride: 1 or 2.
        padding: zero rows and columns added on each side of the (upsampled) input, below k.
        x2: [N, c_in2, H, W], a second source, as if concatenated to x; None: one source.
        c_in2_offset: x2 uses weight[:c_out, c_in2_offset : c_in2_offset + c_in2]; None: c_in.
        upsample: enlarge the sources 2x (nearest neighbour) first.
        accumulate_grad: backward adds the gradients to `weight.grad` and `bias.grad` itself and
            reports none to autograd or hooks; under torch.compile autograd adds them as usual.
        algo: "direct", "winograd_4x4" or "winograd_2x2" (3x3 kernels at stride 1 in float32 or
            bfloat16: 4 and 2.25 times fewer multiplications; in float32, from 8 input channels on,
            up to 8 times PyTorch's error), "direct_bf16" (products of a bfloat16 x and weight,
            summed in float32, on CPUs that have them; gradients in float32; no upsampling) or
            "auto". All but "direct" keep the whole weight rearranged until it changes; "auto"
            therefore weighs them, by a fixed cost model of the shapes, for an `nn.Parameter` only,
            and is "direct" under torch.compile.
        pad_end: add one more zero row and column at the end, as `F.pad(x, (0, 1, 0, 1))` does.

    Returns:
        [N, c_out, H_out, W_out] of x's dtype with channels_last strides.

    Raises:
        TypeError, ValueError: an argument that does not fit, with its value and what is needed.
    """
    flags = (upsample, accumulate_grad, pad_end)
    c_in2_offset = _check_arguments(
        x, weight, bias, c_out, stride, padding, x2, c_in2_offset, *flags
    )
    check_algorithm(_OP, algo, weight, stride, upsample, x.dtype)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x = x.to(dtype)
        x2 = None if x2 is None else x2.to(dtype)
    tensors, window = (x, x2, weight, bias), (c_in2_offset, stride, padding, upsample)
    training = needs_grad(*tensors)
    if not runs_native(_OP, x, needs_grad=training):
        return sliced_conv2d_ref(
            x, weight, bias, c_out, stride=stride, padding=padding,
            x2=x2, c_in2_offset=c_in2_offset, upsample=upsample, pad_end=pad_end,
        )  # fmt: skip
    # By its name until an eager call resolves it, as the gradients choose for themselves.
    choice = DIRECT if torch.compiler.is_compiling() else algo
    numbers = (c_out, *window, None, choice, conv_tf32(x), pad_end)
    return _call(*tensors, *numbers, needs_grad=training, accumulate_grad=accumulate_grad)


def sliced_conv2d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    c_out: int,
    *,
    stride: int = 1,
    padding: int = 0,
    x2: Tensor | None = None,
    c_in2_offset: int | None = None,
    upsample: bool = False,
    pad_end: bool = False,
) -> Tensor:
    """Plain-torch `sliced_conv2d`; the arguments mean the same and are not checked."""
    c_in = x.shape[1]
    w = weight[:c_out, :c_in]  # [c_out, c_in, k, k]
    if x2 is not None:
        offset = c_in if c_in2_offset is None else c_in2_offset
        w = torch.cat([w, weight[:c_out, offset : offset + x2.shape[1]]], dim=1)
        x = torch.cat([x, x2], dim=1)  # [N, c_in + c_in2, H, W]
    if upsample:
        x = F.interpolate(x, scale_factor=2, mode="nearest")  # [N, c_in, 2H, 2W]
    if pad_end:
        x = F.pad(x, (0, 1, 0, 1))
    b = None if bias is None else bias[:c_out].to(x.dtype)
    with uncast(x):
        y = F.conv2d(x, w.to(x.dtype), b, stride=stride, padding=padding)
    return channels_last(y)  # [N, c_out, H_out, W_out]


def _check_arguments(
    x: Any,
    weight: Any,
    bias: Any,
    c_out: Any,
    stride: Any,
    padding: Any,
    x2: Any,
    c_in2_offset: Any,
    upsample: Any,
    accumulate_grad: Any,
    pad_end: Any,
) -> int:
    """Check everything that the kernels rely on; return the second source's weight offset."""
    check_tensor(_OP, "x", x, 4)
    check_tensor(_OP, "weight", weight, 4)
    check_weight_match(_OP, x, weight)
    check_bias(_OP, bias, weight)
    k = weight.shape[2]
    if weight.shape[3] != k or k < 1:
        raise Refusal(
            f"{_OP}: weight has shape {shape_text(weight)}; need a square kernel "
            "[c_out_max, c_in_max, k, k]"
        )
    check_c_out(_OP, c_out, weight.shape[0])
    if not 1 <= x.shape[1] <= weight.shape[1]:
        raise Refusal(
            f"{_OP}: x has {x.shape[1]} channels, weight has {weight.shape[1]} input channels; "
            f"need 1 <= c_in <= {weight.shape[1]}"
        )
    check_flag(_OP, "upsample", upsample)
    check_flag(_OP, "pad_end", pad_end)
    check_accumulate(_OP, accumulate_grad, weight, bias)
    _check_window(x, k, stride, padding, upsample, pad_end)
    return check_second_source(_OP, "c_in2_offset", x, x2, c_in2_offset, weight.shape[1])


def _check_window(
    x: Tensor, k: int, stride: Any, padding: Any, upsample: bool, pad_end: bool
) -> None:
    check_int(_OP, "stride", stride)
    if stride != 1 and stride != 2:
        raise Refusal(f"{_OP}: stride is {stride}, need 1 or 2")
    check_int(_OP, "padding", padding)
    if not 0 <= padding < k:
        raise Refusal(
            f"{_OP}: padding is {padding}, weight has a {k}x{k} kernel; need 0 <= padding < {k}"
        )
    scale = 2 if upsample else 1
    height, width = x.shape[2], x.shape[3]
    if height < 1 or width < 1 or min(height, width) * scale + 2 * padding + pad_end < k:
        raise Refusal(
            f"{_OP}: x has {height}x{width} pixels (upsample={upsample}, padding={padding}); "
            f"need at least the {k}x{k} kernel"
        )


def _output_size(
    size: int, kernel: int, stride: int, padding: int, upsample: bool, pad_end: bool
) -> int:
    """Return one side of the output."""
    return ((2 * size if upsample else size) + 2 * padding + pad_end - kernel) // stride + 1


@torch.library.register_fake("ddsm_ext::sliced_conv2d")
def _fake(
    x: Tensor,
    x2: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    c_out: int,
    c_in2_offset: int,
    stride: int,
    padding: int,
    upsample: bool,
    panels: Any = None,
    algo: int = DIRECT,
    tf32: bool = False,
    pad_end: bool = False,
) -> Tensor:
    k = weight.shape[2]
    height = _output_size(x.shape[2], k, stride, padding, upsample, pad_end)
    width = _output_size(x.shape[3], k, stride, padding, upsample, pad_end)
    return empty_nhwc(x, x.shape[0], c_out, height, width)  # [N, c_out, H_out, W_out]


@torch.library.register_fake("ddsm_ext::sliced_conv2d_grad_x")
def _fake_grad_x(
    grad_y: Tensor, weight: Tensor, c_in: int, offset: int, height: int, width: int, *more: Any
) -> Tensor:
    return empty_nhwc(grad_y, grad_y.shape[0], c_in, height, width)  # [N, c_in, H, W]


@torch.library.register_fake("ddsm_ext::sliced_conv2d_panels")
@torch.library.register_fake("ddsm_ext::sliced_conv2d_grad_weight")
def _fake_written(*args: Any) -> None:
    """The results are written into arguments."""


def _algorithm(algo: str, x: Tensor, weight: Tensor, problem: ConvProblem, **how: bool) -> int:
    """`resolve_algorithm`, but DIRECT for fake tensors, whose values nothing can rearrange."""
    if type(x) is FakeTensor or type(weight) is FakeTensor:
        return DIRECT
    return resolve_algorithm(algo, weight, problem, **how)


def _run(
    training: bool,
    x: Tensor,
    x2: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    c_out: int,
    c_in2_offset: int,
    stride: int,
    padding: int,
    upsample: bool,
    _panels: None,
    algo: str,
    tf32: bool,
    pad_end: bool,
) -> Tensor:
    """Run the kernel with the algorithm that `algo` names or that suits the shapes."""
    k = weight.shape[2]
    n, c_in, height, width = x.shape
    problem = ConvProblem(
        n,
        _output_size(height, k, stride, padding, upsample, pad_end),
        _output_size(width, k, stride, padding, upsample, pad_end),
        c_in if x2 is None else c_in + x2.shape[1],
        c_out,
        k,
        stride,
        2 if upsample else 1,
        x.dtype == weight.dtype == torch.bfloat16,
    )
    try:
        algorithm = _algorithm(algo, x, weight, problem, training=training)
        panels = None if algorithm == DIRECT else packed_weight(weight, algorithm)
    except (TypeError, ValueError):  # sizes beyond the choice: the op itself says which
        algorithm, panels = DIRECT, None
    numbers = (c_out, c_in2_offset, stride, padding, upsample, panels, algorithm, tf32, pad_end)
    tensors = (x, x2, factor_beside(x, weight), factor_beside(x, bias))
    with below_autograd():
        return torch.ops.ddsm_ext.sliced_conv2d.default(*tensors, *numbers)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    _c_out, ctx.c_in2_offset, *window, _panels, algo, ctx.tf32, ctx.pad_end = inputs[4:]
    ctx.window = tuple(window)  # stride, padding, upsample
    ctx.algo = algo if isinstance(algo, str) else "direct"


def _grad_source(ctx: Any, grad_y: Tensor, source: Tensor, weight: Tensor, offset: int) -> Tensor:
    n, c, height, width = source.shape
    stride, _padding, upsample = ctx.window
    # Not the saved tensor, which may be another object with the same values.
    owner = weight if ctx.owners[0] is None else ctx.owners[0]
    algorithm = DIRECT
    if not upsample:
        problem = ConvProblem(n, height, width, grad_y.shape[1], c, weight.shape[2], stride, 1)
        algorithm = _algorithm(ctx.algo, grad_y, owner, problem, training=True)
    panels = None if algorithm == DIRECT else packed_weight(owner, algorithm, transposed=True)
    factor = factor_beside(grad_y, weight)
    numbers = (c, offset, height, width, *ctx.window, panels, algorithm, ctx.tf32, ctx.pad_end)
    return torch.ops.ddsm_ext.sliced_conv2d_grad_x(grad_y, factor, *numbers)


def _add_grad_weight(
    ctx: Any,
    grad_y: Tensor,
    x: Tensor,
    x2: Tensor | None,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor | None,
) -> None:
    stride, _padding, upsample = ctx.window
    n, c_out, height, width = grad_y.shape
    c_in = x.shape[1] if x2 is None else x.shape[1] + x2.shape[1]
    scale = 2 if upsample else 1
    problem = ConvProblem(n, height, width, c_in, c_out, weight.shape[2], stride, scale)
    owner = weight if ctx.owners[0] is None else ctx.owners[0]
    algorithm = _algorithm(ctx.algo, grad_y, owner, problem, training=True, grad_weight=True)
    torch.ops.ddsm_ext.sliced_conv2d_grad_weight(
        *(grad_y, x, x2, ctx.c_in2_offset, *ctx.window, grad_weight, grad_bias, algorithm),
        *(ctx.tf32, ctx.pad_end),
    )


def _backward(ctx: Any, grad_y: Tensor) -> dict[int, Tensor | None]:
    """Gradients of x, x2 and full-size ones of weight and bias, zero outside the prefix."""
    # Once: hooks of checkpointing let nobody unpack a saved tensor twice.
    x, x2, weight, bias = ctx.saved_tensors
    grads: dict[int, Tensor | None] = {}
    for index, (source, offset) in enumerate(((x, 0), (x2, ctx.c_in2_offset))):
        if ctx.needs_input_grad[index]:
            grads[index] = _grad_source(ctx, grad_y, source, weight, offset)
    grads[2], grads[3] = grad_weight, grad_bias = grad_targets(ctx, weight, bias)
    if grad_weight is not None or grad_bias is not None:
        grad_weight = torch.zeros_like(weight) if grad_weight is None else grad_weight
        _add_grad_weight(ctx, grad_y, x, x2, weight, grad_weight, grad_bias)
    return grads


def _replay(ctx: Any, saved: list[Any], grads: tuple[Tensor, ...]) -> Replayed:
    x, x2, weight, bias = saved
    stride, padding, upsample = ctx.window
    y = sliced_conv2d_ref(
        x, weight, bias, grads[0].shape[1], stride=stride, padding=padding,
        x2=x2, c_in2_offset=ctx.c_in2_offset, upsample=upsample, pad_end=ctx.pad_end,
    )  # fmt: skip
    return (y,), dict(enumerate(saved))


_call = differentiable(
    _OP, _save, _backward, parameters={"weight": 2, "bias": 3}, run=_run, replay=_replay
)


def _macs(x: Any, x2: Any, weight: Any, c_out: int, pixels: int) -> int:
    c_in = x[1] + (x2[1] if x2 is not None else 0)
    return x[0] * pixels * c_out * c_in * weight[2] * weight[3]


def flops(x: Any, x2: Any, weight: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    """Return a forward call's FLOPs; a multiply-add of an enlarged image counts as one."""
    _n, c_out, height, width = out_shape
    return 2 * _macs(x, x2, weight, c_out, height * width)


def _flops_grad_x(grad_y: Any, weight: Any, c_in: int, *args: Any, **kwargs: Any) -> int:
    """Return the FLOPs of the gradient of x."""
    return 2 * grad_y[0] * grad_y[2] * grad_y[3] * grad_y[1] * c_in * weight[2] * weight[3]


def _flops_grad_weight(
    grad_y: Any,
    x: Any,
    x2: Any,
    c_in2_offset: int,
    stride: int,
    padding: int,
    upsample: bool,
    grad_weight: Any,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Return the FLOPs of the gradient of the weights."""
    return 2 * _macs(x, x2, grad_weight, grad_y[1], grad_y[2] * grad_y[3])


register_flop_formula(torch.ops.ddsm_ext.sliced_conv2d)(flops)
register_flop_formula(torch.ops.ddsm_ext.sliced_conv2d_grad_x)(_flops_grad_x)
register_flop_formula(torch.ops.ddsm_ext.sliced_conv2d_grad_weight)(_flops_grad_weight)

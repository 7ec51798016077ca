"""Checks of the public ops' CUDA kernels, on the device that is torch's default."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddsm_ext.ops.attention import sliced_attention, sliced_attention_ref
from ddsm_ext.ops.conv2d import sliced_conv2d, sliced_conv2d_ref
from ddsm_ext.ops.group_norm import sliced_group_norm, sliced_group_norm_ref
from ddsm_ext.ops.layer_norm import sliced_layer_norm, sliced_layer_norm_ref
from ddsm_ext.ops.linear import sliced_linear, sliced_linear_ref
from ddsm_ext.ops.packed_attention import packed_attention, packed_attention_ref


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype)


def tolerance(dtype: torch.dtype) -> float:
    """Of results relative to their largest: tf32 and 16-bit numbers are that coarse."""
    return {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]


def check_close(got: Tensor, exact: Tensor, relative: float) -> None:
    error = (got.double() - exact).abs().max() / exact.abs().max()
    assert error <= relative, f"relative error {error:.3g}, allowed {relative:.3g}"


def compare(op, reference, tensors: list[Tensor | None], relative: float) -> None:
    """Output and all gradients of `op` beside those of `reference` in fp64."""
    results = []
    for function, dtype in ((op, None), (reference, torch.float64)):
        leaves = [
            None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors
        ]
        y = function(*leaves)
        torch.manual_seed(1)
        grad_y = torch.randn(y.shape).to(y.dtype)
        grads = torch.autograd.grad(y, [t for t in leaves if t is not None], grad_y)
        results.append((y.detach(), *grads))
    for got, exact in zip(*results, strict=True):
        check_close(got, exact, relative)


def check_conv2d(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    for channels_last in (False, True):
        for kernel, stride, upsample, pad_end in (
            (3, 1, False, False), (3, 2, False, False), (1, 1, False, False),
            (3, 1, True, False), (3, 2, False, True),
        ):  # fmt: skip
            weight = normal(24, 32, kernel, kernel, dtype=weight_dtype)
            x, x2 = normal(2, 11, 6, 5, dtype=dtype), normal(2, 8, 6, 5, dtype=dtype)
            if channels_last:
                weight, x = (t.contiguous(memory_format=torch.channels_last) for t in (weight, x))
            window = {"stride": stride, "padding": kernel // 2 - pad_end, "upsample": upsample}
            window["pad_end"] = pad_end
            more = {"c_in2_offset": 16, **window}
            compare(
                lambda x, x2, w, b, more=more: sliced_conv2d(x, w, b, 13, x2=x2, **more),
                lambda x, x2, w, b, more=more: sliced_conv2d_ref(x, w, b, 13, x2=x2, **more),
                [x, x2, weight, normal(24, dtype=weight_dtype)],
                tolerance(dtype),
            )
            compare(
                lambda x, w, window=window: sliced_conv2d(x, w, None, 24, **window),
                lambda x, w, window=window: sliced_conv2d_ref(x, w, None, 24, **window),
                [x, weight],
                tolerance(dtype),
            )


def check_linear(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    relative = 1e-5 if dtype == torch.float32 else tolerance(dtype)
    weight, bias = normal(24, 32, dtype=weight_dtype), normal(24, dtype=weight_dtype)
    for x in (
        normal(19, dtype=dtype),
        normal(3, 7, 32, dtype=dtype),
        normal(7, 3, 19, dtype=dtype).transpose(0, 1),
        normal(5, 40, dtype=dtype)[:, :16],
    ):
        compare(
            lambda x, w, b: sliced_linear(x, w, b, 13),
            lambda x, w, b: sliced_linear_ref(x, w, b, 13),
            [x, weight, bias],
            relative,
        )


def check_activated_linear(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """Layers of one block and of several, with what becomes of their results."""
    relative = 1e-5 if dtype == torch.float32 else tolerance(dtype)
    x = normal(3, 7, 32, dtype=dtype)[..., :19]
    for blocks, kind in ((4, None), (3, "gelu"), (2, "gelu_tanh"), (2, "geglu")):
        weight = normal(blocks, 24, 32, dtype=weight_dtype) / 4
        c = 13 if kind == "geglu" else blocks * 13
        tensors = [x, weight, normal(blocks, 24, dtype=weight_dtype)]
        added = [normal(3, c, dtype=dtype), normal(3, 7, c, dtype=dtype)]
        compare(
            lambda x, w, b, g, r, k=kind: sliced_linear(
                x, w, b, 13, activation=k, gate=g, residual=r
            ),
            lambda x, w, b, g, r, k=kind: sliced_linear_ref(
                x, w, b, 13, activation=k, gate=g, residual=r
            ),
            [*tensors, *added],
            2 * relative,
        )


def check_group_norm(dtype: torch.dtype, param_dtype: torch.dtype) -> None:
    relative = 1e-5 if dtype == torch.float32 else tolerance(dtype)
    for two in (False, True):
        weight, bias = (normal(32, dtype=param_dtype) for _ in range(2))
        x, x2 = normal(2, 12, 5, 4, dtype=dtype), normal(2, 8, 5, 4, dtype=dtype)
        if two:
            more = {"c2_offset": 16, "silu": True}
            compare(
                lambda x, x2, w, b, m=more: torch.cat(sliced_group_norm(x, w, b, 4, x2=x2, **m), 1),
                lambda x, x2, w, b, m=more: torch.cat(
                    sliced_group_norm_ref(x, w, b, 4, x2=x2, **m), 1
                ),
                [x, x2, weight, bias],
                relative,
            )
        else:
            compare(
                lambda x, w, b: sliced_group_norm(x, w, b, 4),
                lambda x, w, b: sliced_group_norm_ref(x, w, b, 4),
                [x, weight, bias],
                relative,
            )


def check_modulated_group_norm(dtype: torch.dtype, param_dtype: torch.dtype) -> None:
    """The raw ops with a scale and a shift for each image: columns of one tensor."""
    relative = 1e-5 if dtype == torch.float32 else tolerance(dtype)
    ops = torch.ops.ddsm_ext
    weight, bias = (normal(32, dtype=param_dtype) for _ in range(2))
    x, x2 = normal(2, 12, 5, 4, dtype=dtype), normal(2, 8, 5, 4, dtype=dtype)
    for second, channels, offset in ((None, 12, 12), (x2, 20, 16)):
        scale, shift = normal(2, 2 * channels + 1, dtype=dtype)[:, 1:].chunk(2, dim=1)
        sources = [x] if second is None else [x, second]
        leaves = [t.double().requires_grad_() for t in (*sources, weight, bias, scale, shift)]
        z, (w, b, s, t) = torch.cat(leaves[:-4], 1), leaves[-4:]
        used = [*range(12), *range(offset, offset + channels - 12)]
        exact = torch.nn.functional.group_norm(z, 4, w[used], b[used], 1e-5)
        exact = exact * (1 + s[:, :, None, None]) + t[:, :, None, None]
        exact = torch.nn.functional.silu(exact)
        grad_y = normal(*exact.shape, dtype=dtype)
        numbers = (weight, bias, 4, offset, 1e-5, True, scale, shift)
        *y, mean, rstd = ops.sliced_group_norm(x, second, *numbers)
        check_close(torch.cat(y[: len(sources)], 1), exact, relative)
        grads = [torch.zeros_like(p) for p in (weight, bias)]
        grads += [torch.full((2, channels), torch.nan).to(dtype) for _ in range(2)]
        grad_ys = [*grad_y.split([source.shape[1] for source in sources], dim=1), None][:2]
        grad_x = ops.sliced_group_norm_backward(
            *grad_ys, x, second, weight, bias, mean, rstd, 4, offset, True, *grads[:2],
            scale, shift, *grads[2:],
        )  # fmt: skip
        expected = torch.autograd.grad(exact, leaves, grad_y.double())
        for got, wanted in zip((*grad_x[: len(sources)], *grads), expected, strict=True):
            check_close(got, wanted, relative)


def check_layer_norm(dtype: torch.dtype, param_dtype: torch.dtype) -> None:
    """With and without parameters, scale and shift, of rows in any layout."""
    relative = 1e-5 if dtype == torch.float32 else tolerance(dtype)
    weight, bias = (normal(40, dtype=param_dtype) for _ in range(2))
    scale, shift = normal(3, 2 * 19, dtype=dtype).chunk(2, dim=1)  # [N, c] each
    for x in (
        normal(3, 19, dtype=dtype),
        normal(3, 5, 19, dtype=dtype),
        normal(3, 5, 40, dtype=dtype)[:, 1:4, :19],
        normal(3, 19, 2, 4, dtype=dtype).permute(0, 2, 3, 1),  # [N, H, W, c]
    ):
        for affine in ((weight, bias), (None, None)):
            compare(sliced_layer_norm, sliced_layer_norm_ref, [x, *affine], relative)
            compare(
                lambda x, w, b, s, t: sliced_layer_norm(x, w, b, scale=s, shift=t),
                lambda x, w, b, s, t: sliced_layer_norm_ref(x, w, b, scale=s, shift=t),
                [x, *affine, scale, shift],
                relative,
            )


def check_attention(dtype: torch.dtype) -> None:
    relative = 1e-5 if dtype == torch.float32 else tolerance(dtype)
    fused = normal(2, 20, 3, 3 * 16, dtype=dtype)  # [N, T, heads, 3 d]
    for tensors in (
        [t.transpose(1, 2) for t in fused.split(16, dim=-1)],
        [normal(2, 1, t, 24, dtype=dtype) for t in (70, 33, 33)],
        [normal(1, 2, 9, 11, dtype=dtype).mT for _ in range(3)],  # a head size that is not adjacent
        [normal(1, 1, 9, 300, dtype=dtype) for _ in range(3)],
    ):
        for scale in (None, 0.3):
            compare(
                lambda q, k, v, s=scale: sliced_attention(q, k, v, scale=s, backend="kernel"),
                lambda q, k, v, s=scale: sliced_attention_ref(q, k, v, scale=s),
                tensors,
                relative,
            )


def check_packed_attention(dtype: torch.dtype) -> None:
    relative = 1e-5 if dtype == torch.float32 else tolerance(dtype)
    for heads, tensors in (
        (3, [normal(2, 20, 3, 3 * 16, dtype=dtype)]),
        (2, [normal(1, 9, 3, 2 * 11 + 3, dtype=dtype)[..., :22]]),  # rows of wider ones
        (2, [normal(2, 70, 2 * 40, dtype=dtype), normal(2, 77, 2, 2 * 40, dtype=dtype)]),
        # of one key the gradients of q and k are zero, and no error is relative to them
        (1, [normal(2, 20, 160, dtype=dtype), normal(2, 2, 2, 160, dtype=dtype)]),
    ):
        for scale in (None, 0.3):
            compare(
                lambda *t, h=heads, s=scale: packed_attention(
                    t[0], h, *t[1:], scale=s, backend="kernel"
                ),
                lambda *t, h=heads, s=scale: packed_attention_ref(t[0], h, *t[1:], scale=s),
                tensors,
                relative,
            )


def check_nothing_is_done_for_no_images() -> None:
    weight = torch.ones(8, 8, 3, 3, requires_grad=True)
    y = sliced_conv2d(torch.ones(0, 4, 5, 5), weight, None, 6, padding=1)
    y.sum().backward()
    assert y.shape == (0, 6, 5, 5)
    assert weight.grad.eq(0).all()


def check_float64_is_refused() -> None:
    x, weight = torch.ones(1, 4, 5, 5).double(), torch.ones(8, 8, 3, 3).double()
    with pytest.raises(RuntimeError, match="CUDA kernels need equal float32, bfloat16 or float16"):
        torch.ops.ddsm_ext.sliced_conv2d(x, None, weight, None, 6, 4, 1, 0, False)
    with pytest.raises(RuntimeError, match="q is float64; the CUDA kernel needs float32"):
        torch.ops.ddsm_ext.sliced_attention(x, x, x, None)
    with pytest.raises(RuntimeError, match="x is float64; the CUDA kernel needs float32"):
        torch.ops.ddsm_ext.sliced_layer_norm(x, None, None, 1e-5)


def to_tf32(value: Tensor) -> Tensor:
    """float32 numbers rounded to tf32, in fp64."""
    bits = value.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


def check_tf32_is_an_argument() -> None:
    """Raw forward and backward calls round their operands to tf32 if told so, else not at all."""
    x = normal(2, 16, 5, 4, dtype=torch.float32)
    weight = normal(24, 16, 1, 1, dtype=torch.float32)
    y = normal(2, 24, 5, 4, dtype=torch.float32)
    rows = [t.permute(0, 2, 3, 1).flatten(0, 2) for t in (x, y)]  # [N H W, c]
    matrix = weight[:, :, 0, 0]
    for tf32 in (False, True):
        operand = to_tf32 if tf32 else Tensor.double
        a, b, w = (operand(t) for t in (*rows, matrix))
        grads = [torch.zeros_like(weight), torch.zeros_like(matrix)]
        ops, window = torch.ops.ddsm_ext, (1, 0, False)
        results = (
            (ops.sliced_conv2d(x, None, weight, None, 24, 16, *window, None, 0, tf32), a @ w.T),
            (ops.sliced_conv2d_grad_x(y, weight, 16, 0, 5, 4, *window, None, 0, tf32), b @ w),
            (ops.sliced_linear(rows[0], matrix, None, 24, tf32), a @ w.T),
            (ops.sliced_linear_grad_x(rows[1], matrix, 16, tf32), b @ w),
            (grads[0], b.T @ a),
            (grads[1], b.T @ a),
        )
        ops.sliced_conv2d_grad_weight(y, x, None, 16, *window, grads[0], None, 0, tf32)
        ops.sliced_linear_grad_weight(rows[1], rows[0], grads[1], None, tf32)
        for got, exact in results:
            if got.dim() == 4 and got.shape[2:] == x.shape[2:]:
                got = got.permute(0, 2, 3, 1)
            check_close(got.reshape(exact.shape), exact, 1e-6)


def check_a_choice_can_be_forced() -> None:
    """Tiles and K splits that a call forces give the same numbers; others are refused."""
    x = normal(2, 64, 6, 5, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weight = normal(24, 64, 3, 3, dtype=torch.bfloat16).contiguous(
        memory_format=torch.channels_last
    )
    numbers = (24, 64, 1, 1, False, None)
    exact = sliced_conv2d_ref(x.double(), weight.double(), None, 24, padding=1)
    conv2d = torch.ops.ddsm_ext.sliced_conv2d
    for algo in (0, 1, 301, 204, 400):
        y = conv2d(x, None, weight, None, *numbers, algo)
        check_close(y, exact, tolerance(torch.bfloat16))
    for algo in (60, 6500):  # a tile, a number of splits that is not there
        with pytest.raises(RuntimeError, match="the forced tile or number of splits"):
            conv2d(x, None, weight, None, *numbers, algo)
    with pytest.raises(RuntimeError, match="the CUDA kernels need 0, or 1"):
        conv2d(x, None, weight, None, *numbers, 10000)


def check_all() -> None:
    check_a_choice_can_be_forced()
    for dtype in (torch.float32, torch.bfloat16):
        check_attention(dtype)
        check_packed_attention(dtype)
    norms = (check_group_norm, check_modulated_group_norm, check_layer_norm)
    for check in (check_conv2d, check_linear, check_activated_linear, *norms):
        check(torch.float32, torch.float32)
        check(torch.bfloat16, torch.bfloat16)
        check(torch.bfloat16, torch.float32)
    check_nothing_is_done_for_no_images()
    check_float64_is_refused()
    check_tf32_is_an_argument()

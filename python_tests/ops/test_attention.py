"""sliced_attention against fp64 and PyTorch: values, gradients, locality, refusals."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.op_checks import (
    FORWARD_RATIO,
    GRADIENT_RATIO,
    ISAS,
    check_error,
    check_op,
    check_repeatable,
    compiled_graphs,
    forced_isa,
    normal,
    seeded,
    threads,
)
from torch import Tensor
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.ops import sliced_attention, sliced_attention_ref
from ddsm_ext.ops.attention import (
    choose_backend,
    prefers_cudnn,
    rows_are_aligned,
    sdpa,
    sdpa_by_cudnn,
)

SWITCHES = (
    cuda.cudnn_sdp_enabled,
    cuda.flash_sdp_enabled,
    cuda.mem_efficient_sdp_enabled,
    cuda.math_sdp_enabled,
)
# (n, heads, t_q, t_k, d): every head size of the promise, blocks and panels that do not divide.
SHAPES = [
    (2, 3, 64, 64, 1),
    (2, 2, 130, 130, 3),
    (1, 3, 256, 256, 8),
    (2, 1, 100, 100, 59),
    (1, 2, 70, 33, 111),
    (1, 1, 256, 256, 256),
    (1, 1, 7, 1100, 16),
]
DTYPES = [torch.float32, torch.bfloat16]


def qkv(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    n, heads, t_q, t_k, d = shape
    generator = seeded(seed)
    return [normal(generator, n, heads, t, d, dtype=dtype) for t in (t_q, t_k, t_k)]


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def gradients(attention: Any, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [leaf(tensor) for tensor in inputs]
    attention(*leaves).backward(grad.to(leaves[0].dtype))
    return [tensor.grad for tensor in leaves]  # type: ignore[misc]


def exact_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_torch(isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    inputs = qkv(shape, dtype)
    grad = normal(seeded(1), *inputs[0].shape, dtype=dtype)
    with forced_isa(isa):
        ours = sliced_attention(*inputs)
        our_grads = gradients(sliced_attention, inputs, grad)
    torchs = F.scaled_dot_product_attention(*inputs)
    check_error(ours, torchs, exact_attention(*inputs), FORWARD_RATIO)
    torch_grads = gradients(F.scaled_dot_product_attention, inputs, grad)
    exact_grads = gradients(exact_attention, [tensor.double() for tensor in inputs], grad)
    for triple in zip(our_grads, torch_grads, exact_grads, strict=True):
        check_error(*triple, GRADIENT_RATIO)
    _, heads, t_q, _, d = shape
    assert ours.stride() == (t_q * heads * d, d, heads * d, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_strides_do_not_change_a_bit(dtype: torch.dtype) -> None:
    inputs = qkv((2, 3, 20, 20, 12), dtype)
    grad = normal(seeded(1), *inputs[0].shape, dtype=dtype)
    fused = torch.cat([x.transpose(1, 2) for x in inputs], dim=-1)  # [N, T, heads, 3 d]
    layouts = {
        "contiguous": inputs,
        "by position": [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs],
        "slices of qkv": [x.transpose(1, 2) for x in fused.split(12, dim=-1)],
        "channels first": [x.transpose(2, 3).contiguous().transpose(2, 3) for x in inputs],
    }
    results = {}
    for name, tensors in layouts.items():
        leaves = [x.detach().requires_grad_() for x in tensors]
        out = sliced_attention(*leaves)
        out.backward(grad if name == "contiguous" else grad.transpose(2, 3).contiguous().mT)
        results[name] = [out, *(x.grad for x in leaves)]
    for tensors in results.values():
        for ours, expected in zip(tensors, results["contiguous"], strict=True):
            assert torch.equal(ours, expected)  # type: ignore[arg-type]


def test_neighbours_of_a_slice_are_not_read() -> None:
    wide = torch.full((2, 20, 3, 40), float("nan"))
    inputs = qkv((2, 3, 20, 20, 11), torch.float32)
    views = []
    for i, x in enumerate(inputs):
        wide[..., 12 * i : 12 * i + 11] = x.transpose(1, 2)
        views.append(wide[..., 12 * i : 12 * i + 11].transpose(1, 2).requires_grad_())
    out = sliced_attention(*views)
    grads = torch.autograd.grad(out.square().sum(), views)
    assert torch.equal(out, sliced_attention(*inputs))
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("shape", [(0, 2, 4, 4, 8), (2, 0, 4, 4, 8), (2, 2, 0, 4, 8)], ids=str)
def test_empty_output_and_zero_gradients(shape: tuple[int, ...]) -> None:
    inputs = [leaf(x) for x in qkv(shape, torch.float32)]
    out = sliced_attention(*inputs)
    assert out.shape == inputs[0].shape
    out.sum().backward()
    for tensor in inputs:
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_large_scores_do_not_overflow() -> None:
    q, k, v = qkv((1, 1, 8, 40, 16), torch.float32)
    ours = sliced_attention(q * 1000, k * 1000, v)
    exact = exact_attention(q * 1000, k * 1000, v)
    check_error(ours, F.scaled_dot_product_attention(q * 1000, k * 1000, v), exact, FORWARD_RATIO)


def test_nan_stays_in_its_row() -> None:
    q, k, v = qkv((1, 1, 8, 40, 16), torch.float32)
    q[0, 0, 3, 5] = float("nan")
    out = sliced_attention(q, k, v)
    assert out[0, 0, 3].isnan().all()
    assert out[0, 0, :3].isfinite().all()
    assert out[0, 0, 4:].isfinite().all()


def test_scale() -> None:
    q, k, v = qkv((1, 2, 5, 6, 16), torch.float32)
    for scale in (None, 1.0, 0, -0.5):
        torch.testing.assert_close(
            sliced_attention(q, k, v, scale=scale), sliced_attention_ref(q, k, v, scale=scale)
        )
    assert torch.equal(sliced_attention(q, k, v), sliced_attention(q, k, v, scale=0.25))


@pytest.mark.parametrize("seed", range(10))
def test_gradcheck(seed: int) -> None:
    shape = (1 + seed % 2, 1 + seed % 3, 3 + seed, 12 - seed, 1 + seed % 5)
    inputs = [x.requires_grad_() for x in qkv(shape, torch.float64, seed)]
    assert torch.autograd.gradcheck(sliced_attention, inputs)


def test_opcheck() -> None:
    samples, backward = [], []
    for dtype, shape, scale in itertools.product(
        DTYPES, [(2, 2, 5, 5, 8), (1, 3, 4, 7, 3), (2, 1, 9, 2, 1)], (None, 0.3)
    ):
        inputs = qkv(shape, dtype)
        out, lse = torch.ops.ddsm_ext.sliced_attention(*inputs, scale)
        backward.append((torch.ones_like(out), *inputs, out, lse, scale))
        samples.append((*(x.clone().requires_grad_() for x in inputs), scale))
    check_op(torch.ops.ddsm_ext.sliced_attention.default, samples)
    check_op(torch.ops.ddsm_ext.sliced_attention_backward.default, backward)


def test_eleven_head_sizes_compile_to_two_graphs() -> None:
    calls = [
        tuple(x.requires_grad_() for x in qkv((2, 2, 16, 16, d), torch.float32))
        for d in range(8, 96, 8)
    ]
    assert compiled_graphs(sliced_attention, calls, backward=True) <= 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_repeatable(dtype: torch.dtype) -> None:
    inputs = [x.requires_grad_() for x in qkv((3, 1, 150, 150, 40), dtype)]
    grad = normal(seeded(1), *inputs[0].shape, dtype=dtype)

    def backward() -> list[Tensor]:
        out = sliced_attention(*inputs)
        return [out, *torch.autograd.grad(out, inputs, grad)]

    for count in (1, 2):
        with threads(count):
            check_repeatable(lambda: [sliced_attention(*inputs)], 250)
            check_repeatable(backward, 50)
    # One thread walks over whole heads, two share three heads: other loops, the same sums.
    with threads(1):
        one = backward()
    with threads(2):
        assert all(torch.equal(a, b) for a, b in zip(one, backward(), strict=True))


def test_backends_compute_the_same() -> None:
    inputs = qkv((2, 3, 20, 30, 16), torch.float32)
    kernel = sliced_attention(*inputs, backend="kernel")
    assert torch.equal(kernel, sliced_attention(*inputs))
    sdpa = sliced_attention(*inputs, backend="sdpa")
    torch.testing.assert_close(kernel, sdpa)
    assert sdpa.stride() == kernel.stride()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "sdpa"),
        ({"dtype": torch.float16}, "sdpa"),
        ({"device_type": "cpu"}, "kernel"),
        ({"dtype": torch.float32}, "kernel"),
        ({"d": 60}, "kernel"),
        ({"d": 264}, "kernel"),
        ({"aligned": False}, "kernel"),
        ({"repeatable": True}, "kernel"),
    ],
    ids=str,
)
def test_choice_of_the_backend(change: dict[str, Any], expected: str) -> None:
    fitting = {"device_type": "cuda", "dtype": torch.bfloat16, "d": 256}
    assert choose_backend(**{**fitting, "aligned": True, "repeatable": False, **change}) == expected


def test_cudnn_comes_first_on_hopper_only() -> None:
    assert [prefers_cudnn(c) for c in ((8, 0), (8, 9), (9, 0), (10, 0))] == [False] * 2 + [
        True,
        False,
    ]


class Attentions(TorchFunctionMode):
    """Notes torch's switches at each call of its attention; in place of cuDNN's it may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, ...]] = []
        self.fails = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.seen.append(tuple(switch() for switch in SWITCHES))
            if self.fails and self.seen[-1][0]:
                raise RuntimeError("No valid execution plans built.")
        return func(*args, **(kwargs or {}))


def test_what_cudnn_cannot_do_goes_to_the_next() -> None:
    """The switches inside and after the call; the CPU stands in for a GPU that serves cuDNN."""
    inputs = qkv((2, 3, 20, 30, 16), torch.float32)
    expected = sdpa(*inputs, None)
    before = tuple(switch() for switch in SWITCHES)
    with Attentions() as attentions:
        assert torch.equal(sdpa_by_cudnn(*inputs, None), expected)
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]):  # flash is off
            torch.testing.assert_close(sdpa_by_cudnn(*inputs, None), expected)
        attentions.fails = True
        with pytest.warns(UserWarning, match="No valid execution plans built"):
            assert torch.equal(sdpa_by_cudnn(*inputs, None), expected)
    # cuDNN, flash, memory-efficient, math
    seen = attentions.seen
    assert seen[0] == seen[2] == (True, True, True, True)
    assert seen[1] == (True, False, False, True)
    assert seen[3] == (False, True, True, True)
    assert tuple(switch() for switch in SWITCHES) == before


def test_aligned_rows() -> None:
    def aligned(x: Tensor) -> bool:
        return rows_are_aligned(x.shape, x.stride(), x.storage_offset(), x.element_size())

    wide = torch.empty(2, 5, 3, 24, dtype=torch.bfloat16)  # [N, T, heads, 24]
    assert aligned(wide[..., 8:].transpose(1, 2))
    assert not aligned(wide[..., 4:20].transpose(1, 2))  # starts at 8 bytes
    assert not aligned(torch.empty(2, 5, 3, 12, dtype=torch.bfloat16))  # rows of 24 bytes
    assert not aligned(wide.transpose(2, 3))  # the head size is not adjacent
    assert aligned(wide[:1, :1, :1, :12].contiguous())  # one row


def test_autocast_computes_in_its_dtype() -> None:
    inputs = qkv((1, 2, 5, 6, 16), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = sliced_attention(*inputs)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, sliced_attention(*(x.bfloat16() for x in inputs)))


def test_flops_are_twice_the_products() -> None:
    inputs = [x.requires_grad_() for x in qkv((2, 3, 16, 24, 8), torch.float32)]
    product = 2 * (2 * 3 * 16 * 24 * 8)
    with FlopCounterMode(display=False) as counter:
        out = sliced_attention(*inputs)
    assert counter.get_total_flops() == 2 * product
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 5 * product


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"q": None}, TypeError, "q is NoneType"),
        ({"q": torch.zeros(2, 3, 4)}, ValueError, "q has shape"),
        ({"k": torch.zeros(2, 3, 4, 8, dtype=torch.bfloat16)}, TypeError, "k has dtype"),
        ({"k": torch.zeros(2, 3, 5, 8)}, ValueError, r"k \[2, 3, 5, 8\]"),
        ({"q": torch.zeros(2, 3, 4, 7)}, ValueError, r"q has shape \[2, 3, 4, 7\]"),
        ({"k": torch.zeros(2, 3, 0, 8), "v": torch.zeros(2, 3, 0, 8)}, ValueError, "T_k 0"),
        ({"scale": "1"}, TypeError, "scale is '1'"),
        ({"scale": float("nan")}, ValueError, "scale is nan"),
        ({"backend": "flash"}, ValueError, "backend is 'flash'"),
        (
            {**{name: torch.zeros(2, 3, 4, 8).half() for name in "qkv"}, "backend": "kernel"},
            ValueError,
            "q is torch.float16 on cpu, which has no kernel",
        ),
    ],
)
def test_refusals_name_the_values(change: dict[str, Any], error: type, text: str) -> None:
    arguments: dict[str, Any] = {name: torch.zeros(2, 3, 4, 8) for name in "qkv"}
    with pytest.raises(error, match=f"^sliced_attention: .*{text}"):
        sliced_attention(**{**arguments, **change})


def test_raw_calls_name_themselves() -> None:
    """Each check that forward and backward share, and those of the backward alone."""
    q, lse = torch.ones(2, 3, 4, 8), torch.ones(2, 3, 4)
    ops, half = torch.ops.ddsm_ext, q.half()
    for q2, k, text in (
        (q[0], q, "q, k or v is not 4-dimensional"),
        (q, q.double(), "q, k and v differ in dtype"),
        (q, q[:, :1], "dimension 1 is 3 in q, 1 in k, 3 in v"),
        (q[..., :0], q[..., :0], "the head size is 0"),
        (half, half, "q is float16; the CPU kernel needs float32"),
    ):
        v = k if k.shape[3] == 0 or k is half else q
        with pytest.raises(RuntimeError, match=f"sliced_attention: {text}"):
            ops.sliced_attention(q2, k, v, None)
        with pytest.raises(RuntimeError, match=f"sliced_attention_backward: {text}"):
            ops.sliced_attention_backward(q2, q2, k, v, q2, lse, None)
    for grad, out, text in ((q[:1], q, "grad_out does"), (q, half, "out does"), (q, q, "lse is")):
        with pytest.raises(RuntimeError, match=f"sliced_attention_backward: {text} not"):
            ops.sliced_attention_backward(grad, q, q, q, out, lse[:1], None)

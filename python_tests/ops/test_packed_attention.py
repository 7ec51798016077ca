"""packed_attention against fp64 and PyTorch: values, gradients in their buffers, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
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
    pooled,
    run_python,
    seeded,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ddsm_ext.ops import packed_attention, packed_attention_ref, sliced_attention

# (n, heads, t_q, t_k, d); t_k None: all in one buffer. Latent diffusion's head sizes, one head over
# all channels, one token and CLIP's 77 to attend to.
SHAPES = [
    (2, 3, 64, None, 40),
    (1, 2, 100, None, 64),
    (1, 1, 70, None, 160),
    (2, 2, 130, None, 3),
    (2, 3, 64, 77, 40),
    (1, 2, 30, 77, 160),
    (1, 1, 130, 77, 192),
    (2, 8, 64, 1, 32),
    (1, 1, 64, 1, 160),
    (2, 2, 1, 33, 59),
]
DTYPES = (torch.float32, torch.bfloat16)
Buffers = list[Tensor]


def buffers(shape: tuple[Any, ...], dtype: torch.dtype, seed: int = 0) -> Buffers:
    n, heads, t_q, t_k, d = shape
    generator, columns = seeded(seed), heads * d
    if t_k is None:
        return [normal(generator, n, t_q, 3, columns, dtype=dtype)]
    sizes = ((n, t_q, columns), (n, t_k, 2, columns))
    return [normal(generator, *size, dtype=dtype) for size in sizes]


def by_head(part: Tensor, heads: int) -> Tensor:
    """[N, T, heads * d] as [N, heads, T, d], in memory of its own."""
    n, t, columns = part.shape
    return part.reshape(n, t, heads, columns // heads).permute(0, 2, 1, 3).contiguous()


def split(given: Buffers, heads: int) -> list[Tensor]:
    """Queries, keys and values."""
    parts = [given[0][:, :, i] for i in range(3)] if len(given) == 1 else [
        given[0], given[1][:, :, 0], given[1][:, :, 1]
    ]  # fmt: skip
    return [by_head(part, heads) for part in parts]


def exact(given: Buffers, heads: int) -> Tensor:
    """The definition."""
    q, k, v = split(given, heads)
    out = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v
    return out.permute(0, 2, 1, 3).flatten(2)


def torchs(given: Buffers, heads: int) -> Tensor:
    return F.scaled_dot_product_attention(*split(given, heads)).permute(0, 2, 1, 3).flatten(2)


def ours(given: Buffers, heads: int) -> Tensor:
    return packed_attention(given[0], heads, *given[1:])


def results(
    attention: Callable[[Buffers, int], Tensor], given: Buffers, heads: int, grad: Tensor
) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.detach().requires_grad_() for x in given]
    out = attention(leaves, heads)
    return out.detach(), list(torch.autograd.grad(out, leaves, grad.to(out.dtype)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_torch(isa: str, dtype: torch.dtype, shape: tuple[Any, ...]) -> None:
    n, heads, t_q, _, d = shape
    given = buffers(shape, dtype)
    grad = normal(seeded(1), n, t_q, heads * d, dtype=dtype)
    with forced_isa(isa):
        out, grads = results(ours, given, heads, grad)
    torch_out, torch_grads = results(torchs, given, heads, grad)
    exact_out, exact_grads = results(exact, [x.double() for x in given], heads, grad)
    assert out.is_contiguous()
    check_error(out, torch_out, exact_out, FORWARD_RATIO)
    # Together: of one key the queries' gradient is 0, and its error all that there is of it.
    joined = (pooled([[g] for g in each])[0] for each in (grads, torch_grads, exact_grads))
    check_error(*joined, GRADIENT_RATIO)
    for x, gradient in zip(given, grads, strict=True):
        assert gradient.shape == x.shape
        assert gradient.is_contiguous()


@pytest.mark.parametrize("t_k", [None, 30])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_bits_of_sliced_attention_on_views(dtype: torch.dtype, t_k: int | None) -> None:
    given = buffers((2, 3, 20, t_k, 12), dtype)
    grad = normal(seeded(1), 2, 20, 36, dtype=dtype)
    out, grads = results(ours, given, 3, grad)

    def of_views(leaves: Buffers, heads: int) -> Tensor:
        return sliced_attention(*split(leaves, heads)).transpose(1, 2).flatten(2)

    expected, expected_grads = results(of_views, given, 3, grad)
    assert torch.equal(out, expected)
    for a, b in zip(grads, expected_grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("t_k", [None, 30])
def test_strides_do_not_change_a_bit(t_k: int | None) -> None:
    """Columns of wider rows, whose neighbours are NaN, and columns that are not adjacent."""
    given = buffers((2, 3, 20, t_k, 11), torch.float32)
    grad = normal(seeded(1), 2, 20, 33)
    expected = results(ours, given, 3, grad)
    for layout in ("sliced", "turned"):
        views = []
        for x in given:
            if layout == "turned":
                views.append(x.transpose(1, -1).contiguous().transpose(1, -1))
                continue
            wide = x.new_full((*x.shape[:-1], x.shape[-1] + 7), torch.nan)
            wide[..., 3:-4] = x
            views.append(wide[..., 3:-4])
        out, grads = results(ours, views, 3, grad.mT.contiguous().mT)
        assert torch.equal(out, expected[0])
        for a, b in zip(grads, expected[1], strict=True):
            assert torch.equal(a, b)


class Called(TorchDispatchMode):
    """The names of the ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("t_k", [None, 5])
def test_gradients_are_written_where_they_belong(t_k: int | None) -> None:
    """By one call, without anything that joins or copies them."""
    leaves = [x.requires_grad_() for x in buffers((2, 3, 8, t_k, 4), torch.float32)]
    out = ours(leaves, 3)
    grad = torch.ones_like(out)
    with Called() as called:
        torch.autograd.grad(out, leaves, grad)
    # autograd makes zeros for the statistics, which have no gradient
    names = [name for name in called.names if name not in ("aten::detach", "aten::zeros")]
    assert names == ["ddsm_ext::packed_attention_backward"]


@pytest.mark.parametrize("shape", [(0, 2, 4, None, 8), (0, 2, 4, 3, 8), (2, 2, 0, 4, 8)], ids=str)
def test_empty_output_and_zero_gradients(shape: tuple[Any, ...]) -> None:
    leaves = [x.requires_grad_() for x in buffers(shape, torch.float32)]
    out = ours(leaves, 2)
    assert out.shape == (shape[0], shape[2], 16)
    for gradient, leaf in zip(torch.autograd.grad(out.sum(), leaves), leaves, strict=True):
        assert gradient.shape == leaf.shape
        assert not gradient.any()


def test_a_gradient_of_keys_and_values_alone() -> None:
    q, kv = buffers((2, 3, 8, 5, 4), torch.float64)
    _, (_, expected) = results(exact, [q, kv], 3, torch.ones(2, 8, 12))
    out = packed_attention(q, 3, kv.requires_grad_())
    (gradient,) = torch.autograd.grad(out.sum(), [kv])
    torch.testing.assert_close(gradient, expected)


def test_scale_and_backends() -> None:
    for given in (
        buffers((1, 2, 5, None, 16), torch.float32),
        buffers((1, 2, 5, 6, 16), torch.float32),
    ):
        for scale, backend in itertools.product((None, 1.0, 0, -0.5), ("auto", "kernel", "sdpa")):
            torch.testing.assert_close(
                packed_attention(given[0], 2, *given[1:], scale=scale, backend=backend),
                packed_attention_ref(given[0], 2, *given[1:], scale=scale),
            )
        torch.testing.assert_close(packed_attention_ref(given[0], 2, *given[1:]), exact(given, 2))


@pytest.mark.parametrize("seed", range(10))
def test_gradcheck(seed: int) -> None:
    shape = (1 + seed % 2, 1 + seed % 3, 2 + seed % 4, 5 - seed % 5 if seed % 2 else None, 2)
    leaves = [x.requires_grad_() for x in buffers(shape, torch.float64, seed)]
    assert torch.autograd.gradcheck(lambda *given: ours(list(given), shape[1]), leaves)


def test_opcheck() -> None:
    samples, backward = [], []
    shapes = [(2, 2, 5, None, 8), (1, 3, 4, 7, 3), (2, 1, 9, 1, 4)]
    for dtype, shape, scale in itertools.product(DTYPES, shapes, (None, 0.3)):
        q, kv = [*buffers(shape, dtype), None][:2]
        heads = shape[1]
        out, lse = torch.ops.ddsm_ext.packed_attention(q, kv, heads, scale)
        backward.append((torch.ones_like(out), q, kv, out, lse, heads, scale))
        leaves = [None if x is None else x.clone().requires_grad_() for x in (q, kv)]
        samples.append((*leaves, heads, scale))
    check_op(torch.ops.ddsm_ext.packed_attention.default, samples)
    check_op(torch.ops.ddsm_ext.packed_attention_backward.default, backward)


@pytest.mark.parametrize("t_k", [None, 7])
def test_eleven_widths_compile_to_two_graphs(t_k: int | None) -> None:
    """Of one head size, so that the heads differ, as a width has them."""
    calls = [
        (*(x.requires_grad_() for x in buffers((2, heads, 16, t_k, 8), torch.float32)), heads)
        for heads in range(2, 13)
    ]
    graphs = compiled_graphs(lambda *given: ours(list(given[:-1]), given[-1]), calls, backward=True)
    assert graphs <= 2


def test_repeatable() -> None:
    leaves = [x.requires_grad_() for x in buffers((3, 1, 150, 77, 40), torch.float32)]
    grad = normal(seeded(1), 3, 150, 40)

    def backward() -> list[Tensor]:
        out = ours(leaves, 1)
        return [out, *torch.autograd.grad(out, leaves, grad)]

    check_repeatable(backward, 20)


def test_autocast_computes_in_its_dtype() -> None:
    for shape in ((1, 2, 5, None, 16), (1, 2, 5, 6, 16)):
        given = buffers(shape, torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = ours(given, 2)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, ours([x.bfloat16() for x in given], 2))


def test_flops_are_twice_the_products() -> None:
    for t_k in (None, 24):
        leaves = [x.requires_grad_() for x in buffers((2, 3, 16, t_k, 8), torch.float32)]
        product = 2 * (2 * 3 * 16 * (t_k or 16) * 8)
        with FlopCounterMode(display=False) as counter:
            out = ours(leaves, 3)
        assert counter.get_total_flops() == 2 * product
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        assert counter.get_total_flops() == 5 * product


def test_its_module_does_not_take_its_name() -> None:
    lines = ("import ddsm_ext.ops.packed_attention", "from ddsm_ext import ops",
             "assert callable(ops.packed_attention)")  # fmt: skip
    done = run_python("\n".join(lines))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"q": None}, TypeError, "q is NoneType"),
        ({"q": torch.zeros(2, 4, 24)}, ValueError, "q has shape .*, need 4 dimensions"),
        ({"q": torch.zeros(2, 4, 2, 24)}, ValueError, r"q has shape \[2, 4, 2, 24\]; need"),
        ({"q": torch.zeros(2, 0, 3, 24)}, ValueError, r"q has shape \[2, 0, 3, 24\]; need"),
        ({"heads": 5}, ValueError, "heads is 5, q has 24 columns; need a multiple"),
        ({"heads": 0}, ValueError, "heads is 0"),
        ({"heads": 2.0}, TypeError, "heads is 2.0, need an int"),
        ({"kv": torch.zeros(2, 5, 2, 24)}, ValueError, "q has shape .*, need 3 dimensions"),
        ({"scale": "1"}, TypeError, "scale is '1'"),
        ({"backend": "flash"}, ValueError, "backend is 'flash'"),
        (
            {"q": torch.zeros(2, 4, 3, 24).half(), "backend": "kernel"},
            ValueError,
            "q is torch.float16 on cpu, which has no kernel",
        ),
    ],
)
def test_refusals_name_the_values(change: dict[str, Any], error: type, text: str) -> None:
    arguments: dict[str, Any] = {"q": torch.zeros(2, 4, 3, 24), "heads": 3}
    with pytest.raises(error, match=f"^packed_attention: .*{text}"):
        packed_attention(**{**arguments, **change})


@pytest.mark.parametrize(
    ("kv", "error", "text"),
    [
        (torch.zeros(2, 5, 24), ValueError, "kv has shape .*, need 4 dimensions"),
        (torch.zeros(2, 5, 2, 24).double(), TypeError, "kv has dtype torch.float64, q torch.fl"),
        (torch.zeros(1, 5, 2, 24), ValueError, r"q has shape \[2, 4, 24\], kv \[1, 5, 2, 24\]"),
        (torch.zeros(2, 5, 3, 24), ValueError, r"kv \[2, 5, 3, 24\]; need"),
        (torch.zeros(2, 5, 2, 23), ValueError, r"kv \[2, 5, 2, 23\]; need"),
        (torch.zeros(2, 0, 2, 24), ValueError, "with at least one key"),
    ],
)
def test_refusals_of_keys_and_values(kv: Tensor, error: type, text: str) -> None:
    with pytest.raises(error, match=f"^packed_attention: .*{text}"):
        packed_attention(torch.zeros(2, 4, 24), 3, kv)


def test_raw_calls_name_themselves() -> None:
    """Each check that forward and backward share, and those of the backward alone."""
    q, kv, lse = torch.ones(2, 4, 24), torch.ones(2, 5, 2, 24), torch.ones(2, 3, 4)
    one, ops, half = torch.ones(2, 4, 3, 24), torch.ops.ddsm_ext, q.half()
    for x, context, heads, text in (
        (q, None, 3, r"q has shape \[2, 4, 24\]; need \[N, T, 3, heads \* d\]"),
        (one, kv, 3, "q has shape"),
        (one, None, 5, "heads is 5, q has 24 columns"),
        (one, None, 0, "heads is 0"),
        (one[:, :0], None, 3, "there are no keys"),
        (q, kv[:, :0], 3, r"kv has shape \[2, 0, 2, 24\]"),
        (q, kv[..., :23], 3, r"kv has shape \[2, 5, 2, 23\]"),
        (q, kv.double(), 3, "kv has shape"),
        (half, kv.half(), 3, "q is float16; the CPU kernel needs float32"),
    ):
        with pytest.raises(RuntimeError, match=f"packed_attention: {text}"):
            ops.packed_attention(x, context, heads, None)
        rows = x if x is not one else q
        with pytest.raises(RuntimeError, match=f"packed_attention_backward: {text}"):
            ops.packed_attention_backward(rows, x, context, rows, lse, heads, None)
    for grad, out, text in ((q[:1], q, "grad_out does"), (q, half, "out does"), (q, q, "lse is")):
        with pytest.raises(RuntimeError, match=f"packed_attention_backward: {text} not"):
            ops.packed_attention_backward(grad, q, kv, out, lse[:1], 3, None)

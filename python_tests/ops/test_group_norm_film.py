"""Scale and shift of sliced_group_norm (FiLM) beside PyTorch's own calls and fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.op_checks import (
    FORWARD_RATIO,
    GRADIENT_RATIO,
    ISAS,
    as_layout,
    check_error,
    check_op,
    check_repeatable,
    compiled_graphs,
    forced_isa,
    normal,
    pooled,
    seeded,
    threads,
)
from torch import Tensor

from ddsm_ext.ops import sliced_group_norm, sliced_group_norm_ref

C_MAX, C2_OFFSET = 96, 60
DTYPES = [torch.float32, torch.bfloat16]
# (c, c2, groups); c2 = 0: one source.
CASES = [(1, 0, 1), (24, 0, 6), (59, 0, 1), (64, 0, 32), (8, 8, 4), (5, 4, 3), (59, 31, 6)]


def torch_film(
    z: Tensor, gamma: Tensor, beta: Tensor, film: Tensor, groups: int, silu: bool
) -> Tensor:
    """What a user writes, in z's dtype; film [N, 2 c] holds scale and shift."""
    scale, shift = film[:, :, None, None].chunk(2, dim=1)
    y = F.group_norm(z, groups, gamma, beta) * (1 + scale) + shift
    return F.silu(y) if silu else y


def inputs(c: int, c2: int, dtype: torch.dtype, *size: int, seed: int = 0) -> list[Tensor]:
    """z [N, c + c2, H, W], weight, bias [C_MAX] and film [N, 2 (c + c2)].

    With some hundreds of scales, as the largest error of a handful is mostly luck.
    """
    generator = seeded(100 * seed + c)
    n, h, w = size or (max(4, 300 // (c + c2)), 15, 16)
    z = normal(generator, n, c + c2, h, w) * 2 + 1
    film = normal(generator, n, 2 * (c + c2))
    return [t.to(dtype) for t in (z, *(normal(generator, C_MAX) for _ in "wb"), film)]


def both(c: int, c2: int, groups: int, silu: bool) -> tuple[Any, Any]:
    """The same function of z, weight, bias and film by our op and by PyTorch."""
    part = slice(C2_OFFSET, C2_OFFSET + c2)

    def ours(z: Tensor, weight: Tensor, bias: Tensor, film: Tensor) -> Tensor:
        scale, shift = film.chunk(2, dim=1)
        more: dict[str, Any] = {"silu": silu, "scale": scale, "shift": shift}
        if not c2:
            return sliced_group_norm(z, weight, bias, groups, **more)
        more |= {"x2": z[:, c:], "c2_offset": C2_OFFSET}
        return torch.cat(sliced_group_norm(z[:, :c], weight, bias, groups, **more), dim=1)

    def plain(z: Tensor, weight: Tensor, bias: Tensor, film: Tensor) -> Tensor:
        gamma, beta = (torch.cat([p[:c], p[part]]) for p in (weight, bias))
        return torch_film(z, gamma, beta, film, groups, silu)

    return ours, plain


def gradients(norm: Any, tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    return list(torch.autograd.grad(norm(*leaves), leaves, grad.to(leaves[0].dtype)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "c2", "groups"), CASES)
@pytest.mark.parametrize("silu", [False, True])
def test_as_exact_as_torch(
    isa: str, dtype: torch.dtype, c: int, c2: int, groups: int, silu: bool
) -> None:
    ours, plain = both(c, c2, groups, silu)
    results: list[list[list[Tensor]]] = [[], [], []]
    for seed in range(
        8 if c < 4 else 1
    ):  # the gradients of one channel's parameters are one number
        given = inputs(c, c2, dtype, seed=seed)
        wide = [t.double() for t in given]
        grad = normal(seeded(seed + 1), *given[0].shape, dtype=dtype)
        with forced_isa(isa):
            results[0].append([ours(*given), *gradients(ours, given, grad)])
        results[1].append([plain(*given), *gradients(plain, given, grad)])
        results[2].append([plain(*wide), *gradients(plain, wide, grad)])
    ratios = (FORWARD_RATIO, *[GRADIENT_RATIO] * 4)
    for *triple, ratio in zip(*map(pooled, results), ratios, strict=True):
        check_error(*triple, ratio)


@pytest.mark.parametrize("seed", range(6))
def test_gradcheck(seed: int) -> None:
    c, c2 = 3 + seed % 3, 3 * (seed % 2)
    groups = next(g for g in (3, 2, 1) if (c + c2) % g == 0)
    ours, _ = both(c, c2, groups, seed % 4 > 0)
    given = [t.requires_grad_() for t in inputs(c, c2, torch.float64, 2, 3, 2)]
    assert torch.autograd.gradcheck(ours, given)


def test_only_one_of_scale_and_shift_has_a_gradient() -> None:
    x, weight, bias, film = inputs(6, 0, torch.float32, 2, 4, 3)
    for wanted in (0, 1):
        found = []
        for norm in (sliced_group_norm, sliced_group_norm_ref):
            pair = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(film.chunk(2, 1))]
            y = norm(x, weight, bias, 3, scale=pair[0], shift=pair[1], silu=True)
            y.square().sum().backward()
            assert pair[1 - wanted].grad is None
            found.append(pair[wanted].grad)
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_strides_do_not_change_a_bit(dtype: torch.dtype) -> None:
    """Columns of a wider tensor, rows of their own, a transposed one, one row for all images."""
    x, weight, bias, film = inputs(10, 0, dtype, 3, 4, 5)
    scale, shift = film.chunk(2, dim=1)
    dense = scale.contiguous(), shift.contiguous()
    forms = [(scale, shift), (dense[0].t().contiguous().t(), shift), (dense[0], shift)]
    first = sliced_group_norm(x, weight, bias, 5, scale=dense[0], shift=dense[1])
    for a, b in forms:
        assert torch.equal(sliced_group_norm(x, weight, bias, 5, scale=a, shift=b), first)
    row = scale[:1].expand(3, -1)
    one = [row, row], [row.contiguous(), row.contiguous()]
    ys = [sliced_group_norm(x, weight, bias, 5, scale=a, shift=b) for a, b in one]
    assert torch.equal(*ys)


def test_zeros_change_nothing() -> None:
    x, weight, bias, film = inputs(12, 0, torch.float32)
    zero = torch.zeros_like(film[:, :12])
    torch.testing.assert_close(
        sliced_group_norm(x, weight, bias, 4, scale=zero, shift=zero, silu=True),
        sliced_group_norm(x, weight, bias, 4, silu=True),
    )


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_empty_input_gives_zero_gradients(shape: tuple[int, ...]) -> None:
    film = torch.ones(shape[0], 16, requires_grad=True)
    scale, shift = film.chunk(2, dim=1)
    ones = torch.ones(C_MAX)
    sliced_group_norm(torch.zeros(shape), ones, ones, 4, scale=scale, shift=shift).sum().backward()
    assert film.grad is not None
    assert not film.grad.any()


def test_accumulate_grad_adds_what_autograd_adds() -> None:
    x, weight, bias, film = inputs(12, 0, torch.float32)
    results = []
    for accumulate in (False, True):
        leaves = [t.clone().requires_grad_() for t in (weight, bias, film)]
        for groups in (3, 4):
            scale, shift = leaves[2].chunk(2, dim=1)
            more = {"scale": scale, "shift": shift, "accumulate_grad": accumulate}
            sliced_group_norm(x, *leaves[:2], groups, silu=True, **more).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for plain, accumulated in zip(*results, strict=True):
        torch.testing.assert_close(plain, accumulated)


def test_eleven_widths_compile_to_two_graphs() -> None:
    _, weight, bias, film = inputs(88, 0, torch.float32, 2, 4, 4)
    leaves = [t.requires_grad_() for t in (weight, bias, film)]
    calls = [
        (normal(seeded(c), 2, c, 4, 4).requires_grad_(), *leaves, c // 4) for c in range(8, 88, 8)
    ]

    def norm(x: Tensor, weight: Tensor, bias: Tensor, film: Tensor, groups: int) -> Tensor:
        scale, shift = film[:, : x.shape[1]], film[:, 88 : 88 + x.shape[1]]
        return sliced_group_norm(x, weight, bias, groups, scale=scale, shift=shift, silu=True)

    assert compiled_graphs(norm, calls, backward=True) <= 2


def test_opcheck() -> None:
    samples, backward = [], []
    for dtype, c2 in ((torch.float32, 0), (torch.float32, 5), (torch.bfloat16, 5)):
        z, weight, bias, film = inputs(7, c2, dtype, 2, 4, 3)
        groups, scale, shift = 3 if c2 else 7, *film.chunk(2, dim=1)
        x, x2 = z[:, :7], z[:, 7:] if c2 else None
        head = (x, x2, weight, bias)
        split = (groups, C2_OFFSET)
        y, y2, mean, rstd = torch.ops.ddsm_ext.sliced_group_norm(
            *head, *split, 1e-5, True, scale, shift
        )
        targets = [torch.zeros_like(weight), torch.zeros_like(bias)]
        film_grads = [torch.zeros(2, 7 + c2, dtype=dtype) for _ in range(2)]
        given = (y, y2 if c2 else None, *head, mean, rstd, *split, True)
        backward.append((*given, *targets, scale, shift, *film_grads))
        leaves = [t if t is None else t.detach().requires_grad_() for t in (*head, scale, shift)]
        samples.append((*leaves[:4], *split, 1e-5, True, *leaves[4:]))
    check_op(torch.ops.ddsm_ext.sliced_group_norm.default, samples)
    check_op(torch.ops.ddsm_ext.sliced_group_norm_backward.default, backward)


def test_autocast_takes_what_a_linear_layer_gives() -> None:
    x, weight, bias, film = inputs(6, 0, torch.float32, 2, 4, 3)
    scale, shift = film.to(torch.bfloat16).requires_grad_().chunk(2, dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = sliced_group_norm(x, weight, bias, 3, scale=scale, shift=shift)
    assert y.dtype == torch.float32
    expected = sliced_group_norm_ref(x, weight, bias, 3, scale=scale, shift=shift)
    torch.testing.assert_close(y, expected)


@pytest.mark.filterwarnings("ignore:ddsm_ext. sliced_group_norm has no")
def test_other_dtypes_run_plain_torch() -> None:
    x, weight, bias, film = inputs(6, 0, torch.float16, 2, 4, 3)
    y = sliced_group_norm(x, weight, bias, 3, scale=film[:, :6], shift=film[:, 6:], silu=True)
    wide = [t.double() for t in (x, weight[:6], bias[:6], film)]
    torch.testing.assert_close(y.double(), torch_film(*wide, 3, True), rtol=1e-2, atol=1e-2)


def test_repeatable() -> None:
    z, weight, bias, film = (t.requires_grad_() for t in inputs(40, 0, torch.float32, 3, 16, 16))
    ours, _ = both(40, 0, 5, True)

    def backward() -> list[Tensor]:
        y = ours(z, weight, bias, film)
        return [y, *torch.autograd.grad(y.square().sum(), [z, weight, bias, film])]

    for count in (1, 2):
        with threads(count):
            check_repeatable(backward, 20)
    with threads(1):
        one = backward()
    with threads(2):
        assert all(torch.equal(a, b) for a, b in zip(one, backward(), strict=True))


def test_memory_format_does_not_change_a_bit() -> None:
    x, weight, bias, film = inputs(9, 0, torch.float32, 2, 6, 5)
    more = {"scale": film[:, :9], "shift": film[:, 9:], "silu": True}
    first = sliced_group_norm(x, weight, bias, 3, **more)
    for layout in ("channels_last", "sliced"):
        assert torch.equal(sliced_group_norm(as_layout(x, layout), weight, bias, 3, **more), first)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"scale": None}, ValueError, "scale is None and the other is not; need scale and shift"),
        ({"shift": None}, ValueError, "shift is None and the other is not"),
        ({"scale": 1.0}, TypeError, "scale is float, need a torch.Tensor"),
        ({"shift": torch.zeros(2, 8, 1)}, ValueError, r"shift has shape \[2, 8, 1\], need 2 dim"),
        ({"scale": torch.zeros(1, 8)}, ValueError, r"scale has shape \[1, 8\].* need \[2, 8\]"),
        ({"scale": torch.zeros(2, 9)}, ValueError, r"scale has shape \[2, 9\]"),
        ({"scale": torch.zeros(2, 8).bfloat16()}, TypeError, "scale has dtype torch.bfloat16, x"),
        ({"shift": torch.zeros(2, 8, device="meta")}, ValueError, "shift is on meta, x on cpu"),
    ],
)
def test_refusals_name_the_values(change: dict[str, Any], error: type, text: str) -> None:
    arguments: dict[str, Any] = {"x": torch.zeros(2, 8, 4, 4), "weight": torch.zeros(16)}
    arguments |= {"bias": torch.zeros(16), "groups": 4}
    arguments |= {"scale": torch.zeros(2, 8), "shift": torch.zeros(2, 8)}
    with pytest.raises(error, match=f"^sliced_group_norm: {text}"):
        sliced_group_norm(**{**arguments, **change})

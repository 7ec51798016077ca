"""The raw group norm op with scale and shift (FiLM): values, gradients, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.op_checks import (
    FORWARD_RATIO,
    GRADIENT_RATIO,
    ISAS,
    check_error,
    check_repeatable,
    forced_isa,
    normal,
    pooled,
    seeded,
    threads,
)
from torch import Tensor

OPS = torch.ops.ddsm_ext
C_MAX, C2_OFFSET, EPS = 128, 70, 1e-5
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
# (c, c2, groups); 0: one source. Groups hold channels of both sources in (5, 4, 3), (59, 31, 6).
CASES = [(1, 0, 1), (3, 0, 3), (111, 0, 3), (128, 0, 32), (8, 8, 4), (5, 4, 3), (59, 31, 6)]


def film_norm(
    z: Tensor, gamma: Tensor, beta: Tensor, scale: Tensor, shift: Tensor, groups: int, silu: bool
) -> Tensor:
    """PyTorch's own calls, in z's dtype."""
    y = torch.group_norm(z, groups, gamma, beta, EPS)
    y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(y) if silu else y


def active(values: Tensor, c: int, c2: int) -> Tensor:
    return torch.cat([values[:c], values[C2_OFFSET : C2_OFFSET + c2]])


class Case:
    """Inputs, in part columns of wider tensors, and one call of each op on them."""

    def __init__(
        self, dtype: torch.dtype, c: int, c2: int, groups: int, silu: bool, seed: int = 0
    ) -> None:
        generator = seeded(c + 1000 * c2 + 10**6 * seed)
        self.c, self.c2, self.groups, self.silu, self.dtype = c, c2, groups, silu, dtype
        self.z = (normal(generator, 3, c + c2, 9, 10) * 2 + 3).to(dtype)
        self.grad = normal(generator, 3, c + c2, 9, 10, dtype=dtype)
        self.weight, self.bias = (normal(generator, C_MAX, dtype=dtype) for _ in range(2))
        wide = normal(generator, 3, 2 * (c + c2) + 3, dtype=dtype)
        self.scale, self.shift = wide[:, : c + c2], wide[:, c + c2 + 3 :]

    def split(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        values = values.contiguous(memory_format=torch.channels_last)
        return values[:, : self.c], values[:, self.c :] if self.c2 else None

    def arguments(self) -> list[Any]:
        return [*self.split(self.z), self.weight, self.bias, self.groups, C2_OFFSET]

    def forward(self) -> tuple[Tensor, ...]:
        more = [EPS, self.silu, self.scale, self.shift]
        return OPS.sliced_group_norm(*self.arguments(), *more)

    def backward(self) -> list[Tensor]:
        """Return the gradients of z, weight, bias, scale and shift."""
        _, _, mean, rstd = self.forward()
        x, x2, weight, bias, *split = self.arguments()
        grads = [torch.zeros_like(weight), torch.zeros_like(bias)]
        rows = [torch.full((3, self.c + self.c2), torch.nan, dtype=self.dtype) for _ in range(2)]
        found = OPS.sliced_group_norm_backward(
            *self.split(self.grad), x, x2, weight, bias, mean, rstd, *split, self.silu, *grads,
            self.scale, self.shift, *rows,
        )  # fmt: skip
        grad_z = torch.cat(found, 1) if self.c2 else found[0]
        return [grad_z, *grads, *rows]

    def plain(self, dtype: torch.dtype) -> list[Tensor]:
        """Return PyTorch's result and gradients in a dtype."""
        tensors = (self.z, self.weight, self.bias, self.scale, self.shift)
        leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
        z, weight, bias, scale, shift = leaves
        gamma, beta = (active(p, self.c, self.c2) for p in (weight, bias))
        y = film_norm(z, gamma, beta, scale, shift, self.groups, self.silu)
        return [y.detach(), *torch.autograd.grad(y, leaves, self.grad.to(dtype))]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("c", "c2", "groups"), CASES)
@pytest.mark.parametrize("silu", [False, True])
def test_film_is_as_exact_as_torch(
    isa: str, dtype: torch.dtype, c: int, c2: int, groups: int, silu: bool
) -> None:
    ours, torchs, exact = [], [], []
    for seed in range(8 if c + c2 < 16 else 1):
        case = Case(dtype, c, c2, groups, silu, seed)
        with forced_isa(isa):
            y, y2, _, _ = case.forward()
            ours.append([torch.cat([y, y2], 1) if c2 else y, *case.backward()])
        torchs.append(case.plain(dtype))
        exact.append(case.plain(torch.float64))
    triples = zip(pooled(ours), pooled(torchs), pooled(exact), strict=True)
    for ratio, triple in zip((FORWARD_RATIO, *[GRADIENT_RATIO] * 5), triples, strict=True):
        check_error(*triple, ratio)


class Film(torch.autograd.Function):
    """The op and its backward, for gradcheck."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x2: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias, scale, shift = more
        y, y2, mean, rstd = OPS.sliced_group_norm(
            x, x2, weight, bias, 3, 6, EPS, True, scale, shift
        )
        ctx.save_for_backward(x, x2, *more, mean, rstd)
        return y, y2

    @staticmethod
    def backward(ctx: Any, *grad_ys: Tensor) -> tuple[Tensor, ...]:
        x, x2, weight, bias, scale, shift, mean, rstd = ctx.saved_tensors
        grads = [torch.zeros_like(weight), torch.zeros_like(bias)]
        rows = [torch.empty_like(scale), torch.empty_like(shift)]
        grad_x, grad_x2 = OPS.sliced_group_norm_backward(
            *grad_ys, x, x2, weight, bias, mean, rstd, 3, 6, True, *grads, scale, shift, *rows
        )
        return grad_x, grad_x2, *grads, *rows


def test_gradcheck():
    """Groups of 3 over 5 + 4 channels: the second one straddles the sources."""
    generator = seeded(0)
    shapes = ((2, 5, 3, 2), (2, 4, 3, 2), (12,), (12,), (2, 9), (2, 9))
    leaves = [normal(generator, *s, dtype=torch.float64).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(Film.apply, leaves)


def test_zero_film_is_the_plain_norm():
    case = Case(torch.float32, 59, 31, 6, True)
    case.scale, case.shift = torch.zeros(3, 90), torch.zeros(3, 90)
    plain = OPS.sliced_group_norm(*case.arguments(), EPS, True)
    for ours, expected in zip(case.forward(), plain, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("count", [1, 3])
def test_film_does_not_depend_on_threads(count: int):
    case = Case(torch.float32, 64, 32, 6, True)
    with threads(2):
        expected = [*case.forward(), *case.backward()]
    with threads(count):
        found = [*case.forward(), *case.backward()]
        check_repeatable(lambda: [*case.forward(), *case.backward()], 3)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_modulation_of_any_strides():
    """Rows of one wider tensor, one row for all images, and rows of different strides."""
    case = Case(torch.float32, 16, 0, 4, True)
    scale, shift = case.scale, case.shift
    y = case.forward()[0]
    case.scale, case.shift = scale.contiguous(), shift
    assert torch.equal(case.forward()[0], y)
    case.scale = torch.empty(16, 3).t().copy_(scale)
    assert torch.equal(case.forward()[0], y)
    case.scale, case.shift = (row[:1].expand(3, -1) for row in (scale, shift))
    expected = film_norm(case.z, case.weight[:16], case.bias[:16], case.scale, case.shift, 4, True)
    torch.testing.assert_close(case.forward()[0], expected)


def test_empty_images_have_no_gradient():
    x, weight = torch.empty(2, 4, 0, 3), torch.ones(4)
    rows = [torch.full((2, 4), torch.nan) for _ in range(2)]
    statistics = torch.ones(2, 2)
    OPS.sliced_group_norm_backward(
        x, None, x, None, weight, weight, statistics, statistics, 2, 4, True, None, None,
        torch.ones(2, 4), torch.ones(2, 4), *rows,
    )  # fmt: skip
    assert all(torch.equal(row, torch.zeros(2, 4)) for row in rows)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"scale": None}, "only one of scale and shift"),
        ({"shift": torch.ones(3, 15)}, "shift does not match the input; need .* = 16]"),
        ({"shift": torch.ones(2, 16)}, "shift does not match"),
        ({"scale": torch.ones(3, 16).double()}, "scale does not match"),
        ({"scale": torch.ones(3, 16, 1)}, "scale does not match"),
    ],
)
def test_modulation_that_does_not_fit_is_refused(change: dict[str, Any], text: str):
    case = Case(torch.float32, 8, 8, 4, True)
    vars(case).update(change)
    with pytest.raises(RuntimeError, match=f"sliced_group_norm: .*{text}"):
        case.forward()


def test_gradients_of_modulation_that_do_not_fit_are_refused():
    x, weight, statistics = torch.ones(2, 4, 3, 3), torch.ones(4), torch.ones(2, 2)
    rows = [torch.ones(2, 4), torch.ones(2, 4)]
    call = [x, None, x, None, weight, weight, statistics, statistics, 2, 4, True, None, None]
    for grad in (torch.ones(2, 3), torch.ones(2, 4).double(), torch.ones(4, 2).t()):
        with pytest.raises(RuntimeError, match=r"gradient of scale or shift does not match"):
            OPS.sliced_group_norm_backward(*call, *rows, grad, torch.ones(2, 4))
    with pytest.raises(RuntimeError, match=r"gradient of scale or shift does not match"):
        OPS.sliced_group_norm_backward(*call, None, None, torch.ones(2, 4), None)

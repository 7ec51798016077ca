"""sliced_embedding beside PyTorch's embedding, and sinusoids of timesteps in closed form."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.op_checks import check_outside_unchanged, compiled_graphs, normal, poisoned, seeded
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddsm_ext.ops import (
    embed_time,
    sinusoidal_embedding,
    sliced_embedding,
    sliced_embedding_ref,
)

ROWS, C_MAX = 11, 24
Y = torch.tensor([3, 10, 3, 0, 3])  # a row that repeats sums its gradients


def table(dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(seeded(0), ROWS, C_MAX, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("c", [1, 7, C_MAX])
@pytest.mark.parametrize("accumulate", [False, True])
def test_values_and_gradients_are_torchs(dtype: torch.dtype, c: int, accumulate: bool) -> None:
    weight, reference = (table(dtype).requires_grad_() for _ in range(2))
    grad = normal(seeded(1), len(Y), c, dtype=dtype)
    ours = sliced_embedding(weight, Y, c, accumulate_grad=accumulate)
    expected = F.embedding(Y, reference)[:, :c]
    assert torch.equal(ours, expected)
    assert ours.is_contiguous()
    ours.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(weight.grad, reference.grad)
    assert torch.equal(sliced_embedding_ref(weight, Y, c), ours)


def test_gradcheck() -> None:
    weight = table(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: sliced_embedding(w, Y, 5), [weight])


@pytest.mark.parametrize("accumulate", [False, True])
def test_nothing_outside_the_prefix_is_touched(accumulate: bool) -> None:
    c = 9
    weight = poisoned(table(), slice(None), slice(0, c)).requires_grad_()
    if accumulate:
        weight.grad = poisoned(torch.ones(ROWS, C_MAX), slice(None), slice(0, c))
    before = torch.zeros(ROWS, C_MAX) if weight.grad is None else weight.grad.clone()
    y = sliced_embedding(weight, Y, c, accumulate_grad=accumulate)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert weight.grad is not None
    check_outside_unchanged(weight.grad, before, slice(None), slice(0, c))


def test_accumulate_grad_adds_what_autograd_adds_and_shows_hooks_nothing() -> None:
    results, seen = [], []
    for accumulate in (False, True):
        weight = nn.Parameter(table())
        weight.register_hook(lambda grad, flag=accumulate: seen.append((flag, grad is None)))
        for c in (5, 12):
            sliced_embedding(weight, Y, c, accumulate_grad=accumulate).square().sum().backward()
        results.append(weight.grad)
    torch.testing.assert_close(*results)
    assert seen == [(False, False)] * 2 + [(True, True)] * 2


def test_no_rows_and_frozen_tables() -> None:
    weight = table().requires_grad_()
    none = sliced_embedding(weight, torch.zeros(0, dtype=torch.int64), 4)
    assert none.shape == (0, 4)
    none.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()
    assert not sliced_embedding(table(), Y, 4).requires_grad
    with torch.no_grad():
        assert not sliced_embedding(weight, Y, 4).requires_grad


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation makes (views included)."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_view = func._schema.returns[0].alias_info is not None if func._schema.returns else True
        if isinstance(result, Tensor) and not is_view:
            self.made = max(self.made, result.numel())
        return result


@pytest.mark.parametrize("wanted", [False, True])
def test_the_table_is_not_copied(wanted: bool) -> None:
    weight = table().requires_grad_(wanted)
    weight.grad = torch.zeros_like(weight)
    with Largest() as largest:
        rows = sliced_embedding(weight, Y, 6, accumulate_grad=True)
    if wanted:
        with largest:
            rows.backward(torch.ones(len(Y), 6))
    assert largest.made == len(Y) * 6


def test_eleven_widths_compile_to_two_graphs() -> None:
    weight = table().requires_grad_()
    calls = [(weight, Y, c) for c in range(2, 24, 2)]
    assert compiled_graphs(sliced_embedding, calls, backward=True) <= 2


def test_autocast_keeps_the_tables_dtype() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sliced_embedding(table(), Y, 4).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"weight": None}, TypeError, "weight is NoneType"),
        ({"weight": torch.zeros(4)}, ValueError, r"weight has shape \[4\], need 2 dimensions"),
        ({"y": [1, 2]}, TypeError, "y is list, need a torch.Tensor of int64"),
        ({"y": torch.zeros(2)}, TypeError, "y is of dtype torch.float32, need .* int64"),
        ({"y": torch.zeros(2, dtype=torch.int32)}, TypeError, "y is of dtype torch.int32"),
        ({"y": torch.zeros(2, 1, dtype=torch.int64)}, ValueError, r"y has shape \[2, 1\], need"),
        ({"y": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "y is on meta"),
        ({"y": torch.tensor([0, 11])}, ValueError, "y holds 11, weight has 11 rows; need 0 <= y"),
        ({"y": torch.tensor([0, -1])}, ValueError, "y holds -1, weight has 11 rows; need 0 <= y"),
        ({"weight": torch.zeros(0, 24)}, ValueError, r"weight has shape \[0, 24\], need at least"),
        ({"c": 0}, ValueError, "c is 0, weight has 24 columns; need 1 <= c <= 24"),
        ({"c": 25}, ValueError, "c is 25"),
        ({"c": 2.0}, TypeError, "c is 2.0, need an int"),
        ({"accumulate_grad": 1}, TypeError, "accumulate_grad is 1, need True or False"),
    ],
)
def test_refusals_name_the_values(change: dict[str, Any], error: type, text: str) -> None:
    arguments: dict[str, Any] = {"weight": table(), "y": Y, "c": 4}
    with pytest.raises(error, match=f"^sliced_embedding: {text}"):
        sliced_embedding(**{**arguments, **change})


def test_accumulation_wants_a_leaf() -> None:
    weight = table().requires_grad_() * 2
    with pytest.raises(ValueError, match=r"^sliced_embedding: accumulate_grad=True but weight is"):
        sliced_embedding(weight, Y, 4, accumulate_grad=True)


def test_layouts_of_the_table() -> None:
    for c, layout in itertools.product((3, C_MAX), (lambda w: w, lambda w: w.t().contiguous().t())):
        assert torch.equal(sliced_embedding(layout(table()), Y, c), table()[Y, :c])


def test_sinusoids_in_closed_form() -> None:
    t = torch.tensor([0.0, 1.0, 3.75, 999.0], dtype=torch.float64)
    embedding = sinusoidal_embedding(t, 6, dtype=torch.float64)
    for row, value in enumerate(t.tolist()):
        for i in range(3):
            angle = value * 10000 ** (-2 * i / 6)
            assert math.isclose(embedding[row, 2 * i], math.sin(angle), abs_tol=1e-11)
            assert math.isclose(embedding[row, 2 * i + 1], math.cos(angle), abs_tol=1e-11)


def test_halves_of_sinusoids_in_closed_form() -> None:
    t = torch.tensor([0.0, 1.0, 3.75, 999.0], dtype=torch.float64)
    embedding = sinusoidal_embedding(t, 6, halves=True, dtype=torch.float64)
    assert embedding.shape == (4, 6)
    for row, value in enumerate(t.tolist()):
        for i in range(3):
            angle = value * 10000 ** (-i / 3)
            assert math.isclose(embedding[row, i], math.cos(angle), abs_tol=1e-11)
            assert math.isclose(embedding[row, 3 + i], math.sin(angle), abs_tol=1e-11)
    assert torch.equal(embed_time(t, 6, None, torch.float64, halves=True), embedding)
    low = embed_time(t, 6, None, torch.bfloat16, halves=True)
    assert torch.equal(low, sinusoidal_embedding(t, 6, halves=True).to(torch.bfloat16))


def test_rows_of_a_frozen_table_replace_whole_steps_only() -> None:
    table = torch.arange(8.0).view(4, 2)
    t = torch.tensor([0.0, 3.0, 2.5, 4.0, -1.0])
    embedding = embed_time(t, 2, table, torch.float32)
    assert torch.equal(embedding[:2], table[[0, 3]])
    assert torch.equal(embedding[2:], sinusoidal_embedding(t[2:], 2))
    assert torch.equal(embed_time(torch.tensor([1, 2]), 2, table, torch.float32), table[1:3])


def test_sinusoids_of_integer_and_float_steps_agree() -> None:
    t = torch.tensor([0, 17, 999])
    assert torch.equal(sinusoidal_embedding(t, 8), sinusoidal_embedding(t.float(), 8))

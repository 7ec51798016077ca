"""The path a call takes: plain torch in float16 on the CPU; torch's default dtype and device."""

from __future__ import annotations

import itertools

import pytest
import torch
from ops.derivative_cases import CASES, Case
from ops.op_checks import run_python
from torch import Tensor, nn
from torch.testing import assert_close

from ddsm_ext.ops import sliced_conv2d, sliced_embedding

every_op = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def leaves(
    values: tuple[Tensor, ...], dtype: torch.dtype, wanted: tuple[bool, ...]
) -> list[Tensor]:
    made = []
    for value, needs_grad in zip(values, wanted, strict=True):
        tensor = value.detach().to(dtype, copy=True)
        if tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        made.append(tensor.requires_grad_(needs_grad))
    return made


@every_op
@pytest.mark.filterwarnings("ignore:ddsm_ext")
def test_float16_on_the_cpu(case: Case) -> None:
    """Forward, and gradients of every choice of inputs, beside torch in float64."""
    values = tuple(x.half() for x in case.inputs(0))
    for wanted in itertools.product([False, True], repeat=len(values)):
        ours = leaves(values, torch.float16, wanted)
        exact = leaves(values, torch.float64, wanted)
        y, want = case.ours(*ours), case.torchs(*exact)
        pairs = [(y, want)]
        if any(wanted):
            grad_y = torch.randn(y.shape).half()
            y.backward(grad_y)
            want.backward(grad_y.double())
            for x, z in zip(ours, exact, strict=True):
                if z.requires_grad:
                    pairs.append((x.grad, z.grad))
        for got, reference in pairs:
            assert got.dtype == torch.float16
            scale = 4e-3 * reference.abs().max().item()
            assert_close(got.double(), reference, rtol=0, atol=scale)


@pytest.mark.parametrize("size", [1, 4])
def test_group_norm_in_float16_reads_no_foreign_memory(size: int) -> None:
    """torch's backward of a channels_last input without a gradient ended the process."""
    code = (
        "import torch\n"
        "from ddsm_ext.ops import sliced_group_norm\n"
        "for _ in range(100):\n"
        f"    x = torch.randn(2, {size}, {size}, 8).half().permute(0, 3, 1, 2)\n"
        "    w, b = torch.ones(8).half().requires_grad_(), torch.zeros(8).half().requires_grad_()\n"
        "    sliced_group_norm(x, w, b, 2).float().sum().backward()\n"
        f"    assert b.grad.tolist() == [2 * {size} ** 2] * 8\n"
        "    assert w.grad.view(2, 4).float().sum(1).abs().max() < 0.1\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_torchs_defaults_change_no_result(case: Case, dtype: torch.dtype) -> None:
    def results() -> list[Tensor]:
        inputs = [x.requires_grad_() for x in case.inputs(0, dtype)]
        y = case.ours(*inputs)
        return [y.detach(), *torch.autograd.grad(y.sum(), inputs)]

    want = results()
    torch.set_default_dtype(torch.float64)
    try:
        got = results()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_packed_weights_are_float32_whatever_the_default(default: torch.dtype) -> None:
    x, w = torch.randn(4, 64, 32, 32), nn.Parameter(torch.randn(64, 64, 3, 3))
    want = torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    torch.set_default_dtype(default)
    torch.set_default_device("meta")
    try:
        got = sliced_conv2d(x, w, None, 64, padding=1, algo="winograd_4x4")
        got.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert_close(got.double(), want, rtol=0, atol=1e-5 * want.abs().max().item())
    assert w.grad.shape == w.shape


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_meta_tensors_have_the_shapes_dtypes_and_strides_of_the_cpu(
    case: Case, dtype: torch.dtype
) -> None:
    def described(device: str) -> list[tuple]:
        inputs = [x.to(device).requires_grad_() for x in case.inputs(0, dtype)]
        if case is CASES["embedding"]:
            y = sliced_embedding(*inputs, torch.tensor([1, 2, 1], device=device), 3)
        else:
            y = case.ours(*inputs)
        tensors = [y.detach(), *torch.autograd.grad(y.sum(), inputs)]
        return [(t.shape, t.dtype, t.stride()) for t in tensors]

    assert described("meta") == described("cpu")

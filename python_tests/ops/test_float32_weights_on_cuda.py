"""On CUDA a 16-bit x meets 16-bit factors: float32 ones would be read element by element.

The tensors are fake: they say that they are on a GPU, where no kernel runs.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddsm_ext.ops import conv2d, linear


class Seen(TorchDispatchMode):
    """Notes the dtypes of the tensors that our ops get."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[torch.dtype]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().removeprefix("ddsm_ext::").partition(".")[0]
        if func.namespace == "ddsm_ext":
            self.calls[name] = [a.dtype for a in args if isinstance(a, torch.Tensor)]
        return func(*args, **(kwargs or {}))


def call(op: str, device: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[torch.dtype]]:
    """Forward, and the backward formula on what it saved; autograd itself wants a real device."""
    for module in (conv2d, linear):
        monkeypatch.setattr(module, "runs_native", lambda *args, **kwargs: True)
    with torch.no_grad(), FakeTensorMode(), Seen() as seen:
        shape = (16, 8, 3, 3) if op == "conv2d" else (16, 8)
        x = torch.empty(2, 8, *shape[2:], device=device, dtype=torch.bfloat16)
        weight, bias = torch.empty(shape, device=device), torch.empty(16, device=device)
        ctx = SimpleNamespace(
            saved_tensors=(x, None, weight, bias) if op == "conv2d" else (x, weight, bias),
            needs_input_grad=(True,) * 4 if op == "linear" else (True, False, True, True),
            parameters={"weight": 2, "bias": 3} if op == "conv2d" else {"weight": 1, "bias": 2},
            owners=(None, None), accumulate_grad=False,
            c_in2_offset=8, window=(1, 1, False), algo="direct", tf32=False,
        )  # fmt: skip
        if op == "conv2d":
            y = conv2d.sliced_conv2d(x, weight, bias, 12, padding=1)
            grads = conv2d._backward(ctx, y)
        else:
            y = linear.sliced_linear(x, weight, bias, 12)
            grads = linear._backward(ctx, y)
        assert y.dtype == grads[0].dtype == torch.bfloat16
    return seen.calls


@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_products_are_of_one_dtype_and_gradients_stay_float32(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = call(op, "cuda", monkeypatch)
    low, full = torch.bfloat16, torch.float32
    assert calls[f"sliced_{op}"] == [low, low, low]  # x, weight, bias
    assert calls[f"sliced_{op}_grad_x"] == [low, low]  # grad_y, weight
    assert calls[f"sliced_{op}_grad_weight"] == [low, low, full, full]  # grad_y, x, the gradients


@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_the_cpu_reads_float32_weights_as_they_are(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = call(op, "cpu", monkeypatch)
    assert calls[f"sliced_{op}"] == [torch.bfloat16, torch.float32, torch.float32]
    assert calls[f"sliced_{op}_grad_x"] == [torch.bfloat16, torch.float32]

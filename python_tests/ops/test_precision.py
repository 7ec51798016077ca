"""torch's tf32 switches: read for float32 on CUDA only, and passed on by every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddsm_ext.ops import _call, conv2d, linear
from ddsm_ext.ops._call import conv_tf32, matmul_tf32


@pytest.fixture(autouse=True)
def torch_switches() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def on(device: str, dtype: torch.dtype = torch.float32) -> Any:
    """What these functions see of a tensor that no machine without a GPU can hold."""
    return SimpleNamespace(is_cuda=device == "cuda", dtype=dtype)


def test_torchs_defaults():
    x = on("cuda")
    assert (conv_tf32(x), matmul_tf32(x)) == (True, False)


@pytest.mark.parametrize("conv", ["tf32", "ieee"])
@pytest.mark.parametrize("matmul", ["tf32", "ieee"])
def test_switches_of_the_operations(conv, matmul):
    torch.backends.cudnn.conv.fp32_precision = conv
    torch.backends.cuda.matmul.fp32_precision = matmul
    x = on("cuda")
    assert (conv_tf32(x), matmul_tf32(x)) == (conv == "tf32", matmul == "tf32")
    for other in (on("cpu"), on("cuda", torch.bfloat16)):
        assert (conv_tf32(other), matmul_tf32(other)) == (False, False)


def test_older_switches():
    x = on("cuda")
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert not conv_tf32(x)
    torch.set_float32_matmul_precision("high")
    assert matmul_tf32(x)
    torch.set_float32_matmul_precision("highest")
    assert not matmul_tf32(x)


class Calls(TorchDispatchMode):
    """Notes the raw ops that run and what they get for tf32."""

    def __init__(self) -> None:
        super().__init__()
        self.tf32: dict[str, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "ddsm_ext":
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False))
            self.tf32[func._schema.name.removeprefix("ddsm_ext::")] = given.get("tf32", False)
        return func(*args, **(kwargs or {}))


def call_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    return conv2d.sliced_conv2d(x[:, :, None, None], weight[:, :, None, None], None, 5)


def call_linear(x: Tensor, weight: Tensor) -> Tensor:
    return linear.sliced_linear(x, weight, None, 5)


@pytest.mark.parametrize(
    ("op", "call"), [("sliced_conv2d", call_conv2d), ("sliced_linear", call_linear)]
)
@pytest.mark.parametrize("tf32", [False, True])
def test_every_call_passes_the_choice_on(monkeypatch, op: str, call: Callable, tf32: bool):
    # As for a tensor on CUDA.
    monkeypatch.setattr(conv2d, "conv_tf32", lambda x: _call.is_tf32("conv"))
    monkeypatch.setattr(linear, "matmul_tf32", lambda x: _call.is_tf32("matmul"))
    other = "ieee" if tf32 else "tf32"
    torch.backends.cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    x, weight = torch.ones(3, 6, requires_grad=True), torch.ones(8, 6, requires_grad=True)
    with Calls() as calls, torch.no_grad():
        call(x, weight)
    assert calls.tf32 == {op: tf32}
    with Calls() as calls:
        y = call(x, weight)
        # The gradients are formed as the output was.
        torch.backends.cudnn.conv.fp32_precision = other
        torch.backends.cuda.matmul.fp32_precision = other
        y.sum().backward()
    assert calls.tf32 == dict.fromkeys((op, f"{op}_grad_x", f"{op}_grad_weight"), tf32)


@pytest.mark.parametrize("call", [call_conv2d, call_linear])
def test_compiled_calls_pass_it_on(monkeypatch, call: Callable):
    monkeypatch.setattr(conv2d, "conv_tf32", lambda x: _call.is_tf32("conv"))
    monkeypatch.setattr(linear, "matmul_tf32", lambda x: _call.is_tf32("matmul"))
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable:
        seen.extend(n.args[-1] for n in graph.graph.nodes if "sliced" in str(n.target))
        return graph.forward

    torch._dynamo.reset()
    torch.compile(call, fullgraph=True, backend=backend)(torch.ones(3, 6), torch.ones(8, 6))
    assert seen == [True]

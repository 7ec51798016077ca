"""Products on CUDA: tf32 as torch's switches say it, and operands of one dtype.

No GPU takes part: tensors on the CPU say that they are on one, or fake ones are traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ops.op_checks import run_python
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddsm_ext.ops import sliced_conv2d, sliced_linear
from ddsm_ext.ops._call import conv_tf32, matmul_tf32


@pytest.fixture(autouse=True)
def torch_switches() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


class SaysCuda(Tensor):
    """On the CPU, whose kernels run; what is computed from it says the same."""

    is_cuda = property(lambda self: True)  # type: ignore[assignment]


def on(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.ones(shape, dtype=dtype)
    return x.as_subclass(SaysCuda) if device == "cuda" else x


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
    for other in (on("cpu"), on("cuda", dtype=torch.bfloat16)):
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
    """Notes what our raw ops get: for tf32, and the dtypes of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.tf32: dict[str, Any] = {}
        self.dtypes: dict[str, list[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "ddsm_ext":
            op = func._schema.name.removeprefix("ddsm_ext::")
            names = [argument.name for argument in func._schema.arguments]
            self.tf32[op] = dict(zip(names, args, strict=False)).get("tf32", False)
            self.dtypes[op] = [value.dtype for value in args if isinstance(value, Tensor)]
        return func(*args, **(kwargs or {}))


# Each op and the sides of its kernel.
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "sliced_conv2d": (sliced_conv2d, (1, 1)),
    "sliced_linear": (sliced_linear, ()),
}


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("tf32", [False, True])
def test_every_call_passes_the_choice_on(op: str, tf32: bool):
    call, kernel = CALLS[op]
    other = "ieee" if tf32 else "tf32"
    torch.backends.cudnn.conv.fp32_precision = "tf32" if tf32 else "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    x, weight = (on("cuda", n, 6, *kernel).requires_grad_() for n in (3, 8))
    with Calls() as calls, torch.no_grad():
        call(x, weight, None, 5)
    assert calls.tf32 == {op: tf32}
    with Calls() as calls:
        y = call(x, weight, None, 5)
        # The gradients are formed as the output was.
        torch.backends.cudnn.conv.fp32_precision = other
        torch.backends.cuda.matmul.fp32_precision = other
        y.sum().backward()
    assert calls.tf32 == dict.fromkeys((op, f"{op}_grad_x", f"{op}_grad_weight"), tf32)


def dtypes_of_calls(op: str, device: str) -> dict[str, list[torch.dtype]]:
    """Of forward and backward of a bfloat16 x beside a float32 weight and bias."""
    call, kernel = CALLS[op]
    x = on(device, 3, 6, *kernel, dtype=torch.bfloat16).requires_grad_()
    weight, bias = (on(device, *shape).requires_grad_() for shape in ((8, 6, *kernel), (8,)))
    with Calls() as calls:
        y = call(x, weight, bias, 5)
        y.backward(on(device, *y.shape, dtype=y.dtype))
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == bias.grad.dtype == torch.float32
    return calls.dtypes


@pytest.mark.parametrize("op", CALLS)
def test_products_are_of_one_dtype_and_gradients_stay_float32(op: str):
    """A 16-bit x meets 16-bit factors: float32 ones would be read element by element."""
    dtypes = dtypes_of_calls(op, "cuda")
    low, full = torch.bfloat16, torch.float32
    assert dtypes[op] == [low, low, low]  # x, weight, bias
    assert dtypes[f"{op}_grad_x"] == [low, low]  # grad_y, weight
    assert dtypes[f"{op}_grad_weight"] == [low, low, full, full]  # grad_y, x, the gradients


@pytest.mark.parametrize("op", CALLS)
def test_the_cpu_reads_float32_weights_as_they_are(op: str):
    dtypes = dtypes_of_calls(op, "cpu")
    assert dtypes[op] == [torch.bfloat16, torch.float32, torch.float32]
    assert dtypes[f"{op}_grad_x"] == [torch.bfloat16, torch.float32]


def print_compiled_choices() -> None:
    """Print what traced calls of fake tensors on a GPU get for tf32."""

    def tf32_of(node: torch.fx.Node) -> Any:
        schema = getattr(node.target, "default", node.target)._schema
        return node.args[[argument.name for argument in schema.arguments].index("tf32")]

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        print(*(tf32_of(n) for n in graph.graph.nodes if "sliced" in str(n.target)))
        return graph.forward

    for precision in ("tf32", "ieee"):
        torch.backends.cudnn.conv.fp32_precision = precision
        torch.backends.cuda.matmul.fp32_precision = precision
        for call, kernel in CALLS.values():
            with FakeTensorMode():
                x, weight = (torch.empty(n, 6, *kernel, device="cuda") for n in (3, 8))
            torch._dynamo.reset()
            torch.compile(call, fullgraph=True, backend=backend)(x, weight, None, 5)


def test_compiled_calls_pass_it_on():
    """Kernels for CUDA are stood in for, which the ops look for when they are imported."""
    done = run_python("""
import torch
from ddsm_ext import _library
kernels = torch.library.Library("ddsm_ext", "IMPL")
for op in ("sliced_conv2d", "sliced_linear"):
    if _library.cuda_missing_reason:
        kernels.impl(op, lambda *args: None, "CUDA")
from ops.test_precision import print_compiled_choices
print_compiled_choices()
""")
    assert done.stdout.split() == ["True", "True", "False", "False"], done.stderr

"""What every op must show: exactness beside PyTorch, locality, repeatability, compile safety."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ddsm_ext
from ddsm_ext import _library

ISAS = tuple(_library.native.available_isas())
FORWARD_RATIO = 2.0
GRADIENT_RATIO = 3.0


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Run the CPU kernels of one instruction set."""
    before = _library.native.active_isa()
    _library.native.set_isa(name)
    try:
        yield
    finally:
        _library.native.set_isa(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values, rounded to dtype."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def as_layout(x: Tensor, layout: str) -> Tensor:
    """x's values as "contiguous", "channels_last", or "sliced" (channels of a wider tensor)."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    wide = x.new_full((x.shape[0], x.shape[1] + 5, *x.shape[2:]), float("nan"))
    if x.dim() == 4:
        wide = wide.contiguous(memory_format=torch.channels_last)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def pooled(cases: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Join corresponding results of several cases.

    The largest error of a handful of numbers is mostly luck; that of some hundreds is not.
    """
    return [torch.cat([t.flatten() for t in tensors]) for tensors in zip(*cases, strict=True)]


def check_error(ours: Tensor, torchs: Tensor, exact: Tensor, ratio: float) -> None:
    """Our largest error is at most `ratio` times PyTorch's in the same dtype.

    The floor, an eighth of a rounding step of the largest value, keeps a case in which PyTorch
    happens to be exact from demanding that we are.
    """
    assert ours.shape == exact.shape
    assert ours.dtype == torchs.dtype
    if exact.numel() == 0:
        return
    if ours.dtype == torch.float64:  # the reference has no more digits than we
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-13 * exact.abs().max().item())
        return
    our_error = (ours.double() - exact).abs().max().item()
    torch_error = (torchs.double() - exact).abs().max().item()
    floor = torch.finfo(ours.dtype).eps / 8 * exact.abs().max().item()
    assert our_error <= ratio * torch_error + floor, (
        f"our error {our_error:.3g}, PyTorch's {torch_error:.3g}, allowed {ratio} times that "
        f"+ {floor:.3g}"
    )


def poisoned(values: Tensor, *keep: slice) -> Tensor:
    """A copy with NaN everywhere except in the region values[keep]."""
    result = torch.full_like(values, float("nan"))
    result[keep] = values[keep]
    return result


def check_outside_unchanged(after: Tensor, before: Tensor, *region: slice) -> None:
    """Outside after[region] every bit is as before; inside everything is finite."""
    outside = torch.ones(after.shape, dtype=torch.bool)
    outside[region] = False
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[after.element_size()]
    assert torch.equal(after.view(width)[outside], before.view(width)[outside])
    assert torch.isfinite(after[region]).all()


def check_repeatable(call: Callable[[], Sequence[Tensor]], times: int) -> None:
    """`times` calls give bitwise equal tensors."""
    first = [tensor.clone() for tensor in call()]
    for _ in range(times - 1):
        for again, expected in zip(call(), first, strict=True):
            assert torch.equal(again, expected)


def check_op(op: Any, samples: Sequence[tuple[Any, ...]]) -> None:
    """`torch.library.opcheck` passes all of its tests on every sample."""
    for args in samples:
        result = torch.library.opcheck(op, args)
        assert set(result.values()) == {"SUCCESS"}, result


def check_ops(
    samples: Mapping[str, Sequence[tuple[Any, ...]]], chosen: slice = slice(None)
) -> None:
    """`check_op` for each op, by its name, with the chosen ones of its samples."""
    for name, calls in samples.items():
        check_op(getattr(torch.ops.ddsm_ext, name).default, calls[chosen])


def compiled_graphs(
    function: Callable[..., Tensor], calls: Sequence[tuple[Any, ...]], *, backward: bool = False
) -> int:
    """Compile `function` without graph breaks, check every call against eager, count the graphs.

    Args:
        function: returns one tensor.
        calls: argument tuples; integers may differ from call to call.
        backward: also compare the gradients of tensors that require them.
    """
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for args in calls:
        expected, ours = function(*args), compiled(*args)
        assert torch.equal(ours, expected)
        assert ours.stride() == expected.stride()
        leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
        if backward and leaves:
            grads = torch.autograd.grad(ours.sum(), leaves)
            for ours_grad, grad in zip(
                grads, torch.autograd.grad(expected.sum(), leaves), strict=True
            ):
                torch.testing.assert_close(ours_grad, grad)
    return counter.frame_count


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code that may import the tests' helpers in a process of its own.

    A crash of the interpreter then fails one test instead of ending the whole run.
    """
    tests = Path(__file__).resolve().parents[1]
    package = Path(ddsm_ext.__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(package)])},
        capture_output=True,
        text=True,
        timeout=600,
    )

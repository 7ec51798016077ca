"""Threads: torch's pool and no other, the same results on any number, calls side by side."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from ops.op_checks import normal, run_python, seeded, threads
from torch import Tensor

from ddsm_ext.ops import (
    activation,
    sliced_attention,
    sliced_conv2d,
    sliced_group_norm,
    sliced_layer_norm,
    sliced_linear,
)

# Narrow calls run on one thread, the widest are enough work for three.
WIDTHS = (8, 24, 40, 64)
Case = tuple[Callable[..., Tensor], list[Tensor]]  # an op and the tensors to give it


def conv2d(width: int) -> Case:
    generator = seeded(width)
    x = normal(generator, 2, width, 16, 16)  # [N, c_in, H, W]
    parameters = [normal(generator, 64, 64, 3, 3), normal(generator, 64)]
    return lambda *tensors: sliced_conv2d(*tensors, width, padding=1), [x, *parameters]


@cache
def parameter() -> Tensor:
    return torch.nn.Parameter(normal(seeded(0), 64, 64, 3, 3))


def winograd(width: int) -> Case:
    """All calls share one weight, whose rearrangement is kept."""

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return sliced_conv2d(x, weight, None, width, padding=1, algo="winograd_4x4")

    return call, [normal(seeded(width), 2, width, 16, 16), parameter()]


def linear(width: int) -> Case:
    generator = seeded(width)
    x = normal(generator, 4 * width, width)  # [rows, c_in]
    parameters = [normal(generator, 256, 64), normal(generator, 256)]
    return lambda *tensors: sliced_linear(*tensors, 4 * width), [x, *parameters]


def group_norm(width: int) -> Case:
    generator = seeded(width)
    x = normal(generator, 2, width, 32, 32)  # [N, c, H, W]
    parameters = [normal(generator, 64), normal(generator, 64)]
    return lambda *tensors: sliced_group_norm(*tensors, groups=8, silu=True), [x, *parameters]


def layer_norm(width: int) -> Case:
    generator = seeded(width)
    x = normal(generator, 2, 16 * width, width)  # [N, T, c]
    parameters = [normal(generator, 64), normal(generator, 64)]
    return sliced_layer_norm, [x, *parameters]


def glu(width: int) -> Case:
    generator = seeded(width)
    z, gate = normal(generator, 2, 128, 8 * width), normal(generator, 2, 4 * width)
    return lambda z, gate: activation(z, "geglu", gate=gate), [z, gate]


def attention(width: int) -> Case:
    generator = seeded(width)
    return sliced_attention, [normal(generator, 1, 3, 4 * width, 32) for _ in range(3)]


CASES = {
    "attention": attention,
    "conv2d": conv2d,
    "glu": glu,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "linear": linear,
    "winograd": winograd,
}


def results(op: str, width: int) -> list[Tensor]:
    """Output and gradients."""
    call, tensors = CASES[op](width)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    y = call(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, normal(seeded(0), *y.shape))]


def check_close(ours: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("op", CASES)
def test_results_do_not_depend_on_the_number_of_threads(op: str) -> None:
    for width in WIDTHS:
        with threads(1):
            expected = results(op, width)
        for count in (2, 3):
            with threads(count):
                check_close(results(op, width), expected)


@pytest.mark.parametrize("count", [1, 2])
def test_python_threads_side_by_side(count: int) -> None:
    jobs = [(op, width) for width in WIDTHS for op in CASES]
    with threads(1):
        expected = [results(*job) for job in jobs]
    with threads(count), ThreadPoolExecutor(4) as pool:
        ours = list(pool.map(lambda job: results(*job), jobs * 5))
    for got, wanted in zip(ours, expected * 5, strict=True):
        check_close(got, wanted)


def running_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def print_started_threads(count: int, *, pool_runs: bool) -> None:
    """Print how many threads each op starts, after torch's pool has been used or before."""
    torch.set_num_threads(count)
    if pool_runs:
        torch.ones(1 << 20).exp()
    for op in CASES:
        before = running_threads()
        results(op, 64)
        print(running_threads() - before)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of threads")
@pytest.mark.parametrize(
    ("count", "pool_runs", "started"),
    [(1, False, 0), (3, False, 2), (3, True, 0)],
)
def test_the_only_pool_is_torchs(count: int, pool_runs: bool, started: int) -> None:
    """`started` threads by the first op, none by the others."""
    call = f"print_started_threads({count}, pool_runs={pool_runs})"
    done = run_python(f"from ops.test_threads import print_started_threads; {call}")
    counted = list(map(int, done.stdout.split()))
    assert counted == [started] + [0] * (len(CASES) - 1), done.stderr

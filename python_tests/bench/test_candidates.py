"""Candidates compute one function, and a wrong one is noticed before it is timed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from bench.scripts import ROOT, load
from bench.small_network import ADM, LDM, NCSN, SMALL

from ddsm_ext.bench.candidates import (
    CANDIDATES,
    candidates,
    check_agreement,
    relative_error,
)
from ddsm_ext.bench.conditions import DTYPES, TOLERANCE
from ddsm_ext.graph.shapes import (
    OPS,
    AttentionShape,
    ConvShape,
    LayerNormShape,
    NormShape,
    op_shapes,
)

# The ops that no table of `ddsm bench` has are compared by their benchmark alone.
ALONE = {
    op: load(f"bench_{op}", ROOT / "benchmarks" / f"bench_{op}.py").candidates
    for op in ("resample", "embedding")
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", OPS)
def test_candidates_agree_at_every_shape(op: str, dtype: str) -> None:
    networks = (LDM,) if op == "layer_norm" else (SMALL, ADM, NCSN)
    shapes = {s for c in networks for width in (1.0, 0.5) for s in op_shapes(c, width, op)}
    assert shapes
    if op == "layer_norm":  # what none of these networks has
        shapes |= {LayerNormShape(24, 32, 9, modulated=True)}
    for shape in shapes:
        with torch.no_grad():
            calls = ALONE.get(op, candidates)(shape, 2, DTYPES[dtype])
            outputs = {name: call() for name, call in calls.items()}
        assert tuple(outputs) == CANDIDATES
        assert check_agreement(str(shape), outputs, TOLERANCE[dtype]) >= 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_candidates_of_a_step_with_a_factor_agree(dtype: str) -> None:
    bench = load("bench_scaled_conv2d", ROOT / "benchmarks" / "bench_scaled_conv2d.py")
    shapes = [s for s in op_shapes(NCSN, 0.5, "conv2d") if bench.wanted(s)]
    assert shapes
    for shape in shapes:
        with torch.no_grad():
            calls = bench.candidates(shape, 2, DTYPES[dtype])
            outputs = {name: call() for name, call in calls.items()}
        assert check_agreement(str(shape), outputs, TOLERANCE[dtype]) >= 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("keys", [None, 77, 1])
def test_candidates_of_attention_agree(keys: int | None, dtype: str) -> None:
    shape = AttentionShape(3, 20, 8, keys)
    names = ("bench_packed_attention", "bench_packed_attention_training")
    benches = [load(name, ROOT / "benchmarks" / f"{name}.py").candidates for name in names]
    for make in (candidates, *benches):
        with torch.no_grad():
            outputs = {name: call() for name, call in make(shape, 2, DTYPES[dtype]).items()}
        assert tuple(outputs) == CANDIDATES
        assert check_agreement(str(shape), outputs, TOLERANCE[dtype]) >= 0


def test_slicing_is_torch_on_a_slice() -> None:
    shape = ConvShape(8, 4, 6, 24, 16, 3, 1, False, 8)
    calls = candidates(shape, 2, torch.float32)
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    weight, bias = normal(16, 24, 3, 3) * (12 * 9) ** -0.5, normal(16)
    x = torch.cat([normal(2, 8, 8, 8), normal(2, 4, 8, 8)], dim=1)
    expected = F.conv2d(x, weight[:6, :12], bias[:6], padding=1)
    assert torch.equal(calls["slicing"](), expected)


def test_two_sources_of_a_norm_are_compared_as_one() -> None:
    with torch.no_grad():
        calls = candidates(NormShape(8, 4, 16, 4, 4, True), 2, torch.float32)
        ours = calls["ours"]()
    assert isinstance(ours, tuple)
    assert relative_error(ours, calls["slicing"]()) < 1e-5


def test_a_wrong_candidate_is_refused() -> None:
    good = torch.ones(2, 3)
    assert check_agreement("x", {"slicing": good, "ours": good}, 1e-4) == 0
    with pytest.raises(ValueError, match=r"conv: ours differs from slicing by 0\.1"):
        check_agreement("conv", {"slicing": good, "ours": good * 1.1}, 1e-4)
    outputs = {"slicing": good, "ours": good, "dense_cl": good * torch.nan}
    with pytest.raises(ValueError, match="dense_cl differs"):
        check_agreement("conv", outputs, 1e-4)


def test_pytest_finds_the_benchmarks_of_the_ops() -> None:
    files = sorted((ROOT / "benchmarks").glob("bench_*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    more = ("modulated_norm", "filter", "scaled_conv2d", "packed_attention")
    for op in (*OPS, *more, "packed_attention_training"):
        assert f"benchmarks/bench_{op}.py::test_{op}[" in done.stdout

"""The emulated instructions beside the PTX ISA manual's fragment layouts and number formats."""

from __future__ import annotations

from ctypes import c_void_p

import numpy as np
import pytest
import torch
from cuda_kernels import emulated


def address(array: np.ndarray) -> c_void_p:
    assert array.flags.c_contiguous
    return c_void_p(array.ctypes.data)


def words(values: torch.Tensor) -> np.ndarray:
    """Pairs of 16-bit numbers, or single 32-bit ones, as 32-bit registers."""
    return values.contiguous().view(torch.int32).numpy().view(np.uint32)


@pytest.mark.parametrize(
    ("name", "dtype", "k"),
    [("bf16", torch.bfloat16, 16), ("fp16", torch.float16, 16), ("tf32", torch.float32, 8)],
)
def test_mma_multiplies_the_fragments_of_the_manual(name, dtype, k):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(16, k, generator=generator).to(dtype)
    b = torch.randn(k, 8, generator=generator).to(dtype)
    c = torch.randn(16, 8, generator=generator)
    if name == "tf32":  # the lower 13 bits do not take part
        exact_a, exact_b = ((t.view(torch.int32) & ~0x1FFF).view(torch.float32) for t in (a, b))
    else:
        exact_a, exact_b = a, b
    lane = torch.arange(32)
    group, thread = lane // 4, lane % 4  # groupID and threadID_in_group of the manual
    per = k // 8  # elements of a register
    inner = thread[:, None] * per + torch.arange(per)  # [32, per]: k of a register's elements
    rows = (group, group + 8, group, group + 8)
    columns = (inner, inner, inner + k // 2, inner + k // 2)
    fragments_a = torch.stack([a[r[:, None], col] for r, col in zip(rows, columns, strict=True)], 1)
    fragments_b = torch.stack([b[inner, group[:, None]], b[inner + k // 2, group[:, None]]], 1)
    c_rows = torch.stack([group, group, group + 8, group + 8], 1)  # [32, 4]
    c_columns = (thread * 2)[:, None] + torch.tensor([0, 1, 0, 1])
    d = c[c_rows, c_columns].numpy().copy()
    call = getattr(emulated.library(), f"multiply_{name}")
    call(address(words(fragments_a)), address(words(fragments_b)), address(d))
    exact = exact_a.double() @ exact_b.double() + c.double()
    np.testing.assert_allclose(d, exact[c_rows, c_columns].numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_gives_the_fragments_of_the_manual(transposed):
    matrices = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    d = np.zeros((32, 4, 2), dtype=np.uint16)
    emulated.library().load_matrices(address(matrices), address(d), int(transposed))
    for lane in range(32):
        for index, matrix in enumerate(matrices):
            source = matrix.T if transposed else matrix
            expected = source[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert d[lane, index].tolist() == expected.tolist()


def test_shuffle_gives_what_the_named_lane_has():
    values = np.arange(32, dtype=np.float32)
    lanes = np.random.default_rng(0).integers(0, 32, 32, dtype=np.int32)
    emulated.library().shuffle_lanes(address(values), address(lanes))
    np.testing.assert_array_equal(values, lanes)


def test_tf32_is_the_nearest_number_with_10_bits():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1000, generator=generator)
    # ties go away from zero; infinities and NaN stay what they are
    x = torch.cat([x, torch.tensor([1 + 2.0**-11, -1 - 2.0**-11, torch.inf, torch.nan])])
    y = torch.empty_like(x)
    emulated.library().to_tf32(c_void_p(x.data_ptr()), c_void_p(y.data_ptr()), x.numel())
    assert y[1000:1003].tolist() == [1 + 2.0**-10, -1 - 2.0**-10, torch.inf]
    assert y[1003].isnan()
    mantissa, exponent = torch.frexp(x[:1000].double())
    exact = torch.ldexp(torch.round(mantissa * 2**11) / 2**11, exponent)
    assert y[:1000].double().equal(exact)


def test_16_bit_numbers_are_converted_as_torch_converts_them():
    bits = np.arange(2**16, dtype=np.uint16)
    bf16, fp16 = (np.empty(2**16, dtype=np.float32) for _ in range(2))
    emulated.library().widen_16_bits(address(bits), address(bf16), address(fp16), 2**16)
    patterns = torch.from_numpy(bits.view(np.int16).copy())
    for ours, dtype in ((bf16, torch.bfloat16), (fp16, torch.float16)):
        torchs = patterns.view(dtype).float().numpy()
        np.testing.assert_array_equal(ours, torchs)
    values = torch.linspace(-17, 17, 20001).exp2()
    ties = torch.tensor([1 + 2.0**-9, 1 + 2.0**-12, 2.0**-25, 1.5 * 2.0**-24, 65519.0, 65520.0])
    x = torch.cat([values, -values, ties, torch.tensor([torch.inf, -torch.inf, 0.0, -0.0])])
    rounded = [np.empty(x.numel(), dtype=np.uint16) for _ in range(2)]
    emulated.library().round_to_16_bits(
        c_void_p(x.data_ptr()), *map(address, rounded), x.numel()
    )  # fmt: skip
    for ours, dtype in zip(rounded, (torch.bfloat16, torch.float16), strict=True):
        torchs = x.to(dtype).view(torch.int16).numpy().view(np.uint16)
        np.testing.assert_array_equal(ours, torchs)

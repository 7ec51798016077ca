"""The emulated instructions of sm_90a beside the PTX ISA manual and the driver API's limits."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_bool, c_char_p, c_int32, c_int64, c_uint64, c_void_p

import numpy as np
import pytest
import torch
from cuda_kernels import emulated
from torch import Tensor


class TensorMap(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("half_floats", c_bool),
        ("im2col", c_bool),
        ("size", c_int64 * 4),
        ("stride_bytes", c_int64 * 3),
        ("row", c_int64),
        ("box", c_int64 * 3),
        ("pixels", c_int64),
        ("lower", c_int64),
        ("upper_w", c_int64),
        ("upper_h", c_int64),
        ("step", c_int64),
        ("constant", c_bool),
    ]


def tensor_map(x: Tensor, *, upper: int = 0, **more: object) -> TensorMap:
    """x [N, H, W, C] with adjacent channels; `upper`: of both W and H."""
    n, h, w, c = x.shape
    strides = [2 * s for s in x.stride()[2::-1]]
    im2col = "pixels" in more
    more |= {"upper_w": upper, "upper_h": upper}
    return TensorMap(x.data_ptr(), False, im2col, (c, w, h, n), tuple(strides), 64, **more)


def land(name: str, x: Tensor, map_: TensorMap, rows: int, at: tuple[int, ...], *offsets: int):
    """What a copy puts into shared memory, [rows, 64], the swizzle of the manual undone."""
    library = emulated.library()
    assert library.tensor_map_bytes() == ctypes.sizeof(TensorMap)
    library.forget_memory()
    library.allow_memory(c_void_p(x.data_ptr()), c_uint64(2 * x.numel()), 0)
    landed = torch.zeros(rows, 8, 8, dtype=torch.bfloat16)
    call = getattr(library, name)
    call.restype = c_char_p
    fault = call(byref(map_), (c_int32 * 4)(*at), *offsets, c_void_p(landed.data_ptr()))
    if fault is not None:
        raise RuntimeError(fault.decode())
    # "128B swizzle": chunk c of 16 bytes of row r lies at chunk c xor r mod 8.
    chunks = torch.arange(8) ^ torch.arange(rows)[:, None] % 8
    return landed[torch.arange(rows)[:, None], chunks].reshape(rows, 64)


def numbered(n: int) -> Tensor:
    """[n, 4, 4, 64]: pixels numbered from 1 on."""
    return (torch.arange(16 * n) + 1.0).bfloat16()[:, None].repeat(1, 64).reshape(n, 4, 4, 64)


# Start (n, h, w), corners, offset, pixels: the examples of Triton's tutorial on im2col, whose
# results it asserts on GPUs (python/tutorials/gluon/13-tma-im2col.py).
IM2COL = (
    (1, (0, 0, 0), 0, 0, list(range(1, 17))),
    (1, (0, -1, -1), -1, 0, [0, 0, 0, 0, 0, 1, 2, 3, 0, 5, 6, 7, 0, 9, 10, 11]),
    (1, (0, -1, -1), -1, 1, list(range(1, 17))),
    (2, (0, 1, 3), 0, 0, list(range(8, 24))),
    (2, (0, 1, 2), -1, 0, [7, 0, 9, 10, 11, 0, 0, 0, 0, 0, 17, 18, 19, 0, 21, 22]),
)


@pytest.mark.parametrize(("n", "start", "corner", "offset", "expected"), IM2COL)
def test_im2col_walks_as_on_a_gpu(n, start, corner, offset, expected):
    x = numbered(n)
    map_ = tensor_map(x, pixels=16, lower=corner, upper=corner, step=1)
    at = (0, start[2], start[1], start[0])
    rows = land("land_im2col", x, map_, 16, at, offset, offset)
    assert rows.eq(torch.tensor(expected)[:, None]).all()


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize(("r", "s"), [(0, 0), (1, 2), (2, 1)])
def test_im2col_with_a_stride_is_what_unfold_gathers(size, r, s):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, size, size, 72, generator=generator).bfloat16()
    map_ = tensor_map(x, pixels=32, lower=-1, upper=-1, step=2)
    rows = land("land_im2col", x, map_, 32, (8, -1, -1, 0), s, r)
    taps = torch.nn.functional.unfold(
        x.permute(0, 3, 1, 2).float(), 3, padding=1, stride=2
    )  # [N, C * 9, positions]
    expected = taps.reshape(3, 72, 9, -1)[:, 8:, r * 3 + s].transpose(1, 2).reshape(-1, 64)
    assert rows[: len(expected)].float().equal(expected)
    assert rows[len(expected) :].eq(0).all()  # past the last image


@pytest.mark.parametrize("place", [0, 2, 3])
def test_im2col_of_one_place_a_row(place):
    """A box that is narrower than it is high, as weights side by side have it."""
    map_ = tensor_map(x := numbered(2), pixels=16, lower=0, step=1)
    map_.upper_w = -3
    rows = land("land_im2col", x, map_, 16, (0, 0, 1, 0), place, 0)
    expected = x[:, :, place].reshape(8, 64)[1:]  # [pixels from row 1 on, C]
    assert rows[:7].equal(expected)
    assert rows[7:].eq(0).all()


def test_a_corner_outside_of_the_box_is_found():
    map_ = tensor_map(x := numbered(1), pixels=16, lower=0, upper=-1, step=1)
    with pytest.raises(RuntimeError, match="corner is outside of the pixel box"):
        land("land_im2col", x, map_, 16, (0, 3, 0, 0), 0, 0)


def test_boxes_are_filled_with_zero_outside():
    x = (torch.arange(3 * 2 * 2 * 72) % 256).bfloat16().reshape(3, 2, 2, 72)
    rows = land("land_tiled", x, tensor_map(x, box=(1, 2, 4)), 8, (16, 1, 0, 1))
    padded = torch.zeros(5, 2, 2, 80, dtype=torch.bfloat16)
    padded[:3, ..., :72] = x
    assert rows.equal(padded[1:5, :, 1, 16:80].reshape(8, 64))


def test_descriptors_are_those_of_the_manual():
    """matrix-descriptor-encode(x) = (x & 0x3FFFF) >> 4; 128-byte swizzle: 1 at bit 62."""
    library = emulated.library()
    for name in ("k_major_descriptor", "mn_major_descriptor"):
        getattr(library, name).restype = c_uint64
    start = 0x2_3C40
    stride = (1024 >> 4) << 32  # from 8 rows of K to the next 8, or (MN-major) 8 columns of it
    expected = 1 << 62 | stride | 1 << 16 | start >> 4  # the leading offset is "assumed to be 1"
    assert library.k_major_descriptor(start) == expected
    expected = 1 << 62 | stride | (8192 >> 4) << 16 | start >> 4
    assert library.mn_major_descriptor(start, 8192) == expected
    assert library.k_major_descriptor(1 << 18 | start) == library.k_major_descriptor(start)


def placed(matrix: Tensor) -> Tensor:
    """Rows [r, 64] as 128-byte rows in shared memory, by the manual's "128B" swizzle."""
    rows = torch.arange(len(matrix))[:, None]
    memory = torch.empty(len(matrix), 8, 8, dtype=matrix.dtype)
    memory[rows, torch.arange(8) ^ rows % 8] = matrix.reshape(-1, 8, 8)
    return memory.flatten()


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("n_major", [False, True])
@pytest.mark.parametrize("part", [0, 3])
@pytest.mark.parametrize("add", [False, True])
def test_wgmma_multiplies_what_the_descriptors_name(name, dtype, n_major, part, add):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(64, 64, generator=generator).to(dtype)  # [M, K]
    b = torch.randn(64, 128, generator=generator).to(dtype)  # [K, N]
    c = torch.randn(64, 128, generator=generator)
    # N-major: a row of 64 columns for each k, in two panels of 64 rows.
    tiles_b = [placed(b[:, :64]), placed(b[:, 64:])] if n_major else [placed(b.T.contiguous())]
    memory = torch.cat([placed(a), *tiles_b])
    library = emulated.library()
    library.k_major_descriptor.restype = library.mn_major_descriptor.restype = c_uint64
    of_a = library.k_major_descriptor(part * 32)
    if n_major:
        of_b = library.mn_major_descriptor(8192 + part * 16 * 128, 8192)
    else:
        of_b = library.k_major_descriptor(8192 + part * 32)
    # "Register fragments for wgmma.mma_async.m64nNk16": D.
    thread, i = torch.arange(128)[:, None], torch.arange(64)
    rows = thread // 32 * 16 + thread % 32 // 4 + torch.where(i % 4 < 2, 0, 8)
    columns = i // 4 * 8 + thread % 4 * 2 + (i & 1)
    d = c[rows, columns].numpy().copy()
    call = getattr(library, f"multiply_tiles_{name}")
    call.restype = c_char_p
    fault = call(
        c_void_p(memory.data_ptr()), memory.numel(), c_uint64(of_a), c_uint64(of_b),
        int(add), int(n_major), d.ctypes.data_as(POINTER(ctypes.c_float)),
    )  # fmt: skip
    assert fault is None
    k = slice(part * 16, part * 16 + 16)
    exact = a[:, k].double() @ b[k].double() + (c.double() if add else 0)
    np.testing.assert_allclose(d, exact[rows, columns].numpy(), rtol=1e-6, atol=1e-6)


REFUSED = (
    ({"data": 8}, "memory aligned to 16 bytes"),
    ({"size": (64, 0, 4, 1)}, r"dimensions of 1 to 2\^32"),
    ({"size": (64, 4, 4, 2**32 + 1)}, r"dimensions of 1 to 2\^32"),
    ({"stride_bytes": (128, 520, 2048)}, "strides of multiples of 16 bytes"),
    ({"stride_bytes": (128, 512, 2**40)}, r"strides below 2\^40 bytes"),
    ({"row": 32}, None),
    ({"row": 16}, "rows as long as the swizzle"),
    ({"im2col": False, "box": (1, 1, 257)}, "boxes of 1 to 256 elements a side"),
    ({"lower": -129}, "corners of the pixel box of -128 to 127"),
    ({"upper_w": 128}, "corners of the pixel box of -128 to 127"),
    ({"upper_h": -129}, "corners of the pixel box of -128 to 127"),
    ({"lower": 0, "upper_w": -4}, "a pixel box with pixels"),
    ({"lower": 0, "upper_h": -4}, "a pixel box with pixels"),
    ({"pixels": 1025}, "columns of 1 to 1024 pixels"),
    ({"step": 9}, "a traversal stride of 1 to 8"),
)


@pytest.mark.parametrize(("more", "reason"), [({}, None), *REFUSED])
def test_what_the_driver_would_refuse_is_refused_by_name(more, reason):
    library = emulated.library()
    library.tensor_map_refusal.restype = c_char_p
    map_ = tensor_map(numbered(1), pixels=128, lower=-1, upper=-1, step=1)
    for field, value in more.items():
        setattr(map_, field, value)
    got = library.tensor_map_refusal(byref(map_))
    if reason is None:
        assert got is None
    else:
        with pytest.raises(ValueError, match=f"^a tensor map needs {reason}$"):
            raise ValueError(got.decode())

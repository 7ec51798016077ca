"""The kernels of resample on the emulator beside an fp64 reference. No GPU takes part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cuda_kernels import emulated, structures
from cuda_kernels.emulated import faulty_library
from ops.op_checks import as_layout, normal, seeded
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def resample(
    x: Tensor,
    up: bool,
    gain: float = 1.0,
    *,
    taps: int = 2,
    ring: bool = False,
    residual: Tensor | None = None,
    overlaps: bool = False,
    library: object = None,
) -> Tensor:
    n, c, h, w = x.shape
    more = (2 if up else -1) if ring else 0
    size = [(2 * side if up else side // 2) + more for side in (h, w)]
    y = torch.full((n, c, *size), torch.nan, dtype=x.dtype)
    y = y.contiguous(memory_format=torch.channels_last)
    args = structures.ResampleArgs(
        x=x.data_ptr(),
        dtype=emulated.DTYPES[x.dtype],
        images=n,
        height=h,
        width=w,
        channels=c,
        n_stride=x.stride(0),
        h_stride=x.stride(2),
        w_stride=x.stride(3),
        up=up,
        gain=gain,
        taps=taps,
        ring=ring,
        y=y.data_ptr(),
    )
    if residual is not None:
        args.residual = residual.data_ptr()
        args.residual_n_stride, _, args.residual_h_stride, args.residual_w_stride = (
            residual.stride()
        )
    emulated.call("resample", args, [x, residual], [y], library, [int(overlaps)])
    return y


def exact(x: Tensor, up: bool, gain: float) -> Tensor:
    x = x.double()
    return gain * (F.interpolate(x, scale_factor=2.0) if up else F.avg_pool2d(x, 2))


def image(*size: int, dtype: torch.dtype, layout: str = "channels_last") -> Tensor:
    return as_layout(normal(seeded(1), *size, dtype=dtype), layout)


def check(x: Tensor, up: bool, gain: float = 1.0, library: object = None) -> None:
    """The exact result, rounded once."""
    rounding = 1e-6 if x.dtype == torch.float32 else 0.51 * torch.finfo(x.dtype).eps
    got = resample(x, up, gain, library=library)
    torch.testing.assert_close(got.double(), exact(x, up, gain), rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [8, 24, 5, 1])
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_values(up, dtype, c, layout):
    """Channels in packs and one by one, of an image of its own and of a part of a wider one."""
    for n, height, width in ((3, 6, 10), (1, 2, 2), (2, 16, 4)):
        for gain in (1.0, 0.25, 4.0):
            check(image(n, c, height, width, dtype=dtype, layout=layout), up, gain)


@pytest.mark.parametrize("up", [False, True])
def test_a_part_of_an_image(up):
    """Rows and images that do not follow each other in memory."""
    x = image(2, 16, 10, 12, dtype=torch.bfloat16)
    check(x[:, :, 2:8, 1:9], up)
    check(x[::2, :, ::2, ::2][:, :, :4], up)


def test_odd_sizes():
    check(image(2, 8, 5, 3, dtype=torch.bfloat16), True)
    for height, width in ((5, 4), (4, 5)):
        with pytest.raises(RuntimeError, match="an odd height or width cannot be"):
            resample(image(2, 8, height, width, dtype=torch.bfloat16), False)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("size", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_nothing_is_launched_for_no_pixels(up, size):
    emulated.launches()
    assert resample(image(*size, dtype=torch.float32), up).numel() == 0
    assert emulated.launches() == []


@pytest.mark.parametrize("up", [False, True])
def test_the_gradient_is_the_other_way(up):
    """dL/dx of an enlargement is 4 times the means of dL/dy; of means it is dL/dy enlarged / 4."""
    x = image(2, 8, 4, 6, dtype=torch.float32)
    leaf = x.double().requires_grad_()
    y = exact(leaf, up, 0.5)
    grad_y = image(*y.shape, dtype=torch.float32)
    (expected,) = torch.autograd.grad(y, leaf, grad_y.double())
    got = resample(grad_y, not up, 4 * 0.5 if up else 0.5 / 4)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("up", [False, True])
def test_overlaps_the_kernel_before(up):
    """It waits for that one: the emulator watches every access."""
    x, name = image(2, 8, 4, 6, dtype=torch.bfloat16), "resample_up" if up else "resample_down"
    with emulated.hopper():
        emulated.launches()
        for overlaps in (True, False):
            assert resample(x, up, overlaps=overlaps).equal(resample(x, up))
            assert emulated.launches() == [(name, overlaps), (name, False)]


FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8


def filtered(x: Tensor, up: bool, ring: bool) -> Tensor:
    """The filter of 4 taps by torch's own convolutions, one plane at a time."""
    n, c, h, w = x.shape
    kernel, padding = torch.outer(FILTER, FILTER)[None, None], 0 if ring else 1
    planes = x.double().reshape(n * c, 1, h, w)
    if up:
        y = F.conv_transpose2d(planes, 4 * kernel, stride=2, padding=padding)
    else:
        y = F.conv2d(planes, kernel, stride=2, padding=padding)
    return y.reshape(n, c, *y.shape[2:])


def check_filter(x: Tensor, up: bool, *, ring: bool = False, library: object = None) -> None:
    """With a residual and without, rounded once."""
    exact, gain = filtered(x, up, ring), 0.5**0.5
    rounding = 1e-6 if x.dtype == torch.float32 else 0.51 * torch.finfo(x.dtype).eps
    wide = normal(seeded(2), exact.shape[0], 2 * exact.shape[1], *exact.shape[2:], dtype=x.dtype)
    residual = wide.contiguous(memory_format=torch.channels_last)[:, : exact.shape[1]]
    got = resample(x, up, taps=4, ring=ring, library=library)
    torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=1e-6)
    got = resample(x, up, gain, taps=4, ring=ring, residual=residual, library=library)
    exact = gain * (exact + residual.double())
    torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize(
    ("up", "ring"), [(False, False), (True, False), (False, True), (True, True)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [8, 24, 5, 1])
@pytest.mark.parametrize("layout", ["channels_last", "sliced"])
def test_the_filter(up, ring, dtype, c, layout):
    for n, height, width in ((3, 6, 10), (1, 4, 4), (2, 16, 4)):
        check_filter(image(n, c, height, width, dtype=dtype, layout=layout), up, ring=ring)


def test_the_filter_of_a_part_of_an_image():
    x = image(2, 16, 10, 12, dtype=torch.bfloat16)
    for up in (False, True):
        check_filter(x[:, :, 2:8, 1:9], up)
        check_filter(x[::2, :, ::2, ::2][:, :, :4], up)
    check_filter(image(2, 8, 5, 3, dtype=torch.bfloat16), True)
    # A ring and no image within.
    assert resample(image(2, 8, 2, 2, dtype=torch.bfloat16), False, taps=4, ring=True).numel() == 0


@pytest.mark.parametrize("up", [False, True])
def test_two_taps_beside_a_residual(up):
    x = image(2, 8, 4, 6, dtype=torch.float32)
    exact_y = exact(x, up, 1.0)
    residual = image(*exact_y.shape, dtype=torch.float32)
    got = resample(x, up, 0.5, residual=residual)
    torch.testing.assert_close(
        got.double(), 0.5 * (exact_y + residual.double()), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("up", [False, True])
def test_the_filter_overlaps_the_kernel_before(up):
    x = image(2, 8, 4, 6, dtype=torch.bfloat16)
    with emulated.hopper():
        emulated.launches()
        resample(x, up, taps=4, overlaps=True)
        assert emulated.launches() == [("resample_filter", True)]


def check_packs_and_single_channels(up: bool, library: object) -> None:
    for c in (16, 13):
        check(image(2, 16, 4, 6, dtype=torch.bfloat16)[:, :c], up, 0.5, library)


STEM = "resample"
# enlarges or not, a line, what a mistake would make of it, and what comes of that
PLANTED = (
    (True, "  if (index >= p.items) return;\n", "", "out of bounds"),
    (True, "item.row_of_image * p.h_stride", "item.row * p.h_stride", "out of bounds"),
    (True, "store<T, V>(y + line + p.channels, out);", "", "not close"),
    (True, "(item.row * line + item.column", "(item.row * p.channels + item.column",
     "what another thread of the launch wrote|not close"),
    (True, "value[i] *= p.gain", "value[i] *= 1", "not close"),
    (False, "  if (index >= p.items) return;\n", "", "out of bounds"),
    (False, "load<T, V>(x + p.h_stride + p.w_stride)", "load<T, V>(x + 2 * p.w_stride)",
     "not close|out of bounds"),
    (False, "int64_t(item.row) * p.width", "int64_t(item.row_of_image) * p.width",
     "what another thread of the launch wrote"),
    (False, "args.gain / 4", "args.gain", "not close"),
    (False, "args.channels % pack == 0 && ", "", "not aligned"),
)  # fmt: skip


def check_filter_and_an_odd_residual(up: bool, library: object) -> None:
    """The residual of the second does not begin at a multiple of 16 bytes."""
    x = image(2, 16, 4, 6, dtype=torch.bfloat16)
    check_filter(x, up, library=library)
    odd = image(2, 24, 2, 3, dtype=torch.bfloat16)[:, 1:17]
    resample(x, False, taps=4, residual=odd, library=library)


PLANTED_IN_FILTER = (
    (True, "(shifted & 1) + 2 * r", "2 * r", "not close"),
    (True, "(shifted >> 1) - r", "(shifted >> 1) + r", "not close"),
    (False, "2 * out + r - p.shift", "2 * out + r", "not close"),
    (False, "at >= 0 && at < side", "at < side", "out of bounds"),
    (True, "at >= 0 && at < side", "at >= 0", "out of bounds"),
    (False, "k == 1 || k == 2", "k == 1", "not close"),
    (False, "p.residual_gain * value[v]", "value[v]", "not close"),
    (False, "  if (index >= p.items) return;\n  const auto item = static_cast<int32_t>(index);\n",
     "  const auto item = static_cast<int32_t>(index);\n", "out of bounds"),
    (False, "aligned(args.residual) && ", "", "not aligned"),
)  # fmt: skip


@pytest.mark.parametrize(("up", "line", "mistake", "finding"), PLANTED_IN_FILTER)
def test_a_fault_planted_in_the_filter_is_found(tmp_path, up, line, mistake, finding):
    library = faulty_library(tmp_path, f"{STEM}.cu", line, mistake, STEM)
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_filter_and_an_odd_residual(up, library)


@pytest.mark.parametrize(("up", "line", "mistake", "finding"), PLANTED)
def test_a_planted_fault_is_found(tmp_path, up, line, mistake, finding):
    library = faulty_library(tmp_path, f"{STEM}.cu", line, mistake, STEM)
    with pytest.raises((RuntimeError, AssertionError), match=finding):
        check_packs_and_single_channels(up, library)


@pytest.mark.parametrize("up", [False, True])
def test_a_kernel_that_does_not_wait_is_found(tmp_path, up):
    line = "  ptx::wait_for_kernel_before();\n  ptx::allow_kernel_after();\n"
    library = faulty_library(tmp_path, f"{STEM}.cu", line, "", STEM)
    library.set_hopper(1)
    with pytest.raises(RuntimeError, match="has not waited for the kernel before"):
        resample(image(2, 8, 4, 6, dtype=torch.bfloat16), up, overlaps=True, library=library)

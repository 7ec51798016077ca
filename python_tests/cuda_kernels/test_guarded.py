"""What lies beside an operand of an emulated call is out of bounds, whatever the allocator does."""

from __future__ import annotations

import pytest
import torch
from cuda_kernels import emulated
from cuda_kernels.conv2d_cases import Case, check_rounded, forward_of
from ops.op_checks import seeded


def test_a_write_past_the_output_is_no_write_to_what_the_allocator_put_there(tmp_path):
    line = "if (m >= p.m || n >= p.n) continue;"
    library = emulated.faulty_library(
        tmp_path, "conv2d_epilogue.cuh", line, "if (n >= p.n) continue;", "conv2d_bf16"
    )
    case = Case(c=43, sliced=True, c_out=24, tile=1, splits=1)
    args, reads, y, _ = forward_of(case, seeded(1))
    beside = torch.zeros(2, y.numel() + (1 << 14), dtype=y.dtype)
    args.y, after = beside.data_ptr(), beside.flatten()[y.numel() :]
    y = beside.flatten()[: y.numel()]
    with pytest.raises(RuntimeError, match="global memory: out of bounds"):
        emulated.call("conv2d_forward", args, [*reads, after], [y], library)
    assert not after.any()


def test_tensors_of_one_storage_keep_their_places():
    case = Case(c=16, c2=8)
    args, (x, x2, weight), y, exact = forward_of(case, seeded(1))
    pixels = torch.empty(2, 5, 6, 24, dtype=x.dtype)  # both sources side by side in each pixel
    joined = pixels.permute(0, 3, 1, 2)
    joined[:, :16], joined[:, 16:] = x, x2
    args.x = emulated.image(joined[:, :16])
    args.x2 = emulated.image(joined[:, 16:], case.offset())
    emulated.call("conv2d_forward", args, [joined[:, :16], joined[:, 16:], weight], [y])
    check_rounded(y, exact)

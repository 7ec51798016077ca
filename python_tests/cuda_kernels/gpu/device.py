"""The device of these tests; DDSM_TEST_DEVICE=cpu tries the tests themselves on the CPU kernels."""

from __future__ import annotations

import os

import pytest
import torch

from ddsm_ext import _library

DEVICE = os.environ.get("DDSM_TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
GPU_THERE = torch.cuda.is_available() and not _library.cuda_missing_reason
needs_device = pytest.mark.skipif(
    ON_GPU and not GPU_THERE,
    reason=_library.cuda_missing_reason or "torch finds no GPU",
)
needs_gpu = pytest.mark.skipif(
    not (ON_GPU and GPU_THERE),
    reason=_library.cuda_missing_reason or "torch finds no GPU, or the tests run on the CPU",
)

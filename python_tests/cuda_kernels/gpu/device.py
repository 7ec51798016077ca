"""The device of these tests; DDSM_TEST_DEVICE=cpu tries the tests themselves on the CPU kernels."""

from __future__ import annotations

import os

import pytest
import torch

from ddsm_ext import _library

DEVICE = os.environ.get("DDSM_TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
needs_device = pytest.mark.skipif(
    ON_GPU and not (torch.cuda.is_available() and _library.has_cuda()),
    reason=_library.cuda_missing_reason or "torch finds no GPU",
)
needs_gpu = pytest.mark.skipif(
    not (ON_GPU and torch.cuda.is_available() and _library.has_cuda()),
    reason=_library.cuda_missing_reason or "torch finds no GPU, or the tests run on the CPU",
)

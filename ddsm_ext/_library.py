"""Loads the compiled libraries once and explains a missing, stale or mismatched build.

Importing this module loads torch and the CPU library, and the CUDA library where both this build
and the running torch have CUDA. Nothing here touches a GPU.
"""

from __future__ import annotations

import platform
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

import ddsm_ext

_FOLDER = Path(__file__).resolve().parent
_REINSTALL = "run `pip install .` again in the source folder"


def _running() -> str:
    return (
        f"running: ddsm_ext {ddsm_ext.__version__}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {platform.system()} {platform.machine()}"
    )


def _check_torch() -> None:
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < (2, 10):
        raise ImportError(
            f"ddsm_ext: torch is {torch.__version__}, the compiled library needs torch >= 2.10; "
            "run `pip install 'torch>=2.10'`"
        )


def _load_native() -> ModuleType:
    library = _FOLDER / "libddsm_cpu.so"
    if not library.exists():
        raise ImportError(
            f"ddsm_ext: the compiled library is missing, built: nothing in {_FOLDER}, "
            f"{_running()}; {_REINSTALL}"
        )
    try:
        torch.ops.load_library(library)
        from ddsm_ext import _native  # type: ignore[attr-defined]
    except (ImportError, OSError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ImportError(
            f"ddsm_ext: the compiled library does not load ({reason}), {_running()}; {_REINSTALL}"
        ) from error
    built = _native.build_info()["version"]
    if built != ddsm_ext.__version__:
        raise ImportError(
            f"ddsm_ext: the compiled library is stale, built: ddsm_ext {built}, {_running()}; "
            f"{_REINSTALL}"
        )
    return _native


def _load_cuda() -> str:
    """Load the CUDA library; return "" where it is loaded, else the reason why not."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    library = _FOLDER / "libddsm_cuda.so"
    if not library.exists():
        return "ddsm_ext was built without CUDA (no nvcc, or DDSM_CUDA=OFF)"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        reason = f"the CUDA library does not load ({cause})"
        warnings.warn(f"ddsm_ext: {reason}, {_running()}; {_REINSTALL}", stacklevel=2)
        return reason
    return ""


_check_torch()
native: ModuleType = _load_native()
cuda_missing_reason: str = _load_cuda()


def has_cuda() -> bool:
    """True if the CUDA kernels are loaded (a GPU may still be absent)."""
    return cuda_missing_reason == ""


@cache
def has_kernel(op: str, device_type: str) -> bool:
    """True if the compiled libraries hold a kernel of `ddsm_ext::<op>` for "cpu" or "cuda"."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if key is None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"ddsm_ext::{op}", key)

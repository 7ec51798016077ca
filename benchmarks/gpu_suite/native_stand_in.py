"""Stands in for the compiled `ddsm_ext._native` in libraries built beforehand.

That module is made for one version of Python; the libraries of kernels are for all of them. What
CUDA needs of it is here; step plans, which the CPU alone uses, are not.
"""

from __future__ import annotations

BUILT: dict[str, str] = {}  # filled in where it is put


def build_info() -> dict[str, str]:
    """Return what the libraries were built from and for."""
    return dict(BUILT)


def available_isas() -> list[str]:
    """Return the instruction sets that can be asked for: none can."""
    return []


def active_isa() -> str:
    """Return a name for the instruction set that the CPU library takes by itself."""
    return "automatic"


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"ddsm_ext._native: {name} is not in libraries built beforehand, which run on a GPU; need "
        "`pip install .`"
    )

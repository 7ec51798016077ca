"""Runs every kernel on small shapes, forward and backward: what compute-sanitizer watches.

compute-sanitizer --tool memcheck --kernel-name kns=ddsm python small_calls.py
"""

from __future__ import annotations

import sys
import warnings
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench.small_network import ADM, NCSN, SMALL
from cuda_kernels.gpu.activated import activated_rows
from cuda_kernels.gpu.device import DEVICE, ON_GPU
from cuda_kernels.gpu.layer_calls import OURS, leaves_of, results
from cuda_kernels.gpu.modulated import modulated_rows

from ddsm_ext.bench.steps import channels_last, random_inputs, random_network
from ddsm_ext.graph.shapes import AttentionShape, ConvShape, LinearShape, NormShape, Shape
from ddsm_ext.runtime.cuda import run_step

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Channels that divide by all a kernel likes, and that do not; each window; one source and two.
SHAPES: tuple[Shape, ...] = (
    ConvShape(64, 0, 48, 128, 96, 3, 1, False, 8),
    ConvShape(19, 9, 21, 60, 40, 3, 1, False, 5),
    ConvShape(32, 32, 64, 128, 96, 3, 1, False, 8),
    ConvShape(32, 0, 32, 64, 64, 3, 2, False, 4),
    ConvShape(32, 0, 32, 64, 64, 3, 1, True, 8),
    ConvShape(128, 0, 40, 128, 64, 1, 1, False, 8),
    ConvShape(16, 0, 128, 16, 128, 3, 1, False, 32),
    ConvShape(3, 0, 32, 3, 64, 3, 1, False, 8),
    LinearShape(64, 48, 128, 96),
    LinearShape(19, 21, 60, 40),
    NormShape(64, 0, 128, 32, 8, True),
    NormShape(21, 9, 64, 5, 5, True),
    AttentionShape(1, 64, 64),
    AttentionShape(2, 20, 19),
)


def main() -> None:
    """Run them all; the numbers are tested elsewhere, that they are finite is tested here."""
    warnings.simplefilter("ignore")  # of ops that run as plain torch for a dtype
    torch.manual_seed(0)
    calls = 0
    for shape in SHAPES:
        for dtype in DTYPES:
            for layout in (torch.contiguous_format, torch.channels_last):
                values = results(OURS, shape, leaves_of(shape, 2, dtype, layout))
                if not all(torch.isfinite(value).all() for value in values):
                    raise SystemExit(f"small_calls: {shape} {dtype}: a result is not finite")
                calls += 1
    if ON_GPU:
        run_steps()
        run_rows()
    print(f"small_calls: {calls} calls, device {DEVICE}")


@torch.no_grad()
def run_steps() -> None:
    """Steps of small networks, by the fused kernels that have no other caller."""
    for config, dtype in product((SMALL, ADM, NCSN), DTYPES):
        net = random_network(config).to(DEVICE, dtype)
        inputs = channels_last(random_inputs(config, 2, dtype, device=DEVICE))
        for width in (1.0, 0.5):
            if not torch.isfinite(run_step(net, width, inputs)).all():
                raise SystemExit(f"small_calls: a step of {dtype} at width {width:g} is not finite")


def run_rows() -> None:
    """Norms with scale and shift, halved norms, resampling and labels; activations and blocks."""
    faults = [row["fault"] for row in (*modulated_rows(), *activated_rows()) if row["fault"]]
    if faults:
        raise SystemExit(f"small_calls: {faults[0]}")


if __name__ == "__main__":
    main()

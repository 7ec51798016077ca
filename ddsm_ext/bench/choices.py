"""Which algorithm each convolution of a network takes, and the estimates that decide it."""

from __future__ import annotations

from collections.abc import Sequence

from ddsm_ext import _library
from ddsm_ext.bench.shapes import REFERENCE_CIFAR10, WIDTHS, config_at
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.shapes import ConvShape, op_shapes
from ddsm_ext.ops import _packed


def explain_choices(
    widths: Sequence[float] = WIDTHS,
    batch: int = 8,
    dtype: str = "float32",
    config: NetworkConfig = REFERENCE_CIFAR10,
) -> str:
    """Return a table of every convolution shape with its estimated us per algorithm.

    Args:
        widths: widths of the network.
        batch: images a step.
        dtype: "float32" or "bfloat16", of images and weights.
        config: the network whose shapes are taken; see `config_at`.
    """
    native = _library.native
    lines = [
        f"{native.active_isa()}, batch {batch}, {dtype}, one core; chosen algorithm marked *",
        f"{'width':>8} {'convolution':<28} {'calls':>5}"
        + "".join(f"{name + ' us':>19}" for name in _packed.ALGORITHMS),
    ]
    for width in widths:
        for shape, calls in op_shapes(config_at(config, width), width, "conv2d").items():
            assert isinstance(shape, ConvShape)
            problem = _packed.ConvProblem(
                batch,
                shape.size,
                shape.size,
                shape.c_in + shape.c_in2,
                shape.c_out,
                shape.kernel,
                shape.stride,
                2 if shape.upsample else 1,
                dtype == "bfloat16",
            )
            chosen = _packed.choose_algorithm(native.active_isa(), problem)
            costs_ns = [
                native.conv2d_cost_ns(native.Conv2dProblem(**problem._asdict()), number)
                for number in range(len(_packed.ALGORITHMS))
            ]
            cells = "".join(
                f"{cost / 1000:>18.0f}{'*' if number == chosen else ' '}"
                for number, cost in enumerate(costs_ns)
            )
            lines.append(f"{width:>8g} {shape!s:<28} {calls:>5}{cells}")
    return "\n".join(lines)

"""A step's time at every number of norm groups, and where a narrower width does not pay.

Two targets: the time never rises as the width falls, and it lies on the line between the widths
whose base channels fill whole blocks of 16, which goes through 0 below the first.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any

import torch
from torch import Tensor

from ddsm_ext._fixed_weights import fixed_weights
from ddsm_ext.bench.candidates import check_agreement
from ddsm_ext.bench.conditions import CPU, Setting, check_batch, roof_ms
from ddsm_ext.bench.steps import (
    SlicingNetwork,
    channels_last,
    random_network,
    sampling_inputs,
)
from ddsm_ext.bench.timing import Timing, interleaved, ratio, time_columns
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.count import macs as macs_of
from ddsm_ext.graph.shapes import ConvShape, op_shapes
from ddsm_ext.models.unet import UShapeConfig
from ddsm_ext.settings import Refusal

BLOCK = 16  # channels: a vector of AVX-512, two of AVX2
# What a step's time may be above the fastest of a wider step, and above the line.
TARGETS = {"rise": 0.03, "over_line": 0.10}


def group_widths(config: NetworkConfig) -> list[float]:
    """Return the widths that keep all groups of every norm, all but one, ... and one."""
    return [kept / config.groups for kept in range(config.groups, 0, -1)]


def products_left(config: NetworkConfig, width: float) -> int:
    """Return the multiplications an image that are left of the MACs after Winograd.

    A 3x3 convolution at stride 1 takes the fewest of 9 a pixel, 36 a tile of 4x4 and 16 a tile of
    2x2; where it enlarges its input, 4 a pixel: each of the four phases sees 2x2 pixels.

    Args:
        config: the network.
        width: 0 < width <= 1, usable by `config`.
    """
    saved = 0
    for shape, calls in op_shapes(config, width, "conv2d").items():
        assert isinstance(shape, ConvShape)
        if shape.kernel == 3 and shape.stride == 1:
            size, pairs = shape.size, (shape.c_in + shape.c_in2) * shape.c_out
            tiled = min(36 * ceil(size / 4) ** 2, 16 * ceil(size / 2) ** 2)
            left = 4 * size**2 if shape.upsample else min(9 * size**2, tiled)
            saved += calls * (shape.macs - pairs * left)
    return macs_of(config, width) - saved


def rise(times: Mapping[int, Timing], channels: int) -> float | None:
    """Return how far a step's time lies above that of the fastest wider one; None at the widest.

    Args:
        times: base channels -> time of a step, all in the same rounds.
        channels: of the step.
    """
    wider = [timing for other, timing in times.items() if other > channels]
    return max((ratio(times[channels], timing) - 1 for timing in wider), default=None)


def over_line(times: Mapping[int, Timing], channels: int) -> float | None:
    """Return how far a step's time lies above the line between the neighbouring multiples of BLOCK.

    None at a multiple and where a neighbour was not timed; the time of 0 channels is 0.

    Args:
        times: base channels -> time of a step, all in the same rounds.
        channels: of the step.
    """
    share = channels % BLOCK / BLOCK
    low = channels - channels % BLOCK
    known = {0: Timing((0.0,) * len(times[channels].rounds_ms)), **times}
    if not share or low not in known or low + BLOCK not in known:
        return None
    pairs = zip(known[low].rounds_ms, known[low + BLOCK].rounds_ms, strict=True)
    line = Timing(tuple(below + share * (above - below) for below, above in pairs))
    return ratio(times[channels], line) - 1


def run_width_curve(
    name: str,
    config: UShapeConfig,
    batch: int = 8,
    rounds: int = 31,
    *,
    setting: Setting = CPU,
    limit_s: float = math.inf,
) -> dict[str, Any]:
    """Time the compiled step at all of `group_widths`, interleaved, after a check of each.

    Args:
        name: of the network.
        config: the network, filled with random weights.
        batch: images a step.
        rounds: measured rounds at most.
        setting: threads and arithmetic, on the CPU.
        limit_s: no round is begun later; see `interleaved`.

    Returns:
        JSON-ready: "rows" (one a width: channels of the first level, macs and products an image,
        ours_ms, `_min_ms`, `_q1_ms` and `_q3_ms` an image, rise, over_line, breaks (the targets
        that it breaks), roof_ms an image of the products, roof_share, error), "worst" (target ->
        its largest "value" and the "width" there, where any is known), "roof" and "conditions".

    Raises:
        ValueError: an argument that cannot be used, a step that would run uncompiled, or one that
            computes something else than slicing.
    """
    check_batch(batch)
    end = time.monotonic() + limit_s
    # As in sampling: one look at the weights for all steps.
    with setting.active(), fixed_weights(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are not packed yet
        roof = setting.measure_roof()
        calls, errors = _checked_steps(config, group_widths(config), batch, setting)
        left_s = end - time.monotonic()
        times = interleaved(calls, rounds=rounds, limit_s=left_s, **setting.timing)
    channels = {width: config.slicing.active(config.ch, width) for width in times}
    by_channels = {channels[width]: timing for width, timing in times.items()}
    rows = [
        {
            "width": width,
            "channels": channels[width],
            **_counts_and_times(config, width, timing, batch, roof),
            **_against_targets(by_channels, channels[width]),
            "error": errors[width],
        }
        for width, timing in times.items()
    ]
    about = {"name": name, "network": config.to_dict(), **setting.conditions(batch)}
    about["rounds"] = len(times[1.0].rounds_ms)
    return {"rows": rows, "worst": _worst(rows), "roof": roof, "conditions": about}


def _checked_steps(
    config: NetworkConfig, widths: Sequence[float], batch: int, setting: Setting
) -> tuple[dict[float, Callable[[], Tensor]], dict[float, float]]:
    """Return width -> step and width -> its error against slicing at the first and last image."""
    net = random_network(config).to(setting.place, setting.kind)
    runner, slicing = setting.device.runner(net), SlicingNetwork(net)
    inputs = sampling_inputs(config, batch, setting.kind, device=setting.place)
    reason = runner.reason_against(setting.kind, inputs["x"].device)
    if reason is not None:
        raise Refusal(f"run_width_curve: steps would run uncompiled, {reason}")
    ends = [0, batch - 1]
    some = {name: tensor[ends] for name, tensor in inputs.items()}
    inputs = channels_last(inputs)
    calls, errors = {}, {}
    for width in widths:
        calls[width] = partial(runner, **inputs, width=width)
        outputs = {"slicing": slicing(**some, width=width), "ours": calls[width]()[ends]}
        errors[width] = check_agreement(f"width {width:g}", outputs, setting.tolerance)
    return calls, errors


def _counts_and_times(
    config: NetworkConfig, width: float, timing: Timing, batch: int, roof: dict[str, Any]
) -> dict[str, Any]:
    left = products_left(config, width)
    limit_ms, (first, third) = roof_ms(left, roof), timing.quartiles_ms
    columns = time_columns({"ours": timing}, batch)
    return {
        "macs": macs_of(config, width),
        "products": left,
        **columns,
        "ours_q1_ms": first / batch,
        "ours_q3_ms": third / batch,
        "roof_ms": limit_ms,
        "roof_share": limit_ms / columns["ours_ms"],
    }


def _against_targets(times: Mapping[int, Timing], channels: int) -> dict[str, Any]:
    found = {"rise": rise(times, channels), "over_line": over_line(times, channels)}
    breaks = [of for of, value in found.items() if value is not None and value > TARGETS[of]]
    return {**found, "breaks": breaks}


def _worst(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    worst = {}
    for of in TARGETS:
        known = [row for row in rows if row[of] is not None]
        if known:
            row = max(known, key=lambda row: row[of])
            worst[of] = {"value": row[of], "width": row["width"]}
    return worst

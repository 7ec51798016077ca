"""The whole CIFAR-10 U-Net step per width, and what the published strategy saves in time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.bench.candidates import CANDIDATES, OPS, check_agreement, dtype_of
from ddsm_ext.bench.conditions import check_batch, conditions, using_threads
from ddsm_ext.bench.shapes import REFERENCE_CIFAR10, WIDTHS
from ddsm_ext.bench.slicing_unet import SlicingUNet
from ddsm_ext.bench.timing import Timing, clock_of, interleaved, ratio
from ddsm_ext.models.config import UNetConfig
from ddsm_ext.models.macs import unet_macs
from ddsm_ext.models.unet import SlimmableUNet
from ddsm_ext.ops._dispatch import runs_native

# Steps that the published CIFAR-10 strategy runs at each width, of 1000 (arXiv 2310.03337).
PUBLISHED_CIFAR10_STEPS = {1.0: 274, 0.75: 181, 0.5: 534, 0.25: 11}


def run_unet_step(
    widths: Sequence[float] = WIDTHS,
    batch: int = 8,
    dtype: str = "float32",
    quick: bool = False,
    *,
    threads: int = 1,
    config: UNetConfig = REFERENCE_CIFAR10,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time one step of the U-Net at each width, all candidates and widths interleaved in one run.

    Candidates: PyTorch slicing as in the reference code; the exported dense network, contiguous
    and channels_last; ours. Each output is compared with slicing's before anything is timed.

    Args:
        widths: widths to time.
        batch: images a step.
        dtype: "float32" or "bfloat16".
        quick: three rounds instead of nine.
        threads: torch threads; 1 is timed in the thread's CPU time, more in wall time.
        config: the network, filled with random weights.
        progress: called with (rounds done, rounds in all); None for silence.

    Returns:
        JSON-ready: "rows" (one a width: macs and `<candidate>_ms` an image, ratio_slicing,
        ratio_dense, error, native), "strategy" (the published CIFAR-10 strategy: steps,
        macs_saved, time_saved and realised_saving by candidate; None unless all four widths
        were timed) and "conditions".

    Raises:
        ValueError: an argument that cannot be used, or a candidate that computes something else.
    """
    kind = dtype_of(dtype)
    check_batch(batch)
    widths = [config.check_width(width) for width in widths]
    if not widths:
        raise ValueError("run_unet_step: widths is empty; need at least one width")
    net = random_network(config).to(kind)
    clock, clock_name = clock_of(threads)
    with using_threads(threads), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the column `native` tells what the warning would
        x, t = _inputs(config, batch, kind)
        native = all(runs_native(f"sliced_{op}", x, needs_grad=False) for op in OPS)
        calls = {width: step_calls(net, width, x, t) for width in widths}
        errors = {
            width: check_agreement(
                f"U-Net at width {width:g}", {n: call() for n, call in parts.items()}, kind
            )
            for width, parts in calls.items()
        }
        times = interleaved(
            {(width, name): call for width, parts in calls.items() for name, call in parts.items()},
            rounds=3 if quick else 9,
            clock=clock,
            progress=progress,
        )
    rows = [
        _row(config, width, batch, {name: times[width, name] for name in CANDIDATES})
        | {"error": errors[width], "native": native}
        for width in widths
    ]
    return {
        "rows": rows,
        "strategy": _published_strategy(rows),
        "conditions": {
            "network": config.to_dict(),
            **conditions(batch=batch, dtype=dtype, threads=threads, clock=clock_name),
        },
    }


def random_network(config: UNetConfig, seed: int = 0) -> SlimmableUNet:
    """Return a network whose every layer matters to the output.

    The usual initial weights nearly silence the last layer of every branch, so that a wrong branch
    would pass a comparison.
    """
    generator = torch.Generator().manual_seed(seed)
    net = SlimmableUNet(config, generator=generator)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, fan_in**-0.5, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return net.eval()


def _inputs(config: UNetConfig, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    x = torch.randn(shape, generator=generator).to(dtype)  # [N, C, H, W]
    return x, torch.randint(0, config.time_table_rows, (batch,), generator=generator)


def step_calls(
    net: SlimmableUNet, width: float, x: Tensor, t: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """Return candidate -> one step at `width` on images x [N, C, H, W] at timesteps t [N]."""
    slicing = SlicingUNet(net)
    dense = net.export_subnet(width)
    dense_cl = net.export_subnet(width)
    for parameter in dense_cl.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    x_cl = x.contiguous(memory_format=torch.channels_last)
    return {
        "slicing": lambda: slicing(x, t, width),
        "dense": lambda: dense(x, t),
        "dense_cl": lambda: dense_cl(x_cl, t),
        "ours": lambda: net(x_cl, t, width),
    }


def _row(
    config: UNetConfig, width: float, batch: int, times: Mapping[str, Timing]
) -> dict[str, Any]:
    dense = min((times["dense"], times["dense_cl"]), key=lambda timing: timing.median_ms)
    return {
        "width": width,
        "macs": unet_macs(config, width),
        **{f"{name}_ms": timing.median_ms / batch for name, timing in times.items()},
        **{f"{name}_min_ms": timing.min_ms / batch for name, timing in times.items()},
        "ratio_slicing": ratio(times["slicing"], times["ours"]),
        "ratio_dense": ratio(dense, times["ours"]),
    }


def _published_strategy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    by_width = {row["width"]: row for row in rows}
    if not set(PUBLISHED_CIFAR10_STEPS) <= set(by_width):
        return None

    def saved(key: str) -> float:
        return share_saved(PUBLISHED_CIFAR10_STEPS, {w: row[key] for w, row in by_width.items()})

    macs_saved = saved("macs")
    time_saved = {name: saved(f"{name}_ms") for name in CANDIDATES}
    return {
        "name": "published CIFAR-10 strategy",
        "steps": {f"{width:g}": n for width, n in PUBLISHED_CIFAR10_STEPS.items()},
        "macs_saved": macs_saved,
        "time_saved": time_saved,
        "realised_saving": {name: value / macs_saved for name, value in time_saved.items()},
    }


def share_saved(steps: Mapping[float, int], costs: Mapping[float, float]) -> float:
    """1 - sum_w n_w cost_w / (n cost_1): the share of a full-width run that a strategy saves.

    Args:
        steps: width -> number of steps n_w.
        costs: width -> cost of a step, width 1 included.
    """
    total = sum(n * costs[width] for width, n in steps.items())
    return 1.0 - total / (sum(steps.values()) * costs[1.0])

"""The whole CIFAR-10 U-Net step per width, and what the published strategy saves in time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ddsm_ext._fixed_weights import fixed_weights
from ddsm_ext.bench.candidates import KERNELS, compare
from ddsm_ext.bench.conditions import (
    CPU,
    REFERENCE_CIFAR10,
    WIDTHS,
    Setting,
    check_batch,
    config_at,
    roof_ms,
)
from ddsm_ext.bench.steps import DEFAULT_CANDIDATES, STEP_CANDIDATES, Step, prepare_steps
from ddsm_ext.bench.timing import Timing, interleaved, time_columns
from ddsm_ext.graph.config import NetworkConfig
from ddsm_ext.graph.count import macs
from ddsm_ext.ops._call import runs_native
from ddsm_ext.settings import Refusal, check_choice

# Steps that the published CIFAR-10 strategy runs at each width, of 1000 (arXiv 2310.03337).
PUBLISHED_CIFAR10_STEPS = {1.0: 274, 0.75: 181, 0.5: 534, 0.25: 11}


def run_unet_step(
    widths: Sequence[float] = WIDTHS,
    batch: int = 8,
    rounds: int = 9,
    *,
    setting: Setting = CPU,
    candidates: Sequence[str] = DEFAULT_CANDIDATES,
    compile_limit_s: float = math.inf,
    keep_differing: bool = False,
    config: NetworkConfig = REFERENCE_CIFAR10,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time one step of the U-Net at each width, all candidates and widths interleaved in one run.

    Each output is compared with slicing's before anything is timed; compiling comes before, too.

    Args:
        widths: widths to time; `config_at` says what runs at those that `config` does not take.
        batch: images a step.
        rounds: measured rounds.
        setting: device, threads and arithmetic.
        candidates: some of STEP_CANDIDATES, "slicing" and "ours" among them.
        compile_limit_s: seconds for "compiled", which is left out where they are short.
        keep_differing: time a width whose candidates differ, too; its row says so.
        config: the network, filled with random weights.
        progress: called with (rounds done, rounds in all); None for silence.

    Returns:
        JSON-ready: "rows" (one a width: macs, norm, of each candidate `_ms` and `_min_ms` an image
        and `_peak_bytes` a step and `_setup_s`, ratio_<candidate> to ours; ours_panel_bytes,
        roof_ms an image, error of ours, native; differs, if candidates do), "strategy" (the
        published CIFAR-10 strategy: steps, macs_saved, time_saved and realised_saving by candidate;
        None unless all four widths were timed), "held_bytes" (what each candidate keeps for all
        widths; None on the CPU), "uncompiled" (why ours is the module, or None), "failed" (what was
        not compiled and what differs, and why), "left_out" (what there was no time to compile),
        "roof" and "conditions".

    Raises:
        ValueError: an argument that cannot be used, or a candidate that computes something else
            and is not kept.
    """
    check_batch(batch)
    _check_candidates(candidates)
    widths = _checked(widths, config)
    # As in sampling: one look at the weights for all steps.
    with setting.active(), fixed_weights(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the column `native` tells what the warning would
        roof = setting.measure_roof()
        steps = prepare_steps(config, widths, candidates, batch, setting, compile_limit_s)
        compared = {w: _compare(w, steps.at(w), setting, keep_differing) for w in widths}
        calls = {key: step.call for key, step in steps.ready.items()}
        peaks = setting.device.peak_bytes(calls)
        times = interleaved(calls, rounds=rounds, progress=progress, **setting.timing)
        native = _is_native(setting)
    rows = []
    for width in widths:
        row = _row(config_at(config, width), width, batch, steps.at(width), times, peaks, roof)
        rows.append({**row, "native": native, **compared[width]})
    differs = [row["differs"] for row in rows if "differs" in row]
    return {
        "rows": rows,
        "strategy": _published_strategy(rows, candidates),
        "held_bytes": steps.held_bytes(candidates) if setting.on_gpu else None,
        "uncompiled": steps.ready[widths[0], "ours"].uncompiled,
        "failed": [*steps.failed, *differs],
        "left_out": steps.left_out,
        "roof": roof,
        "conditions": {"network": config.to_dict(), **setting.conditions(batch)},
    }


def _is_native(setting: Setting) -> bool:
    x = torch.empty(0, dtype=setting.kind, device=setting.place)
    return all(runs_native(name, x, needs_grad=False) for name in KERNELS)


def _checked(widths: Sequence[float], config: NetworkConfig) -> list[float]:
    if not widths:
        raise Refusal("run_unet_step: widths is empty; need at least one width")
    return [config_at(config, width).check_width(width) for width in widths]


def _check_candidates(names: Sequence[str]) -> None:
    for name in names:
        check_choice("run_unet_step: candidate", name, STEP_CANDIDATES)
    if not {"slicing", "ours"} <= set(names):
        raise Refusal(
            f"run_unet_step: candidates are {', '.join(names)}; need slicing and ours among them, "
            "whose outputs and times the others are compared with"
        )


def _compare(
    width: float, steps: Mapping[str, Step], setting: Setting, keep_differing: bool
) -> dict[str, Any]:
    """Return the "error" of ours and, where candidates differ and are kept, "differs"."""
    # Clones: a graph's next replay writes its output again.
    outputs = {name: step.call().clone() for name, step in steps.items()}
    error, reason = compare(f"U-Net at width {width:g}", outputs, setting.tolerance)
    if reason is None:
        return {"error": error}
    if not keep_differing:
        raise Refusal(reason)
    return {"error": error, "differs": reason}


def _row(
    variant: NetworkConfig,
    width: float,
    batch: int,
    steps: Mapping[str, Step],
    times: Mapping[tuple[float, str], Timing],
    peaks: Mapping[tuple[float, str], int],
    roof: dict[str, Any],
) -> dict[str, Any]:
    count = macs(variant, width)
    row: dict[str, Any] = {
        "width": width,
        "norm": variant.slicing.norm,
        "macs": count,
        **time_columns({name: times[width, name] for name in steps}, batch),
        "ours_panel_bytes": steps["ours"].packed_bytes,
        "roof_ms": roof_ms(count, roof),
    }
    for name, step in steps.items():
        row[f"{name}_setup_s"] = step.setup_s
        row[f"{name}_peak_bytes"] = peaks[width, name] + step.arena_bytes
    return row


def _published_strategy(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, Any] | None:
    by_width = {row["width"]: row for row in rows}
    if not set(PUBLISHED_CIFAR10_STEPS) <= set(by_width):
        return None

    def saved(key: str) -> float:
        return share_saved(PUBLISHED_CIFAR10_STEPS, {w: row[key] for w, row in by_width.items()})

    macs_saved = saved("macs")
    timed = [name for name in names if all(f"{name}_ms" in row for row in rows)]
    time_saved = {name: saved(f"{name}_ms") for name in timed}
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

"""Whole steps beside float64: eager, captured, replayed, and with other weights in between."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.bench.candidates import relative_error
from ddsm_ext.models.unet import SlimmableUNet
from gpu_suite import work

TOLERANCE = 4e-2  # of bfloat16 through all layers; 8e-3 was seen on the CPU


@torch.no_grad()
def exact_step(net: SlimmableUNet, width: float, x: Tensor, t: Tensor) -> Tensor:
    """The step in float64 by plain layers; of a large batch the first and last images."""
    dense = net.export_subnet(width).double()
    if len(x) <= 4:
        return dense(x.double(), t)
    ends = torch.tensor([0, 1, len(x) - 2, len(x) - 1], device=x.device)
    return dense(x[ends].double(), t[ends])


def _same_images(y: Tensor) -> Tensor:
    return y if len(y) <= 4 else y[[0, 1, len(y) - 2, len(y) - 1]]


@torch.no_grad()
def check(net: SlimmableUNet, width: float, batch: int) -> dict[str, Any]:
    """Return the errors of one width and batch, and whether repeats gave the same bits."""
    x, t = work.inputs(batch)
    row: dict[str, Any] = {"width": width, "batch": batch}
    eager = work.step_of(net, width, x, t)
    first = eager().clone()
    exact = exact_step(net, width, x, t)
    row["eager"] = relative_error(_same_images(first), exact)
    row["eager_repeats"] = bool(torch.equal(eager(), first))
    runner = net.step_runner()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        replayed = runner(x, t, width).clone()
    said = [str(warning.message) for warning in caught]
    row["uncompiled"] = [text for text in said if "uncompiled" in text] if work.ON_GPU else []
    row["captured"] = relative_error(_same_images(replayed), exact)
    row["replays_repeat"] = bool(torch.equal(runner(x, t, width), replayed))
    for parameter in net.parameters():  # as an optimizer does
        parameter.mul_(1.02)
    changed = runner(x, t, width)
    row["changed"] = relative_error(_same_images(changed), exact_step(net, width, x, t))
    for parameter in net.parameters():
        parameter.mul_(1 / 1.02)
    return row


def faults(row: dict[str, Any]) -> list[str]:
    """Return what is wrong in a row."""
    what = f"width {row['width']:g}, batch {row['batch']}"
    found = [
        f"{what}: {name} differs by {row[name]:.2g}, allowed {TOLERANCE:g}"
        for name in ("eager", "captured", "changed")
        if not row[name] <= TOLERANCE
    ]
    for name in ("eager_repeats", "replays_repeat"):
        if not row[name]:
            found.append(f"{what}: {name.replace('_', ' ')}: no")
    return found + [f"{what}: {text}" for text in row["uncompiled"]]


def main() -> int:
    """Check all widths at two batches; 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="gpu_suite.whole_step")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    net = work.network()
    rows, wrong = [], []
    for batch in (2, 128) if work.ON_GPU else (2,):
        for width in work.WIDTHS:
            row = check(net, width, batch)
            rows.append(row)
            wrong += faults(row)
    print("\n".join(wrong))
    worst = max(max(row["eager"], row["captured"], row["changed"]) for row in rows)
    work.report(arguments.json, {"rows": rows, "faults": wrong, "sm90a": work.sm90a()},
                {"largest_error": float(f"{worst:.3g}"), "faults": wrong[:4]})  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

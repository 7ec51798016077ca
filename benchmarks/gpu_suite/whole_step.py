"""Whole steps beside float64: eager, captured, replayed, and with other weights in between."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddsm_ext.bench.candidates import relative_error
from ddsm_ext.models.network import SlimmableNetwork
from ddsm_ext.runtime.runner import StepRunner
from gpu_suite import work

StepOf = Callable[[SlimmableNetwork, float, Mapping[str, Tensor]], Callable[[], Tensor]]
TOLERANCE = 4e-2  # of bfloat16 through all layers; 8e-3 was seen on the CPU


@torch.no_grad()
def exact_step(net: SlimmableNetwork, width: float, inputs: Mapping[str, Tensor]) -> Tensor:
    """The step in float64 by plain layers; of a large batch the first and last images."""
    few = {name: _ends(tensor) for name, tensor in inputs.items()}
    return net.export_subnet(width).double()(**{**few, "x": few["x"].double()})


def _ends(y: Tensor) -> Tensor:
    return y if len(y) <= 4 else y[[0, 1, len(y) - 2, len(y) - 1]]


@torch.no_grad()
def check(net: SlimmableNetwork, width: float, batch: int, step_of: StepOf) -> dict[str, Any]:
    """Return the errors of one width and batch, and whether repeats gave the same bits."""
    inputs = work.inputs_of(net, batch)
    row: dict[str, Any] = {"width": width, "batch": batch}
    eager = step_of(net, width, inputs)
    first = eager().clone()
    exact = exact_step(net, width, inputs)
    row["eager"] = relative_error(_ends(first), exact)
    row["eager_repeats"] = bool(torch.equal(eager(), first))
    runner = StepRunner(net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        replayed = runner(**inputs, width=width).clone()
    said = [str(warning.message) for warning in caught]
    row["uncompiled"] = [text for text in said if "uncompiled" in text] if work.ON_GPU else []
    row["captured"] = relative_error(_ends(replayed), exact)
    row["replays_repeat"] = bool(torch.equal(runner(**inputs, width=width), replayed))
    for parameter in net.parameters():  # as an optimizer does
        parameter.mul_(1.02)
    changed = runner(**inputs, width=width)
    row["changed"] = relative_error(_ends(changed), exact_step(net, width, inputs))
    for parameter in net.parameters():
        parameter.mul_(1 / 1.02)
    return row


def faults(row: dict[str, Any]) -> list[str]:
    """Return what is wrong in a row."""
    what = f"{row['network']}, width {row['width']:g}, batch {row['batch']}"
    found = [
        f"{what}: {name} differs by {row[name]:.2g}, allowed {TOLERANCE:g}"
        for name in ("eager", "captured", "changed")
        if not row[name] <= TOLERANCE
    ]
    for name in ("eager_repeats", "replays_repeat"):
        if not row[name]:
            found.append(f"{what}: {name.replace('_', ' ')}: no")
    return found + [f"{what}: {text}" for text in row["uncompiled"]]


def main(words: Sequence[str], *, step_of: StepOf = work.step_of) -> int:
    """Check all widths of three networks at two batches; 1 if something is wrong.

    Args:
        words: of the command line.
        step_of: returns the eager step of a network at a width on inputs.
    """
    parser = argparse.ArgumentParser(prog="gpu_suite.whole_step")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--widths", type=float, nargs="+", default=work.WIDTHS)
    arguments = parser.parse_args(words)
    rows, wrong = [], []
    for name, config in work.NETWORKS.items():
        net = work.network(config)
        for batch in (2, 128) if work.ON_GPU else (2,):
            for width in arguments.widths:
                row = {"network": name, **check(net, width, batch, step_of)}
                rows.append(row)
                wrong += faults(row)
    print("\n".join(wrong))
    worst = max(max(row["eager"], row["captured"], row["changed"]) for row in rows)
    work.report(arguments.json, {"rows": rows, "faults": wrong, "sm90a": work.sm90a()},
                {"largest_error": float(f"{worst:.3g}"), "faults": wrong[:4]})  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

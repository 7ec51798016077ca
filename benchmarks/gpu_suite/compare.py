"""Whole steps beside slicing, dense weights and torch.compile: a width after the other.

The result of each width is written at once, so that what ends the run costs one width.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from published.results import save_result

from ddsm_ext.bench.table import format_result
from ddsm_ext.bench.unet_step import run_unet_step
from ddsm_ext.machine import machine_info
from gpu_suite import work
from gpu_suite.warm import cache_counts, mark

CANDIDATES = ("slicing", "dense_cl", "compiled", "ours", "ours_module")
NOTE = (
    "compiled was autotuned beside other work on the GPU; its convolutions are cuDNN's, its "
    "products cuBLAS's, the rest Inductor's"
)


def candidates(batch: int, width: float) -> list[str]:
    """Return what is compared: "compiled" where its code lies in the cache.

    To compile it here would take the time of everything else.
    """
    done = mark(batch, width)
    warm = done is not None and done.exists()
    return [name for name in CANDIDATES if name != "compiled" or warm]


def join(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one result of those of single widths."""
    joined = dict(results[0])
    for key in ("rows", "failed", "left_out"):
        joined[key] = [entry for result in results for entry in result[key]]
    if joined["held_bytes"] is not None:
        joined["held_bytes"] = {
            name: sum(result["held_bytes"].get(name, 0) for result in results)
            for name in CANDIDATES
            if any(name in result["held_bytes"] for result in results)
        }
    joined["uncompiled"] = next((r["uncompiled"] for r in results if r["uncompiled"]), None)
    return joined


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the summary shows: milliseconds of a batch and ratios to ours, by width."""
    batch = result["conditions"]["batch"]
    found: dict[str, Any] = {}
    for row in result["rows"]:
        ms = {k[:-3]: round(row[k] * batch, 3) for k in row
              if k.endswith("_ms") and not k.endswith("_min_ms")}  # fmt: skip
        ratios = {k.removeprefix("ratio_"): round(row[k], 3) for k in row if k.startswith("ratio_")}
        found[f"{row['width']:g}"] = {"ms": ms, "ratio": ratios}
    return {"widths": found, "failed": [text[:200] for text in result["failed"]]}


def main(words: Sequence[str]) -> int:
    """Measure; 1 if a candidate failed or differs."""
    parser = argparse.ArgumentParser(prog="gpu_suite.compare")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--widths", type=float, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--json", type=Path, required=True, help="folder for the result")
    arguments = parser.parse_args(words)
    end_s = time.monotonic() + arguments.seconds
    results: list[dict[str, Any]] = []
    for width in arguments.widths:
        left_s = end_s - time.monotonic()
        if results and left_s < 8:
            print(f"width {width:g} is left out: {left_s:.0f} s are left")
            continue
        names = candidates(arguments.batch, width)
        result = run_unet_step(
            [width], arguments.batch, arguments.rounds, setting=work.setting(), candidates=names,
            compile_limit_s=left_s, keep_differing=True, config=work.CONFIG,
        )  # fmt: skip
        if "compiled" not in names:
            result["left_out"].append(f"compiled at width {width:g}: not in the cache")
        results.append(result)
        joined = join(results)
        joined["conditions"] |= {"note": NOTE, "sm90a": work.sm90a(), "cache": cache_counts()}
        save_result(arguments.json, "inference", machine_info(), joined)
        print(format_result("inference", joined), flush=True)
        work.report(None, {}, figures(joined))
    return 1 if any(result["failed"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

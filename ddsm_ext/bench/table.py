"""Benchmark results as text. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# key of a row -> heading; keys that no row has are left out
_COLUMNS = {
    "op": "op",
    "width": "width",
    "shape": "shape",
    "calls": "calls",
    "macs": "MMACs",
    "slicing_ms": "slicing ms",
    "dense_ms": "dense ms",
    "dense_cl_ms": "dense NHWC ms",
    "ours_ms": "ours ms",
    "ratio_slicing": "slicing/ours",
    "ratio_dense": "dense/ours",
    "error": "error",
    "native": "kernel",
}
_TEXT = ("op", "shape")


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of `run_ops` or of `run_unet_step()["rows"]` as an aligned table.

    `dense/ours` compares with the faster of the two dense forms; `kernel` says whether a compiled
    kernel ran ("native") or the plain-torch reference ("torch").
    """
    if not rows:
        return "(no rows)"
    keys = [key for key in _COLUMNS if any(key in row for row in rows)]
    cells = [[_COLUMNS[key] for key in keys]]
    cells += [[_cell(key, row.get(key)) for key in keys] for row in rows]
    sizes = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    lines = []
    for number, line in enumerate(cells):
        padded = [
            text.ljust(size) if key in _TEXT else text.rjust(size)
            for key, text, size in zip(keys, line, sizes, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
        if number == 0:
            lines.append("  ".join("-" * size for size in sizes))
    return "\n".join(lines)


def format_unet_step(result: Mapping[str, Any]) -> str:
    """Return the result of `run_unet_step` as text: the table, then the strategy's savings."""
    about = result["conditions"]
    lines = [
        f"U-Net step, ms an image: batch {about['batch']}, {about['dtype']}, {about['threads']} "
        f"threads ({about['clock']}), torch {about['torch']}, {about['cpu_capability']}",
        format_table(result["rows"]),
    ]
    strategy = result["strategy"]
    if strategy is not None:
        lines.append(f"{strategy['name']}: {strategy['macs_saved']:.1%} of the MACs saved")
        for name, realised in strategy["realised_saving"].items():
            lines.append(
                f"  {name:<9} time saved {strategy['time_saved'][name]:6.1%}, "
                f"realised saving {realised:.3f}"
            )
    return "\n".join(lines)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "macs":
        return f"{value / 1e6:.4g}"
    if key == "native":
        return "native" if value else "torch"
    if key.endswith("_ms"):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    if key.startswith("ratio"):
        return f"{value:.2f}x"
    if key == "error":
        return f"{value:.0e}"
    return f"{value:g}" if isinstance(value, float) else str(value)

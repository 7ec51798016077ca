"""Benchmark results as text. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import SEPARATING_LINE, DataRow, Line, TableFormat, tabulate

# key of a row -> heading; keys that no row has are left out
_COLUMNS = {
    "op": "op",
    "width": "width",
    "widths": "widths",
    "shape": "shape",
    "calls": "calls",
    "channels": "channels",
    "macs": "MMACs",
    "products": "Mproducts",
    "slicing_ms": "slicing",
    "dense_ms": "dense",
    "dense_cl_ms": "dense NHWC",
    "compiled_ms": "compiled",
    "ours_ms": "ours",
    "ours_q1_ms": "1st quartile",
    "ours_q3_ms": "3rd",
    "ours_module_ms": "ours, module",
    "roof_ms": "roof",
    "roof_share": "roof/ours",
    "rise": "rise",
    "over_line": "over line",
    "breaks": "breaks",
    "ratio_slicing": "slicing/ours",
    "ratio_dense": "dense/ours",
    "ratio_dense_cl": "NHWC/ours",
    "ratio_compiled": "compiled/ours",
    "dense_cl_tflop_per_s": "NHWC TFLOP/s",
    "ours_tflop_per_s": "ours TFLOP/s",
    "dense_cl_gb_per_s": "NHWC GB/s",
    "ours_gb_per_s": "ours GB/s",
    "slicing_peak_bytes": "slicing MB",
    "ours_peak_bytes": "ours MB",
    "error": "error",
    "native": "kernel",
}
_TEXT = ("op", "shape", "widths", "breaks")
# "simple", whose columns are two wider than a heading: the headings are a row like any other here.
_PLAIN = TableFormat(
    lineabove=None,
    linebelowheader=Line("", "-", "  ", ""),
    linebetweenrows=None,
    linebelow=None,
    headerrow=DataRow("", "  ", ""),
    datarow=DataRow("", "  ", ""),
    padding=0,
    with_header_hide=None,
)
_TITLES = {
    "inference": "U-Net step, ms an image",
    "training": "Sandwich training step, ms an image",
    "layers": "Layers, ms a batch",
    "width-curve": "Compiled step by width, ms an image",
}


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of a benchmark's result as an aligned table, times in ms.

    `roof` is the time of the MACs at the fastest matrix product, for a layer on a GPU at least that
    of its bytes at the rate of a copy; `kernel` says whether a compiled
    kernel ran ("native") or the plain-torch reference ("torch"); `MB` are peaks of a step.
    """
    if not rows:
        return "(no rows)"
    keys = [key for key in _COLUMNS if any(key in row for row in rows)]
    cells = [[_cell(key, row.get(key)) for key in keys] for row in rows]
    headings = [_COLUMNS[key] for key in keys]
    left = [number for number, key in enumerate(keys) if key in _TEXT]
    return align([headings, SEPARATING_LINE, *cells], left=left)


def align(rows: Sequence[Any], *, left: Sequence[int]) -> str:
    """Return rows of text as a table.

    Args:
        rows: lists of texts, or tabulate's separating line.
        left: the columns whose texts begin under each other; the others' end under each other.
    """
    return tabulate(
        rows,
        tablefmt=_PLAIN,
        colalign=["left" if number in left else "right" for number in range(len(rows[0]))],
        disable_numparse=True,
    )


def format_result(mode: str, result: Mapping[str, Any]) -> str:
    """Return a benchmark's result as text: conditions, table, what the published strategy saves.

    Args:
        mode: "inference" (`run_unet_step`), "training" (`run_training_step`), "layers"
            (`run_ops`) or "width-curve" (`run_width_curve`).
        result: what the function returned.
    """
    about, roof = result["conditions"], result["roof"]
    probes = f"{roof['macs_per_s'] / 1e9:.1f} GMAC/s, {roof['probe']}"
    if "bytes_per_s" in roof:
        probes += f"; {roof['bytes_per_s'] / 1e9:.0f} GB/s, {roof['bytes_probe']}"
    lines = [
        f"{_TITLES[mode]}: {_network(about)}batch {about['batch']}, {about['dtype']}, "
        f"{_place(about)}",
        f"roof: {probes}",
        format_table(result["rows"]),
    ]
    if result.get("uncompiled"):
        lines.append(f"ours ran as the module: {result['uncompiled']}")
    for key in ("failed", "left_out"):
        lines += [f"{key.replace('_', ' ')}: {text}" for text in result.get(key, ())]
    held = result.get("held_bytes")
    if held:
        texts = (f"{name} {count / 1e6:.0f} MB" for name, count in held.items())
        lines.append(f"held between steps for all widths: {', '.join(texts)}")
    strategy = result.get("strategy")
    if strategy is not None:
        lines.append(f"{strategy['name']}: {strategy['macs_saved']:.1%} of the MACs saved")
        for name, realised in strategy["realised_saving"].items():
            lines.append(
                f"  {name:<11} time saved {strategy['time_saved'][name]:6.1%}, "
                f"realised saving {realised:.3f}"
            )
    if "worst" in result:
        lines.append(format_worst(result))
    return "\n".join(lines)


def format_worst(result: Mapping[str, Any]) -> str:
    """Return the line on a `run_width_curve` that says how far it is from its targets."""
    about, texts = result["conditions"], {"rise": "rise", "over_line": "excess over the line"}
    found = (
        f"worst {texts[of]} {worst['value']:+.1%} at width {worst['width']:g}"
        for of, worst in result["worst"].items()
    )
    return f"{about['name']}, batch {about['batch']}: {', '.join(found) or 'one width'}"


def _network(about: Mapping[str, Any]) -> str:
    """What a result says of a network that has a name, and of the rounds where it counts them."""
    if "name" not in about:
        return ""
    network = about["network"]
    size = "x".join(str(network[key]) for key in ("image_size", "image_size", "image_channels"))
    levels = " ".join(str(network["ch"] * mult) for mult in network["ch_mult"])
    return (
        f"{about['name']} ({size}, {levels} channels, {network['groups']} groups), "
        + (f"{about['rounds']} rounds, " if "rounds" in about else "")
    )


def _place(about: Mapping[str, Any]) -> str:
    if about["device"] == "cuda":
        return (
            f"{about['gpu']} ({about['clock']}), driver {about['driver']}, CUDA {about['cuda']}, "
            f"cuDNN {about['cudnn']}, torch {about['torch']}"
        )
    return (
        f"{about['threads']} threads ({about['clock']}), {about['isa']} kernels, "
        f"torch {about['torch']} ({about['torch_isa']})"
    )


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in ("macs", "products"):
        return f"{value / 1e6:.4g}"
    if key == "native":
        return "native" if value else "torch"
    if key == "widths":
        return " ".join(f"{width:g}" for width in value)
    if key == "breaks":
        return ", ".join(_COLUMNS[name] for name in value)
    if key in ("rise", "over_line"):
        return f"{value:+.1%}"
    if key == "roof_share":
        return f"{value:.2f}"
    if key.endswith("_bytes"):
        return f"{value / 1e6:.1f}"
    if key.endswith(("_ms", "_per_s")):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    if key.startswith("ratio"):
        return f"{value:.2f}x"
    if key == "error":
        return f"{value:.0e}"
    return f"{value:g}" if isinstance(value, float) else str(value)

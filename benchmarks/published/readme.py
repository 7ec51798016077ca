"""The README's section on speed and the page of all tables, as text made of the JSON results."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddsm_ext.bench.table import format_result
from ddsm_ext.bench.width_curve import BLOCK, TARGETS

BEGIN, END = "<!-- speed: python benchmarks/report.py -->", "<!-- /speed -->"
_FOLDER = "benchmarks/results"  # as the README links it
# candidate -> (heading in the table, what it is)
_CANDIDATES = {
    "slicing": ("sliced", "as the reference code does"),
    "dense_cl": ("dense", "weights cut out beforehand, channels_last"),
    "compiled": ("compiled", "the same under torch.compile with {compiler}"),
    "ours": ("ddsm_ext", ""),
}
_COMPILERS = {"cpu": "freezing", "cuda": "max-autotune and CUDA graphs"}
_EAGER = {
    "cpu": "",
    "cuda": "Sliced and dense run eagerly: at small batches and widths most of their time is the "
    "processor's, which launches one kernel after the other. ",
}
# What the columns of a width curve are.
_CURVE = (
    "Widths in steps of one norm group. `rise`: above the fastest wider step, at most "
    f"{100 * TARGETS['rise']:.0f} % wanted. `over line`: above the line between the neighbouring "
    f"multiples of {BLOCK} channels of the first level (0 ms at 0), at most "
    f"{100 * TARGETS['over_line']:.0f} % wanted. `roof`: the products that Winograd leaves of the "
    "MACs, at the rate of the fastest matrix product."
)
Results = Sequence[Mapping[str, Any]]
File = tuple[Path, Mapping[str, Any]]
Files = Sequence[File]


def device_of(file: File) -> str:
    """Return what a file's results were measured on: "cpu" or "cuda"."""
    return file[1]["results"][0]["conditions"]["device"]


def gpu_headlines(files: Files) -> list[File]:
    """Return the files of inference on GPUs, by name."""
    return [
        file
        for file in files
        if device_of(file) == "cuda"
        and file[1]["mode"] == "inference"
        and not file[1]["results"][0]["conditions"].get("name")
    ]


def curve_headline(files: Files) -> File | None:
    """Return the newest file of time at every width, or None."""
    chosen = [file for file in files if file[1]["mode"] == "width-curve"]
    return max(chosen, key=lambda file: file[1]["results"][0]["machine"]["started"], default=None)


def headline(files: Files) -> File:
    """Return the file that the README shows: inference in float32, most threads, newest.

    Raises:
        ValueError: there is none.
    """
    chosen = [
        (path, content)
        for path, content in files
        if content["mode"] == "inference"
        and not content["results"][0]["conditions"].get("name")  # another network
        and device_of((path, content)) == "cpu"
        and content["results"][0]["conditions"]["dtype"] == "float32"
    ]
    if not chosen:
        raise ValueError("results: no float32 inference file; need one to make the README of")
    return max(chosen, key=lambda item: _rank(item[1]["results"][0]))


def _rank(result: Mapping[str, Any]) -> tuple[int, str]:
    return result["conditions"]["threads"], result["machine"]["started"]


def speed_section(files: Files) -> str:
    """Return the README's section, without its markers.

    Args:
        files: (file, content) of all results.
    """
    parts = [
        *_section(headline(files), files, "docs/unet-step.png"),
        *(
            part
            for file in gpu_headlines(files)
            for part in _section(file, files, f"docs/unet-step-{file[0].stem}.png")
        ),
        f"All tables, layer by layer too: [{_FOLDER}]({_FOLDER}/README.md); "
        "[benchmarks](benchmarks/README.md) says how to measure your machine.",
    ]
    return "\n\n".join(_wrapped(part) for part in parts)


def _section(file: File, files: Files, figure: str) -> list[str]:
    path, content = file
    training = {other.name: result for other, result in files}.get(
        path.name.replace("-inference.", "-training.")
    )
    results = content["results"]
    timed = {key for result in results for row in result["rows"] for key in row}
    names = [name for name in _CANDIDATES if f"{name}_ms" in timed]
    return [
        _conditions(results, names, f"{_FOLDER}/{path.name}"),
        _table(results, names),
        f"![Milliseconds an image against width, by batch size]({figure})",
        _notes(results),
        *_strategy(results),
        *([_training(training["results"])] if training else []),
        _memory(results),
    ]


def _wrapped(part: str) -> str:
    if part.startswith(("|", "!")):  # tables and images keep their lines
        return part
    return textwrap.fill(part, 118, break_long_words=False, break_on_hyphens=False)


def replace_section(text: str, section: str) -> str:
    """Return the README with the section between its two markers replaced.

    Raises:
        ValueError: the markers are not there once each, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"README: need {BEGIN} and then {END}, once each")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def all_tables(files: Files) -> str:
    """Return the page with the table of every result."""
    parts = [
        "# Results",
        "Made by `python benchmarks/report.py` of the JSON files beside it. Times are medians of "
        "interleaved rounds, ratios medians of the ratios within a round.",
    ]
    for path, content in files:
        machine = content["results"][0]["machine"]
        parts.append(f"## [{path.stem}]({path.name})")
        about = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}."
        parts.append(f"{about} {machine.get('note', '')}".rstrip())
        parts += [_CURVE] if content["mode"] == "width-curve" else []
        parts += [
            f"```\n{format_result(content['mode'], result)}\n```" for result in content["results"]
        ]
    if not any(device_of(file) == "cuda" for file in files):
        parts += ["## NVIDIA GPUs", "Not yet measured."]
    return "\n\n".join(parts) + "\n"


def _conditions(results: Results, names: Sequence[str], link: str) -> str:
    about, machine = results[0]["conditions"], results[0]["machine"]
    error = max(row["error"] for result in results for row in result["rows"])
    legend = "; ".join(f"{_CANDIDATES[n][0]}: {_CANDIDATES[n][1]}" for n in names if n != "ours")
    legend = legend.format(compiler=_COMPILERS[about["device"]])
    return (
        f"One step of the CIFAR-10 U-Net (35.9 M parameters), {_unit(about)} an image, "
        f"{about['dtype']}, {_processor(about, machine)}, torch "
        f"{about['torch']}: medians of interleaved rounds ({about['clock']}), ratios medians of "
        f"the ratios within a round, outputs equal to {error:.0e} ([data]({link})). "
        f"{legend[0].upper()}{legend[1:]}. {_EAGER[about['device']]}"
        f"{_sentence(about.get('note', ''))}{_sentence(machine.get('note', ''))}"
    ).rstrip()


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}. " if text else ""


def _processor(about: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    if about["device"] == "cuda":
        versions = f"driver {about['driver']}, CUDA {about['cuda']}, cuDNN {about['cudnn']}"
        return f"{about['gpu']} ({versions})"
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    return f"{threads} ({machine['cpu']}, {machine['cores']} cores, {about['isa']})"


def _unit(about: Mapping[str, Any]) -> str:
    return "us" if about["device"] == "cuda" else "ms"


def _table(results: Results, names: Sequence[str]) -> str:
    others = [name for name in names if name != "ours"]
    scale = 1000 if _unit(results[0]["conditions"]) == "us" else 1
    head = ["batch", "width", "MACs", *(_CANDIDATES[name][0] for name in names), "roof"]
    lines = [[*head, *(f"ratio to {_CANDIDATES[name][0]}" for name in others)]]
    lines.append(["---:"] * len(lines[0]))
    for result in results:
        for row in result["rows"]:
            times = [_time(row.get(f"{name}_ms"), scale) for name in (*names, "roof")]
            ratios = [_ratio(row.get(f"ratio_{name}")) for name in others]
            batch = result["conditions"]["batch"]
            lines.append(
                [f"{batch}", f"{row['width']:.4g}", f"{row['macs'] / 1e6:.0f} M", *times, *ratios]
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _time(value_ms: float | None, scale: int = 1) -> str:
    if value_ms is None:  # not timed at this batch size or width
        return "-"
    value = scale * value_ms
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _notes(results: Results) -> str:
    roof = results[0]["roof"]
    text = (
        f"The roof is the MACs at {roof['macs_per_s'] / 1e9:.0f} G a second, the fastest "
        f"{roof['probe']} here"
    )
    if results[0]["conditions"]["device"] == "cuda":
        text += f"; a {roof['bytes_probe']} ran at {roof['bytes_per_s'] / 1e12:.2f} TB/s."
    else:
        text += "; Winograd convolution needs fewer products and may pass it."
    for result in results:
        batch = result["conditions"]["batch"]
        if result.get("uncompiled"):
            text += f" At batch {batch} ddsm_ext ran as the module: {result['uncompiled']}."
    odd = [row for row in results[0]["rows"] if row["norm"] == "channels_per_group"]
    for row in odd:
        text += (
            f" At width {row['width']:.4g} the channels (60 and 120) fill no block of 16; the "
            "reference's 32 fixed groups do not divide them, so all candidates keep the channels "
            "a group instead."
        )
    return text


def _strategy(results: Results) -> list[str]:
    known = [result for result in results if result["strategy"] is not None]
    if not known:
        return []
    savings = "; ".join(
        f"at batch {result['conditions']['batch']} {_percent(strategy['time_saved']['ours'])}, "
        f"a realised saving of {strategy['realised_saving']['ours']:.2f} "
        f"(sliced: {strategy['realised_saving']['slicing']:.2f})"
        for result in known
        for strategy in [result["strategy"]]
    )
    macs_saved = _percent(known[0]["strategy"]["macs_saved"])
    return [
        f"The published CIFAR-10 strategy, 1000 steps, saves {macs_saved} of the MACs; of the "
        f"time, ddsm_ext saves {savings}. The paper reports 0.75 on its GPU."
    ]


def _training(results: Results) -> str:
    steps = "; ".join(
        f"batch {result['conditions']['batch']}: {_time(row['slicing_ms'])} ms an image sliced, "
        f"{_time(row['ours_ms'])} ms here, {row['ratio_slicing']:.2f}x"
        for result in results
        for row in result["rows"]
    )
    widths = ", ".join(f"{width:g}" for width in results[0]["rows"][0]["widths"])
    return f"Sandwich training step, forward and backward at widths {widths}: {steps}."


def _memory(results: Results) -> str:
    result = results[-1]
    row = max(result["rows"], key=lambda row: row["width"])
    at = f"at width {row['width']:g} and batch {result['conditions']['batch']}"
    sliced, ours = (row[f"{name}_peak_bytes"] / 1e6 for name in ("slicing", "ours"))
    if result.get("held_bytes"):
        held = ", ".join(
            f"{count / 1e6:.0f} MB {_CANDIDATES[name][0]}"
            for name, count in result["held_bytes"].items()
            if name in _CANDIDATES
        )
        return (
            f"A step {at} allocates up to {sliced:.0f} MB sliced and {ours:.0f} MB here; weights "
            f"beyond the network's own and graphs of all widths hold {held}."
        )
    return (
        f"Activations of a step {at} peak at {sliced:.0f} MB sliced and {ours:.0f} MB here; the "
        "weights as the kernels read them, one set for all widths, take "
        f"{row['ours_panel_bytes'] / 1e6:.0f} MB."
    )

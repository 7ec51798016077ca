"""Ask whether torch's convolution (cuDNN on a GPU) reads a sliced filter without a copy.

python benchmarks/bench_strided_filter.py --device cuda
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ddsm_ext.bench.candidates import relative_error
from ddsm_ext.bench.conditions import DTYPES, Setting
from ddsm_ext.bench.timing import interleaved, ratio
from ddsm_ext.io.files import write_json

# Channels in and out, of as many allocated as the first has; side of the image and of the kernel.
SHAPES = ((256, 128, 128, 16, 3), (256, 64, 64, 32, 3), (256, 128, 256, 16, 1))


def run_strided_filter(setting: Setting, batch: int = 128, rounds: int = 9) -> dict[str, Any]:
    """Compare `F.conv2d` by `weight[:c_out, :c_in]` with one by a packed copy of it.

    Both filters and the images are channels_last.

    Args:
        setting: device and arithmetic.
        batch: images.
        rounds: measured rounds.

    Returns:
        JSON-ready: "rows" (one a shape: filter_bytes, extra_bytes that the sliced one allocates
        beyond the packed one, extra_calls (kernels on a GPU, operators on the CPU, that run for the
        sliced one only, and how often), copied (extra_bytes hold the filter), sliced_ms, packed_ms,
        ratio, error) and "conditions".
    """
    with setting.active(), torch.no_grad():
        rows = [_measure(shape, setting, batch, rounds) for shape in SHAPES]
    return {"rows": rows, "conditions": setting.conditions(batch)}


def _measure(
    shape: tuple[int, int, int, int, int], setting: Setting, batch: int, rounds: int
) -> dict[str, Any]:
    c_max, c_in, c_out, size, kernel = shape
    generator = torch.Generator(setting.place).manual_seed(0)

    def normal(*size: int) -> Tensor:
        values = torch.randn(*size, generator=generator, device=setting.place).to(setting.kind)
        return values.contiguous(memory_format=torch.channels_last)

    x, weight = normal(batch, c_in, size, size), normal(c_max, c_max, kernel, kernel)
    sliced = weight[:c_out, :c_in]  # [c_out, c_in, k, k], with gaps
    packed = sliced.clone(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], Tensor]] = {
        "sliced": lambda: F.conv2d(x, sliced, padding=kernel // 2),
        "packed": lambda: F.conv2d(x, packed, padding=kernel // 2),
    }
    error = relative_error(calls["sliced"](), calls["packed"]())
    peaks = setting.device.peak_bytes(calls)
    seen = {name: _called(call, setting) for name, call in calls.items()}
    times = interleaved(calls, rounds=rounds, **setting.timing)
    filter_bytes = packed.numel() * packed.element_size()
    extra_bytes = peaks["sliced"] - peaks["packed"]
    return {
        "shape": f"{c_in} of {c_max} -> {c_out}, {kernel}x{kernel} @{size}",
        "filter_bytes": filter_bytes,
        "extra_bytes": extra_bytes,
        "extra_calls": dict(seen["sliced"] - seen["packed"]),
        "copied": extra_bytes >= filter_bytes,
        "sliced_ms": times["sliced"].median_ms,
        "packed_ms": times["packed"].median_ms,
        "ratio": ratio(times["sliced"], times["packed"]),
        "error": error,
    }


def _called(call: Callable[[], Tensor], setting: Setting) -> Counter[str]:
    """How often a call runs each kernel, or on the CPU each operator."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.on_gpu else [])]
    with profile(activities=activities) as recorded:
        call()
        if setting.on_gpu:
            torch.cuda.synchronize()
    device = DeviceType.CUDA if setting.on_gpu else DeviceType.CPU
    return Counter(event.name for event in recorded.events() if event.device_type == device)


def format_strided_filter(result: dict[str, Any]) -> str:
    """Return the result as text, a line a shape."""
    lines = []
    for row in result["rows"]:
        verdict = "copied" if row["copied"] else "not copied"
        calls = ", ".join(f"{count} x {name[:60]}" for name, count in row["extra_calls"].items())
        lines.append(
            f"{row['shape']}: filter {verdict} ({row['extra_bytes']} bytes more, the filter has "
            f"{row['filter_bytes']}), {row['ratio']:.2f}x a packed filter's time; "
            f"besides: {calls or 'nothing'}"
        )
    return "\n".join(lines)


def main(words: Sequence[str]) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args(words)
    result = run_strided_filter(Setting(arguments.dtype, 1, arguments.device), arguments.batch)
    print(format_strided_filter(result))
    if arguments.json is not None:
        print(write_json(arguments.json, result))


if __name__ == "__main__":
    main(sys.argv[1:])

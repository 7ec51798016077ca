"""Ask whether torch's convolution (cuDNN on a GPU) reads a sliced filter without a copy.

python benchmarks/bench_strided_filter.py --device cuda
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ddsm_ext.bench.conditions import DTYPES, Setting
from ddsm_ext.bench.strided_filter import format_strided_filter, run_strided_filter
from ddsm_ext.io.files import write_json


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=128, help="images")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    result = run_strided_filter(Setting(arguments.dtype, 1, arguments.device), arguments.batch)
    print(format_strided_filter(result))
    if arguments.json is not None:
        print(write_json(arguments.json, result))


if __name__ == "__main__":
    main()

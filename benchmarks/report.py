"""Make texts and plots of the JSON results.

python benchmarks/report.py                              # README, docs and the page of all tables
python benchmarks/report.py --results DIR --out DIR      # tables.md and plots of other results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from published.figure import curve_figure, step_figure
from published.readme import (
    Files,
    all_tables,
    curve_headline,
    gpu_headlines,
    headline,
    replace_section,
    speed_section,
)
from published.results import load_results

from ddsm_ext.io.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent


def main(words: Sequence[str]) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--out", type=Path, help="folder; default: this repository's own files")
    arguments = parser.parse_args(words)
    files = load_results(arguments.results)
    if arguments.out is not None:
        write_atomic(arguments.out / "tables.md", all_tables(files).encode())
        _save_plots(files, arguments.out)
        return
    readme = ROOT / "README.md"
    text = replace_section(readme.read_text(encoding="utf-8"), speed_section(files))
    write_atomic(readme, text.encode())
    write_atomic(arguments.results / "README.md", all_tables(files).encode())
    _, content = headline(files)
    step_figure(content["results"]).savefig(ROOT / "docs" / "unet-step.png", dpi=160)
    _save_plots(files, ROOT / "docs")


def _save_plots(files: Files, folder: Path) -> None:
    for path, content in gpu_headlines(files):
        step_figure(content["results"]).savefig(folder / f"unet-step-{path.stem}.png", dpi=160)
    curve = curve_headline(files)
    if curve is not None:
        curve_figure(curve[1]["results"]).savefig(folder / "width-curve.png", dpi=160)


if __name__ == "__main__":
    main(sys.argv[1:])

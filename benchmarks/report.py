"""Make the README's speed section, its plot and the page of all tables of the JSON results.

python benchmarks/report.py
"""

from __future__ import annotations

from pathlib import Path

from ddsm_ext.bench.figure import step_figure
from ddsm_ext.bench.readme import all_tables, headline, replace_section, speed_section
from ddsm_ext.bench.results import load_results
from ddsm_ext.io.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Write the three files."""
    files = load_results(ROOT / "benchmarks" / "results")
    readme = ROOT / "README.md"
    text = replace_section(readme.read_text(encoding="utf-8"), speed_section(files))
    write_atomic(readme, text.encode())
    write_atomic(ROOT / "benchmarks" / "results" / "README.md", all_tables(files).encode())
    _, content = headline(files)
    step_figure(content["results"]).savefig(ROOT / "docs" / "unet-step.png", dpi=160)


if __name__ == "__main__":
    main()

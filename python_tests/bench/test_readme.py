"""The README's speed section and plot say what the JSON results hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench.scripts import ROOT  # makes published importable
from published.figure import step_figure
from published.readme import (
    BEGIN,
    END,
    all_tables,
    headline,
    replace_section,
    speed_section,
)
from published.results import load_results


def result(batch: int = 8, dtype: str = "float32", threads: int = 1) -> dict[str, Any]:
    """An inference result with round figures, as JSON holds it."""
    rows = [
        {
            "width": width,
            "norm": norm,
            "macs": macs,
            "slicing_ms": 4 * ours,
            "compiled_ms": 3 * ours,
            "ours_ms": ours,
            "roof_ms": ours / 2,
            "ratio_slicing": 4.125,
            "ratio_compiled": 3.0,
            "slicing_peak_bytes": 30e6,
            "ours_peak_bytes": 10e6,
            "ours_panel_bytes": 400e6,
            "error": 2e-6,
            "native": True,
        }
        for width, norm, macs, ours in (
            (1.0, "fixed_groups", 6.222e9, 50.0),
            (0.46875, "channels_per_group", 1.411e9, 12.5),
        )
    ]
    machine = {"cpu": "A CPU", "cores": 2, "system": "Linux", "started": "2026-01-01"}
    return {
        "rows": rows,
        "strategy": {
            "name": "published CIFAR-10 strategy",
            "macs_saved": 0.485,
            "time_saved": {"slicing": 0.4, "ours": 0.46},
            "realised_saving": {"slicing": 0.82, "ours": 0.95},
        },
        "roof": {"macs_per_s": 8e10, "probe": "torch.mm of 1024 x 1024 float32"},
        "conditions": {
            "batch": batch,
            "dtype": dtype,
            "threads": threads,
            "device": "cpu",
            "clock": "wall time",
            "torch": "2.13.0",
            "torch_isa": "avx2",
            "isa": "avx2",
        },
        "machine": machine | {"note": "It was idle."},
    }


def named(name: str, *results: dict[str, Any], mode: str = "inference") -> tuple[Path, Any]:
    return Path(f"{name}-{mode}.json"), {"mode": mode, "results": list(results)}


def test_the_readme_and_the_page_of_tables_are_what_the_results_give() -> None:
    files = load_results(ROOT / "benchmarks" / "results")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert replace_section(readme, speed_section(files)) == readme
    page = ROOT / "benchmarks" / "results" / "README.md"
    assert page.read_text(encoding="utf-8") == all_tables(files)
    assert (ROOT / "docs" / "unet-step.png").exists()


def test_section_holds_the_figures_of_the_results() -> None:
    training = result()
    training["rows"] = [
        {"widths": [1.0, 0.25], "slicing_ms": 300.0, "ours_ms": 200.0, "ratio_slicing": 1.5}
    ]
    files = [named("a", result(1), result(8)), named("a", training, mode="training")]
    section = speed_section(files)
    text = " ".join(section.split())
    table = [line for line in section.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 * 2
    assert table[2] == "| 1 | 1 | 6222 M | 200 | 150 | 50.0 | 25.0 | 4.12x | 3.00x |"
    assert "at batch 8 46.0 %, a realised saving of 0.95 (sliced: 0.82)" in text
    assert "widths 1, 0.25: batch 8: 300 ms an image sliced, 200 ms here, 1.50x" in text
    assert "30 MB sliced and 10 MB here" in text
    assert "(benchmarks/results/a-inference.json)" in text
    assert text.count("It was idle.") == 1
    assert "At width 0.4688 the channels (60 and 120)" in text


def test_a_candidate_that_one_batch_lacks_is_a_dash() -> None:
    partial = result(8)
    for row in partial["rows"]:
        del row["compiled_ms"], row["ratio_compiled"]
    lines = speed_section([named("a", result(1), partial)]).splitlines()
    rows = [line for line in lines if line.startswith("| 8 | 1 |")]
    assert rows == ["| 8 | 1 | 6222 M | 200 | - | 50.0 | 25.0 | 4.12x | - |"]


def test_headline_is_float32_on_most_threads() -> None:
    two = named("two", result(threads=2))
    files = [
        named("bf16", result(dtype="bfloat16", threads=2)),
        two,
        named("one", result(threads=1)),
        named("layers", result(threads=2), mode="layers"),
    ]
    assert headline(files) == two
    with pytest.raises(ValueError, match="no float32 inference file"):
        headline(files[:1])


def test_page_of_tables_holds_every_result() -> None:
    page = all_tables([named("one", result(1), result(8)), named("two", result(8))])
    assert page.count("batch 8, float32") == 2
    assert page.count("## [") == 2


def test_section_is_replaced_between_its_markers() -> None:
    text = f"# Title\n{BEGIN}\nold\n{END}\nafter\n"
    assert replace_section(text, "new") == f"# Title\n{BEGIN}\nnew\n{END}\nafter\n"
    for wrong in ("", f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN}", f"{BEGIN} {END} {END}"):
        with pytest.raises(ValueError, match="once each"):
            replace_section(wrong, "new")


def test_figure_shows_the_times_the_square_and_the_roof() -> None:
    figure = step_figure([result(1), result(8)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["batch 1", "batch 8"]
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert len(lines) == 5  # no dense_cl in this result
    assert list(lines["ddsm_ext"].get_ydata()) == [12.5, 50.0]
    square = lines["width² from ddsm_ext's widest"].get_ydata()
    assert list(square) == pytest.approx([50 * 0.46875**2, 50])
    assert list(lines["direct convolution at peak rate"].get_ydata()) == [6.25, 25.0]

"""Time at every width: what breaks a target, the products after Winograd, file, table and plot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench.scripts import ROOT, load  # makes published importable
from published.figure import curve_figure
from published.readme import all_tables, curve_headline
from published.results import load_results

from ddsm_ext.bench.conditions import Setting
from ddsm_ext.bench.device import Cpu
from ddsm_ext.bench.table import format_result
from ddsm_ext.bench.timing import Timing
from ddsm_ext.bench.width_curve import (
    group_widths,
    over_line,
    products_left,
    rise,
    run_width_curve,
)
from ddsm_ext.graph.count import macs
from ddsm_ext.models import UNetConfig, preset

TINY = replace(preset("digits"), ch=32, ch_mult=(1,), attn=(), groups=4)
# The machine was a tenth slower in the second round.
TIMES = {
    channels: Timing((first, 1.1 * first))
    for channels, first in {48: 200.0, 32: 100.0, 24: 77.0, 16: 40.0, 8: 30.0, 4: 36.0}.items()
}


def test_widths_are_steps_of_one_group() -> None:
    assert group_widths(preset("digits")) == [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    cifar10 = preset("cifar10")
    widths = group_widths(cifar10)
    assert [cifar10.slicing.active(128, width) for width in widths] == list(range(128, 0, -4))


@pytest.mark.parametrize(
    ("channels", "excess"),
    [
        (24, 0.10),  # 77 of 40 + (100 - 40) / 2 = 70
        (8, 0.50),  # 30 of 40 / 2 = 20
        (4, 2.60),  # 36 of 40 / 4 = 10
        (16, None),
        (48, None),
    ],
)
def test_excess_over_the_line_between_multiples_of_16(channels: int, excess: float | None) -> None:
    assert over_line(TIMES, channels) == (excess and pytest.approx(excess))


def test_no_line_without_both_neighbours() -> None:
    known = {40: TIMES[48], 24: TIMES[24], 16: TIMES[16]}
    assert over_line(known, 40) is None
    assert over_line(known, 24) is None
    assert over_line({24: TIMES[24], 32: TIMES[32]}, 24) is None


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(48, None), (32, -0.5), (16, 40 / 77 - 1), (8, -0.25), (4, 0.2)],  # 4: 36 of 30
)
def test_rise_is_above_the_fastest_wider_step(channels: int, expected: float | None) -> None:
    assert rise(TIMES, channels) == (expected and pytest.approx(expected))


def test_a_slow_creep_is_a_rise() -> None:
    """2 % a step, 4 % in all."""
    times = {12: Timing((100.0,)), 8: Timing((102.0,)), 4: Timing((104.0,))}
    assert rise(times, 4) == pytest.approx(0.04)


@pytest.mark.parametrize(("width", "millions"), [(1.0, 2343), (0.5, 628), (0.25, 178)])
def test_products_that_winograd_leaves_of_cifar10(width: float, millions: int) -> None:
    """The figures that the work on the CPU runtime was planned with."""
    assert round(products_left(preset("cifar10"), width) / 1e6) == millions


def test_an_image_of_2x2_is_one_small_tile() -> None:
    """16 products instead of 36 for each pair of channels of the eleven 3x3 convolutions.

    Pairs: first and last 3 x 4 each, two residual blocks in the middle and one before them
    2 x 4 x 4 each, two after them 8 x 4 + 4 x 4 each.
    """
    config = UNetConfig(image_size=2, ch=4, ch_mult=(1,), attn=(), num_res_blocks=1, groups=1)
    pairs = 2 * 12 + 3 * 32 + 2 * 48
    assert macs(config, 1.0) - products_left(config, 1.0) == pairs * (36 - 16)


def test_rows_of_a_run() -> None:
    result = run_width_curve("tiny", TINY, 2, 3)
    rows, about = result["rows"], result["conditions"]
    assert [(row["width"], row["channels"]) for row in rows] == [
        (1.0, 32), (0.75, 24), (0.5, 16), (0.25, 8),
    ]  # fmt: skip
    for row in rows:
        assert row["ours_min_ms"] <= row["ours_q1_ms"] <= row["ours_ms"] <= row["ours_q3_ms"]
        assert row["error"] < 1e-4
        assert row["roof_share"] == pytest.approx(row["roof_ms"] / row["ours_ms"])
        roof_ms = 1000 * row["products"] / result["roof"]["macs_per_s"]
        assert row["roof_ms"] == pytest.approx(roof_ms)
    assert [row["rise"] is None for row in rows] == [True, False, False, False]
    assert [row["over_line"] is None for row in rows] == [True, False, True, False]
    assert result["worst"]["rise"]["value"] == max(row["rise"] for row in rows[1:])
    assert (about["name"], about["batch"], about["threads"], about["rounds"]) == ("tiny", 2, 1, 3)


def test_steps_that_would_run_as_modules_are_refused() -> None:
    class Uncompiled(Cpu):
        def runner(self, net: Any) -> Any:
            self.reason_against = lambda dtype, device: "the weights are elsewhere"
            return self

    with pytest.raises(ValueError, match="would run uncompiled, the weights are elsewhere"):
        run_width_curve("tiny", TINY, 1, 1, setting=Setting(device=Uncompiled()))


def made(name: str, batch: int, *times_ms: float) -> dict[str, Any]:
    """A result at widths 1, 0.5, ... with these times; the narrowest breaks both targets."""
    rows = [
        {
            "width": 2.0**-number,
            "channels": 64 >> number,
            "macs": 1e9 / 4**number,
            "products": 4e8 / 4**number,
            "ours_ms": time_ms,
            "ours_q1_ms": time_ms,
            "ours_q3_ms": time_ms,
            "rise": None if number == 0 else 0.034,
            "over_line": None if number == 0 else 0.5,
            "breaks": [],
            "roof_ms": 0.5 * time_ms,
            "roof_share": 0.5,
            "error": 1e-6,
        }
        for number, time_ms in enumerate(times_ms)
    ]
    rows[-1]["breaks"] = ["rise", "over_line"]
    worst = {"value": 0.034, "width": rows[-1]["width"]}
    network = {"image_size": 8, "image_channels": 1, "ch": 64, "ch_mult": [1, 2], "groups": 8}
    return {
        "rows": rows,
        "worst": {"rise": worst, "over_line": {**worst, "value": 0.5}},
        "roof": {"macs_per_s": 5e10, "probe": "torch.mm of 1024 x 1024 float32"},
        "conditions": {
            "name": name,
            "network": network,
            "batch": batch,
            "rounds": 31,
            "dtype": "float32",
            "threads": 1,
            "device": "cpu",
            "clock": "thread CPU time",
            "torch": "2.13.0",
            "torch_isa": "avx2",
            "isa": "avx2",
        },
        "machine": {
            "cpu": "A CPU",
            "cores": 2,
            "system": "Linux",
            "started": "2026-01-01",
            "versions": {"ddsm_ext": "0.1.0"},
        },
    }


def test_table_says_what_breaks_a_target() -> None:
    lines = format_result("width-curve", made("ch64", 8, 2.0, 1.0)).splitlines()
    assert "ch64 (8x8x1, 64 128 channels, 8 groups), 31 rounds, batch 8, float32, 1 th" in lines[0]
    cells = "0.5 32 250 100 1 1 1 0.5 0.50 +3.4% +50.0% rise, over line 1e-06"
    assert " ".join(lines[-2].split()) == cells
    assert lines[-1] == (
        "ch64, batch 8: worst rise +3.4% at width 0.5, "
        "worst excess over the line +50.0% at width 0.5"
    )


def test_figure_has_a_panel_a_network_and_marks_what_breaks_a_target() -> None:
    figure = curve_figure([made("a", 1, 8.0, 2.0), made("a", 8, 4.0, 3.0), made("b", 8, 1.0, 0.5)])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "a, 64 channels",
        "b, 64 channels",
    ]
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines == {"MACs": [1.0, 0.25], "batch 1": [1.0, 0.25], "batch 8": [1.0, 0.75]}
    for marks in figure.axes[0].collections:
        assert marks.get_offsets().tolist() == [[0.5, 0.25], [0.5, 0.75]]
    assert "A CPU, avx2, 1 thread, float32, ddsm_ext 0.1.0, torch 2.13.0" in figure.get_supxlabel()


def test_the_script_writes_what_the_report_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("bench_width_curve", ROOT / "benchmarks" / "bench_width_curve.py")
    script.NETWORKS |= {"digits": TINY, "ch64": replace(TINY, ch=64)}
    words = ["--rounds", "1", "--json", str(tmp_path / "results")]
    assert script.main(["--network", "ch64", "digits", "--batch", "1", "2", *words]) == 0
    assert script.main(["--network", "digits", "--batch", "2", *words]) == 0
    shown = capsys.readouterr().out
    assert "digits, batch 2: worst rise" in shown
    files = load_results(tmp_path / "results")
    ((path, content),) = files
    assert path.name.endswith("-float32-1t-width-curve.json")
    measured = [(r["conditions"]["name"], r["conditions"]["batch"]) for r in content["results"]]
    assert measured == [("ch64", 1), ("ch64", 2), ("digits", 1), ("digits", 2)]
    assert curve_headline(files) == files[0]

    report = load("benchmarks_report", ROOT / "benchmarks" / "report.py")
    report.main(["--results", str(tmp_path / "results"), "--out", str(tmp_path)])
    page = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert page == all_tables(files)
    assert page.count("Compiled step by width, ms an image: ") == 4
    assert "multiples of 16 channels" in page
    assert (tmp_path / "width-curve.png").stat().st_size > 10_000


def test_the_script_says_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("bench_width_curve", ROOT / "benchmarks" / "bench_width_curve.py")
    folder = tmp_path / "nothing"
    words = ["--network", "cifar10", "digits", "--batch", "1", "4096"]
    assert script.main([*words, "--limit-minutes", "0", "--json", str(folder)]) == 0
    shown = capsys.readouterr().out
    for case in ("cifar10, batch 1", "cifar10, batch 4096", "digits, batch 1"):
        assert f"{case}: left out, needs about" in shown
    assert not folder.exists()

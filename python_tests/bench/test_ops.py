"""`run_ops`: complete, checked rows and totals that add up; the table of chosen algorithms."""

from __future__ import annotations

import json

import pytest
import torch
from bench.small_network import ADM, SMALL

from ddsm_ext.bench.candidates import OPS
from ddsm_ext.bench.conditions import DTYPES
from ddsm_ext.bench.ops import explain_choices, heaviest_first, run_ops
from ddsm_ext.bench.steps import DEFAULT_CANDIDATES
from ddsm_ext.bench.table import format_result
from ddsm_ext.cli import bench as command
from ddsm_ext.cli.main import main
from ddsm_ext.graph.shapes import op_shapes


def test_rows_are_complete() -> None:
    threads = torch.get_num_threads()
    seen = []
    result = run_ops(
        (1.0, 0.5), 2, rounds=2, costliest=2, config=SMALL, progress=lambda *a: seen.append(a)
    )
    rows = result["rows"]
    assert torch.get_num_threads() == threads
    assert {(row["op"], row["width"]) for row in rows} == {
        (op, width)
        for op in ("conv2d", "linear", "group_norm", "attention")
        for width in (1.0, 0.5)
    }
    assert seen[-1] == (len(rows), len(rows))
    for row in rows:
        assert row["slicing_ms"] > 0
        assert row["dense_cl_min_ms"] <= row["dense_cl_ms"]
        assert row["ratio_slicing"] > 0
        assert row["error"] < 1e-4
        if row["op"] == "group_norm":
            assert row["roof_ms"] is None
        else:
            macs = 2 * row["macs"]  # a batch of 2
            assert row["roof_ms"] == pytest.approx(1e3 * macs / result["roof"]["macs_per_s"])
    about = result["conditions"]
    assert (about["batch"], about["dtype"], about["threads"]) == (2, "float32", 1)
    assert (about["torch"], about["clock"]) == (torch.__version__, "thread CPU time")
    json.dumps(result, allow_nan=False)
    text = format_result("layers", result).splitlines()
    assert "slicing/ours" in text[2]
    assert len(text) == 2 + 2 + len(rows)


def test_step_totals_are_calls_times_time() -> None:
    rows = run_ops([0.5], 1, rounds=1, config=SMALL, ops=["linear", "group_norm"])["rows"]
    *parts, total = [row for row in rows if row["op"] == "linear"]
    assert total["shape"] == "step total"
    assert total["ours_ms"] == pytest.approx(sum(r["calls"] * r["ours_ms"] for r in parts))
    assert total["roof_ms"] == pytest.approx(sum(r["calls"] * r["roof_ms"] for r in parts))
    assert total["calls"] == sum(r["calls"] for r in parts) == 2 + 8  # embedding, blocks
    assert rows[-1]["roof_ms"] is None


def test_a_width_that_the_reference_refuses_has_groups_of_fixed_size() -> None:
    rows = run_ops([0.4375], 1, rounds=1, config=SMALL, ops=["group_norm"])["rows"]
    # 28 of 64 and 56 of 128 channels, 4 and 8 in each of 7 groups.
    assert {row["shape"] for row in rows} >= {"28 /7 @8 silu", "56 /7 @4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"ops": ["conv3d"]}, "'conv3d'"),
        ({"widths": [2.0]}, "2"),
    ],
)
def test_wrong_arguments_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_ops(config=SMALL, **arguments)


def test_one_row_a_shape_with_one_choice() -> None:
    _, headings, *rows = explain_choices((1.0, 0.5), 4, config=SMALL).splitlines()
    shapes = [op_shapes(SMALL, width, "conv2d") for width in (1.0, 0.5)]
    assert len(rows) == sum(len(part) for part in shapes)
    assert all(row.count("*") == 1 for row in rows)
    # Winograd computes neither 1x1 kernels nor strides.
    for row in rows:
        if " 1x1 " in row or " /2 " in row:
            (chosen,) = (cell for cell in row.split() if cell.startswith("*"))
            assert row.index(chosen) + len(chosen) == headings.index(" us") + len(" us")


def test_shapes_come_by_their_share_of_a_step() -> None:
    for op in ("conv2d", "group_norm", "resample"):
        found = heaviest_first(ADM, 0.5, op)
        assert dict(found) == op_shapes(ADM, 0.5, op)
        work = [(shape.macs or shape.activations) * calls for shape, calls in found]
        assert work == sorted(work, reverse=True)
        assert work[-1] > 0


def test_the_command_knows_without_torch_what_there_is() -> None:
    assert command.OPS == OPS
    assert set(command.DTYPES) == set(DTYPES)
    assert tuple(command.CANDIDATES.split(",")) == DEFAULT_CANDIDATES


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench --ops linear --widths 0.25 --batch 1 --threads 1 --quick"
    assert main(words.split()) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Layers, ms a batch: batch 1, float32, 1 threads")
    assert "cores, Python" in said.err
    assert main([*words.split(), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["op"], row["width"]) for row in rows] == [("linear", 0.25)] * 2
